"""All stages of the tiny recipe, one after another: each ends with a certificate, and the next believes only
that."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tiny_recipe import STAGES, STEPS, recipe, write

from muomni import cli, files
from muomni.errors import CheckpointError, ConfigError, GateRed
from muomni.evaluate import certificate
from muomni.execution import runner
from muomni.infer.engine import Engine
from muomni.models import store
from muomni.train import checkpoint, loop
from muomni.units import format_count
from shared import timeless


def verdicts(folder: Path, stage: str) -> dict[str, str]:
    found = certificate.read(folder / stage)
    assert found is not None
    return {gate["name"]: gate["verdict"] for gate in found["gates"]}


def changed(recipe_file: Path, path: Path, stage: str, **values: Any) -> Path:
    """The recipe with other settings of a stage."""
    content = yaml.safe_load(recipe_file.read_text())
    content[stage].update({**values, "gates": {**content[stage]["gates"], **values.get("gates", {})}})
    return write(path / "tiny.yaml", content)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A run folder that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def no_training(*_: Any, **__: Any) -> Any:
    raise AssertionError("it trains again")


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_ends_with_a_green_certificate(finished: Path, stage: str) -> None:
    own = finished / stage
    found = certificate.read(own)
    assert found is not None
    assert found["verdict"] == "green", certificate.reasons(found)
    assert found["facts"]["steps"]["value"] == STEPS
    for name in ("config.yaml", "metrics.jsonl", "training_log.json", "account.json", "final"):
        assert (own / name).exists(), name
    assert checkpoint.newest(own) == own / checkpoint.name(STEPS)
    assert not list(own.glob(".*")), "leftovers of a save"
    assert {file.suffix for file in (own / "final").rglob("*") if file.is_file()} <= {".safetensors", ".json"}


def test_every_gate_had_its_fact(finished: Path) -> None:
    for stage in STAGES:
        found = certificate.read(finished / stage)
        assert found is not None
        assert all(gate["value"] is not None for gate in found["gates"]), (stage, found["gates"])
        assert not any("was not measured" in gate["threshold"] for gate in found["gates"])


def test_what_a_stage_needs_is_frozen_where_it_says_so(finished: Path) -> None:
    for stage, part in (("vision", "vision"), ("hearing", "hearing")):
        a, b = (
            load_file(finished / stage / "final" / "model.safetensors"),
            load_file(finished / "omni" / "final" / part / "model.safetensors"),
        )
        assert all(a[key].equal(b[key]) for key in a)
    account = files.read_json(finished / "omni" / "account.json")
    trains = {row["name"].split(".")[1] for row in account if row["trains"]}
    assert trains == {"decoder", "projectors"}
    assert not any(row["lr"] for row in account if row["name"].split(".")[1] in ("vision", "audio"))


def test_the_thinker_of_omni_learned_something_else(finished: Path) -> None:
    before = store.load(finished / "thinker" / "final")
    after = store.load(finished / "omni" / "final" / "thinker")
    assert store.digest(before) != store.digest(after)


def test_a_second_run_trains_nothing(
    finished: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    before = {stage: files.sha256_file(finished / stage / certificate.NAME) for stage in STAGES}
    runner.run(str(recipe_file), out=finished)
    assert capsys.readouterr().err.count("reused") == len(STAGES)
    assert before == {stage: files.sha256_file(finished / stage / certificate.NAME) for stage in STAGES}


def test_a_changed_setting_is_refused_with_the_difference(
    copied: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    with pytest.raises(ConfigError, match=r"lr: 0\.0003 -> 0\.001.*--fresh"):
        runner.run(str(changed(recipe_file, tmp_path, "hearing", lr=1e-3)), stages=["hearing"], out=copied)
    monkeypatch.undo()
    old = certificate.read(copied / "hearing")
    runner.run(
        str(changed(recipe_file, tmp_path, "hearing", lr=1e-3)), stages=["hearing"], out=copied, fresh=True
    )
    new = certificate.read(copied / "hearing")
    assert old is not None
    assert new is not None
    assert old["weights"] != new["weights"]
    with pytest.raises(ConfigError, match="a stage that it needs"):  # omni was made with the old ears
        runner.run(str(changed(recipe_file, tmp_path, "hearing", lr=1e-3)), stages=["omni"], out=copied)


def test_a_harmless_setting_is_not_refused(
    copied: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    runner.run(
        str(changed(recipe_file, tmp_path, "codec", print_freq=2, checkpoint_freq=3)),
        stages=["codec"],
        out=copied,
    )


def test_changed_data_are_seen(copied: Path, tiny_world: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    shutil.copytree(tiny_world, world)
    text = world / "text.jsonl"
    text.write_text("".join(text.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError):
        runner.run(str(write(tmp_path / "tiny.yaml", recipe(world))), stages=["thinker"], out=copied)


def test_a_red_gate_stops_the_run_and_whoever_builds_on_it(
    copied: Path, recipe_file: Path, tmp_path: Path
) -> None:
    strict = changed(recipe_file, tmp_path, "vision", gates={"retrieval": 0.99})
    with pytest.raises(GateRed, match="retrieval") as caught:
        runner.run(str(strict), stages=["vision"], out=copied)
    assert caught.value.exit_code == 1
    assert verdicts(copied, "vision")["retrieval"] == "red"
    shutil.rmtree(copied / "omni")
    with pytest.raises(GateRed, match=r"omni refuses to build on vision.*retrieval"):
        runner.run(str(strict), stages=["omni"], out=copied)
    assert not (copied / "omni").exists()
    with pytest.raises(ConfigError, match="reason"):
        runner.run(str(strict), stages=["vision"], out=copied, waive=["retrieval"])
    runner.run(str(strict), stages=["vision"], out=copied, waive=["retrieval"], reason="a tiny test")
    found = certificate.read(copied / "vision")
    assert found is not None
    assert found["verdict"] == "waived"
    assert "a tiny test" in {gate["why"] for gate in found["gates"]}
    assert certificate.demand(copied / "vision", "omni")["verdict"] == "waived"
    with pytest.raises(ConfigError, match="no such gate"):
        runner.run(str(strict), stages=["vision"], out=copied, waive=["retreival"], reason="a tiny test")


def test_a_missing_certificate_is_refused(copied: Path, recipe_file: Path) -> None:
    (copied / "hearing" / certificate.NAME).unlink()
    shutil.rmtree(copied / "talker")
    with pytest.raises(GateRed, match="no certificate"):
        runner.run(str(recipe_file), stages=["talker"], out=copied)


@pytest.mark.parametrize("stage", STAGES)
def test_measuring_again_gives_the_same_facts(
    finished: Path, measured: Callable[[str], dict[str, Any]], stage: str
) -> None:
    found = measured(stage)
    stored, again = certificate.read(finished / stage), found["told"]
    assert stored is not None
    assert isinstance(again, dict)
    old, new = (
        {name: fact["value"] for name, fact in timeless(told["facts"]).items()} for told in (stored, again)
    )
    assert new == pytest.approx(old, nan_ok=True, abs=1e-9)
    assert again["verdict"] == stored["verdict"]
    assert found["after"] == found["before"], "measuring writes nothing"


def test_spoiled_weights_turn_the_gate_red(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured anew means measured: not read from the certificate."""
    stored = certificate.read(copied / "hearing")
    assert stored is not None
    restore = loop.restore

    def spoiled(objective: Any, *args: Any, **more: Any) -> Any:
        fitted = restore(objective, *args, **more)
        for parameter in objective.parameters():
            parameter.data.zero_()
        return fitted

    monkeypatch.setattr(loop, "restore", spoiled)
    again = runner.gate(copied / "hearing")
    assert isinstance(again, dict)
    assert again["facts"]["cer"]["value"] != stored["facts"]["cer"]["value"]


