"""Account of a built stage: parameters that train, samples, and bytes on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from muomni.planning import peak_memory
from muomni.planning.dry_run import SurveyedStage
from muomni.train import best, cost, frozen_parts


def data(surveyed: SurveyedStage, typical: Any) -> dict[str, Any]:
    """Samples, what one of a typical batch holds, and how often the run goes through them."""
    settings = surveyed.settings
    per_update = settings.batch_size * settings.gradient_accumulation_steps
    samples = surveyed.samples
    contents = surveyed.training.objective.contents(typical)
    return {
        "samples": samples,
        "held_out": len(surveyed.whole.valid),
        "per_sample": {
            unit: amount / contents["samples"] for unit, amount in contents.items() if unit != "samples"
        },
        "batches_per_epoch": math.ceil(samples / settings.batch_size),
        "updates_per_epoch": math.ceil(samples / per_update),
        "updates": surveyed.updates,
        "epochs": surveyed.updates * per_update / samples,
    }


def disk(surveyed: SurveyedStage, own: Path) -> dict[str, Any]:
    """Bytes that the stage leaves: checkpoints, what is handed on, and tokens."""
    settings, objective = surveyed.settings, surveyed.training.objective
    state = cost.size(frozen_parts.checkpoint_state(objective).values())
    ema = cost.gradients(objective) if settings.ema_decay else 0
    checkpoint = state + peak_memory.optimizer_bytes(surveyed) + ema
    kept = min(settings.keep_checkpoints, math.ceil(surveyed.updates / settings.checkpoint_freq))
    prepared = [file for name in ("tokens", "coded") for file in (own / name).rglob("*") if file.is_file()]
    tokens = sum(file.stat().st_size for file in prepared) * surveyed.scale
    if not (own / "final").is_dir():
        surveyed.training.save(own / "final")
    final = sum(file.stat().st_size for file in (own / "final").rglob("*") if file.is_file())
    kept_best = (
        final + cost.size(best.rest(objective, surveyed.training.export).values())
        if surveyed.training.valid is not None
        else 0
    )
    total = kept * checkpoint + final + kept_best + tokens
    sizes = {
        "checkpoint": checkpoint,
        "checkpoints_kept": kept,
        "final": final,
        "best": kept_best,
        "tokens": int(tokens),
    }
    return {**sizes, "total": int(total)}
