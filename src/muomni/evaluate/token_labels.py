"""Rows over tokens against the samples that they were made from: targets say what the sample says, and their end is taught."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from muomni.data.sample import Sample
from muomni.data.token_rows import TokenRows
from muomni.data.tokenized import encode
from muomni.errors import DataError, TokenRangeError
from muomni.evaluate.facts import Fact, share
from muomni.tokens.chat import IGNORE
from muomni.tokens.sequences import TASKS
from muomni.tokens.space import FRAMING
from muomni.tokens.unified import UnifiedTokenizer

LOOKED_AT = 64


def facts(rows: TokenRows, samples: Sequence[Sample], tokens: UnifiedTokenizer) -> dict[str, Fact]:
    """taught_right: rows whose labels are the target span and nothing else, and decode to what the sample holds;
    ends_taught: rows whose last label is the end of the span.
    """
    right = ended = n = 0
    for place in np.linspace(0, len(rows.places) - 1, min(LOOKED_AT, len(rows.places))).astype(int).tolist():
        task, sample = rows.places[place][0], samples[rows.sample(place)]
        try:
            item = rows.item(place, np.random.default_rng(0))
        except DataError:
            continue  # the loader counts and names it
        n += 1
        writes = TASKS[task].writes
        start, end = (tokens.space.special(name) for name in FRAMING[writes][1:])
        first_T = item.labels if item.labels.ndim == 1 else item.labels[0]
        taught = first_T[first_T != IGNORE].tolist()
        ended += taught[-1:] == [end]
        is_tail = int(first_T[-1]) != IGNORE and not bool((first_T[len(first_T) - len(taught) :] == IGNORE).any())
        right += int(is_tail and taught[:1] == [start] and _says(tokens, task, sample, item.ids, len(taught)))
    return {"taught_right": share(right, n), "ends_taught": share(ended, n)}


def _says(tokens: UnifiedTokenizer, task: str, sample: Sample, ids: torch.Tensor, count: int) -> bool:
    """Whether the last `count` ids hold what the sample says or shows."""
    inside = ids[..., ids.shape[-1] - count + 1 : -1]
    found = encode.wanted(sample)
    if isinstance(found, str):
        return False
    if TASKS[task].writes == "text":
        return tokens.decode_text(inside.tolist()) == tokens.text.normal(found.text_out or found.text_in)
    try:
        tokens.space.codes_of(TASKS[task].writes, inside)
    except TokenRangeError:
        return False
    return True
