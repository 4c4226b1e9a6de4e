"""A run that dies or hangs says where: its step and samples, also after a silent death, and a step that does
not end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muomni import files
from muomni.train.watchdog import CRASH_FILE, RUNNING_FILE, Watchdog, crash_report


def test_an_error_is_told_with_its_samples(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError):
        _dies(Watchdog(tmp_path, said.append))
    assert "step 7" in said[-1]
    assert "RuntimeError: no room" in said[-1]
    assert "samples a, b" in said[-1]
    assert files.read_json(tmp_path / CRASH_FILE)["samples"] == ["a", "b"]
    assert not (tmp_path / RUNNING_FILE).exists()


def _dies(watch: Watchdog) -> None:
    with watch:
        watch.step(7, ["a", "b"])
        raise RuntimeError("no room")


def test_a_good_end_leaves_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with Watchdog(tmp_path, said.append) as watch:
        watch.step(1, ["a"])
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_a_silent_death_is_told_by_the_next_run(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from muomni.train.watchdog import Watchdog as Watch
with Watch(Path({str(tmp_path)!r}), print) as watch:
    watch.step(12, ["x" + str(n) for n in range(20)])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    said: list[str] = []
    with Watchdog(tmp_path, said.append):
        pass
    assert "ended in step 12 without an error" in said[0]
    assert "x0, x1" in said[0]
    assert "and 12 more" in said[0]
    assert crash_report(tmp_path) == ""


def test_a_torn_or_full_file_does_not_stop_the_next_run(tmp_path: Path) -> None:
    (tmp_path / RUNNING_FILE).write_text('{"step": 3')
    assert "torn" in crash_report(tmp_path)
    (tmp_path / RUNNING_FILE).write_text(
        json.dumps({"step": 3, "samples": ["a"], "memory_mb": 10**9, "pid": 2**30})
    )
    assert "probably out of memory" in crash_report(tmp_path)


def test_a_step_that_does_not_end_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    with Watchdog(tmp_path, said.append, patience_s=0.1) as watch:
        watch.step(4, ["slow"])
        time.sleep(0.6)
    assert [line.split(" for ")[0] for line in said] == ["stuck in step 4"]
    assert "test_watch" in (tmp_path / "stuck.txt").read_text()
