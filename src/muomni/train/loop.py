"""The loop of every stage: resume, update, validate, checkpoint, stop. What a stage teaches stands
elsewhere."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from muomni import files
from muomni.data.loader import Bad, Loaded, Loader
from muomni.data.quarantine import Quarantine
from muomni.errors import CheckpointError, MuomniError, UserError
from muomni.models import store
from muomni.runtime import Runtime, StopRequest, seed_everything, stop_on_signals
from muomni.train import best, checkpoint, distributed, monitor, optim, sharding, watchdog
from muomni.train.average import Average
from muomni.train.meter import Meter
from muomni.train.objective import Objective
from muomni.train.run_record import Drawn, Probes, Rates
from muomni.train.settings import TrainSettings, sized, steps_in_all
from muomni.train.step import StepResult, local_counts, update
from muomni.train.validation import validate


class Interrupted(MuomniError):
    """The run was asked to stop (ctrl-C, SIGTERM); its state is saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Progress:
    """What the loop has done so far, all ranks together; plain values, part of every checkpoint.

    position   global batches drawn so far: where the run stands in its data, whatever number of ranks drew
               them
    worlds     [step, ranks, micro-batches of an update over all ranks] from there on
    drawn, rates, average   the notes of train.run_record
    resting     digests of the parameters that rest at first, as the run found them; moved_early: those that
                were others when they joined
    """

    step: int = 0
    position: int = 0
    samples: int = 0
    labelled: int = 0
    targets: dict[str, float] = field(
        default_factory=dict
    )  # learned so far, of all ranks, by term: their units differ
    skipped: int = 0
    skipped_in_a_row: int = 0
    overflows: int = (
        0  # of fp16's gradients, which the scaler answers by a smaller scale; not among the skipped
    )
    quarantined: int = 0
    last: float = math.inf  # held-out loss of the validation before, and of the best one
    best: float = math.inf
    best_step: int = -1
    without_gain: int = 0
    stopped_early: bool = False
    worlds: list[list[int]] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)
    rates: dict[str, Any] = field(default_factory=dict)
    average: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    resting: dict[str, str] = field(default_factory=dict)
    moved_early: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stored: dict[str, Any], folder: Path) -> Progress:
        """The progress that a checkpoint holds.

        Raises  CheckpointError where another version of this program wrote it.
        """
        own = {each.name for each in fields(cls)}
        # Older checkpoints know of nothing that rests.
        if odd_names := (stored.keys() ^ own) - ({"resting", "moved_early"} - stored.keys()):
            odd = ", ".join(sorted(odd_names))
            raise CheckpointError(
                f"{folder}: written by another version of muomni ({odd})",
                hint="--fresh deletes it and starts anew",
            )
        return cls(**stored)


@dataclass(frozen=True)
class Fitted:
    """The end of a fit: what was done, the last validation over all held-out batches, and the account of what
    trained.

    drawn      how often each sample was drawn
    average    the notes on the moving average whose weights are in place; empty without one
    """

    progress: Progress
    validation: dict[str, float]
    account: list[optim.Row]
    drawn: Drawn
    average: dict[str, list[float]]


@dataclass
class Window:
    """What one rank draws for one update: its usable micro-batches, and the notes on all that it drew.

    numbers   of its batches in the global sequence; usable: of those that can be used
    indices   of the samples that the dataset was asked for
    error     why it could not be loaded
    """

    batches: list[Any]
    numbers: list[int]
    usable: list[int]
    indices: list[int]
    bad: list[Bad]
    samples: int = 0
    labelled: int = 0
    waited_s: float = 0.0
    error: Exception | None = None

    def describe(self, counts: dict[str, float], is_asked: bool) -> dict[str, Any]:
        """What the other ranks must know of it: one message an update."""
        notes = {name: getattr(self, name) for name in ("numbers", "indices", "bad", "samples", "labelled")}
        failed = "" if self.error is None else f"{type(self.error).__name__}: {self.error}"
        code = getattr(self.error, "exit_code", MuomniError.exit_code)
        return {
            **notes,
            "counts": counts,
            "is_asked": is_asked,
            "usable": len(self.batches),
            "failed": failed,
            "exit_code": code,
        }


