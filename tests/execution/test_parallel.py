"""Commands side by side: order, limits, failure and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from graphlib import CycleError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.execution.parallel import Schedule, in_order, side_by_side

NOTE = """
import sys, time
from pathlib import Path
path, seconds, code, *others = sys.argv[1:]
begin = time.time()
Path(path + ".began").write_text("")
while not all(Path(other + ".began").exists() for other in others):
    time.sleep(0.02)
time.sleep(float(seconds))
Path(path).write_text(f"{begin} {time.time()}")
sys.exit(int(code))
"""


def note(
    folder: Path, name: str, *, seconds: float = 0.0, code: int = 0, meets: tuple[str, ...] = ()
) -> list[str]:
    """A command that writes when it began and ended, and leaves with a code; it does not end before those
    that it meets have begun."""
    return [
        sys.executable,
        "-c",
        NOTE,
        str(folder / name),
        str(seconds),
        str(code),
        *(str(folder / other) for other in meets),
    ]


def times(folder: Path, name: str) -> tuple[float, float]:
    begin, end = (folder / name).read_text().split()
    return float(begin), float(end)


def test_a_command_waits_for_what_it_needs(tmp_path: Path) -> None:
    commands = {name: note(tmp_path, name, seconds=0.3) for name in ("c", "a", "b")}
    assert (
        side_by_side(commands, {"a": [], "b": ["a"], "c": ["a", "b"]}, jobs=2, environment=os.environ) is None
    )
    assert times(tmp_path, "a")[1] <= times(tmp_path, "b")[0]
    assert times(tmp_path, "b")[1] <= times(tmp_path, "c")[0]


def test_no_more_than_jobs_run_at_a_time(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    commands = {n: note(tmp_path, n, seconds=0.4) for n in names} | {"a": note(tmp_path, "a", meets=("b",))}
    assert side_by_side(commands, {n: [] for n in names}, jobs=2, environment=os.environ) is None
    spans = [times(tmp_path, name) for name in names]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) == 2


def test_a_wide_command_waits_for_its_room_and_one_wider_than_all_runs_alone(tmp_path: Path) -> None:
    names = ["a", "wide", "b", "widest"]
    # what is narrow need not wait behind what is wide: `a` does not end before `b` has begun
    commands = {name: note(tmp_path, name, seconds=0.5) for name in names} | {
        "a": note(tmp_path, "a", meets=("b",))
    }
    widths = {"wide": 2, "widest": 5}
    assert (
        side_by_side(commands, {n: [] for n in names}, jobs=2, environment=os.environ, widths=widths) is None
    )
    spans = {name: times(tmp_path, name) for name in names}
    for wide in widths:
        others = [spans[name] for name in names if name != wide]
        assert all(end <= spans[wide][0] or begin >= spans[wide][1] for begin, end in others)


def test_a_failure_stops_the_others_and_is_told(tmp_path: Path) -> None:
    commands = {
        "bad": note(tmp_path, "bad", seconds=0.2, code=7),
        "long": note(tmp_path, "long", seconds=60),
        "after": note(tmp_path, "after"),
    }
    assert side_by_side(
        commands, {"bad": [], "long": [], "after": ["bad"]}, jobs=2, environment=os.environ
    ) == ("bad", 7)
    assert not (tmp_path / "long").exists()
    assert not (tmp_path / "after").exists()


def test_a_signal_is_passed_on(tmp_path: Path) -> None:
    child = f"import signal, sys, time; signal.signal(15, lambda *_: (open({str(tmp_path / 'saved')!r}, 'w').close(), sys.exit(143)))"
    child += f"; open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(60)"
    parent = (
        "import os, sys; from muomni.execution.parallel import side_by_side;"
        f"found = side_by_side({{'a': [sys.executable, '-c', {child!r}]}}, {{'a': []}}, jobs=1, environment=os.environ); print(found)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=900)
    assert out.strip() == "('', 143)"
    assert (tmp_path / "saved").exists()


def test_one_after_the_other_each_waits_for_what_it_needs() -> None:
    needs = {"d": ["b", "elsewhere"], "a": [], "b": ["c"], "c": []}
    assert list(in_order(needs)) == ["a", "c", "b", "d"]
    assert list(in_order({})) == []
    with pytest.raises(CycleError):
        next(in_order({"a": ["b"], "b": ["a"], "c": []}))


@given(st.data(), st.integers(1, 4))
def test_a_schedule_starts_all_once_in_order_of_need_and_never_beyond_its_room(
    data: st.DataObject, room: int
) -> None:
    names = [str(number) for number in range(data.draw(st.integers(0, 7)))]
    needs = {
        name: data.draw(st.sets(st.sampled_from(names[:at])) if at else st.just(set()))
        for at, name in enumerate(names)
    }
    needs = {name: needs[name] for name in data.draw(st.permutations(names))}
    widths = {name: data.draw(st.integers(1, 5)) for name in names}
    schedule, running, done = Schedule(needs, room, widths), list[str](), list[str]()
    while schedule:
        for name in schedule.start():
            assert needs[name] <= set(done)
            running.append(name)
        assert len(running) == 1 or sum(widths[name] for name in running) <= room
        ready = [
            name for name in needs if needs[name] <= set(done) and name not in done and name not in running
        ]
        assert all(sum(widths[n] for n in running) + widths[name] > room for name in ready), (
            "what may start has started"
        )
        done.append(running.pop(data.draw(st.integers(0, len(running) - 1))))
        schedule.done(done[-1])
    assert sorted(done) == sorted(names)
