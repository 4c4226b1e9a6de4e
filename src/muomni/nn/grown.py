"""New rows of a vocabulary, behind those of a head or an embedding, as parameters of their own: the old rows are not touched."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.nn.head import TableHead


class GrownHead(TableHead):
    """Another head's table with R new rows behind it. The other head keeps its parameter; the new rows are one of their own.

    new_head  (R, D) float32, zeros at first
    """

    def __init__(self, base: TableHead, rows: int) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, for a submodule would give its parameter a second name
        table_VD = base.tables[0]
        self.new_head = nn.Parameter(torch.zeros(rows, table_VD.shape[1], device=table_VD.device))

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The base's and the new rows, which may be of another dtype."""
        return (*self._base[0].tables, self.new_head)


class GrownEmbedding(nn.Module):
    """Another embedding with R new rows behind it. The other one keeps its parameter; the new rows are one of their own.

    new_embed  (R, D) float32, zeros at first
    """

    def __init__(self, base: nn.Embedding, rows: int) -> None:
        super().__init__()
        self._base = (base,)  # in a tuple, for a submodule would give its parameter a second name
        self.new_embed = nn.Parameter(torch.zeros(rows, base.embedding_dim, device=base.weight.device))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (...) int64 -> embeddings (..., D) in the base's dtype; new ids follow those of the base."""
        base = self._base[0]
        is_new = ids >= base.num_embeddings
        old: Tensor = base(ids.masked_fill(is_new, 0))
        new = F.embedding((ids - base.num_embeddings).clamp(min=0), self.new_embed)
        return torch.where(is_new[..., None], new.to(old.dtype), old)
