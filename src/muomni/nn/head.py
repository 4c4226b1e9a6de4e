"""Output heads: hidden states to scores of the next symbol, or to the nats of labels without holding all scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE = -100  # torch's ignore_index. tokens.chat has it too: parts import no tokens, a test compares them


class Nats(NamedTuple):
    """A loss as a sum: only train.step divides, by the global target count.

    A tuple, so that backward hooks of sharding find the tensors in what the head gives.
    """

    total: Tensor  # scalar float32, the sum of nats, differentiable
    num_labels: int
    correct: Tensor  # int64 scalar, labels that are the one most probable symbol; on the device, so that nobody waits for it


class Head(nn.Module):
    """The output of a causal language model: it owns the table, so tying, sharding or further rows are its matter.

    size     symbols of a stream
    streams  symbols at one place, each with scores of its own: 1 for text, K for frames of K codebooks

    All work goes through `forward`, so that the hooks of sharding or compiling see every use of the table.
    """

    size: int
    streams: int = 1

    def logits(self, h: Tensor, stream: int = 0) -> Tensor:
        """States (..., D) -> scores (..., V) of a stream."""
        out: Tensor = self(h, stream)
        return out

    def nats(self, h: Tensor, labels: Tensor, stream: int = 0) -> Nats:
        """Cross entropy of states (..., D) against a stream's labels (...) int64, -100 where there is none."""
        out: Nats = self(h, stream, labels)
        return out

    def each_nats(self, h_BTD: Tensor, labels_BT: Tensor, stream: int = 0) -> tuple[Tensor, Tensor]:
        """The nats (N,) float32 of each label, and its row (N,); it holds the scores of all labelled places."""
        rows_N, places_N = (labels_BT != IGNORE).nonzero(as_tuple=True)
        scores_NV = self.logits(h_BTD[rows_N, places_N], stream).float()
        return F.cross_entropy(scores_NV, labels_BT[rows_N, places_N], reduction="none"), rows_N

    def forward(self, h: Tensor, stream: int, labels: Tensor | None = None) -> Tensor | Nats:
        """What `logits` or, with labels, `nats` gives."""
        raise NotImplementedError


class TableHead(Head):
    """Scores of V symbols: the product of states with a table (V, D). Its subclasses say whose the table is."""

    weight: Tensor

    def forward(self, h: Tensor, stream: int = 0, labels: Tensor | None = None) -> Tensor | Nats:
        """See Head; nats never hold the scores of all positions (`linear_cross_entropy`)."""
        if labels is None:
            return F.linear(h, self.weight)
        return Nats(*linear_cross_entropy(h.flatten(0, -2), self.weight, labels.flatten()))

    @property
    def size(self) -> int:  # type: ignore[override]
        """Rows of the table."""
        return self.weight.shape[0]


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
    """Scores of K codebooks, each by a layer of its own, in float32; a book may have more symbols than another.

    sizes  symbols of each book
    """

    def __init__(self, width: int, sizes: Sequence[int]) -> None:
        nn.ModuleList.__init__(self, (nn.Linear(width, size) for size in sizes))
        self.size, self.streams = max(sizes), len(sizes)

    def forward(self, h: Tensor, stream: int, labels: Tensor | None = None) -> Tensor | Nats:
        """See Head; only labelled places are scored."""
        if labels is None:
            out: Tensor = self[stream](h).float()
            return out
        is_labelled = labels != IGNORE
        scores_NV, wanted_N = self[stream](h[is_labelled]).float(), labels[is_labelled]
        correct = (scores_NV.argmax(-1) == wanted_N).sum()
        return Nats(F.cross_entropy(scores_NV, wanted_N, reduction="none").sum(), len(wanted_N), correct)


def row_means(nats_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Mean nats of each row, (rows,); 0 where a row has none."""
    sums_B = nats_N.new_zeros(rows).index_add(0, rows_N, nats_N)
    return sums_B / torch.bincount(rows_N, minlength=rows).clamp(min=1)


def linear_cross_entropy(
    h_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, chunk: int = 512, weights_N: Tensor | None = None
) -> tuple[Tensor, int, Tensor]:
    """Cross entropy of softmax(h W^T) against labels, without ever holding the (N,V) logits.

    Takes   h_ND states; weight_VD the output table; labels_N int64, -100 = no label (such rows are not even projected);
            chunk rows projected at a time; weights_N float, a factor on each row's nats.
    Gives   sum in nats (float32, differentiable in h and weight), number of labelled rows, number of them whose label is the
            one most probable entry (int64 tensor, so that a GPU need not be waited for).
    Source  SPEC M-A; gradients are taken in the forward, chunk by chunk, as Liger and Cut Cross-Entropy do. torch's own
            F.linear_cross_entropy is as fast, but can't tell the hits, for which it would have to project twice.
    """
    rows = (labels_N != IGNORE).nonzero().squeeze(-1)
    count = rows.numel()
    if count == 0:
        # Zero that still reaches every parameter: a rank without labels must take part in the gradient exchange.
        return h_ND.float().sum() * 0.0 + weight_VD.float().sum() * 0.0, 0, rows.new_zeros(())
    if count < labels_N.numel():
        h_ND, labels_N = h_ND[rows], labels_N[rows]
        weights_N = None if weights_N is None else weights_N[rows]
    kind = h_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h_ND.dtype
    is_training = torch.is_grad_enabled() and (h_ND.requires_grad or weight_VD.requires_grad)
    with torch.autocast(kind, enabled=False):
        total, correct = _Chunked.apply(  # type: ignore[no-untyped-call]
            h_ND.to(dtype), weight_VD.to(dtype), labels_N, weights_N, chunk, is_training
        )
    return total, count, correct


class _Chunked(torch.autograd.Function):
    """Sum of nats; the gradients are ready when the forward ends and are only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        h_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        weights_N: Tensor | None,
        chunk: int,
        is_training: bool,
    ) -> tuple[Tensor, Tensor]:
        needs_h, needs_weight = (is_training and needed for needed in ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        grad_h = torch.empty_like(h_ND) if needs_h else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), device=h_ND.device)
        correct = torch.zeros((), dtype=torch.long, device=h_ND.device)
        for start in range(0, len(labels_N), chunk):
            part = slice(start, start + chunk)
            h, labels = h_ND[part], labels_N[part, None]
            log_p = F.log_softmax(h @ weight_VD.T, dim=-1, dtype=torch.float32)
            hits = log_p.gather(1, labels)
            correct += (log_p >= hits).sum(-1).eq(1).sum()
            factors = None if weights_N is None else weights_N[part, None].float()
            total -= (hits if factors is None else hits * factors).sum()
            if not (needs_h or needs_weight):
                continue
            error = log_p.exp_().scatter_add_(1, labels, torch.full_like(hits, -1.0))
            if factors is not None:
                error *= factors
            error = error.to(h.dtype)
            if grad_h is not None:
                torch.mm(error, weight_VD, out=grad_h[part])
            if grad_weight is not None:
                grad_weight += error.T @ h
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(grad_h, grad_weight)  # type: ignore[arg-type]
        ctx.dtype = weight_VD.dtype  # type: ignore[attr-defined]
        return total, correct

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        by_h = None if grad_h is None else grad_h * grad.to(grad_h.dtype)
        by_weight = None if grad_weight is None else (grad_weight * grad).to(ctx.dtype)  # type: ignore[attr-defined]
        return by_h, by_weight, None, None, None, None
