"""Batches by number: any number of workers, from any place, bad samples named."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from muomni.data.loader import Loaded, Loader
from muomni.data.order import Order
from muomni.errors import DataError

Batch = list[tuple[int, float]]


@dataclass
class Numbers:
    """Each number with a random one of its own generator; `bad` ones can't be read."""

    bad: tuple[int, ...] = ()
    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return 23

    def name(self, index: int) -> str:
        return f"n{index}"

    def item(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
        self.read.append(index)
        if index in self.bad:
            raise DataError("silent", f"n{index} says nothing", hint="speak up")
        return index, float(rng.random())


def loader(workers: int = 0, bad: tuple[int, ...] = ()) -> Loader[tuple[int, float], Batch]:
    return Loader(Numbers(bad), Order([23], batch_size=4, seed=5), list, workers=workers)


def told(stream: list[Loaded[Batch]]) -> list[tuple[int, Batch | None, list[tuple[str, str, str]]]]:
    return [(one.number, one.batch, [(b.sample_id, b.reason, b.detail) for b in one.bad]) for one in stream]


def test_workers_change_nothing() -> None:
    numbers = range(2, 15)
    alone = told(list(loader(0, (3, 11)).numbers(numbers)))
    before = torch.get_rng_state()
    assert told(list(loader(2, (3, 11)).numbers(numbers))) == alone
    assert torch.equal(torch.get_rng_state(), before), "starting workers moved the generator of the dropout"
    assert [number for number, _, _ in alone] == list(numbers)


def test_any_place_is_reached_at_once() -> None:
    far = loader()
    assert told([far.load(3000)]) == told(list(loader().numbers(range(3000, 3001))))
    assert len(far.dataset.read) == 4  # type: ignore[attr-defined]


def test_bad_samples_leave_their_batch_and_are_named() -> None:
    stream = list(loader(bad=(3, 11)).numbers(range(6)))
    kept = [index for one in stream for index, _ in one.batch or []]
    assert sorted(kept) == [i for i in range(23) if i not in (3, 11)]
    bad = sorted((b.sample_id, b.reason, b.detail) for one in stream for b in one.bad)
    assert bad == [("n11", "silent", "n11 says nothing"), ("n3", "silent", "n3 says nothing")]


def test_a_batch_of_bad_samples_is_none() -> None:
    stream = list(loader(bad=tuple(range(23))).numbers(range(6)))
    assert all(one.batch is None for one in stream)
    assert sum(len(one.bad) for one in stream) == 23


def test_a_sample_draws_anew_each_epoch_and_the_same_at_the_same_place() -> None:
    drawn: dict[int, set[float]] = {}
    for one in loader().numbers(range(18)):
        for index, value in one.batch or []:
            drawn.setdefault(index, set()).add(value)
    assert all(len(values) == 3 for values in drawn.values())
    assert told([loader().load(7)]) == told([loader().load(7)])


def test_other_faults_are_not_hidden() -> None:
    class Wrong(Numbers):
        def item(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
            raise KeyError("a bug of ours")

    wrong = Loader(Wrong(), Order([23], batch_size=4, seed=5), list)
    try:
        wrong.load(0)
    except KeyError:
        return
    raise AssertionError("a bug was taken for a bad sample")
