"""Peak memory of a stage, and the batch that fits a given memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from muomni import runtime
from muomni.data.cache import shared
from muomni.train import cost, flops, optim
from muomni.train.eager import AdamW

if TYPE_CHECKING:
    from muomni.planning.dry_run import DryRun, SurveyedStage

CUDA_CONTEXT_BYTES = (
    600 * 10**6
)  # of the driver, the kernels and cuBLAS' workspace: an allowance, not measured here
LIST_ITEM_BYTES = 36  # an int in a Python list, with its place in it


def resident_bytes() -> int:
    """Memory of this process now; where the system does not tell, the most it ever was."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return runtime.memory_bytes()


def warm_up() -> None:
    """Have torch load what it loads at its first update, so that it counts as the process's own."""
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 1))
    optimizer = AdamW(model.parameters(), fused=True)
    with flops.Counted():
        model(torch.randn(8, 64)).sum().backward()
    optimizer.step()


def optimizer_bytes(surveyed: SurveyedStage) -> int:
    """Bytes of the optimizer's state: two moments a parameter, Muon's matrices one."""
    by_muon = surveyed.settings.optimizer == "muon"
    return sum(
        4 * row.count * (1 if by_muon and optim.is_for_muon(row) else 2)
        for row in surveyed.rows
        if row.trains
    )


def codec_bytes(training: Any, without: Collection[str] = ()) -> int:
    """Bytes of the codecs that a stage over tokens holds beside its objective, on the same device.

    Takes   without: settings (`image_codec`, `audio_codec`) whose codecs do not count.
    """
    total = 0
    for codec in getattr(training, "codecs", ()):
        parts = [codec] if isinstance(codec, nn.Module) else vars(codec).values()
        networks = [part for part in parts if isinstance(part, nn.Module)]
        if f"{codec.modality}_codec" not in without:
            total += cost.size(tensor for network in networks for tensor in network.state_dict().values())
    return int(total)


def account(surveyed: SurveyedStage, dry_run: DryRun, resident: int) -> dict[str, Any]:
    """Bytes at the peak, by what they are, in the process and on the device alone.

    resident   of the process when the stage was built, its weights among them
    """
    settings, objective = surveyed.settings, surveyed.training.objective
    weights, gradients, state = cost.weights(objective), cost.gradients(objective), optimizer_bytes(surveyed)
    average = gradients if settings.ema_decay else 0
    inputs = cost.size(cost.tensors(dry_run.typical)) * settings.gradient_accumulation_steps
    peak = max(dry_run.peak(settings.batch_size), dry_run.valid_bytes)
    codecs = codec_bytes(surveyed.training)
    account_json = {
        "weights": weights,
        "codecs": codecs,
        "gradients": gradients,
        "optimizer": state,
        "average": average,
        "activations": max(0, int(peak - gradients)),
        "inputs": inputs,
        "context": CUDA_CONTEXT_BYTES,
        "device": int(weights + codecs + state + average + inputs + peak + CUDA_CONTEXT_BYTES),
        "per_row": int(dry_run.per_row + inputs / settings.batch_size / settings.gradient_accumulation_steps),
        "rows_run": dry_run.rows_run,
    }
    if surveyed.run.device.type != "cpu":
        return account_json
    # What the process took beyond what was counted: pieces that the allocator keeps, and what the kernels
    # keep for shapes that they met.
    counted = resident + state + inputs + dry_run.highest
    account_json["allocator"] = max(0, runtime.memory_bytes() - counted)
    account_json["base"] = resident - weights
    account_json["caches"] = cache_bytes(surveyed, dry_run.items)
    # A checkpoint and the final files are made from copies of the weights, when activations are gone.
    passing = max(peak, 2 * weights)
    account_json["process"] = int(resident + state + average + inputs + passing + account_json["allocator"])
    return account_json


def cache_bytes(surveyed: SurveyedStage, items: Sequence[Any]) -> int:
    """Bytes that the stage will keep of its data, in a file beside the process: as large as these items, no
    more than its budget."""
    settings, valid, total = surveyed.settings, surveyed.training.valid, 0.0
    drawn = surveyed.updates * settings.batch_size * settings.gradient_accumulation_steps
    pairs = [
        (
            surveyed.training.train.dataset,
            min(drawn, round(len(surveyed.training.train.dataset) * surveyed.scale)),
        )
    ]
    pairs += [(valid.dataset, len(surveyed.whole.valid))] if valid is not None else []
    each = _cached_bytes(list(items)) / max(1, len(items))
    for dataset, count in pairs:
        if hasattr(getattr(dataset, "utterances", dataset), "kept"):
            total += each * count
    return int(min(total, shared().budget_bytes))


def _cached_bytes(value: Any) -> int:
    """Bytes of the arrays, tensors and lists of ids in a value."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return (
            LIST_ITEM_BYTES * len(value)
            if value and isinstance(value[0], int)
            else sum(map(_cached_bytes, value))
        )
    if isinstance(value, Mapping):
        return sum(map(_cached_bytes, value.values()))
    return sum(map(_cached_bytes, vars(value).values())) if hasattr(value, "__dict__") else 0


def propose(account: Mapping[str, Any], limit: int, *, of: str = "device") -> dict[str, Any]:
    """The largest micro-batch that a memory holds, and as many of them as keep the effective batch.

    Takes   of: what must fit, the device's part or the whole `process`; it grows in a line with the rows of a
            micro-batch, or where phases of an update are told apart, each in its own.
    """
    memory, batch, times = account["memory"], account["batch_size"], account["gradient_accumulation_steps"]
    effective = batch * times

    def peak(size: int) -> int:
        return max(
            int(fixed + per_row * size)
            for fixed, per_row in memory.get("phases", {"": [0, memory["per_row"]]}).values()
        )

    def need(size: int) -> int:
        return int(memory[of]) + peak(size) - peak(batch)

    fitting = [size for size in range(effective, 0, -1) if effective % size == 0 and need(size) <= limit]
    chosen = fitting[0] if fitting else 1
    return {
        "limit": limit,
        "of": of,
        "need": need(batch),
        "fits": need(batch) <= limit,
        "batch_size": chosen if fitting else None,
        "gradient_accumulation_steps": effective // chosen if fitting else None,
        "bytes": need(chosen),
    }
