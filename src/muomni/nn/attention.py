"""Attention with grouped heads, normalised queries and keys, and rotary positions."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.errors import ConfigError
from muomni.nn import rope as rotary
from muomni.nn.cache import LayerCache
from muomni.nn.norm import RMSNorm


def attend(
    q_BHTd: Tensor,
    k_BHSd: Tensor,
    v_BHSd: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k / sqrt(d)) v, by the form that is fastest for this device and dtype.

    Takes   q (B,H,T,d), k and v (B,H/groups,S,d); mask bool, broadcastable to (B,1,T,S), True = may look,
            or numbers that are added to the scores, 0 or -inf; `causal` hides the future and needs T = S; mask and causal exclude each other.
    Gives   (B,H,T,d).
    Source  bfloat16 on a CPU: the plain form takes 23 ms where torch's fused one takes 34
            (reference/ecosystem, section 4).
    """
    if q_BHTd.device.type == "cpu" and q_BHTd.dtype != torch.float32:
        return attend_plainly(q_BHTd, k_BHSd, v_BHSd, mask, causal=causal, dropout=dropout)
    grouped = q_BHTd.shape[1] != k_BHSd.shape[1]
    return F.scaled_dot_product_attention(
        q_BHTd, k_BHSd, v_BHSd, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def attend_plainly(
    q_BHTd: Tensor,
    k_BHSd: Tensor,
    v_BHSd: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` in three products; the softmax is taken in float32 whatever the dtype."""
    batch, heads, length, dim = q_BHTd.shape
    kv_heads, seen = k_BHSd.shape[1], k_BHSd.shape[2]
    # The queries that share a key head stand below each other, so that keys are never repeated.
    # No size is left to be inferred: a batch may hold no pictures.
    groups = batch * kv_heads
    q = q_BHTd.reshape(groups, heads // kv_heads * length, dim)
    k, v = k_BHSd.reshape(groups, seen, dim), v_BHSd.reshape(groups, seen, dim)
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.bmm(q * (1 / math.sqrt(dim)), k.transpose(1, 2)).view(batch, heads, length, seen)
        if causal:
            scores = scores + _future(length, q.dtype, q.device)
        elif mask is not None:
            scores = scores.masked_fill(~mask if mask.dtype == torch.bool else mask < 0, -torch.inf)
        # torch's half-precision softmax kernels sum in float32 and round once, at the end.
        weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
        return torch.bmm(weights.view(groups, heads // kv_heads * length, seen), v).view(
            batch, heads, length, dim
        )


@functools.lru_cache(maxsize=8)
def _future(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu(1)


class Attention(nn.Module):
    """Self-attention; tensor names as Qwen3.

    Raises  ConfigError where heads, key heads and width do not fit each other.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        qk_norm: bool = True,
        bias: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        if heads % self.kv_heads:
            raise ConfigError(f"heads {heads} must be a multiple of kv_heads {self.kv_heads}")
        if head_dim is None and width % heads:
            raise ConfigError(f"width {width} must be a multiple of heads {heads}, or head_dim be given")
        self.head_dim = width // heads if head_dim is None else head_dim
        self.dropout = dropout
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=bias)
        self.q_norm: nn.Module = RMSNorm(self.head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(self.head_dim, eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        *,
        rope: rotary.Rope | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(B,T,D) -> (B,T,D); with a cache the queries also see its positions, and its mask replaces
        `mask`."""
        batch, length, _ = x_BTD.shape
        split = (batch, length, -1, self.head_dim)
        q = self.q_norm(self.q_proj(x_BTD).view(split)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BTD).view(split)).transpose(1, 2)
        v = self.v_proj(x_BTD).view(split).transpose(1, 2)
        if rope is not None:
            q, k = rotary.rotate(q, rope), rotary.rotate(k, rope)
        if cache is not None:
            k, v, mask = cache.update(k, v)
            causal = length > 1
        heard = attend(
            q, k, v, mask, causal=causal and mask is None, dropout=self.dropout if self.training else 0.0
        )
        out: Tensor = self.o_proj(heard.transpose(1, 2).reshape(batch, length, -1))
        return out
