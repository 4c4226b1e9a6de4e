"""A plan says what a run will need, from the recipe's own networks, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from muomni import cli, files, units
from muomni.errors import ConfigError
from muomni.planning import forecast, peak_memory, survey
from muomni.train import monitor
from muomni.train.cost import LiveTensors

sys.path.insert(0, str(Path(__file__).parents[1] / "smoke"))
import tiny_recipe


def texts(folder: Path) -> Path:
    """A file of 60 short documents."""
    rows = [f"the {colour} {thing} number {n} stands at the left of the door" for n in range(20) for colour, thing in
            (("red", "star"), ("blue", "ring"), ("green", "cross"))]  # fmt: skip
    path = folder / "texts.txt"
    path.write_text("\n".join(rows))
    return path


def recipe(folder: Path, **thinker: Any) -> str:
    """A recipe of one small thinker on `texts`, or on data that are not there."""
    settings = {
        "data": [{"path": str(texts(folder))}],
        "model": {
            "vocab_size": 300,
            "width": 32,
            "layers": 2,
            "heads": 2,
            "ffn_width": 64,
            "ctx_len": 64,
            "dropout": 0.0,
        },
        "batch_size": 8,
        "max_steps": 6,
        "warmup_steps": 2,
        "gates": {"floor": 9.0, "held_out_gap": 9.0},
        **thinker,
    }
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"name": "small", "threads": 1, "device": "cpu", "thinker": settings}, sort_keys=False)
    )
    return str(path)


def planned(path: str, folder: Path, **how: Any) -> dict[str, Any]:
    """The plan of a recipe's only stage."""
    found: dict[str, Any] = forecast.plan(path, out=folder / "run", **{"probe": 2, "probe_s": 1.0, **how})[
        "stages"
    ][0]
    return found


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are surveyed here, not in processes of their own that each load torch; their memory is not asked
    then."""
    monkeypatch.setattr(forecast, "_in_own_process", survey.survey)


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.usefixtures("in_this_process")
def test_parameters_and_counters_are_those_of_the_run(tmp_path: Path) -> None:
    """A probe's speed has the names and units of metrics.jsonl; what cancels the clock out has the same
    size."""
    from muomni.execution import runner

    path = recipe(tmp_path, max_steps=8, print_freq=1)
    found = planned(path, tmp_path, epoch="1m")
    runner.run(path, out=tmp_path / "run")
    facts = files.read_json(tmp_path / "run" / "thinker" / "certificate.json")["facts"]
    account = files.read_json(tmp_path / "run" / "thinker" / "account.json")
    assert found["parameters"]["trained"] == facts["parameters"]["value"]
    assert found["parameters"]["all"] == sum(row["count"] for row in account)
    assert found["data"]["updates"] == facts["steps"]["value"]
    assert found["epoch"]["samples"] == found["epoch"]["updates"] * 8
    rows = monitor.read_metrics(tmp_path / "run" / "thinker" / "metrics.jsonl")
    timed = [row for row in rows if "steps_per_s" in row]
    assert len(timed) >= 3
    told = {name for row in timed for name in row} & set(units.METERS) - {
        "peak_memory_mb",
        "flops_error",
    }  # a short probe checks nothing
    assert set(found["speed"]) - {"update_s", "updates_timed", "rows_timed", "flops_error"} == told
    assert {f"{unit}_per_s" for unit in found["data"]["per_sample"]} == told & {
        "tokens_per_s",
        "labels_per_s",
    }
    for speed in (found["speed"], *timed):
        assert (
            1 <= speed["samples_per_s"] / speed["steps_per_s"] <= 8.001
        )  # an epoch's last batch holds fewer
        assert 0.5 < speed["labels_per_s"] / speed["tokens_per_s"] < 1, (
            "all but each document's first token is learned, once"
        )
        assert speed["mfu"] > 0  # its bound hangs on a clock: tests/train/test_meter.py winds one by hand
    tokens = [row["tokens_per_s"] / row["samples_per_s"] for row in timed]
    assert min(tokens) * (1 - 1e-9) <= found["data"]["per_sample"]["tokens"] <= 1.2 * max(tokens)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    forecast.plan(path, probe=0)
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("in_this_process")
def test_without_data_shapes_are_assumed_and_said_so(tmp_path: Path) -> None:
    path = recipe(tmp_path, data=[{"path": "nowhere.txt"}])
    found = planned(path, tmp_path)
    assert not found["data_found"]
    assert found["data"]["samples"] is None
    assert "no data found (nowhere.txt)" in found["notes"][0]
    assert found["total_s"] > 0
    assert planned(path, tmp_path, samples=800)["data"]["updates_per_epoch"] == 100


def test_a_batch_that_does_not_fit_is_split_and_the_product_kept(tmp_path: Path) -> None:
    path = recipe(tmp_path, batch_size=32, gradient_accumulation_steps=2)
    found = planned(path, tmp_path, memory="12GB", probe=0)
    assert found["proposal"]["fits"]
    assert found["proposal"]["of"] == "process"  # the recipe says device: cpu
    limit = found["memory"]["device"] - 16 * found["memory"]["per_row"]
    proposal = peak_memory.propose(found, limit)
    assert not proposal["fits"]
    assert proposal["batch_size"] < 32
    assert proposal["batch_size"] * proposal["gradient_accumulation_steps"] == 64
    assert proposal["bytes"] <= limit
    assert peak_memory.propose(found, 1000)["batch_size"] is None


def test_live_tensors_count_each_storage_once_and_forget_the_dead() -> None:
    weight = torch.zeros(1000)
    with LiveTensors([weight]) as live:
        a = torch.ones(1000)
        b = a.view(10, 100) + 1
        _ = weight.view(10, 100)
        del a
        c = b[0]
        assert live.now == 4000
        del b, c
        assert live.now == 0
    assert live.peak == 8000


@pytest.mark.parametrize(("text", "value"), [("1h", 3600), ("90m", 5400), ("45s", 45), ("1.5h", 5400)])
def test_durations(text: str, value: float) -> None:
    assert units.seconds(text, "--epoch") == value


@pytest.mark.parametrize(
    ("text", "value"), [("12GB", 12 * 10**9), ("8GiB", 8 * 2**30), ("500MB", 500 * 10**6)]
)
def test_sizes(text: str, value: int) -> None:
    assert units.num_bytes(text, "--memory") == value


@pytest.mark.parametrize("text", ["", "12", "GB", "-1GB", "0GB", "12 parsecs", "1h30"])
def test_what_is_no_size_or_duration_is_refused(text: str) -> None:
    for read in (units.num_bytes, units.seconds):
        with pytest.raises(ConfigError, match="--it: expected"):
            read(text, "--it")


@pytest.mark.parametrize(
    "args", [["plan", "{recipe}", "--memory", "much"], ["plan", "{recipe}", "nothing"], ["plan", "{bad}"]]
)
def test_what_is_wrong_is_one_line_and_exit_2(
    args: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("thinker: {widht: 3}")
    with pytest.raises(SystemExit) as left:
        cli.main([arg.format(recipe=recipe(tmp_path), bad=bad) for arg in args])
    assert left.value.code == 2
    said = capfd.readouterr().err
    assert said.strip().count("\n") == 0
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_all_stages_before_any_is_trained(tiny_world: Path, tmp_path: Path) -> None:
    path = tiny_recipe.write(tmp_path / "recipe.yaml", tiny_recipe.recipe(tiny_world))
    found = forecast.plan(str(path), out=tmp_path / "run", probe=2, probe_s=1.0)
    assert [stage["stage"] for stage in found["stages"]] == list(tiny_recipe.STAGES)
    omni = found["stages"][-1]
    frozen = {part["part"] for part in omni["parameters"]["parts"] if not part["trained"]}
    assert frozen == {"omni.vision", "omni.audio"}
    assert any("stage vision is not trained yet" in note for note in omni["notes"])
    assert found["total_s"] == pytest.approx(sum(stage["total_s"] for stage in found["stages"]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["codec", "thinker"])
def test_memory_is_within_a_fifth_of_what_a_run_takes(stage: str, tiny_world: Path, tmp_path: Path) -> None:
    content = tiny_recipe.recipe(tiny_world)
    content[stage]["batch_size"] = 32
    content["thinker"]["model"] = {
        "vocab_size": 700,
        "width": 256,
        "layers": 4,
        "heads": 4,
        "ffn_width": 1024,
        "ctx_len": 256,
    }
    path = tiny_recipe.write(tmp_path / "recipe.yaml", content)
    found = forecast.plan(str(path), stages=[stage], out=tmp_path / "run", probe=0)["stages"][0]
    process = subprocess.Popen(
        [sys.executable, "-m", "muomni", "run", str(path), stage, "--out", str(tmp_path / "run")]
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert found["memory"]["process"] == pytest.approx(usage.ru_maxrss * 1024, rel=0.2)


@pytest.mark.usefixtures("in_this_process")
def test_an_epoch_of_a_time_is_resolved_by_the_probe(tmp_path: Path) -> None:
    """`epoch_duration: 1h` in a stage is as many samples as its updates' time allows; without a probe it
    can't be known."""
    path = recipe(tmp_path, epoch_duration="1h", max_epochs=2, max_steps=None)
    found = planned(path, tmp_path)
    updates = int(3600 / found["speed"]["update_s"])
    assert found["data"]["updates"] == 2 * updates
    assert any(
        f"epoch_duration: 1h is {8 * updates} samples, by 2 timed updates" in note for note in found["notes"]
    ), found["notes"]
    with pytest.raises(ConfigError, match="epoch_duration: 1h is as many samples as a probe says"):
        planned(path, tmp_path, probe=0)


@pytest.mark.usefixtures("in_this_process")
def test_a_stage_without_data_that_counts_in_epochs_has_no_number_of_updates(tmp_path: Path) -> None:
    path = recipe(tmp_path, data=[{"path": "nowhere.txt"}], max_epochs=2, max_steps=None)
    for samples, updates in ((None, None), (100, 25)):
        found = planned(path, tmp_path, samples=samples, probe=1)
        assert found["data"]["updates"] == updates
        assert (found["total_s"] is None) == (updates is None)


@pytest.mark.usefixtures("in_this_process")
def test_a_probe_of_fewer_updates_than_50_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = survey.probe
    monkeypatch.setattr(
        survey, "probe", lambda *args: {**(true(*args) or {}), "update_s": 30.0, "updates_timed": 3}
    )
    path = recipe(tmp_path, data=[{"path": "nowhere.txt"}])
    wanted = "its speed is that of 3 updates: 50 would take 25 min 00 s"
    assert wanted in planned(path, tmp_path, probe=200)["notes"]
    assert wanted not in planned(path, tmp_path, probe=3)["notes"], "no more were asked for"
