"""Runs the tiny recipe as it is, then once with each bug planted in the stage concerned, and tells which gates were red."""

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
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from muomni.errors import GateRed, MuomniError
from muomni.evaluate import certificate
from muomni.selftest import world
from muomni.selftest.mutants import MUTANTS, Mutant
from muomni.stages import recipe as recipes
from muomni.stages import runner
from muomni.train import loop

RECIPE = Path(__file__).parent / "recipe.yaml"
STOP_AT = 50  # the step before which a run is interrupted, where it is to resume
REGROUP_AT = 8  # the step before which one rank stops, where two are to go on


@dataclass(frozen=True)
class Caught:
    """What became of a mutant: the gates that were red where they were to be, or None; what else happened stands in `told`."""

    number: int
    name: str
    stage: str
    caught_by: str | None
    seconds: float
    told: str

    def to_json(self) -> dict[str, Any]:
        """As `muomni selftest --json` gives it."""
        return {"name": f"{self.number} {self.name}", "caught_by": self.caught_by, "seconds": round(self.seconds, 1), "told": self.told}


def selftest(
    numbers: Sequence[int] | None = None, *, jobs: int = 2, say: Callable[[str], None] = lambda _: None, keep: Path | None = None
) -> dict[str, Any]:
    """Run everything; give {"unmutated": "green" or "red", "mutants": [...], "seconds"}.

    Takes   numbers: the mutants, None: all; jobs: runs side by side; say: where progress is told; keep: a folder for the runs.
    """
    begin = time.perf_counter()
    chosen = [mutant for mutant in MUTANTS if numbers is None or mutant.number in numbers]
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="muomni-selftest-")))
        world.build(folder / "run" / "data" / "world")
        why = _unmutated(folder / "run")
        say(f"unmutated: {'green' if not why else 'red: ' + why} ({time.perf_counter() - begin:.0f}s)")
        found: list[Caught] = []
        if not why:
            with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
                for caught in pool.map(_try, [(folder, mutant.number) for mutant in chosen]):
                    found.append(caught)
                    say(f"{caught.number:2} {caught.name}: {caught.caught_by or 'NOT CAUGHT: ' + caught.told} ({caught.seconds:.0f}s)")
    return {
        "unmutated": "red" if why else "green",
        "why": why,
        "mutants": [c.to_json() for c in found],
        "seconds": time.perf_counter() - begin,
    }


def third(name: str) -> list[int]:
    """A third of the mutants, chosen by a hexadecimal name (a commit's hash): three names in a row of equal chance see them all."""
    return [mutant.number for mutant in MUTANTS if mutant.number % 3 == int(name, 16) % 3]


def _unmutated(folder: Path) -> str:
    """The whole recipe, its first stage stopped and resumed, once more by one rank and then two; why it is red, or nothing."""
    try:
        with _quiet():
            _stopped(folder, "thinker")
            _run(folder, list(recipes.read(str(RECIPE), out=folder).stages))
        twins = _copy(folder, folder.parent / "ranks", "thinker")
        with _quiet():
            _stopped(twins, "thinker", REGROUP_AT, short("thinker"))
        _two_ranks(twins, "thinker", 0)
    except MuomniError as error:
        return str(error)
    red = _red(twins, "thinker")
    return f"two ranks: {', '.join(red)}" if red else ""


def _try(task: tuple[Path, int]) -> Caught:
    """One mutant, in a process of its own."""
    folder, number = task
    mutant = next(m for m in MUTANTS if m.number == number)
    begin = time.perf_counter()
    caught, told = [], []
    for way, (plant, gate) in enumerate(mutant.plants):
        own = _copy(folder / "run", folder / f"mutant-{number}-{way}", mutant.stage)
        error = ""
        try:
            with _quiet():
                _mutated(own, mutant, plant)
        except GateRed:
            pass
        except Exception as problem:  # whatever a planted bug makes fall is told, and counts as nothing
            error = f"{type(problem).__name__}: {problem}"
        red = _red(own, mutant.stage)
        told.append(error or (f"red: {', '.join(red)}" if red else "all gates were green"))
        caught += [gate] if gate in red else []
        shutil.rmtree(own, ignore_errors=True)
    names = ", ".join(dict.fromkeys(caught)) if len(caught) == len(mutant.plants) else None
    return Caught(number, mutant.name, mutant.stage, names, time.perf_counter() - begin, "; ".join(told))


def _mutated(folder: Path, mutant: Mutant, plant: Callable[[], Any]) -> None:
    if mutant.how == "regroup":
        _stopped(folder, mutant.stage, REGROUP_AT, short(mutant.stage))
    if mutant.how in ("ranks", "regroup"):
        _two_ranks(folder, mutant.stage, mutant.number)
        return
    if mutant.how == "resume":
        _stopped(folder, mutant.stage)
    with plant():
        _run(folder, [mutant.stage], list(mutant.overrides))


def _run(folder: Path, stages: list[str], overrides: Sequence[str] = ()) -> None:
    runner.run(str(RECIPE), stages=stages, out=folder, overrides=list(overrides))


def short(stage: str) -> list[str]:
    """Overrides for a stage that two ranks train."""
    return [f"{stage}.gradient_accumulation_steps=2", f"{stage}.max_steps=20", f"{stage}.gates={{floor: 9.0}}"]


def _stopped(folder: Path, stage: str, at: int = STOP_AT, overrides: Sequence[str] = ()) -> None:
    """Run a stage until it is asked to stop half-way."""
    steps = iter(range(1, 10**9))
    with patch.object(loop, "asked", lambda stop: next(steps) >= at), contextlib.suppress(loop.Interrupted):
        _run(folder, [stage], overrides)


def _two_ranks(folder: Path, stage: str, number: int) -> None:
    """A stage by two processes that exchange gradients, with a mutant planted in both (0: none)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "muomni.selftest.rank", str(number), str(folder), stage]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=300)[1].decode(errors="replace") for rank in ranks]
    if any(rank.returncode not in (0, GateRed.exit_code) for rank in ranks):
        raise MuomniError(f"two ranks ended with {[rank.returncode for rank in ranks]}: {told[0][-400:]}")


def _copy(run: Path, folder: Path, stage: str) -> Path:
    """The run without one stage (and those after it are not looked at): what that stage needs is linked, its data are the run's."""
    folder.mkdir(parents=True)
    for name in ("data", *recipes.STAGES):
        if name != stage and (run / name).exists():
            (folder / name).symlink_to(run / name)
    return folder


def _red(folder: Path, stage: str) -> list[str]:
    found = certificate.read(folder / stage)
    return certificate.red(found) if found else []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that a run prints for whoever watches it."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, patch.object(sys, "stderr", nowhere):
        yield
