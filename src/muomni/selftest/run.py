"""Runs the tiny recipe as it is, then once with each bug planted in the stage concerned, and tells which
gates were red."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from muomni.errors import ConfigError, GateRed, MuomniError
from muomni.evaluate import certificate
from muomni.evaluate.gates import judge
from muomni.execution import recipe as recipes
from muomni.execution import runner
from muomni.execution.parallel import Schedule
from muomni.selftest import voices, world
from muomni.selftest.mutants import MUTANTS, Mutant
from muomni.train import loop
from muomni.units import format_seconds

RECIPE = Path(__file__).parent / "recipe.yaml"
STOP_AT = 50  # the step before which a run is interrupted, where it is to resume
REGROUP_AT = 8  # the step before which one rank stops, where two are to go on
TWINS = "two ranks"  # the unmutated run's first stage once more
TWINS_STAGE = "thinker"
SPEAKS = "voice"  # the stage on a base that transformers makes (`selftest.voices`)
PORTS_TRIED = 3
RANKS_S = 900.0  # how long two ranks may take; a rank that waits for a dead one is ended then
LOADED = ["__main__", "muomni.selftest.run"]  # what each run would load


@dataclass(frozen=True)
class Caught:
    """Outcome of a mutant: the expected gates that were red, or None; anything else that happened is in
    `told`."""

    number: int
    name: str
    stage: str
    caught_by: str | None
    seconds: float
    told: str

    def to_json(self) -> dict[str, Any]:
        """As `muomni selftest --json` gives it."""
        return {
            "name": f"{self.number} {self.name}",
            "caught_by": self.caught_by,
            "seconds": round(self.seconds, 1),
            "told": self.told,
        }


@dataclass(frozen=True)
class Part:
    """What runs in a process of its own: a stage of the unmutated run, its twin by two ranks, or a mutant.

    needs   stages that are to be finished before; width: processes that it keeps busy
    """

    name: str
    needs: tuple[str, ...]
    work: Callable[[Path, str], Any]
    width: int = 1


def selftest(
    numbers: Sequence[int] | None = None,
    *,
    jobs: int = 2,
    say: Callable[[str], None] = lambda _: None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Run the stages that the mutants are planted in, and the mutants; give {"unmutated": "green" or "red",
    "mutants": [...], "skipped": [{"name", "why"}, ...], "seconds"}.

    Skipped are the mutants of stage voice where this machine lacks what its base is made with.

    Takes   numbers: the mutants, None: all; jobs: processes side by side; say: where progress is told; keep:
            a folder for the runs.
    Raises  ConfigError where all that were chosen would be skipped.
    """
    begin = time.perf_counter()
    chosen, skipped = _possible([m for m in MUTANTS if numbers is None or m.number in numbers])
    for each in skipped:
        say(f"{each['name']}: SKIPPED: {each['why']}")
    caught: dict[int, Caught] = {}
    why = ""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))
        os.environ.pop("MUOMNI_CACHE", None)  # codes that a planted bug makes are nobody else's
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muomni-selftest-")))
        made = folder / "run" / "data" / "world"
        world.build(made)
        if any(mutant.stage == SPEAKS for mutant in chosen):
            voices.build(made / "voices")
        for name, outcome in side_by_side(_parts(chosen, folder), folder, jobs):
            if isinstance(outcome, Caught):
                caught[outcome.number] = outcome
                seen = outcome.caught_by or f"NOT CAUGHT: {outcome.told}"
                say(f"{outcome.number:2} {outcome.name}: {seen} ({format_seconds(outcome.seconds)})")
            elif outcome:
                why = f"{name}: {outcome}"
                break
            else:
                say(f"unmutated {name}: green")
        say(
            f"unmutated: {'green' if not why else 'red: ' + why} ({format_seconds(time.perf_counter() - begin)})"
        )
    return {
        "unmutated": "red" if why else "green",
        "why": why,
        "mutants": [] if why else [caught[mutant.number].to_json() for mutant in chosen],
        "skipped": skipped,
        "seconds": time.perf_counter() - begin,
    }


def _possible(chosen: list[Mutant]) -> tuple[list[Mutant], list[dict[str, str]]]:
    """Mutants that can be planted on this machine, and those that can't, with why."""
    why = voices.lacking() if any(mutant.stage == SPEAKS for mutant in chosen) else ""
    if not why:
        return chosen, []
    skipped = [{"name": f"{m.number} {m.name}", "why": why} for m in chosen if m.stage == SPEAKS]
    if len(skipped) == len(chosen):
        raise ConfigError(f"nothing is left to plant: stage {SPEAKS} can't run here: {why}")
    return [mutant for mutant in chosen if mutant.stage != SPEAKS], skipped


