"""Output heads: hidden states to scores of the next symbol, or to the nats of labels without holding all
scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.errors import TokenRangeError

IGNORE = -100  # torch's ignore_index. tokens.chat has it too: parts import no tokens, a test compares them


class Nats(NamedTuple):
    """A loss as a sum: only train.step divides, by the global target count.

    A tuple, so that backward hooks of sharding find the tensors in what the head gives.
    """

    total: Tensor  # scalar float32, the sum of nats, differentiable
    num_labels: int
    correct: Tensor  # int64 scalar, labels that are the one most probable symbol; on the device, so that nobody waits for it


Ranges = Sequence[range]
"""Ids that may stand at a place: a few ranges, in ascending order. Their scores have a column for each of
these ids."""


class Head(nn.Module):
    """The output of a causal language model. It owns the table, so it alone knows of tying, shards and new
    rows.

    size     symbols of a stream
    streams  symbols at one place, each with scores of its own: 1 for text, K for frames of K codebooks

    All work goes through `forward`, so that the hooks of sharding or compiling see every use of the table.
    """

    size: int
    streams: int = 1

    def logits(self, h: Tensor, stream: int = 0, legal: Ranges | None = None) -> Tensor:
        """States (..., D) -> scores (..., V) of a stream, or with `legal` those of its ids alone."""
        out: Tensor = self(h, stream, legal=legal)
        return out

    def nats(self, h: Tensor, labels: Tensor, stream: int = 0, legal: Ranges | None = None) -> Nats:
        """Cross entropy of states (..., D) against a stream's labels (...) int64, -100 where there is none.

        Takes   legal: the ids that share the probability, None = all. Only labelled places are scored.
        Raises  TokenRangeError for a label that is not legal.
        """
        out: Nats = self(h, stream, labels, legal=legal)
        return out

    def each_nats(
        self, h_BTD: Tensor, labels_BT: Tensor, stream: int = 0, legal: Ranges | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nats (N,) float32 of each label, and its row (N,); it holds the scores of all labelled
        places."""
        rows_N, places_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
        scores_NV = self.logits(h_BTD[rows_N, places_N], stream, legal).float()
        wanted_N = columns(labels_BT[rows_N, places_N], legal)
        return F.cross_entropy(scores_NV, wanted_N, reduction="none"), rows_N

    def forward(
        self,
        h: Tensor,
        stream: int = 0,
        labels: Tensor | None = None,
        *,
        legal: Ranges | None = None,
    ) -> Tensor | Nats:
        """What `logits` or, with labels, `nats` gives."""
        raise NotImplementedError


class TableHead(Head):
    """Scores of V symbols: the product of states with a table (V, D). Its subclasses say whose the table
    is."""

    weight: Tensor

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The rows of all symbols in their order, in parts where they have several owners."""
        return (self.weight,)

    def forward(
        self,
        h: Tensor,
        stream: int = 0,
        labels: Tensor | None = None,
        *,
        legal: Ranges | None = None,
    ) -> Tensor | Nats:
        """See Head; nats never hold the scores of all positions (`linear_cross_entropy`)."""
        parts = rows_of(self.tables, legal)
        if labels is None:
            return joined([F.linear(h, part) for part in parts])
        return Nats(*linear_cross_entropy(h.flatten(0, -2), parts, columns(labels.flatten(), legal)))

    @property
    def size(self) -> int:  # type: ignore[override]
        """Rows of the table."""
        return sum(len(table) for table in self.tables)


class OwnHead(TableHead, nn.Linear):  # type: ignore[misc]  # two signatures of forward: the first counts
    """A head with a table of its own."""

    def __init__(self, width: int, size: int) -> None:
        nn.Linear.__init__(self, width, size, bias=False)  # which also draws its first numbers


class TiedHead(TableHead):
    """A head whose table lies in another module (the embedding), which alone holds the parameter."""

    def __init__(self, owner: nn.Embedding | nn.Linear) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, for a submodule would give the parameter a second name

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(V, D), as it is now: loading, moving and sharding may replace it."""
        return self._owner[0].weight


