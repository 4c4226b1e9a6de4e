"""The moving average of what trains (`ema_decay`): followed after each update, put in place to validate, to
keep and to hand on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """Averages of a model's trained parameters, by name; none without a decay. (torch's AveragedModel copies
    what is frozen as well.)

    Takes   state: what a checkpoint kept of it.
    """

    def __init__(
        self, model: nn.Module, decay: float | None, state: Mapping[str, Tensor] | None = None
    ) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if decay else {}
        self.parameters = list(trained.values())
        self.state = dict(state or {name: p.detach().clone() for name, p in trained.items()})
        self.averages = [self.state[name] for name in trained]
        self._move = get_ema_multi_avg_fn(decay or 0.0)  # type: ignore[no-untyped-call]

    def follow(self) -> None:
        """Move towards the weights as they are after an update, in one kernel for all."""
        if self.averages:
            self._move(self.averages, [p.detach() for p in self.parameters], 0)

    @torch.no_grad()
    def put(self) -> None:
        """Overwrite the weights with their averages."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the weights' place, and the very weights again afterwards: they change places, one
        tensor at a time."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
