"""Perceiver resampler: a few learned queries attend to any number of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muomni.errors import ConfigError
from muomni.nn.attention import attend
from muomni.nn.block import GeluMLP


class QueryAttention(nn.Module):
    """latents + attention(norm(latents), patches), then latents + mlp(norm(latents)); patches are read as
    they come, without a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"resampler: width {width} must be a multiple of heads {heads}")
        self.heads = heads
        self.attn_norm = nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = GeluMLP(width, 4 * width)
        for part in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            # nn.Linear's start is 0.58 / sqrt(width): all questions then hear the same quiet mean. Colours of
            # 16 among 49 places, nats after 50 steps of 32 pictures (chance 2.08, two seeds): 0.05 and 0.07
            # as here, 1.2 and 2.0 at 0.58.
            nn.init.normal_(part.weight, std=width**-0.5)
            nn.init.zeros_(part.bias)

    def forward(self, latents_NTD: Tensor, patches_NPD: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N,T,D) asked, (N,P,D) read -> (N,T,D); mask as in `attend`."""
        q = self._split(self.q_proj(self.attn_norm(latents_NTD)))
        k, v = self._split(self.k_proj(patches_NPD)), self._split(self.v_proj(patches_NPD))
        latents_NTD = latents_NTD + self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        out: Tensor = latents_NTD + self.mlp(self.mlp_norm(latents_NTD))
        return out

    def _split(self, x_NTD: Tensor) -> Tensor:
        return x_NTD.view(*x_NTD.shape[:2], self.heads, x_NTD.shape[2] // self.heads).transpose(
            1, 2
        )  # no -1: N may be 0


class Resampler(nn.Module):
    """States of any number of patches -> `tokens` vectors of `width`. It knows no places: whoever gives
    states puts positions into them.

    Source  Jaegle et al. 2021 and Alayrac et al. 2022, without their norms of the patches and of the end:
            6,927,872 parameters at 1,152 -> 64 x 512 (SPEC V2).
    Raises  ConfigError where heads do not divide the width.
    """

    def __init__(
        self, width_in: int, *, tokens: int = 64, width: int = 512, heads: int = 8, depth: int = 2
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width_in, width)
        # Questions are normed before they ask; their scale only says how loud they stand beside the answers,
        # which at the start are means over hundreds of patches, hence quiet. At 0.02 pictures spread the
        # tokens 0.8 times as far as questions do, at 1 0.08 times.
        self.latents = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.layers = nn.ModuleList(QueryAttention(width, heads) for _ in range(depth))

    def forward(self, states_NPE: Tensor, keep_NP: Tensor | None = None) -> Tensor:
        """Takes (N,P,width_in), keep_NP True = a real patch, at least one a row; gives (N,tokens,width)."""
        patches_NPD = self.proj_in(states_NPE)
        latents_NTD = self.latents.expand(len(states_NPE), -1, -1)
        mask = None if keep_NP is None else keep_NP[:, None, None, :]
        for layer in self.layers:
            latents_NTD = layer(latents_NTD, patches_NPD, mask)
        return latents_NTD