class BookHeads(Head, nn.ModuleList):
    """Scores of K codebooks, each by a layer of its own, in float32; a book may have more symbols than
    another.

    sizes  symbols of each book
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        nn.ModuleList.__init__(self, (nn.Linear(width, size) for size in sizes))
        self.size, self.streams = max(sizes), len(sizes)

    def forward(
        self,
        h: Tensor,
        stream: int = 0,
        labels: Tensor | None = None,
        *,
        legal: Ranges | None = None,
    ) -> Tensor | Nats:
        """See Head."""
        is_labelled = None if labels is None else labels != IGNORE
        scores: Tensor = self[stream](h if is_labelled is None else h[is_labelled]).float()
        if legal is not None:
            scores = joined([scores[..., each.start : each.stop] for each in legal])
        if labels is None:
            return scores
        wanted_N = columns(labels[is_labelled], legal)
        correct = (scores.argmax(-1) == wanted_N).sum()
        return Nats(F.cross_entropy(scores, wanted_N, reduction="none").sum(), len(wanted_N), correct)


class StretchHeads(Head):
    """Scores of several streams, each by a stretch of rows of another module's table: a text table whole, or
    one table that holds the rows of K codebooks one after another.

    stretches  of each stream its table's owner and its rows
    """

    def __init__(self, stretches: Sequence[tuple[nn.Linear, range]]) -> None:
        super().__init__()
        self._stretches = tuple(
            stretches
        )  # a submodule would give the parameter a second name, as in TiedHead
        self.size, self.streams = max(len(rows) for _, rows in stretches), len(stretches)

    def forward(
        self,
        h: Tensor,
        stream: int = 0,
        labels: Tensor | None = None,
        *,
        legal: Ranges | None = None,
    ) -> Tensor | Nats:
        """See Head; only labelled places are scored, and never all of them at a time
        (`linear_cross_entropy`)."""
        owner, rows = self._stretches[stream]
        parts = rows_of((owner.weight[rows.start : rows.stop],), legal)
        if labels is None:
            return joined([F.linear(h, part) for part in parts])
        return Nats(*linear_cross_entropy(h.flatten(0, -2), parts, columns(labels.flatten(), legal)))


def joined(scores: Sequence[Tensor]) -> Tensor:
    """Scores of several parts of a table as one tensor; those of a whole table as they are."""
    return scores[0] if len(scores) == 1 else torch.cat(list(scores), -1)


def rows_of(tables: Sequence[Tensor], legal: Ranges | None) -> list[Tensor]:
    """The rows of the legal ids, None = of all; views of the tables, in the dtype of the first one."""
    tables = [table.to(tables[0].dtype) for table in tables]
    if legal is None:
        return tables
    starts = [0, *accumulate(map(len, tables))]
    parts = []
    for each in legal:
        for start, table in zip(starts, tables):
            parts.append(table[max(0, each.start - start) : max(0, each.stop - start)])
    return [part for part in parts if len(part)]


def is_in(ids: Tensor, ranges: Ranges) -> Tensor:
    """bool, True = an id of these ranges."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for each in ranges:
        found |= (ids >= each.start) & (ids < each.stop)
    return found


def columns(labels_N: Tensor, legal: Ranges | None) -> Tensor:
    """Where labels (N,) stand among the scores of legal ids; -100 stays.

    Raises  TokenRangeError for a label that is not legal.
    """
    if legal is None:
        return labels_N
    columns_N, before = labels_N.masked_fill(labels_N != IGNORE, -1), 0
    for each in legal:
        is_inside_N = (labels_N >= each.start) & (labels_N < each.stop)
        columns_N = torch.where(is_inside_N, labels_N - each.start + before, columns_N)
        before += len(each)
    if bool((columns_N == -1).any()):
        odd = int(labels_N[columns_N == -1][0])
        ids = ", ".join(f"{each.start} to {each.stop - 1}" for each in legal)
        raise TokenRangeError(f"label {odd} is not legal: expected {ids}")
    return columns_N


