"""What gates read off a run's own notes: true runs pass whatever their settings, and each way to go astray is
seen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.data.order import Order
from muomni.evaluate import run_record_checks
from muomni.train import optim
from muomni.train.run_record import WRAPS, Drawn, Probes, Rates
from muomni.train.settings import TrainSettings


def drawn(order: Order, numbers: list[int]) -> Drawn:
    notes = Drawn(sum(order.sizes))
    for number in numbers:
        notes.note([number], [draw.index for draw in order.batch(number)])
    return notes


def order_error(notes: Drawn, order: Order, samples: int | None = None) -> float:
    return run_record_checks.order(notes, order, notes.total if samples is None else samples)[
        "order_error"
    ].value


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0]), min_size=3, max_size=3),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 9),
    count=st.integers(0, 60),
    by_length=st.booleans(),
)
def test_a_true_order_passes_at_every_place(
    sizes: list[int], weights: list[float], batch_size: int, seed: int, count: int, by_length: bool
) -> None:
    lengths = list(range(sum(sizes))) if by_length else None
    order = Order(sizes, weights=weights[: len(sizes)], batch_size=batch_size, seed=seed, lengths=lengths)
    assert order_error(drawn(order, list(range(count))), order) == 0


@pytest.mark.parametrize(
    "numbers",
    [
        [0, 1, 2, 2, 3],  # twice
        [
            0,
            1,
            2,
            4,
            5,
        ],  # one passed over, within the first epoch: no sample came twice, and none is known to be missing
        [0, 1, 2, 0, 1],  # from the beginning again
        [0, 1, 6, 7, 8],  # another number of ranks
        [1, 0, 2, 3],  # out of turn
    ],
)
def test_batches_out_of_turn_are_seen_at_once(numbers: list[int]) -> None:
    order = Order([40], batch_size=4, seed=1)
    assert order_error(drawn(order, numbers), order) >= 1


@pytest.mark.parametrize("passed", [[3], [3, 4, 5], list(range(3, 9))])
def test_passed_samples_are_seen_by_their_counts_alone_at_the_end_of_the_epoch(passed: list[int]) -> None:
    """Though whoever numbers the batches lies. Before that, a sample that was passed over may still be to
    come."""
    order = Order([40], batch_size=4, seed=1)
    numbers = [n for n in range(20) if n not in passed][:10]
    notes = drawn(order, numbers)
    notes.gaps = 0
    came = [
        draw.index for n in numbers for draw in order.batch(n)
    ]  # some that were passed over come in the next epoch
    never, twice = set(range(40)) - set(came), {i for i in came if came.count(i) > 1}
    assert (
        order_error(notes, order) == len(never) + len(twice) + 1
    )  # and the source's sum, in which a count below the least wraps
    early = drawn(order, [n for n in numbers if n < 10])
    early.gaps = 0
    assert order_error(early, order) == 0


def test_a_repeated_sample_and_one_that_nobody_counts_are_seen() -> None:
    order = Order([12], batch_size=4, seed=0)
    notes = drawn(order, [0, 1])
    assert order_error(notes, order, samples=7) == 1
    twice = Drawn(12)
    twice.note([0], [1, 1, 2, 3])
    found = run_record_checks.order(twice, order, 4)["order_error"]
    assert found.value == 1
    assert found.note == "sample 1 not 0 to 1 times"


def test_counts_that_wrap_around_are_still_counts() -> None:
    order = Order([3], batch_size=3, seed=0)
    epochs = WRAPS + 5
    notes = Drawn(
        3, {"total": 3 * epochs, "batches": epochs, "gaps": 0}, np.full(3, epochs % WRAPS, np.uint16)
    )
    assert order_error(notes, order) == 0
    notes.note([epochs], [0, 0, 1])
    assert order_error(notes, order) >= 1


# --- rates --------------------------------------------------------------------------------------------------------------------------------


def noted(settings: TrainSettings, steps: int | None = None, **change: Any) -> Rates:
    rates = Rates()
    for step in range(settings.max_steps if steps is None else steps):
        rate = settings.lr * optim.lr_scale(step, settings)
        rates.note(
            change.get("rate", lambda step, rate: rate)(step, rate),
            warms=step < settings.warmup_steps,
            jumps=False,
        )
    return Rates(**json.loads(json.dumps(rates.state)))


def broken(rates: Rates, settings: TrainSettings, *, is_whole: bool = True) -> str:
    found = run_record_checks.schedule(rates, settings, settings.lr, is_whole=is_whole)["rate_errors"]
    assert (found.value == 0) == (not found.note)
    return found.note


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    max_steps=st.integers(1, 200),
    warmup=st.integers(0, 30),
    floor=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    share=st.floats(0.05, 1.0),
    stopped=st.integers(1, 200),
)
def test_every_schedule_has_its_properties(
    schedule: Any, max_steps: int, warmup: int, floor: float, share: float, stopped: int
) -> None:
    values: dict[str, Any] = {"decay_share": share} if schedule == "wsd" else {}
    values |= {} if schedule == "constant" else {"min_lr_ratio": floor}
    warmup = min(warmup, max_steps - 1)
    settings = TrainSettings(max_steps=max_steps, warmup_steps=warmup, schedule=schedule, lr=3e-4, **values)
    assert broken(noted(settings), settings) == ""
    assert broken(noted(settings, min(stopped, max_steps)), settings, is_whole=False) == ""


SLOW = TrainSettings(max_steps=40, warmup_steps=4, lr=1e-3)
ODD: dict[str, tuple[Any, str]] = {
    "never set": (lambda step, rate: 1e-3, "first rate"),
    "set at half": (lambda step, rate: rate / 2, "highest rate"),
    "one step late": (lambda step, rate: 1e-3 * optim.lr_scale(max(0, step - 1), SLOW), "last rate"),
    "from nothing": (lambda step, rate: 1e-3 * step / 4 if step < 4 else rate, "first rate is 0"),
    "no warm-up": (lambda step, rate: 1e-3 if step < 4 else rate, "first rate"),
    "climbs at the end": (lambda step, rate: rate if step < 36 else 3e-4, "rises after the warm-up"),
    "another curve": (
        lambda step, rate: rate if step in (*range(5), 39) else 2e-4,
        "the mean after the warm-up",
    ),
    "stays up": (lambda step, rate: rate if step < 4 else 1e-3, "never falls"),
}


@pytest.mark.parametrize("name", ODD)
def test_rates_of_another_schedule_are_named(name: str) -> None:
    rate, told = ODD[name]
    assert told in broken(noted(SLOW, rate=rate), SLOW)


def test_a_run_without_an_update_proves_no_schedule() -> None:
    assert "no update" in broken(Rates(), SLOW)


# --- the average --------------------------------------------------------------------------------------------------------------------------


def test_probes_tell_the_average_from_the_raw_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 4, generator=draw) for _ in range(20)]
    probes, mean = Probes(tensors, 0.9), [tensor.clone() for tensor in tensors]
    for _ in range(30):
        for tensor, average in zip(tensors, mean, strict=True):
            tensor += 0.01 * torch.randn(3, 4, generator=draw)
            average.lerp_(tensor, 0.1)
        probes.note()
    notes = json.loads(json.dumps(probes.state))
    assert run_record_checks.average(mean, 0.9, notes)["ema_error"].value < 1e-3
    assert run_record_checks.average(tensors, 0.9, notes)["ema_error"].value == pytest.approx(1.0, abs=0.01)
    assert run_record_checks.average(tensors, 0.9, {}) == {}
