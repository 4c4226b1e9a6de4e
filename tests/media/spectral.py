"""How far two sounds lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from muomni.errors import ShapeError
from muomni.media.mel import TINY_POWER, MelSpec, _power


def log_spectral_distance(
    first_BS: Tensor, second_BS: Tensor, spec: MelSpec, *, range_db: float = 60.0
) -> Tensor:
    """How far two waves of equal length lie apart, in dB: the root mean square over bins of their log power
    difference, mean over frames.

    Both are scaled to unit power first, so loudness does not count; what lies more than `range_db` under the
    louder wave's peak bin is cut, so that the depth of a silence does not count.
    Gives   (B,) float32.
    Raises  ShapeError if the shapes differ.
    Source  Gray and Markel 1976.
    """
    if first_BS.shape != second_BS.shape or first_BS.ndim != 2:
        raise ShapeError(
            f"log_spectral_distance: expected two waves (B, S), got {tuple(first_BS.shape)} and {tuple(second_BS.shape)}"
        )
    first, second = (_power(_unit_power(wave.float()), spec) for wave in (first_BS, second_BS))
    lowest = torch.maximum(first, second).amax(dim=(1, 2), keepdim=True) * 10.0 ** (-range_db / 10.0)
    difference_db = 10.0 * (first.maximum(lowest).log10() - second.maximum(lowest).log10())
    return difference_db.square().mean(dim=2).sqrt().mean(dim=1)


def _unit_power(wave_BS: Tensor) -> Tensor:
    return wave_BS / wave_BS.square().mean(dim=1, keepdim=True).clamp_min(TINY_POWER).sqrt()
