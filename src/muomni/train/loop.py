"""The loop of every stage: resume, update, validate, checkpoint, stop. What a stage teaches stands elsewhere."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from muomni import files
from muomni.data.loader import Loaded, Loader
from muomni.data.quarantine import Quarantine
from muomni.errors import CheckpointError, MuomniError, UserError
from muomni.runtime import Runtime, StopRequest, seed_everything, stop_on_signals
from muomni.train import checkpoint, distributed, given, monitor, optim, watch
from muomni.train.meter import Meter
from muomni.train.objective import Objective
from muomni.train.settings import TrainSettings
from muomni.train.step import StepResult, update
from muomni.train.validation import validate


class Interrupted(MuomniError):
    """The run was asked to stop (ctrl-C, SIGTERM); its state is saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Progress:
    """What the loop has done so far; plain values, part of every checkpoint."""

    step: int = 0
    samples: int = 0
    labelled: int = 0
    targets: dict[str, float] = field(default_factory=dict)  # learned so far, of all ranks, by term: their units differ
    skipped: int = 0
    skipped_in_a_row: int = 0
    quarantined: int = 0
    best: float = math.inf
    best_step: int = -1
    without_gain: int = 0
    stopped_early: bool = False
    order: str = ""  # a digest over the sample ids of every batch so far, in their order (the main rank's)
    worlds: list[list[int]] = field(default_factory=list)  # [step, ranks from there on]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """The end of a fit: what was done, the last validation over all held-out batches, and the account of what trained."""

    progress: Progress
    validation: dict[str, float]
    account: list[optim.Row]


