"""How fast a run is, in what it reads, and what it waits for: the one home of these numbers, for a run and
for a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from muomni.runtime import Runtime
from muomni.train import distributed, flops, monitor
from muomni.train.flops import UpdateFlops
from muomni.train.objective import Objective


class Meter:
    """Sums over a window of updates: what their batches held, their arithmetic, their time.

    An update whose arithmetic is counted takes longer, and is left out of the window with all that is its
    own. One that was skipped as unsafe is in it: it was computed like any other. Validation and checkpoints
    are not in it.

    is_counted  whether the last update was one whose arithmetic was counted

    Takes   counts: False where no update is to be counted, the arithmetic being known from `reckoner` alone.
    """

    def __init__(
        self,
        objective: Objective,
        run: Runtime,
        *,
        reckoner: UpdateFlops | None = None,
        counts: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.objective, self.run, self.clock, self.counts = objective, run, clock, counts
        self.reckoner = reckoner or UpdateFlops()
        if run.device.type == "cuda":
            flops.peak(
                run
            )  # here, for its memory; on a CPU when the first rate is told: the first step need not wait
            torch.cuda.reset_peak_memory_stats(run.device)  # what came before is not this stage's
        self.is_counted = False
        self._clear()

    def _clear(self) -> None:
        self.busy_s = self.waited_s = 0.0
        self.contents: dict[str, float] = {}
        self.sizes: list[tuple[float, ...]] = []  # of each update

    @contextmanager
    def update(self, batches: Sequence[Any], waited_s: float) -> Iterator[None]:
        """A context around one update by these batches, for which the loop waited so long; batches still on
        the host are counted faster."""
        sizes = tuple(map(sum, zip(*(self.objective.sizes(batch) for batch in batches), strict=True)))
        self.is_counted = self.counts and self.reckoner.wants()
        counter = flops.Counted() if self.is_counted else None
        begin = self.clock()
        with counter or nullcontext():
            yield
        if counter is not None:
            self.reckoner.add(sizes, float(counter.total))
            return
        self.busy_s += self.clock() - begin
        self.waited_s += waited_s
        self.sizes.append(sizes)
        for batch in batches:
            for unit, amount in self.objective.contents(batch).items():
                self.contents[unit] = self.contents.get(unit, 0.0) + amount

    @contextmanager
    def more(self) -> Iterator[None]:
        """A context around what else belongs to the update before (moving averages)."""
        begin = self.clock()
        yield
        if not self.is_counted:
            self.busy_s += self.clock() - begin

    def read(self) -> dict[str, float]:
        """The means of the window since the last reading, which ends here; all ranks call it together.

        Gives   steps_per_s; `<unit>_per_s` for each unit of units.CONTENTS that the batches hold, of all
                ranks; data_wait, the share of time that the loops waited for data; mfu, arithmetic against
                the ranks' peaks (train.flops), and flops_error, how far it was off at its last check. Without
                these where no update is in the window. And peak_memory_mb, the main rank's.
        """
        total_s = self.busy_s + self.waited_s
        arithmetic = sum(self.reckoner.of(sizes) for sizes in self.sizes)
        peak = flops.peak(self.run) if total_s else 0.0
        if total_s and arithmetic > peak * total_s:  # the machine was busy when its peak was measured
            peak = flops.peak(self.run, again=True)
        mine = {
            **self.contents,
            "seconds": total_s,
            "waited": self.waited_s,
            "flops": arithmetic,
            "possible": peak * total_s,
        }
        steps = len(self.sizes)
        self._clear()
        summed = distributed.sum_counts(mine, self.run)
        memory = {"peak_memory_mb": monitor.peak_memory_mb(self.run)}
        seconds = summed.pop("seconds") / self.run.world
        waited, done, possible = (summed.pop(name) for name in ("waited", "flops", "possible"))
        if not steps or not seconds:
            return memory
        out = {
            "steps_per_s": steps / seconds,
            **{f"{unit}_per_s": amount / seconds for unit, amount in summed.items()},
        }
        out |= {"data_wait": waited / self.run.world / seconds, "mfu": done / possible}
        if self.reckoner.error is not None:
            out["flops_error"] = self.reckoner.error
        return {**out, **memory}
