"""What stage voice will need upon a Higgs Audio v2 and a codec that are not on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny_higgs  # skipped without transformers
from muomni.data.sample import Sample
from muomni.errors import ConfigError
from muomni.execution import recipe as recipes
from muomni.models.reference import NetworkReference
from muomni.planning import missing_models, published_sizes, survey
from muomni.planning.building import Task
from muomni.planning.missing_models import MissingModel
from muomni.planning.published_sizes import CodecSizes, HiggsSizes
from muomni.stages.voice import HIGGS

pytest.importorskip("peft")

LAYERS = 4
BASE = HiggsSizes(
    LAYERS,
    {
        **published_sizes.HIGGS[HIGGS].config,
        "vocab_size": 5000,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "codebook_size": 66,
        "audio_stream_bos_id": 64,
        "audio_stream_eos_id": 65,
    },
)
WITH = published_sizes.CODECS["bosonai/higgs-audio-v2-tokenizer"]
CODEC = CodecSizes(WITH.class_name, 0, {**WITH.codes, "codebook_size": 64}, WITH.narrow)
SIZES = {"test/base": BASE, "test/codec": CODEC}


def write(folder: Path, base: str, codec: str) -> Path:
    """A recipe upon these networks, whose data are not there."""
    settings = {
        "data": [{"path": "nowhere.json"}],
        "base": {"name": base, "dtype": "fp32"},
        "codec": codec,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_epochs": 2,
        "max_seq_len": 512,
        "warmup_steps": 1,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"threads": 1, "device": "cpu", "voice": settings}, sort_keys=False))
    return path


def surveyed(path: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    task = Task(str(path), [], "voice", str(folder / "run"), str(folder), probe=2, probe_s=0.1, memory=10**9)
    return survey.survey(task)


def test_what_is_drawn_out_is_what_is_counted_on_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one block and two to four; data, base and codec are all absent."""
    missing = {
        "base": MissingModel(NetworkReference(name="test/base", dtype="fp32"), BASE),
        "codec": MissingModel(NetworkReference(name="test/codec"), CODEC),
    }
    letters = Sample(id="a", group="a", task="text", text=" ".join("abcdefghijklmnopqrstuvwxyz"))
    there = missing_models.cut(
        missing, {"base": LAYERS, "codec": 1}, [letters] * 3, "cpu", tmp_path / "whole"
    )
    monkeypatch.setattr(published_sizes, "sizes", SIZES.get)
    drawn_out = surveyed(write(tmp_path, "test/base", "test/codec"), tmp_path / "drawn")
    # The words of the one that was drawn out: with others rows would have other lengths.
    (words, *_) = sorted((tmp_path / "drawn").rglob("base/tokenizer.json"))
    shutil.copyfile(words, Path(there["base"].name) / "tokenizer.json")
    direct = surveyed(write(tmp_path, there["base"].name, there["codec"].name), tmp_path / "direct")
    assert drawn_out["parameters"] == direct["parameters"]
    for part in ("weights", "gradients", "optimizer"):
        assert drawn_out["memory"][part] == direct["memory"][part]
    assert drawn_out["memory"]["activations"] == pytest.approx(direct["memory"]["activations"], rel=0.1)
    assert drawn_out["flops_per_update"] == pytest.approx(direct["flops_per_update"], rel=0.1)
    assert drawn_out["data_found"] is False
    assert drawn_out["speed"]["updates_timed"] >= 1
    notes = " ".join(drawn_out["notes"])
    assert (
        "base test/base is not on this machine: tried with random weights of its widths in 1 and 2 of its 4"
        in notes
    )
    assert "codec test/codec is not on this machine: a narrow random network stands in" in notes
    assert "no data found" in notes


def test_an_adapter_on_the_released_sizes_has_280_layers() -> None:
    """On the real config, with no number of it in memory."""
    from muomni.models import lora
    from muomni.models.higgs import Higgs
    from muomni.models.lora import LoraSettings

    settings: Any = recipes.read("voice_higgs_3b").stages["voice"].settings
    published = published_sizes.HIGGS[settings.base.name]
    made = tiny_higgs.transformers.HiggsAudioV2Config(
        **published.config,
        num_hidden_layers=published.layers,
        audio_token_id=128_016,
        audio_delay_token_id=128_014,
    )
    with torch.device("meta"):
        network = tiny_higgs.transformers.HiggsAudioV2ForConditionalGeneration(made, use_text_head=True)
        model = Higgs(network)
        targets = model.targets(list(settings.lora.groups))
        assert len(targets) == 280
        lora.attach(
            model, LoraSettings(r=settings.lora.r, alpha=settings.lora.alpha, dropout=0.0, targets=targets)
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 280
    assert sum(p.numel() for p in trained.values()) == 39_452_672
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_released_base_and_its_codes_are_known_and_others_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, HIGGS, "bosonai/higgs-audio-v2-tokenizer")
    recipe = recipes.read(str(path), out=tmp_path)
    assert set(missing_models.missing(recipe, "voice", tmp_path)) == {"base", "codec"}
    path = write(tmp_path, "nobody/knows", "bosonai/higgs-audio-v2-tokenizer")
    recipe = recipes.read(str(path), out=tmp_path)
    with pytest.raises(ConfigError, match=r"voice\.base: nobody/knows is not on this machine"):
        missing_models.missing(recipe, "voice", tmp_path)
