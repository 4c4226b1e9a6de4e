"""Effective weight of a linear layer: the base plus the deltas of its active LoRA adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ingredients(linear: Any) -> tuple[list[Tensor], tuple[Any, ...]]:
    """What `effective` makes a weight of: tensors, and what says how they are put together (adapters, their
    scales)."""
    base: Tensor = getattr(linear, "base_layer", linear).weight
    if not hasattr(linear, "base_layer"):
        return [base], ()
    active = tuple(linear.active_adapters)
    how = (linear.merged, linear.disable_adapters, active, tuple(linear.scaling.get(name) for name in active))
    return [base, *(side[name].weight for side in (linear.lora_A, linear.lora_B) for name in active)], how


@torch.no_grad()
def effective(linear: Any) -> Tensor:
    """The weight by which a linear layer multiplies: its own, and where PEFT wrapped it, with the deltas of
    its active adapters.

    Takes   linear: nn.Linear, or a PEFT layer around one (told by `base_layer`, so that peft need not be
            there).
    Gives   (out, in) in the base's dtype, without gradient; the sum is taken in float32. The weight itself
            where nothing is added.
    """
    weight: Tensor = getattr(linear, "base_layer", linear).weight.detach()
    if not hasattr(linear, "base_layer") or linear.merged or linear.disable_adapters:
        return weight
    with torch.autocast(weight.device.type, enabled=False):
        total = weight.float()
        for name in linear.active_adapters:
            total = total + linear.get_delta_weight(name).float()
    return total.to(weight.dtype)
