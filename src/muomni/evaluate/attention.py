"""Attention weights of a network, computed beside an unchanged forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from muomni.nn import rope as rotary
from muomni.nn.attention import Attention


@contextmanager
def watched(parts: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, every forward of an Attention among `parts` (and within them) adds its weights (B, H, T, S),
    float32, to the list.

    Forwards with a cache are passed over: their queries also see what the cache holds.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], how: dict[str, Any]) -> None:
        if isinstance(module, Attention) and how.get("cache") is None:
            seen.append(
                weights(module, inputs[0], how.get("rope"), how.get("mask"), causal=how.get("causal", False))
            )

    modules = {id(each): each for part in parts for each in part.modules() if isinstance(each, Attention)}
    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules.values()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def weights(
    module: Attention, x_BTD: Tensor, rope: rotary.Rope | None, mask: Tensor | None, *, causal: bool
) -> Tensor:
    """softmax(q k / sqrt(d)) as the module forms it, (B, H, T, T) float32; takes what its forward takes."""
    split = (*x_BTD.shape[:2], -1, module.head_dim)
    q = module.q_norm(module.q_proj(x_BTD).view(split)).transpose(1, 2)
    k = module.k_norm(module.k_proj(x_BTD).view(split)).transpose(1, 2)
    if rope is not None:
        q, k = rotary.rotate(q, rope), rotary.rotate(k, rope)
    k = k.repeat_interleave(module.heads // module.kv_heads, 1)
    scores = (q.float() @ k.float().transpose(2, 3)) / math.sqrt(module.head_dim)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    out: Tensor = scores.softmax(-1)
    return out
