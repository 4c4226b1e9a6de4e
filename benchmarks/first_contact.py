"""How long a newcomer waits for a green whole circle: `python -m benchmarks.first_contact [--old CHECKOUT]
[--quick] [--json FILE]`.

A row for each build: seconds of its `muomni quickstart` until the score board, whether it ended green, and
the largest resident size of its hungriest stage as the operating system tells it. The old build runs first,
then this one, on the same machine; a row is printed as soon as it is known, the ratios at the end. `--old` is
a checkout of an earlier commit with a virtual environment of its own in `.venv`;
`--limit` stops a build after so many seconds, and its row then says "at least".

`--quick` takes three minutes at most, half of them for each build, and is an estimate, as its rows say: both
run the same few updates of each stage on the tiny world, with every gate waived. A stage's seconds are what
its process took beside its updates, and the updates of the recipe at the measured pace; stages then run side
by side as the recipe says. Where the time is over before the last stage, what was reached counts, and the row
says "at least". Making the real world, and measuring on its larger held-out sets, are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDS: dict[str, tuple[str, ...]] = {
    "thinker": (),
    "hearing": (),
    "vision": (),
    "codec": (),
    "talker": ("thinker", "codec", "hearing"),
    "omni": ("thinker", "hearing", "vision"),
}
QUICK_S = 180.0  # of both builds together
QUICK_UPDATES = 4
POLL_S = 0.2
TERMINATION_S = 60.0


@dataclass
class Row:
    """What a build took.

    is_bound  it was stopped before its end: `seconds` is the least that it takes
    peaks     the largest resident size, in bytes, of each stage's process
    """

    name: str
    seconds: float
    is_green: bool
    is_bound: bool
    peaks: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def hungriest(self) -> str | None:
        """The stage with the largest peak."""
        return max(self.peaks, key=lambda stage: self.peaks[stage], default=None)

    @property
    def peak_bytes(self) -> int:
        """The largest resident size of any stage; 0 where none was seen."""
        return max(self.peaks.values(), default=0)

    def line(self) -> str:
        """The row as it is printed."""
        took = f"{'at least ' if self.is_bound else ''}{self.seconds:.0f} s"
        peak = f"{self.peak_bytes / 1e6:.0f} MB ({self.hungriest})" if self.peaks else "no stage was seen"
        return (
            f"{self.name:6}{took:>18}   {'green' if self.is_green else 'not green':9}   {peak:22}{self.note}"
        )


@dataclass
class Watched:
    """A command that was run: its seconds, its exit code (None: stopped), and of each stage's process the
    seconds and the peak."""

    seconds: float
    code: int | None
    stage_seconds: dict[str, float]
    peaks: dict[str, int]


def watch(command: list[str], checkout: Path, limit_s: float | None) -> Watched:
    """Run a command until it ends or `limit_s` is over, looking at the processes that run a stage for it."""
    begin = time.perf_counter()
    seen: dict[str, tuple[float, float]] = {}
    peaks: dict[str, int] = {}
    environment = {**os.environ, "PYTHONPATH": ""}
    child = subprocess.Popen(
        command,
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while child.poll() is None and (limit_s is None or time.perf_counter() - begin < limit_s):
            now = time.perf_counter() - begin
            for stage, peak in resident(child.pid).items():
                seen[stage] = (seen.get(stage, (now, now))[0], now)
                peaks[stage] = max(peak, peaks.get(stage, 0))
            time.sleep(POLL_S)
        seconds, code = time.perf_counter() - begin, child.poll()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(TERMINATION_S)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return Watched(
        seconds, code, {stage: last - first + POLL_S for stage, (first, last) in seen.items()}, peaks
    )


def resident(session: int) -> dict[str, int]:
    """The largest resident size so far, in bytes, of each process of a session that runs one stage."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) != session:
                continue
            words = (folder / "cmdline").read_text().split("\0")
            sizes = [
                line for line in (folder / "status").read_text().splitlines() if line.startswith("VmHWM")
            ]
        except OSError:
            continue  # it has ended meanwhile
        stages = [word for word in words if word in NEEDS]
        if len(stages) == 1 and sizes:
            found[stages[0]] = max(int(sizes[0].split()[1]) * 1024, found.get(stages[0], 0))
    return found


def python(checkout: Path) -> str:
    """The interpreter of a checkout's own environment; the running one for this checkout where it has none.

    Raises  SystemExit where another checkout has none.
    """
    own = checkout / ".venv" / "bin" / "python"
    if own.exists():
        return str(own)
    if checkout == REPOSITORY:
        return sys.executable
    raise SystemExit(f"{checkout}: no .venv/bin/python; make it there first: make .venv/.ready")


def whole(name: str, checkout: Path, folder: Path, overrides: list[str], limit_s: float | None) -> Row:
    """A build's quickstart from the command to its end."""
    command = [
        python(checkout),
        "-m",
        "muomni",
        *(["run", "quickstart", *overrides] if overrides else ["quickstart"]),
    ]
    watched = watch([*command, "--out", str(folder)], checkout, limit_s)
    reached = sum((folder / stage / "certificate.json").exists() for stage in NEEDS)
    note = f"stopped, {reached} of {len(NEEDS)} stages done" if watched.code is None else ""
    note += f" with {' '.join(overrides)}" if overrides else ""
    return Row(name, watched.seconds, watched.code == 0, watched.code is None, watched.peaks, note)