def _parts(chosen: Sequence[Mutant], folder: Path) -> list[Part]:
    """The stages concerned, with those that they need, and the mutants, each of which needs what its stage
    needs."""
    stages = recipes.read(str(RECIPE), out=folder / "run").stages
    concerned = {mutant.stage for mutant in chosen if mutant.how != "judged"}
    for name in reversed(stages):  # they stand in the order of need
        concerned.update(stages[name].needs if name in concerned else ())
    parts = [Part(name, entry.needs, _unmutated) for name, entry in stages.items() if name in concerned]
    if TWINS_STAGE in concerned:
        parts.append(Part(TWINS, (), _twins, width=2))
    needs = {mutant.number: stages[mutant.stage].needs for mutant in chosen if mutant.how != "judged"}
    return parts + [
        Part(
            str(mutant.number),
            needs.get(mutant.number, ()),
            _try,
            width=2 if mutant.how in ("ranks", "regroup") else 1,
        )
        for mutant in chosen
    ]


def side_by_side(parts: Sequence[Part], folder: Path, jobs: int) -> Iterator[tuple[str, Any]]:
    """Run parts, each as soon as what it needs has ended and there is room; yield each one's name and what it
    gave, as they end.

    A process that ends without giving anything has given its exit code, in words. Whoever stops listening
    ends those that still run.
    """
    fresh = multiprocessing.get_context(
        "forkserver"
    )  # each part has a process that ran nothing before, and none loads torch anew
    fresh.set_forkserver_preload(LOADED)
    named = {part.name: part for part in parts}
    needs = {part.name: part.needs for part in parts}
    schedule = Schedule(needs, jobs, {part.name: part.width for part in parts})
    running: dict[connection.Connection, tuple[str, Any]] = {}
    try:
        while schedule:
            for name in schedule.start():
                ours, theirs = fresh.Pipe(duplex=False)
                process = fresh.Process(target=_give, args=(theirs, named[name], folder))
                process.start()
                theirs.close()
                running[ours] = name, process
            ready = connection.wait(list(running))
            for ours in [each for each in running if each in ready]:
                name, process = running.pop(ours)
                try:
                    message = ours.recv()
                except EOFError:
                    message = None
                process.join()
                schedule.done(name)
                yield name, message if process.exitcode == 0 else f"its process ended with {process.exitcode}"
    finally:
        for _, process in running.values():
            process.kill()


def _give(pipe: connection.Connection, part: Part, folder: Path) -> None:
    pipe.send(part.work(folder, part.name))


def _unmutated(folder: Path, stage: str) -> str:
    """A stage of the recipe as it is, the first one stopped and resumed; why it is red, or nothing."""
    try:
        with _quiet():
            if stage == TWINS_STAGE:
                _stopped(folder / "run", stage)
            _run(folder / "run", [stage])
    except MuomniError as error:
        return str(error)
    return ""


def _twins(folder: Path, _: str) -> str:
    """The first stage begun by one rank and ended by two; why it is red, or nothing."""
    own = _copy(folder / "run", folder / "ranks", TWINS_STAGE)
    try:
        _regrouped(own, TWINS_STAGE)
        _two_ranks(own, TWINS_STAGE, 0)
    except MuomniError as error:
        return str(error)
    return ", ".join(_red(own, TWINS_STAGE))


def _try(folder: Path, name: str) -> Caught:
    """One mutant."""
    mutant = next(m for m in MUTANTS if m.number == int(name))
    begin = time.perf_counter()
    caught, notes = [], []
    for way, (plant, gates) in enumerate(mutant.plants):
        if mutant.how == "judged":
            red = _judged(mutant.stage, plant)
            notes.append(f"red: {', '.join(red)}" if red else "all gates were green")
            caught += [gates] if set(gates.split(", ")) <= set(red) else []
            continue
        own = _copy(folder / "run", folder / f"mutant-{name}-{way}", mutant.stage)
        error = ""
        try:
            with _quiet():
                _mutated(own, mutant, plant)
        except GateRed:
            pass
        except Exception as problem:  # whatever a planted bug makes fall is told, and counts as nothing
            error = f"{type(problem).__name__}: {problem}"
        red = _red(own, mutant.stage)
        notes.append(error or (f"red: {', '.join(red)}" if red else "all gates were green"))
        caught += [gates] if set(gates.split(", ")) <= set(red) else []
        shutil.rmtree(own, ignore_errors=True)
    names = ", ".join(dict.fromkeys(caught)) if len(caught) == len(mutant.plants) else None
    return Caught(
        mutant.number, mutant.name, mutant.stage, names, time.perf_counter() - begin, "; ".join(notes)
    )


