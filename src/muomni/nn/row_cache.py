"""Keys and values of rows that come and go, each with a length of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from muomni.nn.cache import STEADY, KVCache, up_to

GROWTH = 128  # slots that are added at once


class RowCache:
    """A cache for steps of one position in all of its rows, to `models.stepper` like a KVCache.

    Row r holds slots 0 to `lengths[r]`, so that each sum over its slots has the terms, in the order, that it
    has for the row alone in a KVCache; zeros follow. The arrays grow as rows do, and are given back with the
    last row.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.block = STEADY
        self.start = self.length = 0  # a KVCache's; here each row has its own
        self.seen = 0
        self.mask: Tensor | None = None
        self.positions_BT: Tensor | None = None
        self.keys = self.values = torch.empty(0, 0, 0, 0, 0)
        self._slots_B1: Tensor | None = None

    def join(self, cache: KVCache) -> None:
        """Add a row behind the others: the lone one of a KVCache."""
        row, length = len(self.lengths), cache.length
        self._make_room(row + 1, length + 1, cache.keys)
        for mine, other in ((self.keys, cache.keys), (self.values, cache.values)):
            mine[:, row, :, :length] = other[:, 0, :, :length]
            mine[:, row, :, length:] = 0
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """End a row; the last one takes its place."""
        final = len(self.lengths) - 1
        if row != final:
            for array in (self.keys, self.values):
                array[:, row] = array[:, final]
            self.lengths[row] = self.lengths[final]
        self.lengths.pop()
        if not self.lengths:
            self.__init__()  # type: ignore[misc]

    def take(self, new: int, keep_BT: Tensor | None = None) -> None:
        """Take the next slot of each row; see KVCache."""
        assert new == 1
        assert keep_BT is None
        longest = max(self.lengths) + 1
        self._make_room(len(self.lengths), longest, self.keys)
        slots_B1 = torch.tensor(self.lengths, device=self.keys.device)[:, None]
        self.positions_BT = slots_B1
        self.lengths = [length + 1 for length in self.lengths]
        self.seen = up_to(longest, STEADY)
        is_beyond_BS = torch.arange(self.seen, device=self.keys.device) > slots_B1
        hiding_BS = torch.zeros(is_beyond_BS.shape, dtype=self.keys.dtype, device=self.keys.device)
        self.mask = hiding_BS.masked_fill_(is_beyond_BS, -torch.inf)[:, None, None]
        _, _, heads, _, dim = self.keys.shape
        self._at = slots_B1[:, :, None, None].expand(-1, heads, 1, dim)

    def layer(self, index: int) -> RowLayer:
        """The part of one layer."""
        return RowLayer(self, index)

    def _make_room(self, rows: int, slots: int, like: Tensor) -> None:
        layers, had_rows, heads, had_slots, dim = self.keys.shape
        if rows <= had_rows and slots <= had_slots:
            return
        layers, _, heads, _, dim = like.shape
        shape = (layers, max(rows, had_rows), heads, max(up_to(slots, GROWTH), had_slots), dim)
        grown = []
        for old in (self.keys, self.values):
            new = torch.zeros(shape, dtype=like.dtype, device=like.device)
            if old.numel():
                new[:, :had_rows, :, :had_slots] = old
            grown.append(new)
        self.keys, self.values = grown


class RowLayer:
    """One layer's view of a RowCache."""

    def __init__(self, cache: RowCache, index: int) -> None:
        self.cache, self.index = cache, index

    def update(self, k_BHTd: Tensor, v_BHTd: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See LayerCache."""
        cache, rows = self.cache, len(k_BHTd)
        keys, values = cache.keys[self.index, :rows], cache.values[self.index, :rows]
        keys.scatter_(2, cache._at, k_BHTd)
        values.scatter_(2, cache._at, v_BHTd)
        return keys.narrow(2, 0, cache.seen), values.narrow(2, 0, cache.seen), cache.mask
