"""PSNR and SSIM against their definitions, written slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from muomni.errors import ShapeError
from muomni.evaluate.picture_metrics import BEST_DB, psnr_B, ssim_B


def picture(seed: int, size: int = 20) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_that_of_a_known_error() -> None:
    one = picture(0) * 0.5
    assert psnr_B(one, one + 0.1).tolist() == pytest.approx([20.0, 20.0], abs=1e-3)
    assert psnr_B(one, one).tolist() == [BEST_DB, BEST_DB]


def test_ssim_is_the_mean_over_windows_of_the_papers_formula() -> None:
    one, other = picture(0), (picture(0) + 0.3 * picture(1)).clamp(0, 1)
    places = np.arange(11) - 5
    line = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    expected = []
    for row in range(2):
        scores = []
        for channel in range(3):
            x, y = one[row, channel].double().numpy(), other[row, channel].double().numpy()
            for top in range(10):
                for left in range(10):
                    a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
                    ma, mb = (window * a).sum(), (window * b).sum()
                    va, vb, cov = (
                        (window * (a - ma) ** 2).sum(),
                        (window * (b - mb) ** 2).sum(),
                        (window * (a - ma) * (b - mb)).sum(),
                    )
                    scores.append(
                        (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
                    )
        expected.append(sum(scores) / len(scores))
    assert ssim_B(one, other).tolist() == pytest.approx(expected, abs=1e-4)
    assert ssim_B(one, one).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert not math.isclose(expected[0], expected[1])


def test_pictures_that_can_not_be_compared_are_refused() -> None:
    with pytest.raises(ShapeError, match="of one shape"):
        psnr_B(picture(0), picture(0)[:1])


def test_a_picture_smaller_than_the_window_is_one_window() -> None:
    assert ssim_B(picture(0, 4), picture(0, 4)).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert max(ssim_B(picture(0, 4), picture(1, 4)).tolist()) < 0.9
