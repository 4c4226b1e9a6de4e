"""A recipe before anything is spent: what trains, what it needs in memory, time and disk. Nothing is
written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from muomni import files, units
from muomni.data import readers
from muomni.errors import ConfigError, DataError, MuomniError
from muomni.execution import recipe as recipes
from muomni.execution.parallel import Schedule
from muomni.execution.recipe import Recipe
from muomni.models import integrity
from muomni.planning.building import Task, planned
from muomni.stages.stage import StageSettings
from muomni.train.timing import MOST


def plan(
    recipe: str,
    *,
    stages: list[str] | None = None,
    overrides: list[str] | None = None,
    out: Path | None = None,
    memory: str | None = None,
    epoch: str | None = None,
    probe: int = MOST,
    probe_s: float = 10.0,
    samples: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The account of a recipe's stages: keys as docs/plan.md has them.

    Takes   memory: a size that micro-batches are to fit, e.g. 12GB; epoch: how long an epoch is to take, e.g.
            1h; probe: updates to time a stage (0: none), no more than 50 after probe_s seconds; samples: of
            an epoch where the data are not there; say: told how far it is.
    Raises  ConfigError and DataError as the run itself would.
    """
    limit = units.num_bytes(memory, "--memory") if memory else None
    target_s = units.seconds(epoch, "--epoch") if epoch else None
    if probe < 0 or (samples is not None and samples < 1):
        raise ConfigError(
            f"--probe and --samples: expected numbers of updates and samples, got {probe} and {samples}"
        )
    as_written = recipes.read(recipe, overrides, out=out)
    read, folder = planned(as_written), as_written.folder
    entries = as_written.chosen(stages or [])
    points = {point for entry in entries for point in entry.points}
    chosen = {entry.name: entry.points for entry in entries if entry.name not in points}
    stood_in = stood_in_for(read, chosen, folder)
    with tempfile.TemporaryDirectory(prefix="muomni-plan-") as temporary:
        tasks = [
            Task(
                str(recipes.find(recipe)),
                overrides or [],
                name,
                str(folder),
                temporary,
                probe,
                probe_s,
                limit,
                is_needed=name in stood_in,
                is_stand_in=name not in chosen,
            )
            for name in read.stages
            if name in chosen or name in stood_in
        ]
        link(read, folder, Path(temporary))
        surveyed = _survey(read, tasks, 1 if any(_has_data(read, task.stage) for task in tasks) else 2, say)
    stage_accounts = [_of_all(surveyed[name], points) for name, points in chosen.items()]
    for stage in stage_accounts:
        _add_times(stage, read.stages[stage["stage"]].settings, target_s, samples)
    return {"recipe": read.name, "stages": stage_accounts, **_together(read, stage_accounts)}


def _has_data(recipe: Recipe, stage: str) -> bool:
    try:
        return all(
            readers.locate(source, recipe.base).exists() for source in recipe.stages[stage].settings.data
        )
    except DataError:
        return False


def link(recipe: Recipe, folder: Path, temporary: Path) -> None:
    """Have finished stages stand in the temporary folder too, where stand-ins look for what they build on."""
    elsewhere = {name.name: target for name, target in recipe.links if name.parent == folder}
    for name in {*recipe.stages, *(needed for each in recipe.stages.values() for needed in each.needs)}:
        place, final = temporary / name / "final", elsewhere.get(name, folder / name) / "final"
        if final.is_dir() and not place.is_symlink():
            integrity.verify(final)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(final)


def _of_all(account: dict[str, Any], points: Sequence[str]) -> dict[str, Any]:
    """The account of a stage: of a sweep, its first point's, as often on the disk as it has points, and the
    winner's copy."""
    if not points:
        return {**account, "points": 1}
    disk = account["disk"]
    note = f"{points[0]} was tried: its {len(points)} points are taken to cost the same"
    whole = {**disk, "total": len(points) * disk["total"] + disk["final"]}
    return {**account, "points": len(points), "disk": whole, "notes": [note, *account["notes"]]}


