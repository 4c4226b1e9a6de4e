"""How fast a run is, and what it waits for."""

from __future__ import annotations

import time
from typing import Any

from muomni.runtime import Runtime
from muomni.train import monitor
from muomni.train.step import StepResult


class Meter:
    """Speed, the share of time spent waiting for data, and MFU against the measured matrix-product peak."""

    def __init__(self, run: Runtime) -> None:
        self.run = run
        self.peak = monitor.matmul_peak(run)
        self.flops = 0.0
        self.busy_s = self.waited_s = 0.0
        self.steps = 0

    def step(self, waited_s: float) -> Meter:
        """A context around one update, for whose data the loop waited so long."""
        self.waited_s += waited_s
        self.counter = monitor.counted_flops() if not self.flops else None
        return self

    def __enter__(self) -> None:
        self.begin = time.perf_counter()
        if self.counter:
            self.counter.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        if self.counter:
            self.counter.__exit__(*error)  # type: ignore[no-untyped-call]
            self.flops = float(self.counter.get_total_flops())
            return  # counting slows this step down: leave it out of the speed
        self.busy_s += time.perf_counter() - self.begin
        self.steps += 1

    def read(self, result: StepResult, micro_batches: int) -> dict[str, float]:
        """The means since the last reading."""
        total_s = self.busy_s + self.waited_s
        if not self.steps or not total_s:
            return {"memory_mb": monitor.memory_mb(self.run)}
        out = {
            "steps_per_s": self.steps / total_s,
            "targets_per_s": sum(result.counts.values()) * self.steps / total_s,
            "data_wait": self.waited_s / total_s,
            "mfu": self.flops * self.steps / total_s / self.peak,
            "memory_mb": monitor.memory_mb(self.run),
        }
        self.busy_s = self.waited_s = 0.0
        self.steps = 0
        return out