def row_means(nats_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Mean nats of each row, (rows,); 0 where a row has none."""
    sums_B = nats_N.new_zeros(rows).index_add(0, rows_N, nats_N)
    return sums_B / torch.bincount(rows_N, minlength=rows).clamp(min=1)


def linear_cross_entropy(
    h_ND: Tensor, tables: Sequence[Tensor], labels_N: Tensor, chunk: int = 512
) -> tuple[Tensor, int, Tensor]:
    """Cross entropy of softmax(h W^T) against labels, without ever holding the (N,V) logits.

    Takes   h_ND states; tables: the output table W, (V,D) in one part or in several along V; labels_N int64,
            -100 = no label (such rows are not even projected); chunk rows projected at a time.
    Gives   sum in nats (float32, differentiable in h and tables), number of labelled rows, number of them
            whose label is the one most probable entry (int64 tensor, so that a GPU need not be waited for).
    Source  SPEC M-A; gradients are taken in the forward, chunk by chunk, as Liger and Cut Cross-Entropy do.
            torch's own F.linear_cross_entropy is as fast, but can't tell the hits, for which it would have to
            project twice.
    """
    rows = (labels_N != IGNORE).nonzero().squeeze(-1)
    count = rows.numel()
    learning = [table for table in tables if table.requires_grad]
    if count == 0:
        # Zero that still reaches every parameter: a rank without labels must take part in the gradient
        # exchange.
        reached = (each.float().sum() * 0.0 for each in (h_ND, *learning))
        return sum(reached, h_ND.new_zeros((), dtype=torch.float32)), 0, rows.new_zeros(())
    if count < labels_N.numel():
        h_ND, labels_N = h_ND[rows], labels_N[rows]
    kind = h_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h_ND.dtype
    is_training = torch.is_grad_enabled() and (h_ND.requires_grad or bool(learning))
    with torch.autocast(kind, enabled=False):
        parts = [table.to(dtype) for table in tables]
        apply = cast("Callable[..., tuple[Tensor, Tensor]]", _Chunked.apply)
        total, correct = apply(h_ND.to(dtype), labels_N, chunk, is_training, *parts)
    return total, count, correct


class _Chunked(torch.autograd.Function):
    """Sum of nats; the gradients are ready when the forward ends and are only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        h_ND: Tensor,
        labels_N: Tensor,
        chunk: int,
        is_training: bool,
        *tables: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needs = [is_training and needed for needed in ctx.needs_input_grad]  # type: ignore[attr-defined]
        needs_h, needs_table = needs[0], needs[-len(tables) :]
        grad_h = torch.empty_like(h_ND) if needs_h else None
        grads = [
            torch.zeros_like(table, dtype=torch.float32) if needed else None
            for table, needed in zip(tables, needs_table)
        ]
        total = torch.zeros((), device=h_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=h_ND.device)
        for start in range(0, len(labels_N), chunk):
            part = slice(start, start + chunk)
            h, labels = h_ND[part], labels_N[part, None]
            log_p = F.log_softmax(joined([h @ table.T for table in tables]), dim=-1, dtype=torch.float32)
            hits = log_p.gather(1, labels)
            correct += (log_p >= hits).sum(-1).eq(1).sum()
            total -= hits.sum()
            if not any(needs):
                continue
            error = log_p.exp_().scatter_add_(1, labels, torch.full_like(hits, -1.0)).to(h.dtype)
            errors = torch.split(error, [len(table) for table in tables], -1)
            if grad_h is not None:
                torch.mm(errors[0], tables[0], out=grad_h[part])
                for error, table in zip(errors[1:], tables[1:]):
                    grad_h[part].addmm_(error, table)
            for grad, error in zip(grads, errors):
                if grad is not None:
                    grad += error.T @ h
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(grad_h, *grads)  # type: ignore[arg-type]
        ctx.dtype = tables[0].dtype  # type: ignore[attr-defined]
        return total, correct

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        by_h, *by_table = ctx.saved_tensors  # type: ignore[attr-defined]
        given = None if by_h is None else by_h * grad.to(by_h.dtype)
        dtype: torch.dtype = ctx.dtype  # type: ignore[attr-defined]
        return (
            given,
            None,
            None,
            None,
            *(None if each is None else (each * grad).to(dtype) for each in by_table),
        )
