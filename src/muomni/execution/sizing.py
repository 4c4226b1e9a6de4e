"""`epoch_duration: 1h` in samples: real updates of a discarded copy are timed on this machine before
training."""

from __future__ import annotations

import math
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from muomni import units
from muomni.data.order import Order
from muomni.execution import recipe as recipes
from muomni.runtime import Runtime
from muomni.stages.stage import StageSettings, Training
from muomni.train import distributed, frozen_parts, loop, optim
from muomni.train.settings import Settings, sized
from muomni.train.step import update
from muomni.train.timing import timed
from muomni.units import format_seconds

ENOUGH_S = 20.0  # of a probe, once it has its 50 updates
GENTLE = 1e-3  # of the rate: what the updates cost is asked, not what they teach


def stored(settings: Settings, own: Path) -> Settings:
    """The settings with the epoch that an earlier start of this stage has measured, where its folder holds
    one."""
    if (
        settings.epoch_duration is None
        or settings.samples_per_epoch is not None
        or not (own / "config.yaml").exists()
    ):
        return settings
    before = recipes.stored_settings(own, type(settings))
    if before.get("epoch_duration") != settings.epoch_duration:
        return settings  # opening the folder shows the difference
    return settings.model_copy(update={"samples_per_epoch": before.get("samples_per_epoch")})


def measured(settings: StageSettings, training: Training[Any], run: Runtime) -> tuple[int, str]:
    """Samples of an epoch of the time that `epoch_duration` names, and how they were found; all ranks call it
    together.

    Weights, generators and the order of the data stay as they were. Only updates and the wait for their data
    are timed: validation and checkpoints come on top.
    """
    assert settings.epoch_duration is not None
    seconds = _updates(settings, training, run)
    update_s = statistics.median(seconds)
    per_update = settings.batch_size * settings.gradient_accumulation_steps * run.world
    samples = max(1, int(units.seconds(settings.epoch_duration, "epoch_duration") / update_s)) * per_update
    how = f"an update took {format_seconds(update_s)}, the median of {len(seconds)}"
    result: tuple[int, str] = distributed.from_main((samples, how), run)
    return result


def _updates(settings: StageSettings, training: Training[Any], run: Runtime) -> list[float]:
    """Seconds of updates by batches of the stage's own, each rank for itself."""
    cpu, devices = torch.get_rng_state(), torch.cuda.get_rng_state_all() if run.device.type == "cuda" else []
    twin = frozen_parts.sharing_copy(training.objective).train()
    optimizer = optim.make_optimizer(twin, optim.select(twin, settings), settings)
    optim.set_lr(optimizer, GENTLE)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    count = settings.gradient_accumulation_steps
    stream = training.train.numbers(loop.to_come(0, 10**6, run))
    alone, updates_made = Runtime(run.device, run.dtype), 0

    def one() -> float | None:
        nonlocal updates_made
        begin, updates_made = time.perf_counter(), updates_made + 1
        batches = [
            loaded.batch.to(run.device) for loaded in islice(stream, count) if loaded.batch is not None
        ]
        if not batches:  # all of its samples are bad: the loop counts and names them in their turn
            return None
        update(twin, twin, optimizer, scaler, batches, settings, alone)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        twin.after_step(updates_made)
        return (
            None if updates_made == 1 else time.perf_counter() - begin
        )  # in the first, caches fill and kernels are made

    try:
        return timed(one, enough_s=ENOUGH_S, limit_s=math.inf)
    finally:
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def describe_epoch(
    settings: StageSettings, order: Order, per_step: int, how: str = "as it was found when the stage began"
) -> str:
    """One line about an epoch that is not a pass through the data."""
    samples, run = settings.samples_per_epoch, sized(settings, order, per_step)
    assert samples is not None
    name = f"an epoch of {settings.epoch_duration}" if settings.epoch_duration else "an epoch"
    passes = f"{samples / order.samples_per_epoch:.3g} of a pass through {order.samples_per_epoch}"
    because = f" ({how})" if settings.epoch_duration else ""
    return f"{name} is {samples} samples, {passes}{because}; {settings.max_epochs} of them: {run.max_steps} steps"