def quick(name: str, checkout: Path, folder: Path, limit_s: float) -> Row:
    """An estimate of a build's quickstart from few updates of each stage on the tiny world."""
    recipe = yaml.safe_load((checkout / "recipes" / "quickstart.yaml").read_text())
    few = {
        "max_steps": QUICK_UPDATES,
        "warmup_steps": 1,
        "val_freq": QUICK_UPDATES,
        "print_freq": 1,
        "quarantine_limit": 0.5,
    }
    overrides = ["world.size=tiny", "scoreboard=false", "codec.quantise_after=2"]
    overrides += [f"{stage}.{key}={value}" for stage in NEEDS for key, value in few.items()]
    overrides += [f"{stage}.eval_items=8" for stage in ("talker", "omni")]
    overrides += [f"{stage}.extra_gates={{}}" for stage in NEEDS]
    waivers = [word for gate in gates(checkout) for word in ("--waive", gate)]
    command = [
        python(checkout),
        "-m",
        "muomni",
        "run",
        "quickstart",
        *overrides,
        "--out",
        str(folder),
        *waivers,
    ]
    watched = watch([*command, "--reason", "a few updates, for their time"], checkout, limit_s)
    took = {
        stage: scaled(folder / stage, seconds, recipe[stage]["max_steps"])
        for stage, seconds in watched.stage_seconds.items()
    }
    is_whole = set(took) == set(NEEDS) and watched.code == 0
    order = [stage for stage in recipe if stage in took]
    widths = {stage: min(recipe["jobs"], recipe[stage].get("threads", 1)) for stage in order}
    note = f"estimated: {QUICK_UPDATES} updates a stage, scaled; {len(took)} of {len(NEEDS)} stages reached"
    return Row(
        name, side_by_side(took, order, widths, recipe["jobs"]), is_whole, not is_whole, watched.peaks, note
    )


def gates(checkout: Path) -> list[str]:
    """The names of all gates that a build has for the stages of the quickstart."""
    program = (
        "from muomni.evaluate import thresholds\n"
        "from muomni.execution import recipe\n"
        f"own = [gate for stage in {sorted(NEEDS)!r} for gate in recipe.stage(stage).gates]\n"
        "print(*sorted({gate.name for gate in [*thresholds.SOUND, *own]}))"
    )
    done = subprocess.run(
        [python(checkout), "-c", program], cwd=checkout, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def scaled(folder: Path, seconds: float, updates: int) -> float:
    """A stage's seconds with all of its updates: those beside the few that were run, and `updates` at their
    median pace."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    paces = [row["steps_per_s"] for row in rows if row.get("steps_per_s")]
    if not paces:
        return seconds
    update_s = 1 / statistics.median(paces)
    return max(0.0, seconds - QUICK_UPDATES * update_s) + updates * update_s


def side_by_side(seconds: dict[str, float], order: list[str], widths: dict[str, int], jobs: int) -> float:
    """When the last of the stages ends, if each begins as soon as those that it needs have ended and there is
    room for its width."""
    now, waiting, running, done = 0.0, list(order), dict[str, float](), set[str]()
    while waiting or running:
        for stage in list(waiting):
            taken = sum(widths[other] for other in running)
            ready = done.issuperset(needed for needed in NEEDS[stage] if needed in seconds)
            if ready and (not running or taken + widths[stage] <= jobs):
                running[stage] = now + seconds[stage]
                waiting.remove(stage)
        now = min(running.values())
        done |= {stage for stage, end in running.items() if end <= now}
        running = {stage: end for stage, end in running.items() if end > now}
    return now


def ratios(old: Row, new: Row) -> str:
    """The last row: this build's seconds and peak by the old one's."""
    bound = {(False, False): "", (True, False): " at most", (False, True): " at least"}.get(
        (old.is_bound, new.is_bound), " of bounds"
    )
    peak = f"{new.peak_bytes / old.peak_bytes:.2f}" if old.peaks and new.peaks else "unknown"
    return f"ratio  seconds{bound} {new.seconds / old.seconds:.3f} (aim 0.3)   peak {peak} (aim 0.6)"


def main() -> None:
    """Run the builds one after the other and print their rows; exit 1 where this build did not end green."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path, metavar="CHECKOUT", help="an earlier build, with its own .venv")
    parser.add_argument(
        "--old-with",
        nargs="*",
        default=[],
        metavar="STAGE.KEY=VALUE",
        help="settings of the old build's recipe",
    )
    parser.add_argument("--quick", action="store_true", help="an estimate within three minutes")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop a build after so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows once more, for programs")
    given = parser.parse_args()
    rows: list[Row] = []
    builds = [("old", given.old.resolve(), given.old_with)] if given.old else []
    builds.append(("new", REPOSITORY, []))
    for name, checkout, overrides in builds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "run"
            if given.quick:
                rows.append(quick(name, checkout, folder, QUICK_S / 2))
            else:
                rows.append(whole(name, checkout, folder, overrides, given.limit))
        print(rows[-1].line(), flush=True)
    if len(rows) == 2:
        print(ratios(*rows), flush=True)
    if given.json:
        told: list[dict[str, Any]] = [asdict(row) for row in rows]
        given.json.write_text(json.dumps(told, indent=2) + "\n")
    if not rows[-1].is_green:
        sys.exit(1)


if __name__ == "__main__":
    main()
