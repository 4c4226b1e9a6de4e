"""New rows of a vocabulary beside those of a head or an embedding, as parameters of their own: the old rows
are not touched.

The new ids begin at `first`. A base table often has more rows than its tokenizer has ids; rows of the base
from `first` on are then no ids of the grown vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.errors import ShapeError
from muomni.nn.head import Nats, Ranges, TableHead, joined


class GrownHead(TableHead):
    """Another head's table with R new rows from id `first` on. The other head keeps its parameter; the new
    rows are one of their own.

    Takes   first: the first new id, None: behind all rows of the base; streams: symbols at one place, each
            scored by the same table.
    Raises  ShapeError where the base has no row for an id before `first`.

    new_head  (R, D) float32, zeros at first
    """

    def __init__(self, base: TableHead, rows: int, first: int | None = None, streams: int = 1) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, for a submodule would give its parameter a second name
        self.first, self.streams = _first(base.size, first), streams
        table_VD = base.tables[0]
        self.new_head = nn.Parameter(torch.zeros(rows, table_VD.shape[1], device=table_VD.device))

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The base's rows before `first` and the new rows, which may be of another dtype."""
        *before, last = self._base[0].tables
        return (*before, last[: len(last) - (self._base[0].size - self.first)], self.new_head)

    def forward(
        self,
        h: Tensor,
        stream: int = 0,
        labels: Tensor | None = None,
        *,
        legal: Ranges | None = None,
    ) -> Tensor | Nats:
        """See Head. The scores of the base's ids have all the bits that the base gives them: its product is
        the same."""
        if labels is not None or legal is not None or self.first == self._base[0].size:
            return super().forward(h, stream, labels, legal=legal)
        base = self._base[0].logits(h)
        return joined([base[..., : self.first], F.linear(h, self.new_head.to(base.dtype))])


class GrownEmbedding(nn.Module):
    """Another embedding with R new rows from id `first` on. The other one keeps its parameter; the new rows
    are one of their own.

    Takes   first: the first new id, None: behind all rows of the base. Raises ShapeError as GrownHead.

    new_embed  (R, D) float32, zeros at first
    """

    def __init__(self, base: nn.Embedding, rows: int, first: int | None = None) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, for a submodule would give its parameter a second name
        self.first = _first(base.num_embeddings, first)
        self.new_embed = nn.Parameter(torch.zeros(rows, base.embedding_dim, device=base.weight.device))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (...) int64 -> embeddings (..., D) in the base's dtype; ids from `first` on are new ones."""
        is_new = ids >= self.first
        old: Tensor = self._base[0](ids.masked_fill(is_new, 0))
        new = F.embedding((ids - self.first).clamp(min=0), self.new_embed)
        return torch.where(is_new[..., None], new.to(old.dtype), old)


def _first(size: int, first: int | None) -> int:
    if first is None:
        return size
    if not 0 < first <= size:
        raise ShapeError(
            f"new rows: expected to begin at an id in 1..{size}, behind rows that the base has, got {first}"
        )
    return first