def fit(
    objective: Objective,
    train: Loader[Any, Any],
    valid: Loader[Any, Any] | None,
    settings: TrainSettings,
    run: Runtime,
    folder: Path,
    *,
    name: str,
    identity: checkpoint.Identity | None = None,
    saved: Callable[[int], None] = lambda step: None,
    export: best.Export = best.Export(),  # noqa: B008 (it is frozen)
) -> Fitted:
    """Train an objective to its last step and leave it with the final weights in place.

    Takes   objective: on the run's device (stages.placement puts it there); identity: what its checkpoints
            say that they are, and must be where it resumes; saved: told the step after every checkpoint, on
            the main rank; export: how the weights of the best validation are written so that they can be
            opened.
    Running it again on the same folder resumes from the newest whole checkpoint, on any number of ranks: bit
    for bit on a CPU where there are as many ranks and threads as before, else to the rounding of sums.
    Raises  Interrupted after a signal; UserError when too many updates in a row were unsafe or too many
            samples bad; RankFailed where another rank ended: the main one has then saved the last whole step,
            if its weights still are of it.
    """
    # 1. what trains
    account = optim.select(objective, settings)
    sharding.refuse(objective, account, settings, run)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    seed_everything(settings.seed)

    # 2. where it stands
    progress = Progress(settings=settings.model_dump(mode="json"))
    newest = distributed.from_main(checkpoint.newest(folder) if run.is_main else None, run)
    counts_N = ema = None
    shards: sharding.Shards | None = None
    if newest is not None:
        _as_at(objective, account, newest)
        state = checkpoint.load(newest, objective, run.device, identity)
    if settings.shard:  # of the weights that it goes on from
        shards = sharding.Shards(objective, run)
    optimizer = optim.make_optimizer(objective, account, settings)
    if newest is not None:
        moments = state.optimizer if shards is None else sharding.share_out(optimizer, state.optimizer)
        optim.go_on(optimizer, moments, where=newest)
        scaler.load_state_dict(state.scaler)
        progress, ema, counts_N = Progress.of(state.progress, newest), state.ema, state.drawn_N
    else:
        progress.resting = _digests(objective, objective.joining)
    wrapped = distributed.wrap(objective, run) if shards is None else shards
    average = Average(objective, settings.ema_decay, ema)
    drawn = Drawn(len(train.dataset), progress.drawn, counts_N)
    rates = Rates(**progress.rates)
    probes = (
        Probes(average.parameters, settings.ema_decay, progress.average.get("mean", ()))
        if settings.ema_decay
        else None
    )

    per_step = settings.gradient_accumulation_steps * run.world
    is_other_batch = bool(progress.worlds) and progress.worlds[-1][2] != per_step
    if not progress.worlds or progress.worlds[-1][1:] != [run.world, per_step]:
        progress.worlds.append([progress.step, run.world, per_step])
    warmup_steps = sized(
        settings, train.order, progress.worlds[0][2]
    ).warmup_steps  # by the batch of the first step: it stays
    max_steps = steps_in_all(settings, train.order, per_step, progress.step, progress.position)
    settings = settings.model_copy(
        update={"max_steps": max_steps, "warmup_steps": warmup_steps}
    )  # the schedule ends where the run ends
    quarantine = Quarantine(
        folder / "quarantine.jsonl" if run.is_main else None, limit=settings.quarantine_limit
    )
    log = monitor.Monitor(
        folder,
        name,
        step=progress.step,
        max_steps=max_steps,
        is_main=run.is_main,
        tensorboard=settings.tensorboard,
    )
    tensors = [*objective.parameters(), *objective.buffers()]
    whole: tuple[dict[str, Any], list[int]] = (
        dict(vars(progress)),
        [],
    )  # the last whole step: its progress, and the versions of all tensors
    saved_step = progress.step

    def whole_weights(*, everywhere: bool) -> AbstractContextManager[None]:
        return nullcontext() if shards is None else shards.whole(everywhere=everywhere)

    def write(progress: dict[str, Any], moments: dict[str, Any]) -> None:
        nonlocal saved_step
        state = checkpoint.State(progress, moments, scaler.state_dict(), average.state, drawn.counts_N)
        checkpoint.save(folder / checkpoint.name(progress["step"]), objective, state, identity)
        checkpoint.retain(folder, settings.keep_checkpoints)
        saved_step = progress["step"]

    def save() -> None:
        nonlocal saved_step
        moments = optimizer.state_dict() if shards is None else shards.optimizer_state(optimizer)
        with whole_weights(everywhere=False):
            if run.is_main:
                write(dict(vars(progress)), moments)
                saved(progress.step)
            distributed.wait_for_main(run)
        saved_step = progress.step

    def validate_and_keep() -> None:
        with whole_weights(everywhere=True), average.in_place():
            _validate_and_keep(objective, valid, settings, run, progress, folder, log, export)

    # 3. the steps
    stream = _timed(train.numbers(to_come(progress.position, (max_steps - progress.step) * per_step, run)))
    meter = Meter(objective, run)
    try:
        with (
            log,
            watchdog.Watchdog(folder, log.say, is_main=run.is_main) as alive,
            stop_on_signals() as stop,
            distributed.together(run, alike=(Interrupted,)),
        ):
            if progress.step:
                log.say(f"resumed from {newest}")
            if shards is not None:
                own_count, count = shards.numbers
                log.say(
                    f"shared out: {own_count:,} of {count:,} weights on this rank, with their gradients and moments"
                )
            objective.train()
            while progress.step < max_steps and not progress.stopped_early:
                whole = dict(vars(progress)), [tensor._version for tensor in tensors] if run.world > 1 else []
                window = _window(stream, settings.gradient_accumulation_steps)
                own = local_counts(objective, window.batches)
                everyone = distributed.gather(window.describe(own, asked(stop)), run)
                _refuse_failed(window, everyone, run)
                if any(
                    message["is_asked"] for message in everyone
                ):  # before anything of this step: all ranks save the step before, or none
                    if saved_step != progress.step:
                        save()
                    raise _interrupted(stop, progress.step)
                _set_aside(progress, quarantine, everyone)
                if joined := optim.join(objective, account, progress.step):
                    now = _digests(objective, joined)
                    progress.moved_early = [
                        *progress.moved_early,
                        *(each for each in joined if now[each] != progress.resting[each]),
                    ]
                    wrapped = distributed.wrap(objective, run)  # DDP knows what learned when it was wrapped
                    log.say(f"{len(joined)} more parameters learn from step {progress.step + 1} on")
                optim.set_lr(optimizer, optim.lr_scale(progress.step, settings))
                result = None
                if all(message["usable"] for message in everyone):
                    alive.step(
                        progress.step + 1, [name for batch in window.batches for name in batch.sample_ids]
                    )
                    with meter.update(window.batches, window.waited_s):
                        moved = [batch.to(run.device) for batch in window.batches]
                        counts = distributed.added([message["counts"] for message in everyone])
                        seeds = [settings.seed + number * SEED_STRIDE for number in window.usable]
                        result = update(
                            objective,
                            wrapped,
                            optimizer,
                            scaler,
                            moved,
                            settings,
                            run,
                            counts=counts,
                            seeds=seeds,
                            rounds=None if shards is None else max(each["usable"] for each in everyone),
                        )
                elif run.world > 1:
                    empty = [rank for rank, message in enumerate(everyone) if not message["usable"]]
                    raise UserError(
                        f"step {progress.step}: rank {empty[0]} could use no sample of its batches",
                        hint="see quarantine.jsonl; clean the data",
                    )
                _account(progress, drawn, everyone)
                rate = max(group["lr"] for group in optimizer.param_groups) if result is None else result.lr
                rates.note(rate, warms=progress.step < settings.warmup_steps, jumps=is_other_batch)
                progress.rates, is_other_batch = rates.state, False
                if result is not None:
                    with whole_weights(everywhere=True) if result.skipped else nullcontext():
                        _guard(result, objective, moved, settings, progress, folder, run, log, max_steps)
                progress.step += 1
                if result is not None and not result.skipped and not result.overflowed:
                    with meter.more():
                        objective.after_step(progress.step)
                        average.follow()
                    if probes is not None:
                        probes.note()
                        progress.average = probes.state
                log.tick(progress.step)

                is_last = progress.step == max_steps
                if result is not None and (
                    progress.step % settings.print_freq == 0 or is_last or progress.step == 1
                ):
                    log.log({"step": progress.step, **_numbers(objective, result), **meter.read()})
                if valid is not None and progress.step % settings.val_freq == 0 and not is_last:
                    validate_and_keep()
                if progress.step % settings.checkpoint_freq == 0 or is_last or progress.stopped_early:
                    save()
            if any(distributed.gather(asked(stop), run)):  # in the last step
                raise _interrupted(stop, progress.step)

            # 4. the end: the last weights compete with the best, and all held-out batches are asked of those
            # that are handed on
            if valid is not None:
                validate_and_keep()
            if shards is not None:
                shards.end()
            fitted = _hand_on(
                objective, average, valid, settings, run, folder, progress, account, drawn, export
            )
            if fitted.validation:
                log.say(f"all held-out batches: loss={fitted.validation['loss']:.4g}")
    except BaseException as error:
        is_of_step = whole[1] == [tensor._version for tensor in tensors] and drawn.total == whole[0][
            "drawn"
        ].get("total", 0)
        if (
            run.world > 1
            and shards is None  # else what the other ranks hold is lost with them
            and run.is_main
            and is_of_step
            and whole[0]["step"] > saved_step
            and not isinstance(error, CheckpointError)
        ):
            write(whole[0], optimizer.state_dict())
        raise
    if run.is_main:
        files.write_json(folder / "training_log.json", log.rows)
    return fitted


