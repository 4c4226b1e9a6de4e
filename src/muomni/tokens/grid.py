"""Layouts of a grid of K codebooks by F frames: delayed, interleaved or parallel, each with its inverse.

interleaved  one stream, frame by frame: book k of frame f stands at f * K + k
delay        K streams; book k starts k steps later, so that it may depend on the books before it
parallel     K streams, the grid as it is: all books of a frame stand in one step
"""

from __future__ import annotations

import torch
from torch import Tensor

from muomni.errors import ConfigError, ShapeError

LAYOUTS = ("interleaved", "delay", "parallel")


def delay(codes_BKF: Tensor, fill: int) -> Tensor:
    """Shift book k right by k steps.

    Takes   codes (B, K, F) int64.  Gives (B, K, F + K - 1) int64 with `fill` where a book has not begun or
            has ended.
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


def framed(codes_BKF: Tensor, start: int, end: int) -> Tensor:
    """A whole stream of delayed codes: (B, K, F) -> (B, K, F + 2 + K - 1).

    Book k says `start` up to step k, then its codes, and `end` from step k + F + 1 on.
    Source  Higgs Audio v2; SPEC H2.
    """
    B, K, _ = _shape(codes_BKF)
    edge_BK1 = codes_BKF.new_full((B, K, 1), end)
    grid_BKS = delay(torch.cat([edge_BK1, codes_BKF, edge_BK1], 2), end)
    for k in range(K):
        grid_BKS[:, k, : k + 1] = start
    return grid_BKS


def framed_labels(grid_BKS: Tensor, start: int, end: int, ignore: int) -> Tensor:
    """What is to be said of `framed` streams: K (F + 1) symbols, the codes and the first `end` of each book;
    `ignore` elsewhere."""
    is_end_BKS = grid_BKS == end
    is_behind_BKS = torch.zeros_like(is_end_BKS)
    is_behind_BKS[..., 1:] = is_end_BKS[..., :-1]
    return grid_BKS.masked_fill((grid_BKS == start) | (is_end_BKS & is_behind_BKS), ignore)


def unframed(grid_BKS: Tensor) -> Tensor:
    """The codes of whole streams: (B, K, F + 2 + K - 1) -> (B, K, F).

    Raises  ShapeError where there is no room for start and end.
    """
    _, K, length = _shape(grid_BKS)
    if length < K + 1:
        raise ShapeError(f"unframed: expected at least {K + 1} steps for {K} codebooks, got {length}")
    return undelay(grid_BKS)[..., 1:-1]


def interleave(codes_BKF: Tensor) -> Tensor:
    """Codes (B, K, F) as one stream (B, F * K): all books of frame 0, then all books of frame 1."""
    B, K, F = _shape(codes_BKF)
    return codes_BKF.transpose(1, 2).reshape(B, F * K)


def deinterleave(ids_BT: Tensor, K: int) -> Tensor:
    """The codes that `interleave` flattened: (B, F * K) -> (B, K, F).

    Raises  ShapeError if the stream ends within a frame.
    """
    if ids_BT.ndim != 2 or K < 1 or ids_BT.shape[1] % K:
        raise ShapeError(
            f"deinterleave: expected (B, T) with T a multiple of {K} codebooks, got {tuple(ids_BT.shape)}"
        )
    return ids_BT.reshape(len(ids_BT), -1, K).transpose(1, 2).contiguous()


def lags(layout: str, K: int) -> tuple[int, ...] | None:
    """Steps by which each of K streams starts late; None where the layout has one stream, whatever K is.

    Raises  ConfigError for a layout that is none of LAYOUTS.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: expected {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "interleaved" or K == 1:  # one book is one stream in each layout
        return None
    return tuple(range(K)) if layout == "delay" else (0,) * K


def _shape(codes: Tensor) -> tuple[int, int, int]:
    if codes.ndim != 3 or codes.shape[1] < 1 or codes.dtype != torch.int64:
        raise ShapeError(
            f"code grid: expected (B, K, F) int64 with K >= 1, got {tuple(codes.shape)} {codes.dtype}"
        )
    B, K, F = codes.shape
    return B, K, F
