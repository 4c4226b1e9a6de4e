"""Batches move whole, and rows are padded on the right."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from muomni.data.batch import Batch, right_padded


@dataclass
class Within(Batch):
    x: Tensor | None = None


@dataclass(frozen=True)
class Outer(Batch):
    sample_ids: list[str]
    ids_BT: Tensor
    keep_BT: Tensor | None = None
    within: dict[str, Within] = field(default_factory=dict)


def test_everything_moves_and_nothing_else_changes() -> None:
    batch = Outer(["a"], torch.ones(1, 2), within={"image": Within(torch.zeros(3))})
    moved = batch.to("meta")
    assert isinstance(moved, Outer)
    assert moved.sample_ids == ["a"]
    assert moved.keep_BT is None
    x = moved.within["image"].x
    assert x is not None
    assert moved.ids_BT.is_meta
    assert x.is_meta
    assert not batch.ids_BT.is_meta


def test_rows_are_padded_on_the_right() -> None:
    ids_BT, keep_BT = right_padded([[5, 6, 7], [], [8]], fill=-1)
    assert ids_BT.tolist() == [[5, 6, 7], [-1, -1, -1], [8, -1, -1]]
    assert keep_BT.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert right_padded([], width=2)[0].shape == (0, 2)