def _digests(objective: Objective, names: Iterable[str]) -> dict[str, str]:
    """sha256 of these parameters."""
    return {name: store.digest_of(objective.get_parameter(name)) for name in names}


def _as_at(objective: Objective, account: list[optim.Row], folder: Path) -> None:
    """Have those learn that learned when a checkpoint was written: it holds them, and no others that rest."""
    optim.join(objective, account, checkpoint.step_of(folder) - 1)


SEED_STRIDE = 1_000_003  # so that the random numbers of batch n under one seed are those of no near batch under the next


def restore(
    objective: Objective,
    valid: Loader[Any, Any] | None,
    settings: TrainSettings,
    run: Runtime,
    folder: Path,
    *,
    identity: checkpoint.Identity | None = None,
    export: best.Export = best.Export(),  # noqa: B008 (it is frozen)
) -> Fitted:
    """A finished stage as `fit` left it, without training: its weights in place, validated anew.

    Raises  CheckpointError where no whole checkpoint is there, or it was trained as something else than
            `identity`.
    """
    account = optim.select(objective, settings)
    newest = checkpoint.newest(folder)
    if newest is None:
        raise CheckpointError(f"{folder}: no whole checkpoint", hint="run the stage again")
    _as_at(objective, account, newest)
    state = checkpoint.load(newest, objective, run.device, identity)
    progress = Progress.of(state.progress, newest)
    losses = [row["val_loss"] for row in monitor.read_metrics(folder / "metrics.jsonl") if "val_loss" in row]
    if losses and (kept := best.note(folder)):  # the last validation comes after the last checkpoint
        progress.last, progress.best, progress.best_step = losses[-1], kept["loss"], kept["step"]
    drawn = Drawn(len(state.drawn_N), progress.drawn, state.drawn_N)
    average = Average(objective, settings.ema_decay, state.ema)
    return _hand_on(objective, average, valid, settings, run, folder, progress, account, drawn, export)


