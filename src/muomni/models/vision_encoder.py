"""Vision encoder: a picture -> patches -> transformer -> a CLS token and a grid of patch tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from muomni.errors import ShapeError
from muomni.models.vision_tower import VisionTower
from muomni.nn.block import Block
from muomni.nn.norm import RMSNorm

# The patch embeddings have an rms near 0.4 at the start; positions of std 0.02 beside them stayed unheard for
# 500 steps (feas_perceive C).
POSITION_AMPLITUDE = 0.5


class VisionEncoderConfig(BaseModel):
    """Sizes of a VisionEncoder; `stem` "linear" is one convolution a patch, "conv" a stack of stride-2 3x3
    ones (sees shape better)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(default=224, gt=0)
    patch_size: int = Field(default=16, gt=0)
    width: int = Field(default=128, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=2, gt=0)
    ffn_width: int = Field(default=512, gt=0)
    stem: Literal["linear", "conv"] = "linear"
    embed_dim: int = Field(default=128, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"stem conv needs a patch_size that is a power of two, got {self.patch_size}")
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4 for 2-D positions, got {self.width}")
        return self

    @property
    def side(self) -> int:
        """Patches along an edge."""
        return self.image_size // self.patch_size


@dataclass
class VisionOutput:
    """What a VisionEncoder gives: cls_B1D, a summary, and grid_BPD, one state a patch, row by row.

    levels_BTE  the states of all asked levels beside each other, summary first, (B, 1+P, levels * D), each of
                rms 1; None if none was asked
    """

    cls_B1D: Tensor
    grid_BPD: Tensor
    layers_BTE: Tensor | None = None


def sincos_2d(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (side * side, width), amplitude 1; a quarter of the width for each
    of the four."""
    rates = 1.0 / 100.0 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows = line[:, None, :].expand(side, side, -1)
    columns = line[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], 2).reshape(side * side, width)


class DownsampleBlock(nn.Module):
    """A 3x3 convolution that adds to what it reads; it starts by adding nothing (its last norm has gain 0),
    so depth costs no colour."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        out: Tensor = x_BDHW + F.gelu(self.norm(self.conv(x_BDHW)))
        return out


class ConvStem(nn.Module):
    """Stride-2 3x3 convolutions from RGB to one vector a patch; after the last but one another looks around
    at the same stride, after the last two more do: a patch in the middle of an object must reach its rim to
    know the shape.

    Convolutions find a shape wherever it lies; a transformer over patches has to learn it anew at every
    place. Each picture is normalised by itself, so batches do not matter.
    """

    def __init__(self, width: int, strides: int) -> None:
        super().__init__()
        channels = [3, *[max(32, width >> (strides - 1 - step)) for step in range(strides)]]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))
        self.norms = nn.ModuleList(nn.GroupNorm(8, count) for count in channels[1:])
        looks = [max(0, step + 3 - strides) for step in range(strides)]
        self.deeper = nn.ModuleList(
            nn.Sequential(*(DownsampleBlock(count) for _ in range(n)))
            for n, count in zip(looks, channels[1:], strict=True)
        )
        self.out = nn.Conv2d(channels[-1], width, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / 2^strides, W / 2^strides)."""
        x = pixels_B3HW
        for conv, norm, deeper in zip(self.convs, self.norms, self.deeper, strict=True):
            x = deeper(F.gelu(norm(conv(x))))
        out: Tensor = self.out(x)
        return out


class VisionEncoder(VisionTower):
    """A ViT that gives a summary and every patch, and an embedding of both for retrieval.

    Source  SPEC M-C. The embedding pools the summary and the patches: contrast on the summary alone leaves
            the last block's patch outputs without a gradient, and they are what a language model reads later
            (reference/feas_perceive.md E). Patches are pooled by their maximum: an object fills a few of
            them, which a mean drowns (docs/log.md).
    """

    model_type = "muomni_vision_encoder"
    trained_by = "vision"
    num_cls_tokens = 1

    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.side, self.width, self.depth = (
            config.image_size,
            config.side,
            config.width,
            config.layers,
        )
        if config.stem == "conv":
            self.stem: nn.Module = ConvStem(config.width, config.patch_size.bit_length() - 1)
        else:
            self.stem = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.cls = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        positions = torch.cat([torch.zeros(1, config.width), sincos_2d(config.side, config.width)])
        self.positions = nn.Parameter(POSITION_AMPLITUDE * positions)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ffn_width, mlp="gelu", dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width)
        self.proj = nn.Linear(2 * config.width, config.embed_dim, bias=False)

    def forward(self, pixels_B3HW: Tensor, feature_layers: Sequence[int] = ()) -> VisionOutput:
        """Summary and patch states.

        Takes   pixels_B3HW uint8, or float in [0, 1]; levels: after how many blocks states are wanted beside
                (0: the stem's).
        Gives   Seen(cls_B1D, grid_BPD), P = side * side, row by row.
        Raises  ShapeError if the picture is not (B, 3, image_size, image_size).
        """
        size = self.config.image_size
        if pixels_B3HW.ndim != 4 or pixels_B3HW.shape[1:] != (3, size, size):
            raise ShapeError(
                f"vision: expected pixels (B, 3, {size}, {size}), got {tuple(pixels_B3HW.shape)}"
            )
        scale = 127.5 if pixels_B3HW.dtype == torch.uint8 else 0.5
        patches = self.stem((pixels_B3HW.float() / scale - 1.0).to(self.cls.dtype)).flatten(2).transpose(1, 2)
        x_BTD = (
            torch.cat([self.cls.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], 1)
            + self.positions
        )
        passed = [x_BTD]
        for block in self.blocks:
            x_BTD = block(x_BTD)
            passed.append(x_BTD)
        x_BTD = self.norm(x_BTD)
        beside = (
            torch.cat([F.rms_norm(passed[level], passed[level].shape[-1:]) for level in feature_layers], -1)
            if feature_layers
            else None
        )
        return VisionOutput(x_BTD[:, :1], x_BTD[:, 1:], beside)

    def encode_image(self, pixels_N3HW: Tensor, feature_layers: Sequence[int] = ()) -> Tensor:
        """As `VisionTower.encode_image`."""
        seen = self(pixels_N3HW, feature_layers)
        return torch.cat([seen.cls_B1D, seen.grid_BPD], 1) if seen.layers_BTE is None else seen.layers_BTE

    def pooled(self, seen: VisionOutput) -> Tensor:
        """Summary beside the maximum over the patches, (B, 2 * width)."""
        return torch.cat([seen.cls_B1D[:, 0], seen.grid_BPD.amax(1)], 1)

    def embed(self, pixels_B3HW: Tensor) -> Tensor:
        """Unit vectors (B, embed_dim), float32, to be compared with a TextTower's; takes and raises as
        `forward`."""
        return self.unit(self.pooled(self(pixels_B3HW)))

    def unit(self, pooled: Tensor) -> Tensor:
        """Pooled pictures (B, 2 * width) -> unit vectors (B, embed_dim), float32."""
        return F.normalize(self.proj(pooled).float(), dim=-1)
