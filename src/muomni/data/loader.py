"""Batches by number: a dataset, an order and a collate, seekable to any batch in O(1), with bad samples
counted, never hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from muomni.data.order import Draw, Order
from muomni.errors import DataError

ItemT = TypeVar("ItemT")
ItemT_co = TypeVar("ItemT_co", covariant=True)
BatchT = TypeVar("BatchT")


class Dataset(Protocol[ItemT_co]):
    """Samples by number. `item` draws from its generator only (a function of seed, epoch and index) and
    raises DataError for a bad one."""

    def __len__(self) -> int: ...

    def item(self, index: int, rng: np.random.Generator) -> ItemT_co: ...

    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Bad:
    """A sample that could not be used."""

    sample_id: str
    reason: str
    detail: str


@dataclass
class Loaded(Generic[BatchT]):
    """One batch by its global number; `batch` is None where none of its samples could be used.

    indices   of all samples that the dataset was asked for, bad ones too
    """

    number: int
    batch: BatchT | None
    bad: list[Bad]
    indices: list[int]


class Loader(Generic[ItemT, BatchT]):
    """Batches of a dataset in a given order, from any number on; the number of worker processes changes
    nothing."""

    def __init__(
        self,
        dataset: Dataset[ItemT],
        order: Order,
        collate: Callable[[list[ItemT]], BatchT],
        *,
        workers: int = 0,
    ) -> None:
        self.dataset, self.order, self.collate, self.workers = dataset, order, collate, workers

    def load(self, number: int) -> Loaded[BatchT]:
        """Global batch `number`."""
        items: list[ItemT] = []
        bad: list[Bad] = []
        indices: list[int] = []
        for draw in self.order.batch(number):
            indices.append(draw.index)
            try:
                items.append(self.item(draw))
            except DataError as error:
                bad.append(Bad(self.dataset.name(draw.index), error.reason, error.message))
        return Loaded(number, self.collate(items) if items else None, bad, indices)

    def item(self, draw: Draw) -> ItemT:
        """One sample as the order names it, with random numbers of its own; raises DataError for a bad
        one."""
        return self.dataset.item(
            draw.index,
            np.random.default_rng([self.order.seed & 0xFFFFFFFF, draw.epoch, draw.position, draw.index]),
        )

    def numbers(self, numbers: range) -> Iterator[Loaded[BatchT]]:
        """The batches with the given numbers, in that order."""
        if self.workers == 0:
            for number in numbers:
                yield self.load(number)
            return
        own = torch.Generator().manual_seed(
            0
        )  # else torch draws the workers' seed from the generator that dropout uses
        yield from DataLoader(
            _ByNumber(self, numbers),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4,
            generator=own,
        )


class _ByNumber(TorchDataset[Any]):
    """A loader as torch's map-style dataset, so that its workers load whole batches."""

    def __init__(self, loader: Loader[Any, Any], numbers: range) -> None:
        self.loader, self.batch_numbers = loader, numbers

    def __len__(self) -> int:
        return len(self.batch_numbers)

    def __getitem__(self, place: int) -> Loaded[Any]:
        return self.loader.load(self.batch_numbers[place])
