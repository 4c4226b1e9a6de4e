"""What "better" means for one kind of batch: named sums of nats with the number of targets behind each; nobody here divides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class Batch(Protocol):
    """A dataclass of tensors that knows the ids of its samples, for logs and quarantine."""

    sample_ids: list[str]

    def to(self, device: torch.device) -> Self: ...


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


class Objective(nn.Module):
    """Base of the objectives: holds the modules it trains, and owns the shift between inputs and targets."""

    def counts(self, batch: Any) -> dict[str, int]:
        """Targets per term, known before the forward and without the model."""
        raise NotImplementedError

    def forward(self, batch: Any) -> dict[str, Term]:
        """The terms of one batch; keys equal those of `counts`."""
        raise NotImplementedError

    def begin(self, micro_batches: Sequence[Any], world: int) -> None:
        """Called before the forwards of one update with all local micro-batches (e.g. embed all negatives)."""

    def after_step(self, step: int) -> None:
        """Called after each update (e.g. moving averages); all its state lives in buffers, so that resume is exact."""
