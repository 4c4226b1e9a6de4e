"""`epoch_duration: 1h` in samples: what the probe leaves behind, and that a run with the number it found is
the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni import config
from muomni.errors import ConfigError
from muomni.execution import recipe as recipes
from muomni.execution import runner, sizing
from muomni.train import timing

TEXT = [
    f"the {colour} {shape} is number {n}"
    for n in range(6)
    for colour in ("red", "blue", "green")
    for shape in ("ring", "star", "cross")
]
UPDATES = sizing._updates
TINY = {
    "vocab_size": 300,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "ffn_width": 32,
    "ctx_len": 32,
    "dropout": 0.1,
}


def recipe(folder: Path, **settings: Any) -> str:
    (folder / "a.txt").write_text("\n".join(TEXT) + "\n")
    thinker = {
        "data": [{"path": str(folder / "a.txt")}],
        "model": TINY,
        "packing": False,
        "batch_size": 4,
        "max_epochs": 2,
        "warmup_steps": 1,
        "gates": {"overfits": 9.0, "floor": 9.0, "held_out_gap": 9.0},
        **settings,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"threads": 1, "device": "cpu", "thinker": thinker}))
    return str(path)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "thinker" / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(run) if "loss" in row]


def weights(run: Path) -> bytes:
    return (run / "thinker" / "final" / "model.safetensors").read_bytes()


def test_an_epoch_of_a_time_is_found_once_stored_told_and_the_same_run_as_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUOMNI_PLAIN", "1")
    timed: list[int] = []
    monkeypatch.setattr(
        sizing, "_updates", lambda *args: timed.append(len(UPDATES(*args))) or [1.0] * 51
    )  # a clock that always tells the same
    found = runner.run(recipe(tmp_path, epoch_duration="9s"), out=tmp_path / "by_time")
    told = capsys.readouterr().err
    stored = config.read_yaml(found / "thinker" / "config.yaml")
    assert (stored["epoch_duration"], stored["samples_per_epoch"], stored["max_steps"]) == ("9s", 36, None)
    assert timed == [timing.LEAST] or timing.LEAST < timed[0] <= timing.MOST
    assert "an epoch of 9s is 36 samples" in told
    assert "2 of them: 18 steps" in told
    assert losses(found)[-1][0] == 18

    by_number = runner.run(recipe(tmp_path, samples_per_epoch=36), out=tmp_path / "by_number")
    assert losses(by_number) == losses(found)
    assert weights(by_number) == weights(found), "the probe leaves no trace in what is learned"

    runner.run(recipe(tmp_path, epoch_duration="9s"), out=found)
    assert "done before: reused" in capsys.readouterr().err
    assert len(timed) == 1, "what was found is not looked for again"
    with pytest.raises(ConfigError, match="epoch_duration: '9s' -> '8s'"):
        runner.run(recipe(tmp_path, epoch_duration="8s"), out=found)


def test_a_broken_run_goes_on_without_a_probe_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muomni.train import loop

    monkeypatch.setenv("MUOMNI_PLAIN", "1")
    monkeypatch.setattr(sizing, "_updates", lambda *args: [1.0])
    how = {"epoch_duration": "6s", "checkpoint_freq": 2}
    whole = runner.run(recipe(tmp_path, **how), out=tmp_path / "whole")
    update, count = loop.update, 0

    def breaks(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            raise ConfigError("broken off")
        return update(*args, **more)

    monkeypatch.setattr(loop, "update", breaks)
    with pytest.raises(ConfigError, match="broken off"):
        runner.run(recipe(tmp_path, **how), out=tmp_path / "broken")
    monkeypatch.setattr(loop, "update", update)
    monkeypatch.setattr(sizing, "_updates", lambda *args: pytest.fail("probed again"))
    assert weights(runner.run(recipe(tmp_path, **how), out=tmp_path / "broken")) == weights(whole)


def test_an_epoch_that_is_no_pass_ends_where_its_count_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples come in the order that they have without it, and a second pass begins when the first is
    through."""
    monkeypatch.setenv("MUOMNI_PLAIN", "1")
    by_epochs = runner.run(
        recipe(tmp_path, samples_per_epoch=10, schedule="constant", print_freq=1), out=tmp_path / "a"
    )
    by_steps = runner.run(
        recipe(tmp_path, max_epochs=None, max_steps=6, schedule="constant", print_freq=1), out=tmp_path / "b"
    )
    assert losses(by_epochs) == losses(by_steps)
    assert [step for step, _ in losses(by_epochs)] == [1, 2, 3, 4, 5, 6], "2 x ceil(10 / 4)"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epoch_duration": "1h", "samples_per_epoch": 5}, "say the same thing twice"),
        ({"epoch_duration": "1h", "max_epochs": None}, "has an effect with max_epochs"),
        ({"epoch_duration": "an hour"}, "epoch_duration: expected a duration such as 1h"),
    ],
)
def test_epochs_that_say_nothing_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipes.read(recipe(tmp_path, **settings))


# --- the probe's length -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update_s", "enough_s", "limit_s", "count"),
    [
        (0.01, 10.0, 60.0, 200),  # the most there may be
        (0.1, 10.0, 60.0, 101),  # enough after 10 s
        (1.0, 10.0, 60.0, 50),  # 50 take more than 10 s, and less than the limit
        (2.0, 10.0, 60.0, 6),  # 50 would take too long: it is seen when 10 s are over
        (100.0, 10.0, 60.0, 1),
        (100.0, 10.0, float("inf"), 50),
    ],
)
def test_a_probe_times_50_to_200_updates_where_the_time_allows(
    monkeypatch: pytest.MonkeyPatch, update_s: float, enough_s: float, limit_s: float, count: int
) -> None:
    now = 0.0

    def one() -> float | None:
        nonlocal now
        is_first, now = now == 0, now + update_s
        return None if is_first else update_s

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert abs(len(timing.timed(one, enough_s=enough_s, limit_s=limit_s)) - count) <= 1, (
        "but for the first, which is left out"
    )