def _hand_on(
    objective: Objective,
    average: Average,
    valid: Loader[Any, Any] | None,
    settings: TrainSettings,
    run: Runtime,
    folder: Path,
    progress: Progress,
    account: list[optim.Row],
    drawn: Drawn,
    export: best.Export,
) -> Fitted:
    """Put the weights in place that are handed on (the average, or the best that were kept), and validate
    them on all held-out batches."""
    average.put()
    notes = progress.average
    if settings.final == "best" and progress.best_step >= 0:
        notes = best.put_back(folder, objective, export)["average"]
    validation = validate(objective, valid, settings, run, full=True) if valid is not None else {}
    objective.eval()
    return Fitted(progress, validation, account, drawn, notes)


def _window(stream: Iterator[tuple[Loaded[Any], float]], size: int) -> Window:
    """The micro-batches of one update, and the seconds that the loop waited for them; an error is kept for
    all ranks to hear of."""
    window = Window([], [], [], [], [])
    try:
        for loaded, seconds in islice(stream, size):
            window.waited_s += seconds
            window.numbers.append(loaded.number)
            window.indices.extend(loaded.indices)
            window.bad.extend(loaded.bad)
            if loaded.batch is not None:
                window.batches.append(loaded.batch)
                window.usable.append(loaded.number)
                window.samples += len(loaded.batch.sample_ids)
                window.labelled += getattr(loaded.batch, "labelled_rows", len(loaded.batch.sample_ids))
    except Exception as error:  # raised by _refuse_failed, on this rank as it is
        window.error = error
    return window


def _refuse_failed(window: Window, everyone: list[dict[str, Any]], run: Runtime) -> None:
    """End all ranks in step where one of them could not load its batches."""
    if window.error is not None:
        raise window.error
    for rank, message in enumerate(everyone):
        if message["failed"]:
            failure = distributed.RankFailed(f"rank {rank}: {message['failed']}")
            failure.exit_code = message["exit_code"]
            raise failure


