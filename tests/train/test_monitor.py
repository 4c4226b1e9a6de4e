"""What a run tells, and where it looks for what went wrong."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_training import CPU, Rows, Toy, collate

from muomni.train import monitor
from muomni.train.monitor import Monitor


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(folder: Path, step: int = 0) -> Monitor:
    return Monitor(folder, "toy", step=step, max_steps=10, is_main=True)


def test_rows_are_on_the_disk_at_once_and_plain_lines_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(tmp_path) as log:
        log.log({"step": 1, "loss": 2.0})
        assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
        log.say("hello")
    said = capsys.readouterr()
    assert said.out == "", "standard output is for JSON"
    assert "[toy] step 1/10" in said.err
    assert "loss=2" in said.err
    assert "[toy] hello" in said.err


class Clock:
    """A clock that goes as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(monitor.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(monitor.time, "time", lambda: 0.0)
        monkeypatch.setattr(monitor.time, "localtime", lambda seconds: time.gmtime(12 * 3600 + seconds))


def paced(log: Monitor, clock: Clock, steps: range, step_s: float) -> None:
    """The first step sets things up, and takes a minute more."""
    for step in steps:
        clock.now += step_s + (60 if step == steps[0] else 0)
        log.tick(step)


def test_how_long_it_takes_is_told_once_and_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Monitor(tmp_path, "toy", step=0, max_steps=850, is_main=True) as log:
        paced(log, clock, range(1, 20), 1.0)
        assert capsys.readouterr().err == ""
        paced(log, clock, range(20, 21), 1.0 - 60)
        assert (
            capsys.readouterr().err
            == "[toy] about 14 min 10 s for 850 steps, until 12:13; validation and measuring come on top\n"
        )
        log.log({"step": 20, "loss": 1.0})
        assert capsys.readouterr().err == "[toy] step 20/850, 13 min 50 s left: loss=1\n"
        paced(log, clock, range(21, 60), 1.0 - 60 / 39)
        assert capsys.readouterr().err == ""


def test_slow_steps_are_told_of_before_twenty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Monitor(tmp_path, "toy", step=100, max_steps=850, is_main=True) as log:
        paced(log, clock, range(101, 105), 30.0)
        assert (
            capsys.readouterr().err
            == "[toy] about 7 h 05 min for 850 steps, 6 h 13 min to go, until 18:13; validation and measuring come on top\n"
        )


def test_a_resume_forgets_what_comes_after_its_checkpoint(tmp_path: Path) -> None:
    with start(tmp_path) as log:
        for step in range(1, 6):
            log.log({"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6')
    with start(tmp_path, step=3) as log:
        assert [row["step"] for row in log.rows] == [1, 2, 3]
        log.log({"step": 4, "loss": -4.0})
    assert [row["loss"] for row in rows(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 3.0, -4.0]


def test_a_fresh_start_forgets_all(tmp_path: Path) -> None:
    with start(tmp_path) as log:
        log.log({"step": 1, "loss": 1.0})
    with start(tmp_path):
        assert rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("content", ["nonsense\n", "\n", '{"step": 2, "lo'])
def test_a_spoiled_metrics_file_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + content)
    with start(tmp_path, step=3) as log:
        log.log({"step": 4})
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 4]


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(tmp_path, "toy", step=0, max_steps=3, is_main=False) as log:
        log.log({"step": 1, "loss": 1.0})
        log.say("hello")
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


class Poison(nn.Module):
    """Spoils what passes, where it is told to."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_first_module_that_is_not_finite_is_named(value: float, place: int) -> None:
    model = Toy()
    layers = [nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh()]
    layers.insert(place, Poison(value))
    model.body = nn.Sequential(*layers)
    batch = collate([Rows().item(i, np.random.default_rng(0)) for i in (0, 1)])
    before = torch.get_rng_state()
    assert monitor.find_nonfinite(model, batch, CPU) == f"body.{place}"
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sound_model_has_no_culprit() -> None:
    batch = collate([Rows().item(0, np.random.default_rng(0))])
    assert monitor.find_nonfinite(Toy(), batch, CPU) == ""


def test_looking_for_the_culprit_survives_a_model_that_raises() -> None:
    class Raises(Toy):
        def forward(self, batch: object) -> dict[str, Any]:
            raise ValueError("no")

    assert monitor.find_nonfinite(Raises(), None, CPU) == ""


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monitor.Monitor(tmp_path, "t", step=0, max_steps=4, is_main=True, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.log({"step": step, "loss": 1.0 / step})
    with monitor.Monitor(
        tmp_path, "t", step=2, max_steps=4, is_main=True, tensorboard=True
    ) as log:  # resumed before step 3
        log.log({"step": 3, "loss": 9.0})
    board = events.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(row.step, round(row.value, 3)) for row in board.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 9.0),
    ]


def test_rows_are_written_and_not_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory after 200 rows and after 3,000: a run of a hundred thousand steps held them all."""
    tracemalloc.start()
    try:
        with monitor.Monitor(tmp_path, "t", step=0, max_steps=3000, is_main=True) as log:
            held = {}
            for step in range(1, 3001):
                log.log({"step": step, **{f"loss{n}": 0.1 * n + step for n in range(20)}})
                capsys.readouterr()
                if step in (200, 3000):
                    held[step] = tracemalloc.get_traced_memory()[0]
        assert len(log.rows) == 3000
    finally:
        tracemalloc.stop()
    assert (held[3000] - held[200]) / 2800 < 50
