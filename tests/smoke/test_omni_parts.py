"""Stage omni with a resampler for pictures and LoRA on its Thinker: what rests, what is kept, what goes on,
what is handed on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_recipe
import torch
from safetensors.torch import load_file
from test_curriculum import changed

from muomni import cli, files
from muomni.data import readers
from muomni.errors import ConfigError
from muomni.evaluate import certificate
from muomni.execution import recipe, runner
from muomni.infer.engine import Engine
from muomni.models import lora, pretrained, store
from muomni.runtime import Runtime
from muomni.stages.stage import Inputs, loaders
from muomni.train import checkpoint
from shared import once

pytest.importorskip("peft")
HOW: dict[str, Any] = {
    "projectors": {"perceiver": {"tokens": 3, "width": 16, "heads": 2, "depth": 1}},
    "lora": {"r": 4, "alpha": 8, "targets": ["q_proj", "down_proj"]},
    "lr": 1e-2,
}
NEEDED = ("thinker", "hearing", "vision")


def begun(finished: Path, folder: Path) -> Path:
    """A run folder in which the stages that omni needs are done."""
    folder.mkdir()
    for needed in NEEDED:
        os.symlink(finished / needed, folder / needed)
    return folder


@pytest.fixture(scope="module")
def with_parts(finished: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with such a stage omni; the recipe lies beside it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        path = changed(recipe_file, folder, "omni", **HOW)
        runner.run(str(path), stages=["omni"], out=begun(finished, folder / "run"))

    return once(tmp_path_factory, "omni-parts", make) / "run"


def found(run: Path) -> dict[str, Any]:
    read = certificate.read(run / "omni")
    assert read is not None
    return read


def test_lora_and_connector_learn_and_the_thinker_rests(with_parts: Path) -> None:
    assert found(with_parts)["verdict"] == "green", certificate.reasons(found(with_parts))
    account = files.read_json(with_parts / "omni" / "account.json")
    trained = [row["name"] for row in account if row["trains"]]
    assert any(".lora_A." in name for name in trained)
    assert any("resampler" in name for name in trained)
    assert not [name for name in trained if ".lora_" not in name and not name.startswith("omni.projectors.")]
    facts = found(with_parts)["facts"]
    assert facts["frozen_moved"]["value"] == 0
    assert facts["frozen_moved"]["n"] >= sum(not row["trains"] for row in account)
    assert facts["still_parameters"]["value"] == 0
    assert facts["forgetting_bits_per_byte"]["value"] != 0, "LoRA speaks"


def test_final_holds_the_thinker_as_it_was_and_lora_beside_it(with_parts: Path, finished: Path) -> None:
    final = with_parts / "omni" / "final"
    assert store.digest(store.load(final / "thinker")) == store.digest(
        store.load(finished / "thinker" / "final")
    )
    learned = load_file(final / "lora" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in learned} == {"q_proj", "down_proj"}
    assert any(bool(tensor.any()) for name, tensor in learned.items() if "lora_B" in name)
    assert store.read_config(final / "projectors")["perceiver"]["tokens"] == 3
    media = files.read_json(final / "omni.json")["media"]
    assert media["image_tokens"] == 3
    assert store.extra_of(final / "hearing")["pad_s"] == media["pad_s"], (
        "the ears pad a sound by themselves as omni does"
    )
    stored = load_file(checkpoint.newest(with_parts / "omni") / "weights.safetensors")  # type: ignore[operator]
    assert not [name for name in stored if name.startswith("omni.decoder.") and ".lora_" not in name], (
        "the base is in no checkpoint"
    )


def answers(folder: Path, picture: Path, sound: Path) -> list[list[int]]:
    engine = Engine.load(folder, "cpu")
    asked: list[dict[str, Any]] = [
        {"images": [picture]},
        {"audios": [sound]},
        {"images": [picture], "audios": [sound]},
        {},
    ]
    return [list(engine.answer("what colour is the star", max_new=6, **media).token_ids) for media in asked]


def test_the_engine_answers_with_it_and_what_is_exported_answers_alike(
    with_parts: Path, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, sound = (
        sorted((tiny_world / "images").glob("*.png"))[0],
        sorted((tiny_world / "audio").glob("*.wav"))[0],
    )
    told = answers(with_parts, picture, sound)
    ids = Engine.load(with_parts / "omni", "cpu").tokenizer.encode("the star is blue")
    ours = Engine.load(with_parts / "omni", "cpu").logits(ids)
    base = Engine.load(with_parts / "thinker", "cpu").logits(ids)
    assert (ours - base).abs().max() > 1e-4, "LoRA is heard"
    with pytest.raises(SystemExit) as left:
        cli.main(["export", str(with_parts / "omni"), "--to", "omni", "--out", str(tmp_path / "out")])
    assert left.value.code == 0, capsys.readouterr().err
    assert not (tmp_path / "out" / "lora").exists()
    final = with_parts / "omni" / "final"
    merged = lora.merged(lora.load(pretrained.open_decoder(final / "thinker"), final / "lora"))
    assert store.digest(pretrained.open_decoder(tmp_path / "out" / "thinker")) == store.digest(merged)
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert answers(Path(moved), picture, sound) == told


def test_it_is_measured_again_as_it_was(with_parts: Path) -> None:
    told = runner.gate(with_parts / "omni")
    assert isinstance(told, dict)
    assert told["verdict"] == "green"
    for name in ("frozen_moved", "saved_error", "held_out_loss", "forgetting_bits_per_byte"):
        assert told["facts"][name] == found(with_parts)["facts"][name], name


def test_killed_it_ends_with_the_same_weights(
    loaded: Any, with_parts: Path, finished: Path, tmp_path: Path
) -> None:
    path, folder = str(with_parts.parent / "tiny.yaml"), begun(finished, tmp_path / "killed")
    died = loaded.Process(target=tiny_recipe.die, args=(path, folder, "omni", 4))
    died.start()
    died.join(timeout=600)
    assert died.exitcode == -signal.SIGKILL
    assert checkpoint.newest(folder / "omni") is not None
    runner.run(path, stages=["omni"], out=folder)
    for name in (
        "lora/adapter_model.safetensors",
        "projectors/model.safetensors",
        "thinker/model.safetensors",
    ):
        one, two = (load_file(run / "omni" / "final" / name) for run in (with_parts, folder))
        assert all(one[key].equal(two[key]) for key in one), name
    assert found(folder)["weights"] == found(with_parts)["weights"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"projectors": {"pool_grid": 2, "perceiver": {}}}, "pool_grid has no effect beside a perceiver"),
        ({"train": ["omni.projectors.*"]}, "lora has no effect where train names none of it"),
        ({"lora": {"rank": 4}}, "lora.rank: extra inputs are not permitted"),
        ({"projectors": {"perceiver": {"width": 15, "heads": 2}}}, "width 15 must be a multiple of heads 2"),
        ({"mix_temperature": 0.5}, "mix_temperature"),
        (
            {"mix_temperature": 2.0, "data": [{"path": "one.jsonl"}]},
            "mix_temperature has an effect with two sources or more, here are 1",
        ),
    ],
)
def test_what_has_no_effect_is_refused(
    recipe_file: Path, tmp_path: Path, how: dict[str, Any], told: str
) -> None:
    path = changed(recipe_file, tmp_path, "omni", **{**HOW, **how})
    with pytest.raises(ConfigError, match=told):
        recipe.read(str(path))


def test_sources_of_a_stage_are_drawn_by_tempered_size(recipe_file: Path, tmp_path: Path) -> None:
    """Counts of an epoch's batches, source by source, as a hand reckons them from the sizes of the training
    sides."""
    settings: Any = (
        recipe.read(str(changed(recipe_file, tmp_path, "omni", mix_temperature=3.0))).stages["omni"].settings
    )
    inputs = Inputs(tmp_path, {}, recipe_file.parent, Runtime(torch.device("cpu"), torch.float32))
    corpus = inputs.corpus(settings)
    plain = inputs.corpus(settings.model_copy(update={"mix_temperature": None}))
    assert isinstance(plain.weights, readers.Runs)
    sizes, weights = [count for _, count in plain.weights.runs], [weight for weight, _ in plain.weights.runs]
    assert len(set(sizes)) == len(sizes) == 4
    whole = sum(weight * size for weight, size in zip(weights, sizes))
    roots = [weight * size ** (1 / 3) for weight, size in zip(weights, sizes)]
    by_hand = [round(whole * root / sum(roots)) for root in roots]

    class Numbers:
        def __len__(self) -> int:
            return len(corpus.train)

    train, _ = loaders(Numbers(), Numbers(), lambda items: items, settings, weights=corpus.weights)  # type: ignore[arg-type]
    drawn = [
        draw.index for number in range(train.order.batches_per_epoch) for draw in train.order.batch(number)
    ]
    ends = np.cumsum(sizes)
    assert np.bincount(np.searchsorted(ends, drawn, side="right"), minlength=4).tolist() == by_hand
    assert by_hand != [round(weight * size) for weight, size in zip(weights, sizes)]
