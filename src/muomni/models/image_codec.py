"""Image codec: a square picture <-> a grid of codes. Patches, 3x3 convolutions at two resolutions, attention, FSQ,
and the mirror of it back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.errors import CheckpointError, ConfigError, ShapeError
from muomni.models import store
from muomni.nn.fsq import FiniteScalarQuantiser
from muomni.tokens.codec import check_codes, check_media, digest_of, encode_by_length


class ImageCodecConfig(BaseModel):
    """Sizes of the codec; the defaults turn 64 px into 8 x 8 tokens of 4^5 = 1,024 codes.

    patch_size, fine_patch_size   pixels of a side that one token covers, and one cell of the finer grid,
                                  where edges are drawn
    width, fine_width   channels of the two grids; there are none at full resolution, where channels cost most
    blocks, fine_blocks residual blocks of each grid, on each side of the quantiser
    heads               of an attention over all tokens, one on each side of the quantiser; 0: none
    levels              of each dimension of a token's latent; their product is the number of codes
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(default=64, gt=0)
    patch_size: int = Field(default=8, gt=0)
    fine_patch_size: int = Field(default=4, gt=0)
    width: int = Field(default=128, gt=0)
    fine_width: int = Field(default=48, gt=0)
    blocks: int = Field(default=1, ge=0)
    fine_blocks: int = Field(default=1, ge=0)
    heads: int = Field(default=4, ge=0)
    levels: tuple[int, ...] = (4, 4, 4, 4, 4)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.patch_size % self.fine_patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} is no multiple of fine_patch_size {self.fine_patch_size}"
            )
        if self.heads and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if not self.levels or min(self.levels) < 2:
            raise ValueError(
                f"levels: expected at least one dimension of at least 2 levels, got {list(self.levels)}"
            )
        return self

    @property
    def side(self) -> int:
        """Tokens along an edge."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return self.side**2


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, D, H, W)."""

    def forward(self, x_BDHW: Tensor) -> Tensor:
        # With channels last in memory the two permutations copy nothing.
        return super().forward(x_BDHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3x3 convolutions inside one residual. Source: He et al. 2016 (pre-activation); layer scale 0.3 as
    in our codec of speech."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.first, self.second = _conv(width, width), _conv(width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.3))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        out: Tensor = x_BDHW + self.scale * self.second(F.gelu(self.first(self.norm(x_BDHW))))
        return out


class GridAttention(nn.Module):
    """Attention of every cell to all others, inside a residual: what a picture shares, its ground above all, need
    not be said by each token. Source: Esser et al. 2021 (VQGAN has it at its coarsest grid)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(width)
        self.qkv, self.out = _conv(width, 3 * width, kernel=1), _conv(width, width, kernel=1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.3))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        batch, width, rows, columns = x_BDHW.shape
        qkv_B3HdT = self.qkv(self.norm(x_BDHW)).reshape(
            batch, 3, self.heads, width // self.heads, rows * columns
        )
        q, k, v = qkv_B3HdT.transpose(3, 4).unbind(1)
        mixed_BHTd = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x_BDHW + self.scale * self.out(mixed_BHTd.transpose(2, 3).reshape(x_BDHW.shape))
        return out


class ImageCodec(nn.Module):
    """Pictures <-> codes; satisfies `tokens.codec.Codec`. Training goes through `latents`, `quantiser` and
    `rebuild`.

    Activations lie channels-last in memory, which is what a CPU's convolutions are fast in.
    """

    model_type = "muomni_image_codec"
    trained_by = "image_codec"
    kind = "muomni_image_codec"
    modality = "image"
    codebooks = 1
    frame_rate_hz: float | None = None
    sample_rate_hz: int | None = None

    def __init__(self, config: ImageCodecConfig) -> None:
        super().__init__()
        self.config = config
        width, fine, pixels = config.width, config.fine_width, 3 * config.fine_patch_size**2
        fold = config.patch_size // config.fine_patch_size
        latent = len(config.levels)
        self.patch = nn.Sequential(nn.PixelUnshuffle(config.fine_patch_size), _conv(pixels, fine))
        self.fine_encoder = nn.Sequential(*(Block(fine) for _ in range(config.fine_blocks)))
        self.fold = nn.Sequential(nn.PixelUnshuffle(fold), _conv(fold**2 * fine, width, kernel=1))
        self.encoder = nn.Sequential(*(Block(width) for _ in range(config.blocks)), *_attention(config))
        # No norm at the ends: it would take a flat patch's brightness away, which is most of what a token has
        # to say.
        self.to_latent = _conv(width, latent, kernel=1)
        self.quantiser = FiniteScalarQuantiser(config.levels)
        self.from_latent = _conv(latent, width)
        self.decoder = nn.Sequential(*_attention(config), *(Block(width) for _ in range(config.blocks)))
        self.unfold = nn.Sequential(_conv(width, fold**2 * fine, kernel=1), nn.PixelShuffle(fold))
        self.fine_decoder = nn.Sequential(*(Block(fine) for _ in range(config.fine_blocks)))
        self.to_pixels = nn.Sequential(_conv(fine, pixels), nn.PixelShuffle(config.fine_patch_size))

    @property
    def codebook_size(self) -> int:
        """Codes that a token may be."""
        return math.prod(self.config.levels)

    @property
    def size_px(self) -> int:
        """Side of its pictures."""
        return self.config.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's tokens; they stand row by row."""
        return self.config.side, self.config.side

    @property
    def digest(self) -> str:
        """See `tokens.codec.Codec`."""
        return digest_of(self.kind, self.config.model_dump(mode="json"), self.codebooks, store.digest(self))

    def latents(self, image_B3HW: Tensor) -> Tensor:
        """Vectors before the quantiser, (B, F, levels) float, of pictures in [0, 1]."""
        x_B3HW = (2 * image_B3HW - 1).contiguous(memory_format=torch.channels_last)
        fine_BDHW = self.fine_encoder(self.patch(x_B3HW))
        z_BDHW: Tensor = self.to_latent(self.encoder(self.fold(fine_BDHW)))
        return z_BDHW.permute(0, 2, 3, 1).flatten(1, 2)

    def rebuild(self, values_BFD: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of quantised latents, around [0, 1]."""
        side = self.config.side
        values_BDHW = values_BFD.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
        x_BDHW = self.decoder(self.from_latent(values_BDHW))
        image_B3HW: Tensor = self.to_pixels(self.fine_decoder(self.unfold(x_BDHW)))
        return (image_B3HW + 1) / 2

    @torch.no_grad()
    def encode(self, media: Tensor) -> Tensor:
        """Codes (B, 1, F) int64 of pictures (B, 3, H, W) in [0, 1]; raises as `tokens.codec.Codec.encode`."""
        check_media(self, media)
        image_B3HW = media
        media = image_B3HW.to(self.from_latent.weight.device)
        return self.quantiser.encode(self.latents(media))[:, None]

    @torch.no_grad()
    def decode(self, codes_BKF: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) float32 in [0, 1] of codes (B, 1, F); raises as
        `tokens.codec.Codec.decode`."""
        check_codes(self, codes_BKF)
        codes_BKF = codes_BKF.to(self.from_latent.weight.device)
        return self.rebuild(self.quantiser.decode(codes_BKF[:, 0])).float().clamp(0, 1)

    def encode_many(self, media: Sequence[Tensor]) -> list[Tensor]:
        """Codes (1, F) of each picture (3, H, W); see `tokens.codec.encode_by_length`."""
        return encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        """Tokens of a picture, whatever is asked."""
        return self.config.tokens

    def samples(self, frames: int) -> int:
        """A codec of pictures has no samples.

        Raises  ShapeError.
        """
        raise ShapeError(f"{self.kind}: a picture has no samples")

    def code_vectors(self) -> list[Tensor]:
        """The levels of each code; see `tokens.codec.Codec`."""
        codes_N = torch.arange(self.codebook_size, device=self.from_latent.weight.device)
        return [self.quantiser.decode(codes_N[None])[0]]


def _attention(config: ImageCodecConfig) -> list[GridAttention]:
    return [GridAttention(config.width, config.heads)] if config.heads else []


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def open_folder(folder: Path, codebooks: int | None, device: torch.device | str) -> ImageCodec:
    """The codec that stage image_codec left (models.codecs.Opener).

    Raises  CheckpointError for a folder of another network; ConfigError for another number of books than its
            one.
    """
    network: Any = store.load(folder, device)
    if not isinstance(network, ImageCodec):
        raise CheckpointError(f"{folder}: expected {ImageCodec.model_type}, got a {type(network).__name__}")
    if codebooks not in (None, 1):
        raise ConfigError(f"{folder}: this codec has one codebook, got {codebooks}")
    return network
