"""Finite scalar quantiser: each dimension of a latent vector is rounded to one of a few levels; no codebook
is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from muomni.errors import ShapeError, TokenRangeError


class Scalars(NamedTuple):
    """values_BTD: quantised latents in (-1, 1), with a straight-through gradient; codes_BT: int64."""

    values_BTD: Tensor
    codes_BT: Tensor


class FiniteScalarQuantiser(nn.Module):
    """Vectors of D numbers <-> one code of prod(levels); dimension d has levels[d] levels, the first varies
    fastest.

    A latent z is bounded to u = sigmoid(SLOPE z). Level k holds u in [k / L, (k + 1) / L), and its value is
    the middle of that, brought to (-1, 1): for odd and even L alike no value is preferred. It has no
    parameters, needs no commitment term and no revival: a level dies only if the encoder never reaches it.

    Source  Mentzer et al. 2023 (FSQ): bounded dimensions, mixed radix, straight-through. iFSQ (2026): the
            sigmoid in place of tanh. We changed the edges: FSQ rounds to whole levels, so its outermost
            levels are narrower.
    """

    # For z of unit normal distribution sigmoid(1.6 z) is nearly uniform, so all levels are used alike;
    # tanh(z) is slope 2.
    SLOPE = 1.6

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels, self.codebook_size = tuple(levels), math.prod(levels)

    def forward(self, z_BTD: Tensor) -> Scalars:
        """Quantise; the gradient passes as if nothing had been rounded.

        Takes   z_BTD floats, any range.
        Raises  ShapeError on another width than the number of levels.
        """
        share_BTD, level_BTD = self._levels_of(z_BTD)
        bounded_BTD = 2 * share_BTD - 1
        values_BTD = bounded_BTD + (self._values_of(level_BTD) - bounded_BTD).detach()
        return Scalars(values_BTD, self._codes_of(level_BTD))

    def encode(self, z_BTD: Tensor) -> Tensor:
        """Codes (B, T) int64; raises as `forward`."""
        return self._codes_of(self._levels_of(z_BTD)[1])

    def decode(self, codes_BT: Tensor) -> Tensor:
        """Values (B, T, D) float32 of codes.

        Raises  TokenRangeError for a code outside 0 .. codebook_size - 1.
        """
        if codes_BT.numel() and (int(codes_BT.min()) < 0 or int(codes_BT.max()) >= self.codebook_size):
            low, high = int(codes_BT.min()), int(codes_BT.max())
            raise TokenRangeError(f"codes: expected 0 to {self.codebook_size - 1}, got {low} to {high}")
        levels_D, radix_D = self._constants(codes_BT)
        return self._values_of(codes_BT[..., None] // radix_D % levels_D)

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of each dimension, and what a level of it counts in a code; made anew, since a network's
        state is its file."""
        radix = [math.prod(self.levels[:place]) for place in range(len(self.levels))]
        return torch.tensor(self.levels, device=like.device), torch.tensor(radix, device=like.device)

    def _levels_of(self, z_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The bounded latents in (0, 1), float32, and the level of each, int64."""
        if z_BTD.shape[-1] != len(self.levels):
            raise ShapeError(
                f"quantiser: expected vectors of width {len(self.levels)}, got {z_BTD.shape[-1]}"
            )
        with torch.autocast(z_BTD.device.type, enabled=False):
            share_BTD = torch.sigmoid(self.SLOPE * z_BTD.float())
            # sigmoid rounds to 1 for a large latent, which would be a level too many; of NaN no level is
            # asked for.
            levels_D, _ = self._constants(z_BTD)
            level_BTD = (share_BTD.nan_to_num() * levels_D).long()
            return share_BTD, torch.minimum(level_BTD, levels_D - 1)

    def _codes_of(self, level_BTD: Tensor) -> Tensor:
        return (level_BTD * self._constants(level_BTD)[1]).sum(-1)

    def _values_of(self, level_BTD: Tensor) -> Tensor:
        return (2 * level_BTD + 1).float() / self._constants(level_BTD)[0] - 1
