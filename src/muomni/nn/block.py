"""A pre-norm transformer block, and its two kinds of feed-forward network."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from muomni.nn.attention import Attention
from muomni.nn.cache import LayerCache
from muomni.nn.norm import RMSNorm
from muomni.nn.rope import Rope

MlpKind = Literal["swiglu", "gelu"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases; names as Qwen3. Source: Shazeer 2020."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GeluMLP(nn.Module):
    """down(gelu(up(x))), with biases, as ViT and Whisper have it; `width_out` where it leads into another network's width."""

    def __init__(self, width: int, hidden: int, width_out: int | None = None) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width if width_out is None else width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width or width_out)."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `dropout` falls on what is added, not on attention weights."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        mlp: MlpKind = "swiglu",
        qk_norm: bool = True,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, heads, kv_heads, head_dim, qk_norm=qk_norm, eps=eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp: nn.Module = SwiGLU(width, hidden) if mlp == "swiglu" else GeluMLP(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rope: Rope | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B,T,D) -> (B,T,D)."""
        x_BTD = x_BTD + self.dropout(self.self_attn(self.input_layernorm(x_BTD), rope=rope, mask=mask, causal=causal, cache=cache))
        out: Tensor = x_BTD + self.dropout(self.mlp(self.post_attention_layernorm(x_BTD)))
        return out