def test_gate_of_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished stage"):
        runner.gate(tmp_path)


def test_a_stage_that_the_recipe_does_not_have(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no stage vocoder"):
        runner.run(str(recipe_file), stages=["vocoder"], out=tmp_path / "run")


def test_swapped_pictures_change_what_omni_measures(finished: Path) -> None:
    """Right, swapped and blank media are different inputs, so untrained nats differ; equal numbers would mean
    that no medium is read."""
    found = certificate.read(finished / "omni")
    assert found is not None
    for kind in ("image", "audio"):
        values = {
            found["facts"][f"{kind}_nats_{name}"]["value"] for name in ("correct", "swapped", "zero", "noise")
        }
        assert len(values) == 4, (kind, values)


def test_what_a_pattern_freezes_is_watched(copied: Path, recipe_file: Path, tmp_path: Path) -> None:
    """The gate `frozen` compares all that does not train, also what a recipe's pattern froze, and `gate`
    measures the same again."""
    shutil.rmtree(copied / "omni")
    runner.run(
        str(changed(recipe_file, tmp_path, "omni", train=["omni.projectors.*"])), stages=["omni"], out=copied
    )
    found = certificate.read(copied / "omni")
    assert found is not None
    account = files.read_json(copied / "omni" / "account.json")
    frozen = sum(not row["trains"] for row in account)
    assert found["facts"]["frozen_moved"]["value"] == 0.0
    assert found["facts"]["frozen_moved"]["n"] >= frozen
    assert store.digest(store.load(copied / "thinker" / "final")) == store.digest(
        store.load(copied / "omni" / "final" / "thinker")
    )
    again = runner.gate(copied / "omni")
    assert isinstance(again, dict)
    assert again["facts"]["frozen_moved"] == found["facts"]["frozen_moved"]


def test_a_stage_goes_on_from_another_run(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    """init_from takes the weights over: with no rate to speak of, the loss is where the other run ended."""
    path = changed(
        recipe_file,
        tmp_path,
        "codec",
        init_from=str(finished / "codec"),
        lr=1e-12,
        max_steps=1,
        warmup_steps=0,
        ema_decay=None,
    )
    runner.run(str(path), stages=["codec"], out=tmp_path / "run")
    found, old = certificate.read(tmp_path / "run" / "codec"), certificate.read(finished / "codec")
    assert found is not None
    assert old is not None
    assert found["facts"]["init_share"]["value"] == 1.0
    began, stored = found["init_from"], checkpoint.newest(finished / "codec")
    assert stored is not None
    assert began["folder"] == str((finished / "codec").resolve())
    assert began["digest"] == files.sha256_file(stored / "weights.safetensors")
    assert began["taken"] == began["of"] > 0
    runner.run(str(path), stages=["codec"], out=tmp_path / "run")  # reused: what it began from is still told
    assert files.read_json(tmp_path / "run" / "codec" / certificate.NAME)["init_from"] == began
    again = runner.gate(tmp_path / "run" / "codec")
    assert isinstance(again, dict)
    assert again["verdict"] == found["verdict"]
    with pytest.raises(CheckpointError, match="init_from"):
        runner.run(
            str(changed(recipe_file, tmp_path, "codec", init_from=str(tmp_path))),
            stages=["codec"],
            out=tmp_path / "other",
        )
    gone = changed(recipe_file, tmp_path, "thinker", tokenizer_data=[], init_from="nowhere")
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder, looked in"):
        runner.run(str(gone), stages=["thinker"], out=tmp_path / "gone")


def test_vision_from_another_run_reads_with_the_words_that_its_embeddings_mean(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own vocabulary would have another size, and other words in the same rows."""
    monkeypatch.chdir(finished)  # and the recipe lies elsewhere
    how = {"init_from": "vision", "lr": 1e-12, "max_steps": 1, "warmup_steps": 0, "vocab_size": 330}
    path = changed(recipe_file, tmp_path, "vision", **how)
    runner.run(str(path), stages=["vision"], out=tmp_path / "run")
    found, old = certificate.read(tmp_path / "run" / "vision"), certificate.read(finished / "vision")
    assert found is not None
    assert old is not None
    assert found["facts"]["init_share"]["value"] == 1.0
    final = tmp_path / "run" / "vision" / "final" / "tokenizer.json"
    assert final.read_bytes() == (finished / "vision" / "final" / "tokenizer.json").read_bytes()
    assert found["facts"]["held_out_loss"]["value"] == pytest.approx(
        old["facts"]["held_out_loss"]["value"], rel=1e-3
    )


@pytest.mark.slow
def test_stages_side_by_side_end_as_one_after_another(
    finished: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """jobs: 2 runs each stage in a process of its own, as soon as what it needs is done."""
    out = runner.run(
        str(recipe_file),
        stages=["thinker", "hearing", "codec", "talker"],
        out=tmp_path / "run",
        overrides=["jobs=2"],
    )
    for stage in ("thinker", "hearing", "codec", "talker"):
        one, two = certificate.read(finished / stage), certificate.read(out / stage)
        assert one is not None
        assert two is not None
        assert one["weights"] == two["weights"], stage


@pytest.mark.slow
def test_a_red_stage_side_by_side_stops_the_others(recipe_file: Path, tmp_path: Path) -> None:
    strict = changed(recipe_file, tmp_path, "hearing", gates={"cer": -1.0})
    with pytest.raises(GateRed, match="cer"):
        runner.run(
            str(strict),
            stages=["hearing", "codec", "talker", "thinker"],
            out=tmp_path / "run",
            overrides=["jobs=2"],
        )
    assert certificate.read(tmp_path / "run" / "talker") is None


@pytest.mark.slow
def test_the_command_ends_with_143_when_it_is_asked_to_and_goes_on(
    finished: Path, recipe_file: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "muomni",
        "run",
        str(recipe_file),
        "codec",
        "--out",
        str(tmp_path / "run"),
        "codec.max_steps=5000",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 5/" in line:
            process.send_signal(signal.SIGTERM)
            break
    said = process.stderr.read()
    assert process.wait(timeout=900) == 143, said
    assert "Traceback" not in said
    assert "run the same command to go on" in said
    found = checkpoint.newest(tmp_path / "run" / "codec")
    assert found is not None
    assert f"after step {int(found.name.removeprefix('step_'))};" in said


@pytest.mark.parametrize("values", [{"gates": {"cerr": 0.5}}, {"extra_gates": {"cer": "0.5"}}])
def test_a_bound_for_no_gate_is_refused_before_anything_is_spent(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    with pytest.raises(ConfigError, match="cer"):
        runner.run(str(changed(recipe_file, tmp_path, "hearing", **values)), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def asked(*words: str) -> Any:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    return left.value.code


@pytest.mark.parametrize("stage", STAGES)
def test_the_best_of_every_stage_is_opened_and_asked(
    finished: Path, media: Path, stage: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    best = finished / stage / "best"
    assert {file.name for file in (finished / stage / "final").rglob("*")} <= {
        file.name for file in best.rglob("*")
    }
    engine = Engine.load(best, "cpu")
    if stage in ("thinker", "omni"):
        assert asked("chat", str(best), "--text", "the red circle", "--max-new", "3", "--json") == 0
        assert "which no gate has judged" in capsys.readouterr().err
    elif stage == "hearing":
        assert len(engine.transcribe([media / "high.wav"])) == 1
    elif stage == "vision":
        assert engine.embed(images=[media / "red.png"]).shape[0] == engine.embed(texts=["red"]).shape[0] == 1
    elif stage in ("rows", "mmpt"):
        assert asked("draw", str(best), "a red circle", "--out", str(tmp_path / "red.png")) == 0
        assert engine.draw(["red"])[0].shape == (64, 64, 3)
    elif stage == "talker":
        assert asked("speak", str(best), "red", "--out", str(tmp_path / "red.wav")) == 0
        with pytest.raises(ConfigError, match=r"voice 'anna'.*num_speakers"):
            engine.speak(["red"], voice="anna")
    else:
        assert not store.changed(store.load(best), best)


@pytest.mark.parametrize("stage", STAGES)
def test_both_losses_stand_in_the_certificate(finished: Path, stage: str) -> None:
    found = certificate.read(finished / stage)
    assert found is not None
    told = [json.loads(line) for line in (finished / stage / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in told if "val_loss" in row}
    note = files.read_json(finished / stage / "best" / "best.json")
    facts = {name: found["facts"][f"{name}_validation_loss"]["value"] for name in ("best", "last")}
    assert facts == {"best": losses[note["step"]], "last": losses[STEPS]}
    settled = [step for step in losses if stage != "codec" or step > 3]  # before, there is no quantiser
    assert facts["best"] == min(losses[step] for step in settled) == note["loss"]


def test_what_is_told_of_a_run_has_perplexity_accuracy_and_error_rates(finished: Path) -> None:
    """The same numbers in metrics.jsonl and training_log.json; nats stay, and what is no choice among many
    has no perplexity."""
    keys = {}
    for stage in STAGES:
        rows = files.read_json(finished / stage / "training_log.json")
        assert rows == [
            json.loads(line) for line in (finished / stage / "metrics.jsonl").read_text().splitlines()
        ]
        keys[stage] = {key for row in rows for key in row}
        for row in rows:
            for name in (key for key in row if "perplexity" in key):
                own = name.removesuffix("_perplexity")
                nats = own if own != name and own in row else name.replace("perplexity", "text")
                assert row[name] == pytest.approx(math.exp(row[nats]))
    for stage in ("rows", "mmpt"):
        assert {"i2t", "i2t_perplexity", "accuracy", "val_t2a", "val_t2a_perplexity", "val_accuracy"} <= keys[
            stage
        ]
    for stage in ("thinker", "omni"):
        assert {"text", "perplexity", "accuracy", "val_text", "val_perplexity", "val_accuracy"} <= keys[stage]
    assert {"book0", "book0_perplexity", "val_book1_perplexity"} <= keys["talker"]
    assert {"val_cer", "val_wer"} <= keys["hearing"]
    assert "cer" not in keys["hearing"]
    for stage in STAGES:
        assert not any("misses" in key for key in keys[stage])
        assert stage in ("thinker", "omni", "talker", "rows", "mmpt") or not any(
            "perplexity" in key for key in keys[stage]
        )


def test_the_error_rates_of_a_validation_are_those_of_the_greedy_transcripts(finished: Path) -> None:
    """`val_batches` hold all utterances here, so the rate told while it trains is the fact at its end; the
    loss has no part in it."""
    found = certificate.read(finished / "hearing")
    assert found is not None
    row = next(
        row
        for row in reversed(files.read_json(finished / "hearing" / "training_log.json"))
        if "val_cer" in row
    )
    assert row["val_loss"] == row["val_ctc"]
    assert row["val_cer"] == pytest.approx(found["facts"]["cer_greedy"]["value"], rel=0.05)


def test_what_trains_stands_in_the_account_before_the_first_step(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    with pytest.raises(AssertionError, match="trains again"):
        runner.run(
            str(recipe_file),
            stages=["thinker"],
            out=tmp_path / "run",
            overrides=["thinker.train=['decoder.*', '!*norm*']"],
        )
    account = files.read_json(tmp_path / "run" / "thinker" / "account.json")
    assert {row["trains"] for row in account} == {True, False}
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[thinker] ")]
    assert len(said) <= 10
    count = format_count(sum(row["count"] for row in account if row["trains"])).replace(" ", "")
    assert any(f"trains {count} parameters" in line and "at 0.0003" in line for line in said)
    assert any(line.startswith("[thinker] frozen ") for line in said)
    assert any("tokenizer of 521 tokens" in line for line in said)
    assert any(re.search(r"samples: \d+ to learn from, \d+ held out", line) for line in said)
    assert any(re.search(r"6 steps of 4 samples: [\d.]+ times through the data", line) for line in said)


def test_a_run_is_repeated_from_its_folder(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """recipe.json holds what was overridden, and all that the recipe said: the recipe's own file may be
    gone."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(recipe_file.read_text())
    out = runner.run(
        str(mine), stages=["codec"], out=tmp_path / "run", overrides=["codec.lr=0.002", "codec.max_steps=5"]
    )
    origin = files.read_json(out / "recipe.json")
    assert origin["overrides"] == ["codec.lr=0.002", "codec.max_steps=5"]
    assert (origin["values"]["codec"]["lr"], origin["values"]["codec"]["max_steps"]) == (0.002, 5)
    mine.unlink()
    again = runner.run(str(out), stages=["codec"], out=tmp_path / "again")
    one, two = certificate.read(out / "codec"), certificate.read(again / "codec")
    assert one is not None
    assert two is not None
    assert one["weights"] == two["weights"]
    monkeypatch.setattr(loop, "fit", no_training)
    assert runner.run(str(out), stages=["codec"]) == out  # into its own folder: there is nothing to do


def test_what_decides_the_best_is_no_harmless_setting(
    copied: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fit", no_training)
    with pytest.raises(ConfigError, match="val_batches: 20 -> 1"):
        runner.run(str(changed(recipe_file, tmp_path, "codec", val_batches=1)), stages=["codec"], out=copied)
