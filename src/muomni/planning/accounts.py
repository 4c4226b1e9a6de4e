"""What a built stage amounts to, by count: what trains, its samples, and what it leaves on the disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from muomni.planning import holding
from muomni.planning.trial import Built
from muomni.train import best, cost, given


def data(built: Built, typical: Any) -> dict[str, Any]:
    """Samples, what one of a typical batch holds, and how often the run goes through them."""
    settings = built.settings
    per_update = settings.batch_size * settings.gradient_accumulation_steps
    samples = built.samples
    contents = built.plan.objective.contents(typical)
    return {
        "samples": samples,
        "held_out": len(built.whole.valid),
        "per_sample": {unit: amount / contents["samples"] for unit, amount in contents.items() if unit != "samples"},
        "batches_per_epoch": math.ceil(samples / settings.batch_size),
        "updates_per_epoch": math.ceil(samples / per_update),
        "updates": built.updates,
        "epochs": built.updates * per_update / samples,
    }


def disk(built: Built, own: Path) -> dict[str, Any]:
    """Bytes that the stage leaves: checkpoints, what is handed on, and tokens."""
    settings, objective = built.settings, built.plan.objective
    state = cost.size(given.beside(objective).values())
    ema = cost.gradients(objective) if settings.ema_decay else 0
    checkpoint = state + holding.optimizer_bytes(built) + ema
    kept = min(settings.keep_checkpoints, math.ceil(built.updates / settings.checkpoint_freq))
    prepared = [file for name in ("tokens", "coded") for file in (own / name).rglob("*") if file.is_file()]
    tokens = sum(file.stat().st_size for file in prepared) * built.scale
    if not (own / "final").is_dir():
        built.plan.save(own / "final")
    final = sum(file.stat().st_size for file in (own / "final").rglob("*") if file.is_file())
    kept_best = final + cost.size(best.rest(objective, built.plan.export).values()) if built.plan.valid is not None else 0
    total = kept * checkpoint + final + kept_best + tokens
    sizes = {"checkpoint": checkpoint, "checkpoints_kept": kept, "final": final, "best": kept_best, "tokens": int(tokens)}
    return {**sizes, "total": int(total)}