def _set_aside(progress: Progress, quarantine: Quarantine, everyone: list[dict[str, Any]]) -> None:
    """Name the bad samples of all ranks.

    Raises  DataError on every rank where too many of all samples so far are bad.
    """
    for message in everyone:
        for bad in message["bad"]:
            quarantine.add(bad.sample_id, "", bad.reason, bad.detail)
    now = sum(message["samples"] + len(message["bad"]) for message in everyone)
    quarantine.check(progress.samples + progress.quarantined + now)


def _account(progress: Progress, drawn: Drawn, everyone: list[dict[str, Any]]) -> None:
    """Note what all ranks drew for an update: every rank keeps the same account."""
    for message in everyone:
        progress.position += len(message["numbers"])
        progress.samples += message["samples"]
        progress.labelled += message["labelled"]
        progress.quarantined += len(message["bad"])
    drawn.note(
        [n for message in everyone for n in message["numbers"]],
        [i for message in everyone for i in message["indices"]],
    )
    progress.drawn = drawn.state


def asked(stop: StopRequest) -> bool:
    """Whether this rank was asked to stop."""
    return bool(stop)


def _interrupted(stop: StopRequest, step: int) -> Interrupted:
    by = f"by signal {stop.signal} " if stop else ""  # another rank may be the one that was asked
    return Interrupted(
        f"stopped {by}after step {step}; run the same command to go on",
        stop.exit_code if stop else 128 + signal.SIGTERM,
    )


def to_come(position: int, count: int, run: Runtime) -> range:
    """The numbers of the next `count` global batches after `position` that fall to this rank."""
    return range(position + run.rank, position + count, run.world)


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
    if result.overflowed:
        progress.overflows += 1
        log.say(
            f"step {progress.step}: fp16 overflow, no update; the gradients' scale is {result.scale:g} from here"
        )
        return
    if not result.skipped:
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    culprits = [monitor.find_nonfinite(objective, batch, run) for batch in batches]
    where = next((f"first non-finite output in module {name!r}; " for name in culprits if name), "")
    log.say(
        f"step {progress.step}: update skipped: {result.skipped}; {where}samples {', '.join(result.sample_ids[:8])}"
    )
    if run.is_main:
        with (folder / "skipped.jsonl").open("a", encoding="utf-8") as stream:
            row = {
                "step": progress.step,
                "reason": result.skipped,
                "module": where,
                "samples": result.sample_ids,
            }
            stream.write(json.dumps(row) + "\n")
    if progress.skipped_in_a_row > settings.max_skips or progress.skipped > max(
        settings.max_skips, 0.01 * max_steps
    ):
        raise UserError(
            f"{progress.skipped} updates were skipped, {progress.skipped_in_a_row} in a row; last: {result.skipped}; {where}",
            hint="lower lr, raise warmup_steps, or look at skipped.jsonl for the samples",
        )


def _validate_and_keep(
    objective: Objective,
    valid: Loader[Any, Any] | None,
    settings: TrainSettings,
    run: Runtime,
    progress: Progress,
    folder: Path,
    log: monitor.Monitor,
    export: best.Export,
) -> None:
    """Validate the weights in place on the same batches as ever, keep the best, and note when it is time to
    stop early."""
    assert valid is not None
    means = validate(objective, valid, settings, run)
    log.log(
        {"step": progress.step, **{f"val_{key}": value for key, value in objective.describe(means).items()}}
    )
    progress.last = means["loss"]
    last_phase = max([0, *objective.joining.values()])
    if not objective.is_settled or progress.step <= last_phase:
        return  # what still rests will change the loss: no later one can be compared with it
    if means["loss"] < progress.best - settings.min_delta:
        progress.best, progress.best_step, progress.without_gain = means["loss"], progress.step, 0
        if run.is_main:
            note = {
                "step": progress.step,
                "loss": progress.best,
                "batches": settings.val_batches,
                "average": progress.average,
            }
            best.keep(folder, objective, export, note)
        distributed.wait_for_main(run)
    else:
        progress.without_gain += 1
        progress.stopped_early = settings.patience is not None and progress.without_gain >= settings.patience


def _numbers(objective: Objective, result: StepResult) -> dict[str, float]:
    return {**objective.describe(result.losses), "lr": result.lr, "grad_norm": result.grad_norm}
