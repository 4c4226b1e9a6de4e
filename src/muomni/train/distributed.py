"""Ranks: sums over all of them, and the wrapper that syncs gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from muomni.runtime import Runtime


def sum_counts(counts: dict[str, float], runtime: Runtime) -> dict[str, float]:
    """Each named number summed over the ranks; ranks may hold different names, so the names are gathered first."""
    if runtime.world == 1:
        return counts
    everyone: list[dict[str, float] | None] = [None] * runtime.world
    torch.distributed.all_gather_object(everyone, counts)
    out: dict[str, float] = {}
    for part in everyone:
        for name, value in (part or {}).items():
            out[name] = out.get(name, 0) + value
    return dict(sorted(out.items()))


def wrap(objective: nn.Module, runtime: Runtime) -> nn.Module:
    """The objective under DDP where there are several ranks; unused parameters are looked for: ranks may hold other modalities."""
    if runtime.world == 1:
        return objective
    devices = [runtime.device.index] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False)


def spread(value: str, runtime: Runtime) -> int:
    """How many ranks hold another value than the main one."""
    if runtime.world == 1:
        return 0
    everyone: list[str | None] = [None] * runtime.world
    torch.distributed.all_gather_object(everyone, value)
    return sum(other != everyone[0] for other in everyone)


def barrier(runtime: Runtime) -> None:
    """Wait for all ranks."""
    if runtime.world > 1:
        torch.distributed.barrier()


def from_main(value: Any, runtime: Runtime) -> Any:
    """The main rank's value, on every rank."""
    if runtime.world == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
