"""Losses as sums: whoever divides, does it once, by the count of the whole batch (train.step)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.tokens.chat import IGNORE


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
        total, correct = _Chunked.apply(h_ND.to(dtype), weight_VD.to(dtype), labels_N, weights_N, chunk, is_training)  # type: ignore[no-untyped-call]
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
