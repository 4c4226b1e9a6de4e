"""Every number of the meter against a count by hand: a clock that is wound by hand, batches of known
contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from muomni import units
from muomni.runtime import Runtime
from muomni.train import distributed, flops, meter
from muomni.train.flops import UpdateFlops
from muomni.train.meter import Meter
from muomni.train.objective import Objective

CPU = Runtime(torch.device("cpu"), torch.float32)


@dataclass
class Held:
    """A batch of so many rows and tokens."""

    rows: int
    tokens: int

    @property
    def sample_ids(self) -> list[str]:
        return [str(row) for row in range(self.rows)]


class Reading(Objective):
    """100 FLOP a token."""

    def contents(self, batch: Held) -> dict[str, float]:
        return {**super().contents(batch), "tokens": float(batch.tokens)}

    def sizes(self, batch: Held) -> tuple[float, ...]:
        return (float(batch.tokens),)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(flops, "peak", lambda run, again=False: 1000.0)
    monkeypatch.setattr(meter.monitor, "peak_memory_mb", lambda run: 321.0)
    return Clock()


def reckoner(*, error: float | None = None) -> UpdateFlops:
    made = UpdateFlops()
    made.add((1.0,), 100.0)
    made.error = error
    return made


def ready(clock: Clock, run: Runtime = CPU, **more: Any) -> Meter:
    return Meter(Reading(), run, reckoner=reckoner(**more), counts=False, clock=clock)


def passes(
    made: Meter,
    clock: Clock,
    batches: Sequence[Held],
    *,
    takes: float,
    waited: float = 0.0,
    more: float = 0.0,
) -> None:
    with made.update(batches, waited):
        clock.now += takes
    with made.more():
        clock.now += more


def test_a_window_sums_over_batches_of_different_sizes(clock: Clock) -> None:
    made = ready(clock, error=0.002)
    passes(made, clock, [Held(2, 10), Held(1, 3)], takes=1.5, waited=0.5)  # two micro-batches
    clock.now += 100.0  # a validation: not of the window
    passes(made, clock, [Held(4, 17)], takes=2.0, waited=0.5, more=0.5)
    assert made.read() == {
        "steps_per_s": 2 / 5.0,
        "samples_per_s": 7 / 5.0,
        "tokens_per_s": 30 / 5.0,
        "data_wait": 1 / 5.0,
        "mfu": 30 * 100.0 / (5.0 * 1000.0),
        "flops_error": 0.002,
        "peak_memory_mb": 321.0,
    }


def test_a_window_ends_where_it_is_read(clock: Clock) -> None:
    made = ready(clock)
    passes(made, clock, [Held(2, 10)], takes=1.0, waited=9.0)
    made.read()
    passes(made, clock, [Held(1, 4)], takes=2.0)
    found = made.read()
    assert (found["steps_per_s"], found["tokens_per_s"], found["data_wait"], found["mfu"]) == (
        0.5,
        2.0,
        0.0,
        0.2,
    )
    assert made.read() == {"peak_memory_mb": 321.0}, "no update, no speed"


def test_a_counted_update_is_left_out_with_all_that_is_its_own(clock: Clock) -> None:
    made = Meter(Reading(), CPU, clock=clock)
    a = torch.ones(10, 5)
    with made.update(
        [Held(1, 10)], 50.0
    ):  # the first update of a process is counted: 10 x 10 x 5 multiply-adds
        clock.now += 70.0
        a @ a.T
    with made.more():
        clock.now += 30.0
    assert made.is_counted
    passes(made, clock, [Held(1, 20)], takes=4.0)
    assert not made.is_counted
    found = made.read()
    assert found["tokens_per_s"] == 5.0
    assert found["data_wait"] == 0.0
    assert found["mfu"] == pytest.approx(
        2 * 1000.0 / (4.0 * 1000.0)
    )  # twice the counted 1000 FLOP, by its tokens
    assert "flops_error" not in found, "nothing was checked yet"


def test_a_peak_that_is_outdone_is_measured_anew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(clock)
    monkeypatch.setattr(flops, "peak", lambda run, again=False: 4000.0 if again else 1000.0)
    passes(made, clock, [Held(1, 20)], takes=1.0)
    assert made.read()["mfu"] == 0.5


def test_the_peak_is_measured_when_the_first_rate_is_told(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Runtime] = []
    monkeypatch.setattr(flops, "peak", lambda run, again=False: asked.append(run) or 1000.0)
    made = ready(clock)
    made.read()
    assert not asked
    passes(made, clock, [Held(1, 2)], takes=1.0)
    assert made.read()["mfu"] == 0.2
    assert asked == [CPU]


def test_two_ranks_are_added_up(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank has the same number of updates, fewer tokens, and waited longer."""
    other = {
        "samples": 1.0,
        "tokens": 5.0,
        "pictures": 2.0,
        "seconds": 4.0,
        "waited": 3.0,
        "flops": 500.0,
        "possible": 4000.0,
    }

    def summed(mine: dict[str, float], run: Runtime) -> dict[str, float]:
        return {name: mine.get(name, 0.0) + other.get(name, 0.0) for name in {**mine, **other}}

    monkeypatch.setattr(distributed, "sum_counts", summed)
    made = ready(clock, Runtime(torch.device("cpu"), torch.float32, 0, 2))
    passes(made, clock, [Held(3, 15)], takes=3.0, waited=1.0)
    found = made.read()
    assert (found["steps_per_s"], found["samples_per_s"], found["tokens_per_s"], found["pictures_per_s"]) == (
        0.25,
        1.0,
        5.0,
        0.5,
    )
    assert found["data_wait"] == 4.0 / 8.0
    assert found["mfu"] == (1500.0 + 500.0) / (4000.0 + 4000.0)


def test_the_clock_is_read_around_the_update_alone(clock: Clock) -> None:
    made = ready(clock)
    with pytest.raises(RuntimeError, match="dies"), made.update([Held(1, 1)], 0.0):
        raise RuntimeError("dies")
    assert made.read() == {"peak_memory_mb": 321.0}


def test_units_have_words() -> None:
    assert set(Reading().contents(Held(1, 1))) <= set(units.CONTENTS)
