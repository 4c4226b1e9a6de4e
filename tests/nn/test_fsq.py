"""The finite scalar quantiser: codes and values are each other's inverse, levels are equally wide, the
gradient passes."""

from __future__ import annotations

import math

import pytest
import torch

from muomni.errors import ShapeError, TokenRangeError
from muomni.nn.fsq import FiniteScalarQuantiser

SHAPES = [(4, 4, 4, 4, 4), (8, 5, 5, 5), (2,), (3, 7)]


def latents_of(quantiser: FiniteScalarQuantiser, values: torch.Tensor) -> torch.Tensor:
    """Latents whose bounded values these are."""
    return torch.logit((values + 1) / 2) / quantiser.SLOPE


@pytest.mark.parametrize("levels", SHAPES)
def test_every_code_gives_a_value_that_gives_the_code_again(levels: tuple[int, ...]) -> None:
    quantiser = FiniteScalarQuantiser(levels)
    codes = torch.arange(math.prod(levels))[None]
    values = quantiser.decode(codes)
    assert torch.equal(quantiser.encode(latents_of(quantiser, values)), codes)
    assert len({tuple(row) for row in values[0].tolist()}) == math.prod(levels)
    assert values.abs().max() < 1
    assert torch.allclose(values.mean(1), torch.zeros(1, len(levels)), atol=1e-6), (
        "no side is preferred, with even numbers of levels too"
    )


def test_the_first_dimension_varies_fastest() -> None:
    values = FiniteScalarQuantiser((2, 3)).decode(torch.arange(6)[None])[0]
    assert values[:, 0].tolist() == [-0.5, 0.5] * 3
    assert values[::2, 1].tolist() == pytest.approx([-2 / 3, 0, 2 / 3])


def test_a_normal_latent_uses_all_levels_alike() -> None:
    quantiser = FiniteScalarQuantiser((4,))
    z = torch.randn(1, 40_000, 1, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(quantiser.encode(z)[0], minlength=4) / 40_000
    assert shares.min() > 0.22


def test_forward_gives_what_codes_give_and_its_gradient_is_that_of_the_bounded_latent() -> None:
    quantiser = FiniteScalarQuantiser((4, 5))
    z = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    made = quantiser(z)
    assert torch.equal(made.codes_BT, quantiser.encode(z))
    assert torch.allclose(made.values_BTD, quantiser.decode(made.codes_BT), atol=1e-6)
    assert len(made.codes_BT.unique()) > 12
    upstream = torch.randn(made.values_BTD.shape, generator=torch.Generator().manual_seed(2))
    (straight,) = torch.autograd.grad((made.values_BTD * upstream).sum(), z)
    (smooth,) = torch.autograd.grad(((2 * torch.sigmoid(quantiser.SLOPE * z) - 1) * upstream).sum(), z)
    assert torch.allclose(straight, smooth)
    assert bool((straight != 0).all())


def test_far_latents_take_the_outermost_level_and_nothing_beyond() -> None:
    quantiser = FiniteScalarQuantiser((4,))
    assert quantiser.encode(torch.tensor([[[-1e9], [1e9], [math.inf], [-math.inf]]])).tolist() == [
        [0, 3, 3, 0]
    ]


def test_half_precision_takes_the_same_codes_as_the_same_numbers_in_float32() -> None:
    quantiser = FiniteScalarQuantiser((4, 4, 4))
    z = torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(3)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantiser(z).codes_BT, quantiser.encode(z.float()))
        assert quantiser(z).values_BTD.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    quantiser = FiniteScalarQuantiser((4, 4))
    with pytest.raises(ShapeError, match="width 2, got 3"):
        quantiser(torch.zeros(1, 1, 3))
    for code in (-1, 16):
        with pytest.raises(TokenRangeError, match="expected 0 to 15"):
            quantiser.decode(torch.tensor([[0, code]]))
