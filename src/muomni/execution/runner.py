"""From a recipe to finished stages, one after another or side by side, and back: a finished run measured
again."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from muomni import files, runtime
from muomni.errors import ConfigError, GateRed, MuomniError
from muomni.evaluate import certificate, gates
from muomni.execution import flat, ownership, scoreboard, stage_run, winner
from muomni.execution import recipe as recipes
from muomni.execution.parallel import side_by_side
from muomni.execution.recipe import Recipe
from muomni.execution.stage_run import default_threads, gate_stage, refuse, run_stage, waived_here
from muomni.stages import registry
from muomni.stages.stage import Entry
from muomni.train import distributed, loop
from muomni.units import format_seconds


def run(
    recipe: str,
    *,
    stages: list[str] | None = None,
    out: Path | None = None,
    overrides: list[str] | None = None,
    fresh: bool = False,
    waive: list[str] | None = None,
    reason: str | None = None,
    alone: bool = False,
) -> Path:
    """Run a recipe, or some of its stages (a sweep with its points, unless `alone`), and give its run folder.

    Finished stages of the same settings, data and needed weights are reused; broken ones resume; changed ones
    are refused unless `fresh`.
    Raises  GateRed where a gate is red; ConfigError for what the user must change; Interrupted after a
            signal.
    """
    runtime.end_with_parent()
    plan = recipes.read(recipe, overrides, out=out)
    folder = plan.folder
    chosen = plan.chosen(stages or [], alone=alone)
    waived = dict.fromkeys(waive or [], reason or "")
    if waive and not (reason or "").strip():
        raise ConfigError("--waive needs --reason", hint='--waive GATE --reason "why this is acceptable"')
    _check_gates(waived, chosen)
    scoreboard.least_values(plan)  # an unknown row is told before anything is spent
    begin = time.perf_counter()
    machine = runtime.start(device=plan.header.device, threads=default_threads(plan))
    with (
        distributed.together(machine, alike=(GateRed, loop.Interrupted)),
        stage_run.on_main(ownership.of_folder(folder, plan, fresh=fresh), machine),
    ):
        if machine.is_main:
            origin = {
                "recipe": str(plan.source),
                "base": str(plan.base),
                "device": plan.header.device,
                "threads": default_threads(plan),
                "overrides": plan.overrides,
                "values": plan.values,
            }
            files.write_json(folder / recipes.RUN, origin)
            _make_world(plan, folder)
            for link, target in plan.links:
                flat.link(link, target)
            for line in plan.notes:
                print(f"[{plan.name}] {line}", file=sys.stderr, flush=True)
            if not alone:
                ahead = [entry.name for entry in chosen if not entry.points]
                print(
                    f"[{plan.name}] {len(ahead)} {'stage' if len(ahead) == 1 else 'stages'}: {', '.join(ahead)}",
                    file=sys.stderr,
                    flush=True,
                )
        distributed.wait_for_main(machine)
        red: GateRed | None = None
        try:
            if plan.header.jobs > 1 and len(chosen) > 1 and machine.world == 1:
                _side_by_side(plan, chosen, recipe, folder, overrides or [], fresh, waived, reason)
            else:
                for entry in chosen:
                    try:
                        with stage_run.alone(entry, machine):
                            run_one = winner.conclude if entry.points else run_stage
                            run_one(plan, entry, machine, fresh=fresh, waived=waived)
                    except GateRed:
                        if not entry.may_be_red:
                            raise
        except GateRed as error:
            red = error
        last = certificate.read(folder / list(plan.stages)[-1])
        is_judged = red is None or (
            last is not None and last["verdict"] == "red"
        )  # the board says by how much the last stage missed
        if plan.header.scoreboard and machine.is_main and len(chosen) == len(plan.stages) and is_judged:
            board = scoreboard.write(folder, plan, time.perf_counter() - begin)
            print("\n".join(scoreboard.lines(board)), file=sys.stderr, flush=True)
            if red is None and (lacking := scoreboard.missed(board, plan)):
                red = GateRed(f"score board: {'; '.join(lacking)}")
        if red is not None:
            red.folder = folder
            raise red
        return folder


QUICKSTARTS: dict[str, str] = {"small": "quickstart", "full": "quickstart_full"}  # size -> recipe


def quickstart(out: Path | None = None, *, size: str = "small") -> dict[str, Any]:
    """Train all six stages on the toy world and give the score board; run again, it resumes or reuses.

    Takes   out: the run folder; runs/quickstart, or runs/quickstart-full for the large one, if left out.
            size: "small" takes minutes, "full" has a larger world and larger networks.
    Raises  ConfigError for another size; else as `run`.
    """
    return board_of(run(quickstart_recipe(size), out=out))


def board_of(folder: Path) -> dict[str, Any]:
    """The score board of a finished run that has one."""
    board: dict[str, Any] = files.read_stored(
        folder / "scoreboard.json", dict, hint="run the quickstart again"
    )
    return board


def quickstart_recipe(size: str) -> str:
    """The recipe of a quickstart's size.

    Raises  ConfigError
    """
    if size not in QUICKSTARTS:
        raise ConfigError(f"quickstart: no size {size!r}", hint=f"the sizes are {', '.join(QUICKSTARTS)}")
    return QUICKSTARTS[size]


def _check_gates(waived: dict[str, str], chosen: list[Entry]) -> None:
    for entry in chosen:  # judged on nothing: a bound for no gate is found before anything is spent
        gates.judge(entry.gates, {}, entry.settings.gates)
    gate_names = {gate.name for entry in chosen for gate in entry.gates}
    for gate in waived:
        if gate not in gate_names:
            raise ConfigError(
                f"--waive {gate}: no such gate", hint=f"the gates are {', '.join(sorted(gate_names))}"
            )


def _make_world(recipe: Recipe, folder: Path) -> None:
    if recipe.header.world is None:
        return
    from muomni.data.world.build import build

    begin, own = time.perf_counter(), folder / "data" / "world"
    before = own.stat().st_ino if own.exists() else None
    build(own, seed=recipe.header.world.seed, size=recipe.header.world.size)
    if own.stat().st_ino != before:  # each process of a run asks for it, one makes it
        print(f"[world] ready in {format_seconds(time.perf_counter() - begin)}", file=sys.stderr, flush=True)


# --- stages side by side ------------------------------------------------------------------------------------------------------------------


def _side_by_side(
    plan: Recipe,
    chosen: list[Entry],
    recipe: str,
    folder: Path,
    overrides: list[str],
    fresh: bool,
    waived: dict[str, str],
    reason: str | None,
) -> None:
    """Run stages as processes of their own, each as soon as what it needs is done, at most `jobs` at a time.

    Raises  the error of the first stage that fails, after the others that run have been asked to stop and
            have saved.
    """
    environment = {
        **os.environ,
        "MUOMNI_THREADS": str(plan.threads),
        "OMP_NUM_THREADS": str(plan.threads),
        "MUOMNI_PLAIN": "1",
        runtime.PARENT: str(os.getpid()),
    }
    commands = {}
    for entry in chosen:
        command = [
            sys.executable,
            "-m",
            "muomni",
            "run",
            recipe,
            entry.name,
            *overrides,
            "--out",
            str(folder),
            "--alone",
        ]
        command += ["--fresh"] if fresh else []
        for gate in waived_here(entry, waived):
            command += ["--waive", gate, "--reason", reason or ""]
        commands[entry.name] = command
    needs = {entry.name: [name for name in entry.needs if name in commands] for entry in chosen}
    widths = {entry.name: -(-(entry.settings.threads or plan.threads) // plan.threads) for entry in chosen}
    may_be_red = {entry.name for entry in chosen if entry.may_be_red}
    failed = side_by_side(
        commands, needs, jobs=plan.header.jobs, environment=environment, widths=widths, may_be_red=may_be_red
    )
    if failed is None:
        return
    name, code = failed
    if not name:
        raise loop.Interrupted("stopped; every running stage has saved; run the same command to go on", code)
    stored = certificate.read(folder / name)
    if code == 1 and stored is not None:
        refuse(stored)
    error = MuomniError(f"stage {name} ended with exit code {code}", hint="its message stands above")
    error.exit_code = code
    raise error


# --- a finished run -----------------------------------------------------------------------------------------------------------------------


def gate(path: Path | str, *, baseline: Path | None = None) -> dict[str, Any] | list[dict[str, Any]]:
    """Measure and judge a finished stage anew, or all stages of a recipe's folder; nothing is written.

    Takes   baseline: a report that `muomni gate --json` gave earlier; facts that are worse now are red.
    Raises  ConfigError where the folder is neither, or the baseline no such report.
    """
    path = Path(path).resolve()
    before = None if baseline is None else _stored(baseline)
    path = path.parent if path.name == "final" else path
    if (path / "recipe.json").exists():
        return [
            _gate(path, name, before)
            for name in registry.names()
            if (path / name / certificate.NAME).exists()
        ]
    run = next((parent for parent in list(path.parents)[:2] if (parent / "recipe.json").exists()), None)
    if run is not None and (path / certificate.NAME).exists():
        return _gate(run, str(path.relative_to(run)), before)
    raise ConfigError(
        f"{path}: no finished stage and no run folder", hint="give runs/<recipe> or runs/<recipe>/<stage>"
    )


def _gate(run: Path, name: str, before: dict[str, Any] | None) -> dict[str, Any]:
    entry = recipes.stored(run, name)
    return (winner.gate if entry.points else gate_stage)(entry, before)


def _stored(path: Path) -> dict[str, Any]:
    """The facts of a stored report, by stage."""
    try:
        report = files.read_json(path)
        return {row["stage"]: row["facts"] for row in (report if isinstance(report, list) else [report])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no report of `muomni gate --json`: {error}") from error