def fit(
    objective: Objective,
    train: Loader[Any, Any],
    valid: Loader[Any, Any] | None,
    settings: TrainSettings,
    run: Runtime,
    folder: Path,
    *,
    name: str,
    saved: Callable[[int], None] = lambda step: None,
) -> Fitted:
    """Train an objective to its last step and leave it with the final weights in place.

    Takes   objective: on the run's device (stages.placement puts it there); saved: told the step after every checkpoint, on the main rank.
    Running it again on the same folder resumes from the newest whole checkpoint, bit for bit on a CPU.
    Raises  Interrupted after a signal; UserError when too many updates in a row were unsafe or too many samples bad.
    """
    # 1. what trains
    account = optim.select(objective, settings)
    optimizer = optim.make_optimizer(objective, account, settings)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    seed_everything(settings.seed + run.rank)
    wrapped = distributed.wrap(objective, run)
    ema = {n: p.detach().clone() for n, p in objective.named_parameters() if p.requires_grad} if settings.ema_decay else {}

    # 2. where it stands
    progress = Progress(settings=settings.model_dump(mode="json"))
    found = distributed.from_main(checkpoint.newest(folder) if run.is_main else None, run)
    if found is not None:
        state = checkpoint.load(found, objective, run.device)
        optimizer.load_state_dict(state.optimizer)
        scaler.load_state_dict(state.scaler)
        progress, ema = Progress(**state.progress), state.ema
        if run.world > 1:
            seed_everything(settings.seed + run.rank + 1000 * progress.step)

    if not progress.worlds or progress.worlds[-1][1] != run.world:
        progress.worlds.append([progress.step, run.world])
    per_step = settings.gradient_accumulation_steps * run.world
    max_steps = settings.max_steps
    if settings.max_epochs is not None:
        max_steps = min(max_steps, -(-settings.max_epochs * train.order.batches_per_epoch // per_step))
    settings = settings.model_copy(update={"max_steps": max_steps})  # the schedule ends where the run ends
    quarantine = Quarantine(folder / "quarantine.jsonl" if run.is_main else None, limit=settings.quarantine_limit)
    log = monitor.Monitor(folder, name, step=progress.step, max_steps=max_steps, is_main=run.is_main, tensorboard=settings.tensorboard)

    def save() -> None:
        if run.is_main:
            state = checkpoint.State(dict(vars(progress)), optimizer.state_dict(), scaler.state_dict(), ema)
            checkpoint.save(folder / checkpoint.name(progress.step), objective, state)
            checkpoint.retain(folder, settings.keep_checkpoints)
            saved(progress.step)
        distributed.barrier(run)

    # 3. the steps
    stream = _timed(train.numbers(to_come(progress.step, max_steps, per_step, run)))
    meter = Meter(objective, run)
    with log, watch.Watch(folder, log.say, is_main=run.is_main) as alive, stop_on_signals() as stop:
        if progress.step:
            log.say(f"resumed from {found}")
        objective.train()
        while progress.step < max_steps and not progress.stopped_early:
            batches, waited_s = _window(stream, settings.gradient_accumulation_steps, quarantine, progress)
            optim.set_lr(optimizer, optim.lr_scale(progress.step, settings))
            if batches:
                alive.step(progress.step + 1, [name for batch in batches for name in batch.sample_ids])
                with meter.update(batches, waited_s):
                    moved = [batch.to(run.device) for batch in batches]
                    result = update(objective, wrapped, optimizer, scaler, moved, settings, run)
                _guard(result, objective, moved, settings, progress, folder, run, log, max_steps)
            elif run.world > 1:
                raise UserError(f"step {progress.step}: no sample of a batch could be used", hint="see quarantine.jsonl; clean the data")
            progress.step += 1
            if batches and not result.skipped:
                with meter.more():
                    objective.after_step(progress.step)
                    for key, value in ema.items():
                        value.lerp_(objective.get_parameter(key).detach(), 1 - (settings.ema_decay or 0))
            quarantine.check(progress.samples + progress.quarantined)
            log.tick(progress.step)

            is_last = progress.step == max_steps
            if batches and (progress.step % settings.print_freq == 0 or is_last or progress.step == 1):
                log.log({"step": progress.step, **_numbers(result), **meter.read()})
            if valid is not None and progress.step % settings.val_freq == 0 and not is_last:
                _validate_and_keep(objective, valid, settings, run, progress, folder, log)
            is_asked = _stop_everywhere(stop, run)  # asked once: all ranks save, or none
            if progress.step % settings.checkpoint_freq == 0 or is_last or is_asked or progress.stopped_early:
                save()
            if is_asked:
                raise Interrupted(
                    f"stopped by signal {stop.signal} after step {progress.step}; run the same command to go on", stop.exit_code
                )

        # 4. the end: all held-out batches, and the weights that are handed on
        for key, value in ema.items():
            objective.get_parameter(key).data.copy_(value)
        validation: dict[str, float] = {}
        if valid is not None:
            validation = _validate_and_keep(objective, valid, settings, run, progress, folder, log, full=True)
        if settings.final == "best" and (folder / "best").exists():
            given.put_back(objective, load_file(folder / "best" / "weights.safetensors"), where=str(folder / "best"))
            validation = validate(objective, valid, settings, run, full=True) if valid is not None else {}
    if run.is_main:
        files.write_json(folder / "training_log.json", log.rows)
    objective.eval()
    return Fitted(progress, validation, account)


def restore(objective: Objective, valid: Loader[Any, Any] | None, settings: TrainSettings, run: Runtime, folder: Path) -> Fitted:
    """A finished stage as `fit` left it, without training: its weights in place, validated anew.

    Raises  CheckpointError where no whole checkpoint is there.
    """
    account = optim.select(objective, settings)
    found = checkpoint.newest(folder)
    if found is None:
        raise CheckpointError(f"{folder}: no whole checkpoint", hint="run the stage again")
    state = checkpoint.load(found, objective, run.device)
    for key, value in state.ema.items():
        objective.get_parameter(key).data.copy_(value)
    if settings.final == "best" and (folder / "best").exists():
        given.put_back(objective, load_file(folder / "best" / "weights.safetensors"), where=str(folder / "best"))
    validation = validate(objective, valid, settings, run, full=True) if valid is not None else {}
    objective.eval()
    return Fitted(Progress(**state.progress), validation, account)


def _window(stream: Iterator[tuple[Loaded[Any], float]], size: int, quarantine: Quarantine, progress: Progress) -> tuple[list[Any], float]:
    """The usable micro-batches of one update and the seconds that the loop waited for them."""
    batches, waited_s = [], 0.0
    for loaded, seconds in islice(stream, size):
        waited_s += seconds
        names = [*(loaded.batch.sample_ids if loaded.batch is not None else []), *(bad.sample_id for bad in loaded.bad)]
        progress.order = chained(progress.order, names)
        for bad in loaded.bad:
            quarantine.add(bad.sample_id, "", bad.reason, bad.detail)
            progress.quarantined += 1
        if loaded.batch is not None:
            batches.append(loaded.batch)
            progress.samples += len(loaded.batch.sample_ids)
            progress.labelled += getattr(loaded.batch, "labelled_rows", len(loaded.batch.sample_ids))
    return batches, waited_s


def to_come(step: int, max_steps: int, per_step: int, run: Runtime) -> range:
    """The numbers of the batches that this rank has yet to see after `step` updates of `per_step` batches."""
    return range(step * per_step + run.rank, max_steps * per_step, run.world)


def chained(order: str, names: list[str]) -> str:
    """The digest of all batches so far, gone on with one more."""
    return files.sha256_json([order, sorted(names)])


def _timed(stream: Iterator[Loaded[Any]]) -> Iterator[tuple[Loaded[Any], float]]:
    while True:
        begin = time.perf_counter()
        loaded = next(stream, None)
        if loaded is None:
            return
        yield loaded, time.perf_counter() - begin


def _guard(
    result: StepResult,
    objective: Objective,
    batches: list[Any],
    settings: TrainSettings,
    progress: Progress,
    folder: Path,
    run: Runtime,
    log: monitor.Monitor,
    max_steps: int,
) -> None:
    """Count a skipped update, say where it went wrong, and end a run that only skips (DESIGN 4)."""
    for term, count in result.targets.items():
        progress.targets[term] = progress.targets.get(term, 0.0) + count
    if not result.skipped:
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    culprits = [monitor.find_nonfinite(objective, batch, run) for batch in batches]
    where = next((f"first non-finite output in module {name!r}; " for name in culprits if name), "")
    log.say(f"step {progress.step}: update skipped: {result.skipped}; {where}samples {', '.join(result.sample_ids[:8])}")
    if run.is_main:
        with (folder / "skipped.jsonl").open("a", encoding="utf-8") as stream:
            row = {"step": progress.step, "reason": result.skipped, "module": where, "samples": result.sample_ids}
            stream.write(json.dumps(row) + "\n")
    if progress.skipped_in_a_row > settings.max_skips or progress.skipped > max(settings.max_skips, 0.01 * max_steps):
        raise UserError(
            f"{progress.skipped} updates were skipped, {progress.skipped_in_a_row} in a row; last: {result.skipped}; {where}",
            hint="lower lr, raise warmup_steps, or look at skipped.jsonl for the samples",
        )


def _validate_and_keep(
    objective: Objective,
    valid: Loader[Any, Any],
    settings: TrainSettings,
    run: Runtime,
    progress: Progress,
    folder: Path,
    log: monitor.Monitor,
    *,
    full: bool = False,
) -> dict[str, float]:
    """Validate, keep the best weights, and note when it is time to stop early."""
    means = validate(objective, valid, settings, run, full=full)
    log.log({"step": progress.step, **{f"val_{key}": value for key, value in means.items()}})
    if means["loss"] < progress.best - settings.min_delta:
        progress.best, progress.best_step, progress.without_gain = means["loss"], progress.step, 0
        if run.is_main and settings.final == "best":
            with files.fresh_folder(folder / "best") as part:
                state = {key: value.detach().contiguous().cpu().clone() for key, value in given.beside(objective).items()}
                save_file(state, part / "weights.safetensors")
                files.write_json(part / "progress.json", vars(progress))
    else:
        progress.without_gain += 1
        progress.stopped_early = settings.patience is not None and progress.without_gain >= settings.patience
    return means


def _stop_everywhere(stop: StopRequest, run: Runtime) -> bool:
    """True on all ranks as soon as one of them was asked to stop."""
    if run.world == 1:
        return bool(stop)
    return distributed.sum_counts({"stop": float(bool(stop))}, run)["stop"] > 0


def _numbers(result: StepResult) -> dict[str, float]:
    return {**result.losses, "lr": result.lr, "grad_norm": result.grad_norm}