def _judged(stage: str, plant: Callable[[], Any]) -> list[str]:
    """The gates of a stage that are red on the facts that a plant gives."""
    with plant() as facts:
        return [
            row.name
            for row in judge(recipes.stage(stage).gates, facts)
            if row.is_known(facts) and row.verdict == "red"
        ]


def _mutated(folder: Path, mutant: Mutant, plant: Callable[[], Any]) -> None:
    if mutant.how == "regroup":
        _regrouped(folder, mutant.stage)
    if mutant.how in ("ranks", "regroup"):
        _two_ranks(folder, mutant.stage, mutant.number)
        return
    if mutant.how == "avx2":
        _without_avx512(folder, mutant.stage, mutant.number)
        return
    if mutant.how == "resume":
        _stopped(folder, mutant.stage)
    with plant():
        _run(folder, [mutant.stage], list(mutant.overrides))


def _run(folder: Path, stages: list[str], overrides: Sequence[str] = ()) -> None:
    runner.run(str(RECIPE), stages=stages, out=folder, overrides=list(overrides))


def short(stage: str) -> list[str]:
    """Overrides for a stage that two ranks train."""
    return [
        f"{stage}.gradient_accumulation_steps=2",
        f"{stage}.max_steps=20",
        f"{stage}.gates={{floor: 9.0}}",
    ]


def _stopped(folder: Path, stage: str, at: int = STOP_AT, overrides: Sequence[str] = ()) -> None:
    """Run a stage until it is asked to stop half-way."""
    steps = iter(range(1, 10**9))
    with patch.object(loop, "asked", lambda stop: next(steps) >= at), contextlib.suppress(loop.Interrupted):
        _run(folder, [stage], overrides)


def _regrouped(folder: Path, stage: str) -> None:
    """Begin a stage with one rank, where two go on; in a process of its own, since ranks can't be forked from
    one that ran a backward."""
    alone = multiprocessing.get_context("fork").Process(target=_begun, args=(folder, stage))
    alone.start()
    alone.join(RANKS_S)
    alone.kill()
    alone.join()
    if alone.exitcode != 0:
        raise MuomniError(f"one rank ended with {alone.exitcode} before two could go on")


def _begun(folder: Path, stage: str) -> None:
    with _quiet():
        _stopped(folder, stage, REGROUP_AT, short(stage))


def _two_ranks(folder: Path, stage: str, number: int) -> None:
    """A stage by two processes that exchange gradients, with a mutant planted in both (0: none).

    They are forked: the process of a part has trained nothing yet, so that no thread is lost, and torch need
    not be loaded twice more.
    """
    from muomni.selftest import rank as ranks  # which reads this module's recipe

    for _ in range(PORTS_TRIED):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        twice = multiprocessing.get_context("fork")
        processes = [
            twice.Process(target=ranks.as_rank, args=(number, folder, stage, rank, port)) for rank in range(2)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + RANKS_S
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        for process in processes:
            process.kill()
            process.join()
        if all(process.exitcode in (0, GateRed.exit_code) for process in processes):
            return
        output = " ".join(path.read_text(errors="replace") for path in sorted(folder.glob(f"{stage}-rank-*")))
        if "address already in use" not in output.lower():  # another process took the port that was free
            break
    raise MuomniError(f"two ranks ended with {[process.exitcode for process in processes]}: {output[-400:]}")


def _without_avx512(folder: Path, stage: str, number: int) -> None:
    """A stage with a mutant planted, in a process for which the chip has no AVX512, whatever chip it is."""
    command = [sys.executable, "-m", "muomni.selftest.rank", str(number), str(folder), stage]
    switched_off = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=switched_off, capture_output=True, timeout=RANKS_S)
    if done.returncode not in (0, GateRed.exit_code):
        raise MuomniError(
            f"without AVX512 it ended with {done.returncode}: {done.stderr.decode(errors='replace')[-400:]}"
        )


def _copy(run: Path, folder: Path, stage: str) -> Path:
    """The run without one stage: what that stage needs is linked, its data are the run's."""
    folder.mkdir(parents=True)
    for name in ("data", *recipes.read(str(RECIPE), out=run).stages[stage].needs):
        (folder / name).symlink_to(run / name)
    return folder


def _red(folder: Path, stage: str) -> list[str]:
    stored = certificate.read(folder / stage)
    return certificate.red(stored) if stored else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that a run prints for whoever watches it."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, patch.object(sys, "stderr", nowhere):
        yield
