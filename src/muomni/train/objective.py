"""Objective: the terms of a loss for one kind of batch, as sums with their target counts; only train.step
divides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn


@dataclass
class Term:
    """One part of a loss.

    total   scalar, the sum over this batch's targets (nats, or errors for reconstruction)
    count   the number of targets in it; step.py divides by the count of all micro-batches and ranks
    weight  its share in what is minimised
    """

    total: Tensor
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Probe:
    """One target scored alone, and with changed context: shows a wrong shift or mask without reading the
    code.

    future  what stands at the target's own place and after it is something else: the loss must not move
    past    what stands right before it is something else: the loss must move
    terms   those that ask, each by itself
    """

    asked: Any
    future: Any
    past: Any
    terms: tuple[str, ...]


class Objective(nn.Module):
    """Base of the objectives: holds the modules it trains, and owns the shift between inputs and targets.

    Below `after_step` stands what lets a stage prove itself before it trains (evaluate.soundness): each
    method describes, none checks.
    """

    joint: frozenset[str] = frozenset()  # terms in which the rows of a batch look at each other
    joining: Mapping[str, int] = MappingProxyType(
        {}
    )  # parameters that rest at first -> updates (train.optim)

    def counts(self, batch: Any) -> dict[str, int]:
        """Targets per term, known before the forward and without the model."""
        raise NotImplementedError

    def forward(self, batch: Any) -> dict[str, Term]:
        """The terms of one batch; keys equal those of `counts`."""
        raise NotImplementedError

    def contents(self, batch: Any) -> dict[str, float]:
        """What a batch holds by unit (keys of units.CONTENTS), padding left out: what speed is measured in,
        by a run and by a plan."""
        return {"samples": float(len(batch.sample_ids))}

    def sizes(self, batch: Any) -> tuple[float, ...]:
        """Sizes, padding included, in which the arithmetic of an update is linear (train.flops): rows, rows x
        positions squared, ..."""
        return (float(len(batch.sample_ids)),)

    def validated(self, batch: Any) -> dict[str, Term]:
        """The terms of one held-out batch: those of `forward`, and unweighted ones that are too dear, or of
        no use, in training."""
        return self(batch)  # type: ignore[no-any-return]

    def describe(self, means: Mapping[str, float]) -> dict[str, float]:
        """What a person reads of the means of terms (`term`, or `term@bucket`): the same, with perplexities
        where a term has one."""
        return dict(means)

    @property
    def is_settled(self) -> bool:
        """Whether all parts are at work, so that a held-out loss can be compared with later ones (a quantiser
        that starts later)."""
        return True

    def begin(self, micro_batches: Sequence[Any], world: int) -> None:
        """Called before the forwards of one update with all local micro-batches (e.g. embed all
        negatives)."""

    def after_step(self, step: int) -> None:
        """Called after each update (e.g. moving averages); all its state lives in buffers, so that resume is
        exact."""

    def blocks(self) -> Sequence[nn.Module]:
        """Modules that are called one after the other, each of which may be apart on the ranks until it is called
        (train.sharding); empty where none may."""
        return ()

    def frozen_parts(self) -> Sequence[str]:
        """Names of pretrained parts that stay frozen: a resume opens them again, checkpoints leave them
        out."""
        return ()

    def warm_start(self, batch: Any) -> None:
        """Start every part of a discarded copy (a quantiser that would start later starts now)."""

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """By weighted term, patterns of the parameters that must get a gradient from it; other terms must
        reach at least one."""
        return {}

    def learning_buffers(self) -> dict[str, Tensor]:
        """Tensors that learn without a gradient, by name (codebooks that follow by moving averages)."""
        return {}

    def probes(self, batch: Any, count: int, rng: np.random.Generator) -> list[Probe]:
        """Probes of up to `count` targets, for objectives that predict from the past."""
        return []

    def packing_pairs(self, batch: Any, count: int, rng: np.random.Generator) -> list[tuple[Any, Any]]:
        """Pairs of batches with equal losses: a document alone, and packed with others."""
        return []

    def padded(self, batch: Any) -> Any | None:
        """The batch with more padding, junk in it, for objectives with joint terms; None: rows are their own
        witnesses."""
        return None

    def media_swaps(self, batch: Any) -> dict[str, Any]:
        """By kind (image, audio) the batch with other media of that kind: the loss must move."""
        return {}

    def by_hand(self, batch: Any) -> tuple[dict[str, float], dict[str, float]] | None:
        """Targets by term and contents by unit, counted row by row apart from `counts`; ours are in
        evaluate.counting."""
        return None


def perplexity(nats: float) -> float:
    """Among how many equally likely choices one choice of so many mean nats is; e^700 where it is beyond
    counting."""
    return math.exp(min(nats, 700.0))


def without_misses(means: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Means without those of `misses`, and in their place the accuracy: the share of labelled tokens that were
    the most probable ones."""
    misses = {key: value for key, value in means.items() if key.partition("@")[0] == "misses"}
    rest = {key: value for key, value in means.items() if key not in misses}
    return rest, {key.replace("misses", "accuracy", 1): 1 - value for key, value in misses.items()}


def with_perplexity(means: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """Means with the perplexity of terms that are nats of one choice among many, right behind each; also by
    length bucket.

    Takes   names: of these terms, and how their perplexity is called.
    """
    with_derived: dict[str, float] = {}
    for key, value in means.items():
        term, at, bucket = key.partition("@")
        with_derived[key] = value
        if term in names:
            with_derived[f"{names[term]}{at}{bucket}"] = perplexity(value)
    return with_derived
