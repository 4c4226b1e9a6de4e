"""Runs killed with -9 at random moments end as one that nothing broke: `python -m benchmarks.endure [--kills
50] [--seed N] [--jobs 2]`.

All stages of `endure.yaml` are run once undisturbed. Then the same command is run and killed, again and
again, each stage as often as the others, by the clock and not by the step: while it imports, builds, tries,
trains, saves, measures, certifies or concludes a sweep. Each kill leaves the folder as it is, and the next
run goes on there; where one ends by itself its `final/` are compared byte for byte, its certificates fact by
fact, and a new folder is begun where kills are left.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muomni.models import integrity
from muomni.selftest import world

RECIPE = Path(__file__).with_suffix(".yaml")
TIMES = ("wall_s", "rtf", "format_gain")  # facts that are times: no two runs have the same
LOOSE = ("machine", "code")  # where it ran, not what came of it
STUCK_S = 3600.0


@dataclass
class Endurance:
    """What has been done so far, and where."""

    folder: Path
    jobs: int
    rng: random.Random
    kills: int = 0
    starts: int = 0
    finished: int = 0
    faults: list[str] = field(default_factory=list)

    def fresh(self, name: str) -> Path:
        """A run's folder with the world in it."""
        run = self.folder / name
        (run / "data").mkdir(parents=True)
        (run / "data" / "world").symlink_to(self.folder / "world")
        return run

    def start(self, run: Path) -> subprocess.Popen[bytes]:
        """`muomni run` on a folder, as the head of its own group of processes."""
        self.starts += 1
        command = [sys.executable, "-m", "muomni", "run", str(RECIPE), f"jobs={self.jobs}", "--out", str(run)]
        environment = {**os.environ, "MUOMNI_PLAIN": "1", "OMP_NUM_THREADS": "1"}
        log = (run / "log.txt").open("ab")
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def main() -> int:
    """Run, kill, compare, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="stages side by side, as the recipe's `jobs`")
    parser.add_argument("--keep", type=Path, help="a folder for all of it, kept; else a temporary one")
    given = parser.parse_args()
    folder = (given.keep or Path(tempfile.mkdtemp(prefix="muomni-endure-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    work = Endurance(folder, given.jobs, random.Random(given.seed))
    world.build(folder / "world")
    begin = time.perf_counter()
    whole, lengths = undisturbed(work)
    if whole is not None:
        endure(work, whole, given.kills, lengths)
    told = f"{work.kills} of {given.kills} kills, {work.finished} runs finished after them"
    verdict = "all bit-equal to the undisturbed run" if not work.faults else f"{len(work.faults)} FAULTS"
    print(
        f"endure: {told}, {verdict} ({time.perf_counter() - begin:.0f} s, seed {given.seed}, jobs {given.jobs})",
        flush=True,
    )
    if given.keep is None and not work.faults:
        shutil.rmtree(folder)
    else:
        print(f"endure: kept in {folder}", flush=True)
    return 1 if work.faults or work.kills < given.kills else 0


def undisturbed(work: Endurance) -> tuple[Path | None, list[float]]:
    """The run that nothing breaks, and the seconds between its certificates, in their order."""
    run, begin = work.fresh("whole"), time.time()
    code = work.start(run).wait()
    if code:
        fault(work, f"the undisturbed run ended with exit code {code}: {tail(run)}")
        return None, []
    ends = sorted((run / name / integrity.CERTIFICATE).stat().st_mtime for name in stages(run))
    print(
        f"undisturbed: {len(ends)} stages in {time.time() - begin:.0f} s: {' '.join(stages(run))}", flush=True
    )
    return run, [after - before for before, after in itertools.pairwise([begin, *ends])]


def shares(kills: int, parts: int) -> list[int]:
    """Kills for each part of a run, as alike as can be."""
    return [kills // parts + (part < kills % parts) for part in range(parts)]


def endure(work: Endurance, whole: Path, kills: int, lengths: list[float]) -> None:
    """Kill each stage its share of times, and what follows the last of them; then let the run end.

    A moment lies anywhere between the stage's beginning (of this process, or of the stage where that comes
    later) and what it took undisturbed, the start of a process included; a stage that has ended before hands
    its kills on to the next.
    """
    run, owed, seen = work.fresh("run-1"), 0, -1
    share = shares(kills, len(lengths) + 1)
    while True:
        process, since, at, moment_s = work.start(run), time.perf_counter(), -1, STUCK_S
        whole_group = work.jobs == 1 or work.rng.random() < 0.5
        while process.poll() is None and time.perf_counter() - since < moment_s:
            done = len(stages(run))
            if done != at:
                owed += sum(share[seen + 1 : done + 1])
                longest_s = lengths[min(done, len(lengths) - 1)] + (
                    lengths[0] if at < 0 else 0.0
                )  # a process takes a while to begin
                moment_s = work.rng.uniform(0.0, longest_s) if owed else STUCK_S
                seen, at, since = max(seen, done), done, time.perf_counter()
            time.sleep(0.05)
        if process.poll() is None:
            if not owed:
                fault(work, f"{run.name} did not end within {STUCK_S:.0f} s")
            kill(process, whole_group)
            if not owed:
                return
            owed, work.kills = owed - 1, work.kills + 1
            alone = "" if whole_group else ", the parent alone"
            print(
                f"kill {work.kills} of {kills}: {moment_s:.1f} s after its start{alone}; {where(run)}",
                flush=True,
            )
            for line in torn(run):
                fault(work, f"after kill {work.kills}: {line}")
        elif process.returncode:
            fault(work, f"{run.name} ended with exit code {process.returncode}: {tail(run)}")
            return
        else:
            lines = compared(whole, run)
            for line in lines:
                fault(work, f"{run.name}: {line}")
            work.finished += 1
            print(f"{run.name} finished: {'bit-equal' if not lines else 'NOT EQUAL'}", flush=True)
            if not lines:
                shutil.rmtree(run)
            if work.kills >= kills:
                return
            run, seen, share = (
                work.fresh(f"run-{work.finished + 1}"),
                -1,
                shares(kills - work.kills, len(lengths) + 1),
            )
            owed = 0


def kill(process: subprocess.Popen[bytes], whole_group: bool) -> None:
    """SIGKILL to a run and all that it started, or to the parent alone, as a system without memory would
    do."""
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def stages(run: Path) -> list[str]:
    """The stages of a run that have a certificate, points of a sweep too."""
    return sorted(
        str(path.parent.relative_to(run))
        for path in run.rglob(integrity.CERTIFICATE)
        if path.parent.name != integrity.FINAL
    )


def torn(run: Path) -> list[str]:
    """What a kill may never leave: a certificate whose files are not there, or others."""
    return [
        f"{name}: {line}" for name in stages(run) for line in integrity.changed(run / name / integrity.FINAL)
    ]


def compared(whole: Path, run: Path) -> list[str]:
    """In what a run differs from the undisturbed one: its stages, the bytes of their `final/`, and what their
    certificates say."""
    lines = [] if stages(whole) == stages(run) else [f"its stages are {stages(run)}"]
    for name in stages(whole):
        one, two = (integrity.digests(each / name / integrity.FINAL) for each in (whole, run))
        lines += [f"{name}/final: {line}" for line in integrity.differences(two, one)]
        one, two = (told(integrity.read(each / name) or {}) for each in (whole, run))
        lines += [
            f"{name}: {key}: expected {one.get(key)}, got {two.get(key)}"
            for key in sorted(one.keys() | two.keys())
            if one.get(key) != two.get(key)
        ]
    left = [str(path.relative_to(run)) for path in run.rglob(".*") if "data" not in path.parts]
    return [*lines, *(f"left behind: {path}" for path in left)]


def told(certificate: dict[str, Any]) -> dict[str, Any]:
    """What a certificate says of the result, flat, without times."""
    flat = {key: value for key, value in certificate.items() if key not in (*LOOSE, "facts", "gates")}
    flat |= {f"fact {key}": value for key, value in certificate.get("facts", {}).items() if key not in TIMES}
    return flat | {f"gate {gate['name']}": gate["verdict"] for gate in certificate.get("gates", [])}


def where(run: Path) -> str:
    """How far a run had come, by its last lines."""
    done = stages(run)
    return f"{len(done)} stages done; last said: {tail(run)[-100:]}"


def tail(run: Path) -> str:
    """The last line that a run printed."""
    lines = (run / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


def fault(work: Endurance, line: str) -> None:
    """Note and print what should not be."""
    work.faults.append(line)
    print(f"FAULT: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
