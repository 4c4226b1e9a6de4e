"""Record of a run, kept while it runs: samples and batches drawn, learning rates of its updates.

The gates `order`, `schedule` and `average` judge these notes by properties that must hold
(evaluate.run_record_checks); nothing here asks the code that drew the samples or set the rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WRAPS = 1 << 16  # counts are kept modulo this
PROBED = 16  # tensors of which one number is averaged by hand


class Drawn:
    """How often each sample of the training data was asked for, by all ranks, and whether batches followed
    one another.

    counts_N   uint16, modulo 2^16: two bytes a sample, whatever the length of the run
    total      samples asked for
    batches    the number that the next batch must have
    gaps       batches that were passed over, came twice, or out of their turn
    """

    def __init__(
        self, size: int, state: dict[str, int] | None = None, counts_N: NDArray[np.uint16] | None = None
    ) -> None:
        state = state or {}
        self.counts_N = np.zeros(size, np.uint16) if counts_N is None else counts_N
        self.total, self.batches, self.gaps = (
            state.get("total", 0),
            state.get("batches", 0),
            state.get("gaps", 0),
        )

    def note(self, numbers: Sequence[int], indices: Sequence[int]) -> None:
        """The batches of one update, of all ranks, in any order, and the samples that were asked of the
        dataset for them."""
        np.add.at(self.counts_N, np.asarray(indices, np.int64), np.uint16(1))
        self.total += len(indices)
        came = sorted(set(numbers))
        if came:
            absent = came[-1] + 1 - came[0] - len(came)
            self.gaps += abs(came[0] - self.batches) + absent + len(numbers) - len(came)
            self.batches = came[-1] + 1

    @property
    def state(self) -> dict[str, int]:
        """All but the counts, as JSON."""
        return {"total": self.total, "batches": self.batches, "gaps": self.gaps}


@dataclass
class Rates:
    """The learning rates of the updates, as they stood in the optimizer when it moved the weights; the
    largest of its groups.

    updates      how many were noted; first, last, peak: rates, the first of all, the latest, the highest
    rises        updates after warm-up with a higher rate than the one before; falls: with a lower one,
                 warm-up included
    dips         updates within warm-up with a lower rate than the one before
    after, area  updates after warm-up, and the sum of their rates
    """

    updates: int = 0
    first: float = 0.0
    last: float = 0.0
    peak: float = 0.0
    rises: int = 0
    falls: int = 0
    dips: int = 0
    after: int = 0
    area: float = 0.0
    jumps: int = 0

    def note(self, rate: float, *, warms: bool, jumps: bool) -> None:
        """The rate of one update.

        Takes   warms: whether it belongs to the warm-up; jumps: whether the batch became another one just
                before, which moves the end
        of a run that is counted in epochs, so that this rate may be any.
        """
        if self.updates and not jumps:
            self.rises += rate > self.last and not warms
            self.falls += rate < self.last
            self.dips += rate < self.last and warms
        self.jumps += jumps
        self.first = self.first if self.updates else rate
        self.last, self.peak, self.updates = rate, max(self.peak, rate), self.updates + 1
        if not warms:
            self.after, self.area = self.after + 1, self.area + rate

    @property
    def state(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Probes:
    """One number of each of a few averaged tensors: as it is, and averaged by a recurrence of its own,
    against which the average is held.

    raw_P, mean_P   (tensors,) float32
    """

    def __init__(self, tensors: Sequence[torch.Tensor], decay: float, mean: Sequence[float] = ()) -> None:
        places = sorted(set(np.linspace(0, len(tensors) - 1, min(PROBED, len(tensors))).astype(int).tolist()))
        self.tensors, self.decay = [tensors[place] for place in places], decay
        self.raw_P = self.now_P()
        self.mean_P = torch.tensor(mean, device=self.raw_P.device) if mean else self.raw_P

    def now_P(self) -> torch.Tensor:
        """The numbers that stand in the tensors: raw ones while it trains, averages once those are put in
        place."""
        return torch.stack(
            [tensor.detach().reshape(-1)[tensor.numel() // 2].float() for tensor in self.tensors]
        )

    def note(self) -> None:
        """An update was made."""
        self.raw_P = self.now_P()
        self.mean_P = self.mean_P + (1 - self.decay) * (self.raw_P - self.mean_P)

    @property
    def state(self) -> dict[str, list[float]]:
        """As JSON."""
        return {"raw": self.raw_P.tolist(), "mean": self.mean_P.tolist()}
