"""Held-out means of an objective's terms: token-weighted, over all ranks, by length."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import torch

from muomni.data.loader import Loader
from muomni.runtime import Runtime
from muomni.train import distributed
from muomni.train.objective import Objective
from muomni.train.settings import TrainSettings


@torch.no_grad()
def validate(
    objective: Objective,
    valid: Loader[Any, Any],
    settings: TrainSettings,
    run: Runtime,
    *,
    full: bool = False,
) -> dict[str, float]:
    """Means per term over held-out batches, token-weighted over all ranks, and per length bucket
    (`term@<=64`)."""
    total = valid.order.batches_per_epoch
    count = total if full else min(total, settings.val_batches)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    weights: dict[str, float] = {}
    was_training = objective.training
    objective.eval()
    for loaded in valid.numbers(range(run.rank, count, run.world)):
        if loaded.batch is None:
            continue
        batch = loaded.batch.to(run.device)
        objective.begin([batch], 1)
        with run.autocast():
            terms = objective.validated(batch)
        bucket = _bucket(getattr(batch, "length", None), settings.len_buckets)
        for term_name, term in terms.items():
            weights[term_name] = term.weight
            for key in (term_name, f"{term_name}@{bucket}") if bucket else (term_name,):
                sums[key] = sums.get(key, 0.0) + float(term.total)
                counts[key] = counts.get(key, 0) + term.count
    objective.train(was_training)
    sums, counts = distributed.sum_counts(sums, run), distributed.sum_counts(counts, run)
    means = {key: sums[key] / max(1, counts[key]) for key in sums}
    means["loss"] = sum(weights.get(key, 1.0) * value for key, value in means.items() if "@" not in key)
    return means


def _bucket(length: int | None, edges: list[int]) -> str:
    if length is None or not edges:
        return ""
    place = bisect_right(edges, length - 1)
    return f"<={edges[place]}" if place < len(edges) else f">{edges[-1]}"
