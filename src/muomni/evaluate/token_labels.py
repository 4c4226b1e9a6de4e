"""Rows over tokens against the samples that they were made from.

What is read and written is what the sample holds, the end of what is written is taught, the codes are those
of the codec as it is now, and no group stands on both sides of the shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from muomni.data.sample import Sample
from muomni.data.token_rows import TokenRows
from muomni.data.tokenized import encode
from muomni.data.tokenized.index import ShardSet
from muomni.errors import DataError, TokenRangeError
from muomni.evaluate.facts import Fact, share
from muomni.tokens.chat import IGNORE
from muomni.tokens.sequences import TASKS, Content
from muomni.tokens.space import FRAMING
from muomni.tokens.unified import UnifiedTokenizer

LOOKED_AT = 64  # rows
CODED_AGAIN = 12  # media of each modality
LEAKS_AMONG = 1000  # records of each side


def facts(rows: TokenRows, samples: Sequence[Sample], tokens: UnifiedTokenizer) -> dict[str, Fact]:
    """Facts about up to LOOKED_AT rows, evenly chosen:

    taught_right  rows that read and write what their sample holds, and whose labels are the target span and
                  no more
    ends_taught   rows whose last label is the end of that span
    stale_codes   share of the ids of their media that are others when the codec encodes these again; of a
                  sound whose end is padded to a whole frame, and of sums in another order, a few may differ
    """
    right = ended = n = 0
    media: dict[str, dict[int, torch.Tensor]] = {modality: {} for modality in tokens.codecs}
    for place in np.linspace(0, len(rows.places) - 1, min(LOOKED_AT, len(rows.places))).astype(int).tolist():
        task, number = rows.places[place][0], rows.sample(place)
        try:
            row = rows.row(place)
        except DataError:
            continue  # the loader counts and names it
        except TokenRangeError:
            n += 1  # ids in another order than their space's, or of another region
            continue
        n += 1
        start, end = (tokens.space.special(name) for name in FRAMING[TASKS[task].writes][1:])
        first_T = row.labels if row.labels.ndim == 1 else row.labels[0]
        taught = first_T[first_T != IGNORE].tolist()
        ended += taught[-1:] == [end]
        target = row.spans[1].start - 1
        is_span = bool((first_T[:target] == IGNORE).all()) and bool((first_T[target:] != IGNORE).all())
        right += is_span and taught[:1] == [start] and _says(tokens, samples[number], row.ids, row.spans)
        modality = TASKS[task].medium
        if len(media[modality]) < CODED_AGAIN:
            span = next(span for span in row.spans if span.kind == modality)
            media[modality].setdefault(number, row.ids[..., span.start : span.start + span.length])
    return {
        "taught_right": share(right, n),
        "ends_taught": share(ended, n),
        "stale_codes": _stale(tokens, samples, media),
    }


def _says(tokens: UnifiedTokenizer, sample: Sample, ids: torch.Tensor, spans: Sequence[Content]) -> bool:
    """Whether the words of a row are its sample's."""
    wanted = encode.wanted(sample)
    if isinstance(wanted, str):
        return False
    span = next(span for span in spans if span.kind == "text")
    first_T = ids if ids.ndim == 1 else ids[0]
    said = tokens.decode_text(first_T[span.start : span.start + span.length].tolist())
    return said == tokens.text.normal(wanted.text_out or wanted.text_in)


def _stale(
    tokens: UnifiedTokenizer, samples: Sequence[Sample], media: dict[str, dict[int, torch.Tensor]]
) -> Fact:
    """The share of ids of media, by number of sample, that the codec does not give now."""
    differ = total = count = 0
    for modality, held in media.items():
        codec = tokens.codecs[modality]
        for number, ids in held.items():
            wanted = encode.wanted(samples[number])
            total, count = total + ids.numel(), count + 1
            if isinstance(wanted, str) or wanted.medium.type != modality:  # the shards are of other samples
                differ += ids.numel()
                continue
            with torch.inference_mode():
                (codes_KF,) = codec.encode_many([encode.read(wanted.medium, codec).values])
            again = tokens.space.ids_of(modality, codes_KF.cpu())
            differ += int((ids != again).sum()) if ids.shape == again.shape else ids.numel()
    return Fact(differ / max(total, 1), count)


def leaks(train: ShardSet, valid: ShardSet, learned: Sequence[Sample], held_out: Sequence[Sample]) -> Fact:
    """How many records stand on one side of the shards though samples of their group stand on the other side.

    Takes   learned, held_out: the samples of the two sides. Looks at up to LEAKS_AMONG records of each.
    """
    wrong: list[str] = []
    among = 0
    for own, others in ((train, held_out), (valid, learned)):
        groups = {sample.group for sample in others}
        for place in np.linspace(0, len(own) - 1, min(LEAKS_AMONG, len(own))).astype(int).tolist():
            about = own.read(place).about
            among += 1
            if about["group"] in groups:
                wrong.append(f"{own.side}: {about['id']} of group {about['group']}")
    return Fact(float(len(wrong)), among, note="; ".join(wrong[:4]))
