"""How like two pictures are: PSNR and SSIM, one number for each pair of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.errors import ShapeError

BEST_DB = 60.0  # of equal pictures, whose ratio is infinite: more than any 8-bit picture that differs in one pixel of 64 x 64 has
WINDOW, SIGMA = 11, 1.5  # pixels
STABLE_MEAN, STABLE_SPREAD = 0.01**2, 0.03**2  # for a range of 1


def psnr_B(one_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
    """Peak signal to noise ratio of each pair in dB, (B,) float32, at most BEST_DB.

    Takes   pictures (B, C, H, W) in [0, 1], as they will be shown: a codec's output after clamping.
    Raises  ShapeError where the two differ in shape.
    """
    _same(one_B3HW, other_B3HW)
    error_B = (one_B3HW.float() - other_B3HW.float()).square().mean((1, 2, 3))
    return -10 * torch.log10(error_B.clamp(min=10 ** (-BEST_DB / 10)))


def ssim_B(one_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
    """Structural similarity of each pair, (B,) float32, 1 for equal ones: mean over channels and places.

    Takes   as `psnr_B`; of a picture smaller than the window one window of its size is taken.
    Raises  ShapeError where the two differ in shape.
    Source  Wang et al. 2004: Gaussian window of 11 pixels and deviation 1.5, only where it lies inside; K1
            0.01, K2 0.03.
    """
    _same(one_B3HW, other_B3HW)
    one_B3HW, other_B3HW = one_B3HW.float(), other_B3HW.float()
    mean_one, mean_other = _blurred(one_B3HW), _blurred(other_B3HW)
    spread_one = _blurred(one_B3HW.square()) - mean_one.square()
    spread_other = _blurred(other_B3HW.square()) - mean_other.square()
    shared = _blurred(one_B3HW * other_B3HW) - mean_one * mean_other
    means = (2 * mean_one * mean_other + STABLE_MEAN) / (
        mean_one.square() + mean_other.square() + STABLE_MEAN
    )
    spreads = (2 * shared + STABLE_SPREAD) / (spread_one + spread_other + STABLE_SPREAD)
    return (means * spreads).mean((1, 2, 3))


def _blurred(x_BCHW: Tensor) -> Tensor:
    """Mean under the Gaussian window, where it lies inside."""
    channels = x_BCHW.shape[1]
    for axis, shape in ((3, (1, 1, 1, -1)), (2, (1, 1, -1, 1))):
        width = min(WINDOW, x_BCHW.shape[axis])
        places = torch.arange(width, device=x_BCHW.device, dtype=x_BCHW.dtype) - (width - 1) / 2
        window = torch.exp(-places.square() / (2 * SIGMA**2))
        x_BCHW = F.conv2d(
            x_BCHW, (window / window.sum()).view(shape).expand(channels, *shape[1:]), groups=channels
        )
    return x_BCHW


def _same(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape or one.ndim != 4:
        raise ShapeError(
            f"pictures: expected two batches (B, C, H, W) of one shape, got {tuple(one.shape)} and {tuple(other.shape)}"
        )
