"""The connector: patches of a frozen tower -> a few tokens as loud as a frozen decoder's embeddings. All that
trains in stage align."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.nn.block import GeluMLP
from muomni.nn.resampler import Resampler


class PerceiverConfig(BaseModel):
    """Sizes of a connector; the start is the source's (SPEC V2).

    tokens     positions that one picture fills
    width, heads, depth   of the resampler
    mlp_ratio  hidden width of the projector, in widths of the decoder
    vision_ln  a LayerNorm on what the tower gives: none, with its gains left at 1, or with gains that train
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(64, gt=0)
    width: int = Field(512, gt=0)
    heads: int = Field(8, gt=0)
    depth: int = Field(2, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    vision_ln: Literal["off", "frozen", "trained"] = "off"

    @field_validator("vision_ln", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: object) -> object:
        return "off" if value is False else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Perceiver(nn.Module):
    """Optional LayerNorm, Perceiver resampler, two-layer projector, and a last norm that sets the loudness
    and has nothing to learn."""

    loudness: Tensor

    def __init__(self, config: PerceiverConfig, width_in: int, width_out: int) -> None:
        super().__init__()
        self.config, self.in_features = config, width_in
        self.vision_ln = (
            None
            if config.vision_ln == "off"
            else nn.LayerNorm(width_in).requires_grad_(config.vision_ln == "trained")
        )
        self.resampler = Resampler(
            width_in, tokens=config.tokens, width=config.width, heads=config.heads, depth=config.depth
        )
        self.projector = GeluMLP(config.width, round(config.mlp_ratio * width_out), width_out)
        self.register_buffer("loudness", torch.ones(()))

    @torch.no_grad()
    def init_output_scale(self, rms: float) -> Self:
        """Speak as loudly as embeddings of this root mean square do."""
        self.loudness.fill_(rms)
        return self

    def forward(self, states_NPE: Tensor, keep_NP: Tensor | None = None) -> Tensor:
        """Patches (N,P,E) in any float dtype, keep_NP True = a real one -> (N,tokens,D) in the dtype of the
        weights; each token's rms is `loudness`."""
        x = states_NPE.to(self.resampler.latents.dtype)
        x_NTD = self.projector(self.resampler(x if self.vision_ln is None else self.vision_ln(x), keep_NP))
        normed_NTD = F.rms_norm(x_NTD.float(), x_NTD.shape[-1:])
        return (normed_NTD * self.loudness).to(x_NTD.dtype)
