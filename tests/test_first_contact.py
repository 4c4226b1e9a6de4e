"""The yardstick of first contact: what it adds up, and what it says of builds that it had to stop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from shared import benchmark

first_contact = benchmark("first_contact")
Row = first_contact.Row
ONE = dict.fromkeys(first_contact.NEEDS, 1)


def test_stages_run_side_by_side_after_what_they_need() -> None:
    seconds = {"thinker": 10.0, "codec": 4.0, "vision": 9.0, "hearing": 6.0, "talker": 5.0, "omni": 7.0}
    # thinker 0-10, codec 0-4, vision 4-13, hearing 10-16, talker and omni 16 on
    assert first_contact.side_by_side(seconds, list(seconds), ONE, 2) == 23.0
    assert first_contact.side_by_side(seconds, list(seconds), ONE, 1) == 41.0
    # omni as wide as the machine: it waits for talker, 16-21, or talker for it
    assert first_contact.side_by_side(seconds, list(seconds), ONE | {"omni": 2}, 2) == 28.0


def test_stages_that_were_not_reached_hold_up_nobody() -> None:
    assert first_contact.side_by_side({"talker": 3.0}, ["talker"], ONE, 2) == 3.0
    assert first_contact.side_by_side({}, [], ONE, 2) == 0.0


def test_a_stage_is_scaled_by_its_measured_pace(tmp_path: Path) -> None:
    rows = [
        {"step": 1},
        {"step": 2, "steps_per_s": 2.0},
        {"step": 3, "steps_per_s": 4.0},
        {"step": 4, "steps_per_s": 4.0},
        {"val_loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert first_contact.scaled(tmp_path, 11.0, 100) == pytest.approx(11 - 4 * 0.25 + 100 * 0.25)
    assert first_contact.scaled(tmp_path / "nothing", 11.0, 100) == 11.0


def test_a_stopped_build_is_a_bound_and_the_ratio_says_so() -> None:
    old = Row("old", 1000.0, False, True, {"omni": 1000, "codec": 10})
    new = Row("new", 200.0, True, False, {"hearing": 500})
    assert "at least 1000 s" in old.line()
    assert "not green" in old.line()
    assert "(omni)" in old.line()
    assert first_contact.ratios(old, new) == "ratio  seconds at most 0.200 (aim 0.3)   peak 0.50 (aim 0.6)"
    old.is_bound = False
    assert first_contact.ratios(old, new).startswith("ratio  seconds 0.200")


def test_peaks_are_those_of_the_stages_that_a_command_started(tmp_path: Path) -> None:
    hold = "import time; held = b'x' * 64_000_000; time.sleep(2)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}, 'hearing'])"
    watched = first_contact.watch([sys.executable, "-c", start], tmp_path, None)
    assert watched.code == 0
    assert set(watched.peaks) == {"hearing"}
    assert watched.peaks["hearing"] > 64_000_000
    assert 0 < watched.stage_seconds["hearing"] <= watched.seconds + first_contact.POLL_S


def test_a_command_is_stopped_at_its_limit(tmp_path: Path) -> None:
    watched = first_contact.watch([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, 0.5)
    assert watched.code is None
    assert watched.seconds >= 0.5
