"""A pre-norm transformer block: attention, then one of three kinds of feed-forward network."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from muomni.nn.attention import Attention
from muomni.nn.cache import LayerCache
from muomni.nn.moe import MoE, Routing
from muomni.nn.norm import RMSNorm
from muomni.nn.rope import Rope
from muomni.nn.swiglu import SwiGLU

MlpKind = Literal["swiglu", "gelu"]


class GeluMLP(nn.Module):
    """down(gelu(up(x))), with biases, as ViT and Whisper have it; `width_out` where it leads into another
    network's width."""

    def __init__(self, width: int, hidden: int, width_out: int | None = None) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width if width_out is None else width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width or width_out)."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `dropout` falls on what is added, not on attention
    weights."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        mlp: MlpKind | MoE = "swiglu",
        qk_norm: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, heads, kv_heads, head_dim, qk_norm=qk_norm, eps=eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp: nn.Module = (
            mlp
            if isinstance(mlp, MoE)
            else SwiGLU(width, hidden)
            if mlp == "swiglu"
            else GeluMLP(width, hidden)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rope: Rope | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """(B,T,D) -> (B,T,D); where the feed-forward network has experts, `routing` is told which were
        chosen."""
        x_BTD = x_BTD + self.dropout(
            self.self_attn(self.input_layernorm(x_BTD), rope=rope, mask=mask, causal=causal, cache=cache)
        )
        even_BTD = self.post_attention_layernorm(x_BTD)
        said_BTD = self.mlp(even_BTD, routing) if isinstance(self.mlp, MoE) else self.mlp(even_BTD)
        out: Tensor = x_BTD + self.dropout(said_BTD)
        return out