def _survey(
    recipe: Recipe, tasks: list[Task], side_by_side: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """What was found of each stage, each after those that it needs. Without data nothing is timed closely, so
    two may run at a time."""
    named, accounts = {task.stage: task for task in tasks}, dict[str, dict[str, Any]]()
    schedule = Schedule({name: recipe.stages[name].needs for name in named}, side_by_side)
    running: dict[Future[dict[str, Any]], str] = {}
    with ThreadPoolExecutor(side_by_side) as pool:
        while schedule:
            for name in schedule.start():
                how = "built untrained, for those that need it" if named[name].is_stand_in else "planned"
                say(f"[{name}] {how}")
                running[pool.submit(_in_own_process, named[name])] = name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                accounts[name] = future.result()
                schedule.done(name)
    return accounts


def stood_in_for(recipe: Recipe, chosen: Iterable[str], folder: Path) -> set[str]:
    """The stages that chosen ones build on, and that are not finished in the run's folder."""
    needed: set[str] = set()
    open_ones = list(chosen)
    while open_ones:
        for name in recipe.stages[open_ones.pop()].needs:
            if name not in needed and not (folder / name / "final").is_dir():
                needed.add(name)
                open_ones.append(name)
    return needed


def _in_own_process(task: Task) -> dict[str, Any]:
    """A survey in a fresh process.

    Raises  what it raised; MuomniError where it was killed, most likely by the system for want of memory.
    """
    out = Path(task.temporary) / f"{task.stage.replace('/', '_')}.json"
    command = [sys.executable, "-m", "muomni.planning.survey", str(out)]
    # Threads that spin while they wait would take the cores from a run that is in progress; and a plan
    # downloads no weights.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, input=json.dumps(asdict(task)), env=environment, capture_output=True, text=True
    )
    answer = files.read_json(out) if out.exists() else {}
    if "error" in answer:
        error = MuomniError(answer["error"], hint=answer["hint"])
        error.exit_code = answer["exit_code"]
        raise error
    if done.returncode < 0:
        raise ConfigError(
            f"{task.stage}: the dry run was ended by signal {-done.returncode}, most likely for want of memory",
            hint=f"plan it with a smaller {task.stage}.batch_size",
        )
    if "found" not in answer:
        raise MuomniError(
            f"{task.stage}: the dry run failed: {done.stderr.strip().splitlines()[-1:]}",
            hint="MUOMNI_DEBUG=1 shows more",
        )
    account: dict[str, Any] = answer["found"]
    return account


def _add_times(
    stage: dict[str, Any], settings: StageSettings, target_s: float | None, samples: int | None
) -> None:
    """Put the stage's whole time, and the samples of an epoch of the wanted time, beside its speed."""
    data, speed = stage["data"], stage["speed"]
    per_update = stage["batch_size"] * stage["gradient_accumulation_steps"]
    if not stage["data_found"]:
        count = samples
        data["samples"] = count
        data["held_out"] = data["batches_per_epoch"] = data["updates_per_epoch"] = data["epochs"] = None
        if (
            settings.max_steps is None
            and settings.samples_per_epoch is None
            and settings.epoch_duration is None
        ):  # epochs of data that are not there
            data["updates"] = (
                None
                if count is None or settings.max_epochs is None
                else -(-settings.max_epochs * count // per_update)
            )
        if count is not None:
            data["batches_per_epoch"] = -(-count // stage["batch_size"])
            data["updates_per_epoch"] = -(-count // per_update)
            data["epochs"] = data["updates"] * per_update / count
    stage["total_s"] = stage["epoch_s"] = stage["epoch"] = None
    if speed is None:
        return
    stage["total_s"] = (
        None if data["updates"] is None else data["updates"] * speed["update_s"] * stage["points"]
    )
    if data["updates_per_epoch"]:
        stage["epoch_s"] = data["updates_per_epoch"] * speed["update_s"]
    if target_s is not None:
        updates = max(1, int(target_s / speed["update_s"]))
        stage["epoch"] = {"target_s": target_s, "updates": updates, "samples": updates * per_update}


def _together(recipe: Recipe, accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """Time, memory and disk of all stages; those that may run side by side do, as `schedule.side_by_side`
    would start them."""
    disk = sum(stage["disk"]["total"] for stage in accounts)
    if any(stage["total_s"] is None for stage in accounts):
        return {"total_s": None, "disk": disk}
    took = {stage["stage"]: stage["total_s"] for stage in accounts}
    widths = {
        name: -(-(recipe.stages[name].settings.threads or recipe.threads) // recipe.threads) for name in took
    }
    schedule = Schedule({name: recipe.stages[name].needs for name in took}, recipe.header.jobs, widths)
    now, ends = 0.0, dict[str, float]()
    while schedule:
        ends |= {name: now + took[name] for name in schedule.start()}
        first = min(ends, key=lambda name: ends[name])
        now = ends.pop(first)
        schedule.done(first)
    return {"total_s": now, "disk": disk}
