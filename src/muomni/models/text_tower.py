"""Captions -> unit vectors, for contrast with pictures."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from muomni.errors import ShapeError, TokenRangeError
from muomni.nn import masks, rope
from muomni.nn.block import Block
from muomni.nn.norm import RMSNorm


class TextTowerConfig(BaseModel):
    """Sizes of a TextTower: `bow` a mean of embeddings, `transformer` reads the order too, `thinker` pools
    another model's hidden states.

    vocab_size counts for the first two, source_width (the hidden states' width) for the last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["bow", "transformer", "thinker"] = "transformer"
    vocab_size: int = Field(default=5000, gt=0)
    width: int = Field(default=128, gt=0)
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=2, gt=0)
    ffn_width: int = Field(default=512, gt=0)
    source_width: int = Field(default=256, gt=0)
    embed_dim: int = Field(default=128, gt=0)


class TextTower(nn.Module):
    """A caption's unit vector; padding never counts.

    Source  SPEC M-C. `bow` can't tell "red circle, blue square" from "blue circle, red square" by
            construction; use it as a floor.
    """

    model_type = "muomni_text_tower"

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.source_width if config.kind == "thinker" else config.width
        if config.kind != "thinker":
            self.tokens = nn.Embedding(config.vocab_size, width)
            nn.init.normal_(self.tokens.weight, std=0.5)
        layers = config.layers if config.kind == "transformer" else 0
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.ffn_width, mlp="gelu") for _ in range(layers)
        )
        self.norm = RMSNorm(width)
        self.proj = nn.Linear(width, config.embed_dim, bias=False)

    def embed(self, text: Tensor, keep_BT: Tensor) -> Tensor:
        """Unit vectors of captions.

        Takes   text: int64 ids (B, T), or for kind thinker its hidden states (B, T, source_width); keep_BT
                bool, True = a real token.
        Gives   (B, embed_dim) float32, unit length.
        Raises  ShapeError or TokenRangeError if text is of the wrong kind, shape or range, or a row keeps no
                token.
        """
        x_BTD = self._states(text, keep_BT)
        if self.config.kind == "transformer":
            size = x_BTD.shape[1]
            mask = masks.build(size, keep_BT=keep_BT)
            turn = rope.angles(
                torch.arange(size, device=x_BTD.device), self.config.width // self.config.heads, 1e4
            )
            for block in self.blocks:
                x_BTD = block(x_BTD, rope=turn, mask=mask)
        x_BTD = self.norm(x_BTD) * keep_BT[..., None]
        mean_BD = x_BTD.sum(1) / keep_BT.sum(1, keepdim=True)
        return F.normalize(self.proj(mean_BD).float(), dim=-1)

    def _states(self, text: Tensor, keep_BT: Tensor) -> Tensor:
        expected = (
            (*keep_BT.shape, self.config.source_width)
            if self.config.kind == "thinker"
            else tuple(keep_BT.shape)
        )
        if tuple(text.shape) != expected or text.is_floating_point() != (self.config.kind == "thinker"):
            raise ShapeError(
                f"text tower {self.config.kind}: expected {expected}, got {tuple(text.shape)} of {text.dtype}"
            )
        if not bool(keep_BT.any(1).all()):
            raise ShapeError(
                f"text tower: rows {(~keep_BT.any(1)).nonzero().flatten().tolist()} hold no token"
            )
        if self.config.kind == "thinker":
            return text
        if text.numel() and (int(text.min()) < 0 or int(text.max()) >= self.config.vocab_size):
            raise TokenRangeError(
                f"text tower: ids {int(text.min())}..{int(text.max())} outside of 0..{self.config.vocab_size - 1}"
            )
        states: Tensor = self.tokens(text)
        return states
