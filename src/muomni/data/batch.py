"""What all batches share: they move to a device whole, and rows of ids are padded on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class Batch:
    """Base of dataclasses that hold tensors, absent ones as None, and batches by name."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        held: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        moved: dict[str, Any] = {}
        for name, value in held.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
            elif isinstance(value, Mapping):
                moved[name] = {key: batch.to(device) for key, batch in value.items()}
        return replace(self, **moved)  # type: ignore[type-var]


def right_padded(rows: Sequence[Sequence[int]], fill: int = 0, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of any lengths -> (ids int64, keep bool), both (rows, T): T is the longest length, at least `width`."""
    size = max([width, *map(len, rows)])
    ids_BT = torch.full((len(rows), size), fill, dtype=torch.int64)
    keep_BT = torch.zeros(len(rows), size, dtype=torch.bool)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
        keep_BT[row, : len(ids)] = True
    return ids_BT, keep_BT
