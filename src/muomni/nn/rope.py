"""Rotary positions: a pair of coordinates turns by position times its own frequency."""

from __future__ import annotations

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]


def angles(positions: Tensor, head_dim: int, theta: float = 1e4) -> Rope:
    """Cosine and sine tables for positions, made once a forward and handed to every block.

    Takes   positions (T,) or (B,T), whole or fractional (time-aligned text has positions between frames).
    Gives   (cos, sin), each positions.shape + (head_dim,), float32; both halves of the last axis are alike.
    Source  Su et al. 2021, in the half-split layout of GPT-NeoX and Qwen3.
    """
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    half = positions.float().unsqueeze(-1) * theta ** (-steps / head_dim)
    turns = torch.cat((half, half), dim=-1)
    return turns.cos(), turns.sin()


def rotate(x_BHTd: Tensor, rope: Rope) -> Tensor:
    """Turn queries or keys by their positions.

    Takes   x (B,H,T,d); tables (T,d), alike for all rows, or (B,T,d).
    Gives   (B,H,T,d) in the dtype of x.
    """
    cos, sin = (table.to(x_BHTd.dtype).unsqueeze(-3) for table in rope)
    turned: Tensor = _Rotate.apply(x_BHTd, cos, sin)  # type: ignore[no-untyped-call]
    return turned


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """One contiguous result and no temporaries: the matrix product that follows would copy a transposed one
    anyway."""
    half = x.shape[-1] // 2
    out = torch.mul(x, cos, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


class _Rotate(torch.autograd.Function):
    """The gradient of a turn is the turn back, so nothing but the tables is kept."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        return _turn(grad, cos, sin, -1), None, None
