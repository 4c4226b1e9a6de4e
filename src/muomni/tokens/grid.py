"""The delay pattern: codebook k of a code grid starts k steps later, so that it may depend on the books before it."""

from __future__ import annotations

import torch
from torch import Tensor

from muomni.errors import ShapeError


def delay(codes_BKF: Tensor, fill: int) -> Tensor:
    """Shift book k right by k steps.

    Takes   codes (B, K, F) int64.  Gives (B, K, F + K - 1) int64 with `fill` where a book has not begun or has ended.
    Source  Copet et al. 2023 (MusicGen), the delay pattern.
    """
    B, K, F = _shape(codes_BKF)
    grid = codes_BKF.new_full((B, K, F + K - 1), fill)
    for k in range(K):
        grid[:, k, k : k + F] = codes_BKF[:, k]
    return grid


def undelay(grid_BKF: Tensor) -> Tensor:
    """The codes that `delay` spread: (B, K, F + K - 1) -> (B, K, F).

    Raises  ShapeError if the grid is shorter than its own delay.
    """
    _, K, length = _shape(grid_BKF)
    F = length - K + 1
    if F < 0:
        raise ShapeError(f"undelay: expected at least {K - 1} steps for {K} codebooks, got {length}")
    return torch.stack([grid_BKF[:, k, k : k + F] for k in range(K)], dim=1)


def _shape(codes: Tensor) -> tuple[int, int, int]:
    if codes.ndim != 3 or codes.shape[1] < 1 or codes.dtype != torch.int64:
        raise ShapeError(f"code grid: expected (B, K, F) int64 with K >= 1, got {tuple(codes.shape)} {codes.dtype}")
    B, K, F = codes.shape
    return B, K, F
