"""Held-out samples drawn evenly by the length of what is to be said, and kept in a file, so that every
measurement asks the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from muomni import files
from muomni.data.sample import Sample
from muomni.data.split import place
from muomni.errors import ConfigError
from muomni.tokens.bpe import Tokenizer

EDGES = (0, 10, 20)  # tokens of an answer; SPEC V3
ENCODED_AT_ONCE = 1024


def label_lengths(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[int]:
    """Tokens of all that the assistant says in each sample, without the template's."""
    lengths: list[int] = []
    for first in range(0, len(samples), ENCODED_AT_ONCE):
        some = samples[first : first + ENCODED_AT_ONCE]
        answers = [
            [message.text for message in sample.messages if message.role == "assistant"] for sample in some
        ]
        counts = iter(
            [len(ids) for ids in tokenizer.encode_many([text for texts in answers for text in texts])]
        )
        lengths += [sum(next(counts) for _ in texts) for texts in answers]
    return lengths


def buckets(lengths: Sequence[int], edges: Sequence[int] = EDGES) -> list[int]:
    """The bucket of each length: 0 up to edges[1], 1 up to edges[2], ...; what lies beyond the last edge is
    in the last."""
    return [bisect_left(edges[1:], length) for length in lengths]


def names(edges: Sequence[int] = EDGES) -> list[str]:
    """What the buckets are called."""
    if len(edges) == 3:
        return ["short", "medium", "long"]
    return [f"{low + 1}-{high}" for low, high in pairwise(edges)] + [f"{edges[-1] + 1}-"]


def draw(
    samples: Sequence[Sample], lengths: Sequence[int], size: int, edges: Sequence[int] = EDGES, seed: int = 0
) -> list[int]:
    """Indices of `size` samples (all where there are fewer): an equal share of each bucket, the rest of the
    last one.

    Within a bucket the hash of id and seed ranks them: the order of the samples decides nothing, and one more
    moves at most one out. What a bucket lacks the next one gives, and where the last lacks too, whoever ranks
    first of those that are left.
    Gives   indices by rank, so that the first few are a fair draw themselves.
    """
    ranks = [(place(sample.id, seed), sample.id) for sample in samples]
    order = sorted(range(len(samples)), key=ranks.__getitem__)
    where = buckets(lengths, edges)
    chosen: set[int] = set()
    target = 0
    for bucket in range(len(edges)):
        target += size // len(edges) + (size % len(edges) if bucket == len(edges) - 1 else 0)
        taken = [index for index in order if where[index] == bucket][:target]
        target -= len(taken)
        chosen.update(taken)
    chosen.update([index for index in order if index not in chosen][:target])
    return [index for index in order if index in chosen]


def keep(
    path: Path,
    samples: Sequence[Sample],
    lengths: Sequence[int],
    size: int,
    edges: Sequence[int] = EDGES,
    seed: int = 0,
) -> list[int]:
    """`draw`, once: the choice is written to `path`, and where that is there, it is the choice, whatever
    samples were added since.

    Raises  ConfigError if the file was drawn otherwise, was changed, or names samples that are gone: never
            drawn anew in silence.
    """
    request = {"seed": seed, "size": size, "edges": list(edges)}
    if not path.exists():
        chosen = draw(samples, lengths, size, edges, seed)
        files.write_json(path, {**request, **_to_json(samples, lengths, chosen, edges)})
        return chosen
    way_out = "give the samples back, or remove the file to draw anew: what was measured before can't be compared then"
    try:
        kept = files.read_json(path)
        ids = [row["id"] for row in kept["eval"]]
        is_whole = kept["digest"] == files.sha256_json(kept["eval"])
        drawn = {key: kept[key] for key in request}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected a choice of samples, got {error!r:.80}", hint=way_out) from error
    if not is_whole:
        raise ConfigError(f"{path}: its rows are not those that were drawn: it was changed", hint=way_out)
    if drawn != request:
        raise ConfigError(
            f"{path}: drawn with {drawn}, asked for {request}",
            hint="name another file, or ask as it was drawn",
        )
    at = {sample.id: index for index, sample in enumerate(samples)}
    gone = [name for name in ids if name not in at]
    if gone:
        raise ConfigError(
            f"{path}: {len(gone)} of {len(ids)} samples are gone: {', '.join(gone[:4])}", hint=way_out
        )
    return [at[name] for name in ids]


def _to_json(
    samples: Sequence[Sample], lengths: Sequence[int], chosen: Sequence[int], edges: Sequence[int]
) -> dict[str, Any]:
    """What a file tells about a choice."""
    called, where = names(edges), buckets(lengths, edges)
    rows = [
        {
            "id": samples[index].id,
            "bucket": called[where[index]],
            "label_len": lengths[index],
            "image": samples[index].images[0].path[:1000] if samples[index].images else None,
        }
        for index in chosen
    ]
    counts = {name: sum(row["bucket"] == name for row in rows) for name in called}
    return {"digest": files.sha256_json(rows), "eval": rows, "bucket_counts": counts}
