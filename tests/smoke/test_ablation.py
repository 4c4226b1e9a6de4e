"""What a stage proves is tied to its files: exchanged ones stop whoever builds on them, and a waiver goes
down to the last child."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_curriculum import changed, no_training

from muomni import files
from muomni.errors import CheckpointError, ConfigError, GateRed, MuomniError
from muomni.evaluate import certificate
from muomni.execution import runner, stage_run
from muomni.models import integrity
from muomni.planning import forecast
from muomni.runtime import Runtime
from muomni.train import distributed, loop
from shared import swap_weights


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A run folder that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def found(folder: Path, stage: str) -> dict[str, Any]:
    read = certificate.read(folder / stage)
    assert read is not None
    return read


def test_a_certificate_names_every_file_and_the_build(finished: Path) -> None:
    for stage in ("thinker", "omni"):
        read, final = found(finished, stage), finished / stage / "final"
        on_disk = {
            path.relative_to(final).as_posix(): files.sha256_file(path)
            for path in final.rglob("*")
            if path.is_file()
        }
        assert read["files"] == on_disk
        assert read["inherited"] == []
        assert set(read["code"]) == {"version", "commit", "dirty", "source"}
    assert "thinker/model.safetensors" in found(finished, "omni")["files"]


def test_nothing_is_built_upon_a_swapped_stage(
    copied: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    swap_weights(copied / "thinker" / "final")
    before = (copied / "talker" / certificate.NAME).read_bytes()
    shutil.rmtree(copied / "omni")
    with pytest.raises(
        GateRed, match=r"omni refuses to build on thinker: gate bases is red: .*model\.safetensors: expected"
    ) as caught:
        runner.run(str(recipe_file), stages=["omni"], out=copied)
    assert caught.value.exit_code == 1
    assert certificate.red(found(copied, "omni")) == ["bases"]
    assert "thinker: model.safetensors: expected" in certificate.reasons(found(copied, "omni"))
    with pytest.raises(GateRed, match="talker refuses to build on thinker"):
        runner.run(str(recipe_file), stages=["talker"], out=copied)
    assert (copied / "talker" / certificate.NAME).read_bytes() == before, (
        "it was proven upon the weights that were there"
    )
    with pytest.raises(GateRed, match="bases"):
        runner.run(str(recipe_file), stages=["omni"], out=copied, waive=["bases"], reason="it can't be")
    with pytest.raises(CheckpointError, match="thinker"):
        forecast.plan(str(recipe_file), stages=["omni"], out=copied, probe=0)
    capsys.readouterr()


def test_a_swapped_stage_is_not_reused_and_its_certificate_stands(
    copied: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = found(copied, "codec")
    swap_weights(copied / "codec" / "final")
    monkeypatch.setattr(loop, "fit", no_training)
    with pytest.raises(
        CheckpointError, match=r"codec/final is not what .*certificate\.json and run the stage again"
    ):
        runner.run(str(recipe_file), stages=["codec"], out=copied)
    assert found(copied, "codec") == true
    monkeypatch.undo()
    (copied / "codec" / certificate.NAME).unlink()  # the way out that the message names
    runner.run(str(recipe_file), stages=["codec"], out=copied)
    assert found(copied, "codec")["files"] == true["files"]


def test_gate_names_what_was_swapped(copied: Path) -> None:
    (copied / "hearing" / "final" / "stray.json").write_text("{}")
    again = runner.gate(copied)
    assert isinstance(again, list)
    told = {
        row["stage"]: {gate["name"]: gate for gate in row["gates"] if gate["verdict"] == "red"}
        for row in again
    }
    assert {stage: set(gates) for stage, gates in told.items() if gates} == {
        "hearing": {"saved"},
        "mmpt": {"bases"},
        "talker": {"bases"},
        "omni": {"bases"},
    }
    assert "stray.json is extra" in told["hearing"]["saved"]["why"]
    assert "hearing: stray.json is extra" in told["omni"]["bases"]["why"]


def test_a_base_that_changes_while_the_stage_trains_is_seen(
    copied: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "talker")
    fit = loop.fit

    def swapping(*args: Any, **more: Any) -> Any:
        fitted = fit(*args, **more)
        swap_weights(copied / "hearing" / "final")  # measuring opens it only now
        return fitted

    monkeypatch.setattr(loop, "fit", swapping)
    with pytest.raises(GateRed, match="gate bases is red"):
        runner.run(str(recipe_file), stages=["talker"], out=copied)
    assert certificate.red(found(copied, "talker")) == ["bases"]


def test_an_old_certificate_is_measured_again_not_believed(
    copied: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = found(copied, "codec")
    files.write_json(
        copied / "codec" / certificate.NAME, {key: value for key, value in true.items() if key != "files"}
    )
    with pytest.raises(GateRed, match=r"names no files.*run stage codec again, which measures it anew"):
        runner.run(str(recipe_file), stages=["talker"], out=copied)
    rows = (copied / "codec" / "metrics.jsonl").read_text().count('"grad_norm"')
    runner.run(str(recipe_file), stages=["codec"], out=copied)
    assert "measured again" in capsys.readouterr().err
    again = found(copied, "codec")
    assert (again["files"], again["weights"], again["verdict"]) == (true["files"], true["weights"], "green")
    assert (copied / "codec" / "metrics.jsonl").read_text().count('"grad_norm"') == rows, "no step is trained"


def test_a_waiver_goes_down_to_every_child_and_away_with_its_cause(
    copied: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    strict = str(changed(recipe_file, tmp_path, "thinker", gates={"floor": -1.0}))
    runner.run(strict, stages=["thinker"], out=copied, waive=["floor"], reason="a toy of six steps")
    assert found(copied, "talker")["verdict"] == "green", "not asked yet"
    runner.run(strict, stages=["talker", "omni", "hearing"], out=copied)
    rows = [{"stage": "thinker", "gate": "floor", "why": "a toy of six steps"}]
    for stage in ("talker", "omni"):
        child = found(copied, stage)
        assert (child["verdict"], child["inherited"]) == ("waived", rows)
        assert {gate["verdict"] for gate in child["gates"]} == {"green"}
        assert integrity.waivers(child) == rows
        again = runner.gate(copied / stage)
        assert isinstance(again, dict)
        assert (again["verdict"], again["inherited"]) == ("waived", rows)
    assert found(copied, "hearing")["verdict"] == "green"
    runner.run(str(recipe_file), out=copied)  # the bound is met again: nothing is waived any more
    for stage in ("thinker", "talker", "omni"):
        assert (found(copied, stage)["verdict"], found(copied, stage)["inherited"]) == ("green", [])


def test_a_start_from_another_run_is_checked_and_brings_its_waivers(
    copied: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied / "codec"
    files.write_json(
        own / certificate.NAME,
        {**found(copied, "codec"), "inherited": [{"stage": "x", "gate": "y", "why": "z"}]},
    )
    how = {"init_from": str(own), "lr": 1e-12, "max_steps": 1, "warmup_steps": 0, "ema_decay": None}
    path = str(changed(recipe_file, tmp_path, "codec", **how))
    runner.run(path, stages=["codec"], out=tmp_path / "next")
    assert found(tmp_path / "next", "codec")["inherited"] == [{"stage": "x", "gate": "y", "why": "z"}]
    assert found(tmp_path / "next", "codec")["verdict"] == "waived"
    (own / certificate.NAME).unlink()
    runner.run(path, stages=["codec"], out=tmp_path / "next")
    assert "it has no certificate" in capsys.readouterr().err
    assert found(tmp_path / "next", "codec")["verdict"] == "green"
    files.write_json(own / certificate.NAME, found(copied, "hearing"))
    with pytest.raises(CheckpointError, match="codec/final is not what its certificate speaks of"):
        runner.run(path, stages=["codec"], out=tmp_path / "other")


def test_the_main_rank_looks_and_all_hear_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    box: list[Any] = []
    monkeypatch.setattr(
        distributed,
        "from_main",
        lambda value, run: (box.append(value), value)[1] if run.is_main else box.pop(),
    )
    main, other = (Runtime(torch.device("cpu"), torch.float32, rank, 2) for rank in (0, 1))

    def never() -> int:
        raise AssertionError("only the main rank looks")

    monkeypatch.setattr(files, "_DIGESTS", {("a", 1, 2, 3, 4): "read"})
    assert stage_run._on_main(lambda: 5, main) == 5
    monkeypatch.setattr(files, "_DIGESTS", {})
    assert stage_run._on_main(never, other) == 5
    assert files.known_digests() == {("a", 1, 2, 3, 4): "read"}, "what was hashed is not hashed again"

    def refused() -> int:
        raise ConfigError("no", hint="because")

    for rank, work in ((main, refused), (other, never)):
        with pytest.raises(MuomniError, match=r"no \(because\)"):
            stage_run._on_main(work, rank)
