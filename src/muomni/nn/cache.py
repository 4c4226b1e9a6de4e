"""Keys and values of positions already seen, in arrays made once."""

from __future__ import annotations

import torch
from torch import Tensor

from muomni.errors import ContextError, InternalError

STEADY = (
    16  # slots: sums over a multiple of them, the rest hidden, have the same bits whatever multiple it is
)


class KVCache:
    """Static cache of all layers; rows share the slots, `keep_BS` says which slots of a row are real.

    One forward = `begin` once, then `layer(i).update` in every layer. Padding may stand left, right or
    between: a slot that is padding is never looked at, and positions count real slots only, so each row goes
    on as if it were alone. Slots beyond `length` are never read, but as zeros.

    block   with more than 1, a step of one position gives keys and values up to a multiple of `block` slots,
            those beyond `length` being zero and hidden: the sums that attention takes then have the same bits
            in a batch of rows of other lengths (`nn.row_cache`)
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        block: int = 1,
    ) -> None:
        slots = up_to(capacity, block)
        shape = (layers, batch, kv_heads, slots, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self._parts = [(self.keys[layer], self.values[layer]) for layer in range(layers)]
        self.keep_BS = torch.zeros(batch, slots, dtype=torch.bool, device=device)
        self.capacity = capacity
        self.length = 0
        self.start = 0
        self.seen = 0  # slots that attention is given
        self.block = block
        self._zeroed = 0
        # zeros and then what hides: any number of slots, of which the first are open, is a piece of it
        self._hiding = torch.zeros(1, 1, 1, slots + block, dtype=dtype, device=device)
        self._hiding[..., slots:] = -torch.inf
        self.mask: Tensor | None = None
        self.is_padded = False
        self.positions_BT: Tensor | None = None  # of the newest slots, once a row has padding
        self._real_B = torch.zeros(batch, dtype=torch.long, device=device)

    def begin(self, new: int, keep_BT: Tensor | None = None) -> Tensor:
        """Take the next `new` slots and build the mask that all layers of this forward share.

        Takes   keep_BT bool (B,new), True = a real position; None: all are.
        Gives   positions (B,new) int64, or (new,) while no row has padding.
        Raises  ContextError if the slots do not suffice.
        """
        self.take(new, keep_BT)
        if self.positions_BT is not None:
            return self.positions_BT
        return torch.arange(self.start, self.length, device=self.keys.device)

    def take(self, new: int, keep_BT: Tensor | None = None) -> None:
        """`begin` without the positions of rows that have no padding: slots start to length, which cost
        nothing."""
        if self.length + new > self.capacity:
            raise ContextError(
                f"the cache holds {self.capacity} positions, {self.length} are taken, {new} more do not fit"
            )
        self.start, self.length = self.length, self.length + new
        self.seen = self.length if new > 1 else self._open_block()
        if not self.is_padded and keep_BT is not None and not bool(keep_BT.all()):
            self.is_padded = True  # from here on it matters which slots are real; all before are
            self.keep_BS[:, : self.start] = True
            self._real_B += self.start
        if not self.is_padded:
            self.mask = self._future_mask(new) if self.start and new > 1 else None
            if self.block > 1 and new == 1:
                self.mask = self._hiding.narrow(3, self.keys.shape[3] - self.length, self.seen)
            return
        if new == 1 and keep_BT is None:  # one real token a row: decoding, where every step counts
            self.keep_BS[:, self.start] = True
            self.mask = self.keep_BS[:, None, None, : self.seen]
            self.positions_BT = self._real_B[:, None].clone()
            self._real_B += 1
            return
        keep = torch.ones_like(self.keep_BS[:, :new]) if keep_BT is None else keep_BT
        self.keep_BS[:, self.start : self.length] = keep
        self.positions_BT = self._real_B[:, None] + keep.long().cumsum(1) - keep.long()
        self._real_B += keep.sum(1)
        mask = self.keep_BS[:, None, : self.seen]
        if new > 1:
            mask = mask & self._future_mask(new)[0]
        slots = torch.arange(self.seen, device=mask.device)
        itself = slots == slots[self.start : self.length, None]
        self.mask = (mask | (itself & ~mask.any(-1, keepdim=True)))[:, None]

    def _open_block(self) -> int:
        """The slots that a step of one position looks at; those beyond `length` become zero when it first
        does."""
        seen = up_to(self.length, self.block)
        if seen > self._zeroed and seen > self.length:
            self.keys[..., self.length : seen, :] = 0
            self.values[..., self.length : seen, :] = 0
            self._zeroed = seen
        return seen

    def _future_mask(self, new: int) -> Tensor:
        full = torch.ones(1, 1, new, self.length, dtype=torch.bool, device=self.keys.device)
        return full.tril(self.start)

    def layer(self, index: int) -> LayerCache:
        """The part of one layer."""
        return LayerCache(self, *self._parts[index])


class LayerCache:
    """One layer's view of a KVCache."""

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self.cache, self.keys, self.values = cache, keys, values

    def update(self, k_BHTd: Tensor, v_BHTd: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write the new keys and values; give all of them so far and who may look at them.

        Gives   k, v (B,H,S,d) with S = length so far (see `block`); mask bool (B or 1,1,T,S), or
                (1,1,1,S) of numbers that are added to scores; None where only the future is hidden.
        Raises  InternalError if `begin` did not announce these positions.
        """
        cache = self.cache
        if cache.length - cache.start != k_BHTd.shape[2]:
            raise InternalError(
                f"cache.begin announced {cache.length - cache.start} positions, the layer brings {k_BHTd.shape[2]}"
            )
        new = cache.length - cache.start
        self.keys.narrow(2, cache.start, new).copy_(k_BHTd)
        self.values.narrow(2, cache.start, new).copy_(v_BHTd)
        return self.keys.narrow(2, 0, cache.seen), self.values.narrow(2, 0, cache.seen), cache.mask


def up_to(count: int, multiple: int) -> int:
    """The least multiple that is not below a count."""
    return -(-count // multiple) * multiple
