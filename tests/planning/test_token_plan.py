"""What stages rows and mmpt will need upon a language model and codecs that are not on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from muomni.data.sample import Sample
from muomni.errors import ConfigError
from muomni.execution import recipe as recipes
from muomni.models import store
from muomni.models.codecs import open_codec
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.reference import NetworkReference
from muomni.planning import forecast, missing_models, published_sizes, survey
from muomni.planning.building import Task
from muomni.planning.missing_models import CUT_VOCABULARY, MissingModel
from muomni.planning.published_sizes import CodecSizes

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

LLM = DecoderConfig(
    vocab_size=CUT_VOCABULARY,
    width=64,
    layers=5,
    heads=2,
    kv_heads=1,
    ffn_width=128,
    ctx_len=512,
    dropout=0.0,
)
IMAGE = CodecSizes(
    "JanusVQVAE",
    0,
    {"num_embeddings": 64, "embed_dim": 8, "num_patches": 4, "channel_multiplier": [1, 1]},
    published_sizes.JANUS_VQ.narrow,
)
AUDIO = CodecSizes(
    "EncodecModel",
    0,
    {**published_sizes.CODECS["facebook/encodec_24khz"].codes, "codebook_size": 64},
    published_sizes.CODECS["facebook/encodec_24khz"].narrow,
)
SIZES = {"test/llm": LLM, "test/image": IMAGE, "test/audio": AUDIO}
COMMON: dict[str, Any] = {
    "data": [{"path": "nowhere.json"}],
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "epoch_duration": "1h",
    "max_epochs": 2,
    "warmup_steps": 2,
    "max_seq_len": 256,
}


def write(folder: Path, names: tuple[str, str, str], **mmpt: Any) -> Path:
    """A recipe of both stages upon these networks; the codec's books fill rows of 256 positions."""
    llm, image, audio = names
    rows = {"llm": {"name": llm, "dtype": "fp32"}, "image_codec": image, "audio_codec": audio}
    tasks = {"i2t": 1.0, "a2t": 1.0, "t2i": 0.1}
    content = {
        "threads": 1,
        "device": "cpu",
        "rows": {**COMMON, **rows, "audio_codebooks": 2, "tasks": tasks},
        "mmpt": {
            **COMMON,
            "lora": {"r": 2, "alpha": 4},
            "tasks": {**tasks, "text": 0.5},
            "replay": [{"path": "nowhere.txt"}],
            **mmpt,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def whole(folder: Path) -> tuple[str, str, str]:
    """The networks themselves, as folders."""
    torch.manual_seed(0)
    store.save(Decoder(LLM), folder / "llm")
    letters = Sample(id="a", group="a", task="text", text=" ".join("abcdefghijklmnopqrstuvwxyz"))
    (folder / "llm" / "tokenizer.json").write_text(missing_models._vocabulary([letters] * 3))
    for name, sizes in (("image", IMAGE), ("audio", AUDIO)):
        missing_models._codec(sizes, folder / name)
    return str(folder / "llm"), str(folder / "image"), str(folder / "audio")


def surveyed(path: Path, stage: str, folder: Path, *, after: str | None = None) -> dict[str, Any]:
    """A survey in this process, of a stage that may build on another one's stand-in."""
    folder.mkdir()

    def task(name: str, **how: Any) -> Task:
        return Task(
            str(path), [], name, str(folder / "run"), str(folder), probe=2, probe_s=0.1, memory=10**9, **how
        )

    if after is not None:
        survey.survey(task(after, is_needed=True, is_stand_in=True))
    return survey.survey(task(stage))


@pytest.mark.parametrize("stage", ["rows", "mmpt"])
def test_what_is_drawn_out_is_what_is_counted_on_the_whole(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_sizes, "sizes", SIZES.get)
    direct = surveyed(
        write(tmp_path, whole(tmp_path)),
        stage,
        tmp_path / "direct",
        after="rows" if stage == "mmpt" else None,
    )
    drawn_out = surveyed(write(tmp_path, ("test/llm", "test/image", "test/audio")), stage, tmp_path / "drawn")
    assert drawn_out["parameters"] == direct["parameters"]
    for part in ("weights", "gradients", "optimizer"):
        assert drawn_out["memory"][part] == direct["memory"][part]
    assert drawn_out["memory"]["activations"] == pytest.approx(direct["memory"]["activations"], rel=0.05)
    assert drawn_out["flops_per_update"] == pytest.approx(direct["flops_per_update"], rel=0.05)
    assert drawn_out["disk"]["final"] == pytest.approx(direct["disk"]["final"], rel=0.02)
    assert direct["memory"]["codecs"] > 0
    assert any("narrow random network" in note for note in drawn_out["notes"])
    # T8: an hour's epoch is back-computed from updates that were timed here.
    speed, data = drawn_out["speed"], drawn_out["data"]
    assert speed["updates_timed"] >= 1
    samples = int(3600 / speed["update_s"]) * 4
    assert any(f"1h is {samples} samples" in note for note in drawn_out["notes"])
    assert data["updates"] == 2 * samples // 4
    assert drawn_out["proposal"]["fits"]


def test_a_plan_tells_an_hour_of_networks_that_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_sizes, "sizes", SIZES.get)
    path = write(tmp_path, ("test/llm", "test/image", "test/audio"))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(
        forecast,
        "_in_own_process",
        lambda task: survey.survey(Task(**{**vars(task), "temporary": str(out)})),
    )
    found = forecast.plan(str(path), stages=["rows"], out=tmp_path / "run", epoch="30min", probe=1)
    (stage,) = found["stages"]
    update_s = stage["speed"]["update_s"]
    assert stage["epoch"] == {
        "target_s": 1800.0,
        "updates": int(1800 / update_s),
        "samples": int(1800 / update_s) * 4,
    }
    assert stage["total_s"] == pytest.approx(stage["data"]["updates"] * update_s)


def test_a_language_model_that_is_not_here_and_learns_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_sizes, "sizes", SIZES.get)
    path = write(tmp_path, ("test/llm", "test/image", "test/audio"), lora=None)
    with pytest.raises(ConfigError, match="would learn whole"):
        surveyed(path, "mmpt", tmp_path / "drawn")


@pytest.mark.parametrize("name", sorted(published_sizes.CODECS))
def test_a_stand_in_makes_as_many_codes_as_the_published_codec(name: str, tmp_path: Path) -> None:
    sizes = published_sizes.sizes(name)
    assert isinstance(sizes, CodecSizes)
    made = getattr(transformers, sizes.class_name)
    with torch.device("meta"):
        network = made(made.config_class(**sizes.codes))
    assert sum(p.numel() for p in network.parameters()) == sizes.parameters
    missing_models._codec(sizes, tmp_path / "codec")
    codec = open_codec(tmp_path / "codec", 4 if codec_is_of_sound(name) else None)
    if codec_is_of_sound(name):
        rate_hz = 25 if "higgs" in name else 75
        assert (codec.codebook_size, codec.sample_rate_hz, codec.frame_rate_hz) == (1024, 24_000, rate_hz)
    else:
        assert (codec.codebook_size, codec.size_px, codec.grid) == (16_384, 384, (24, 24))
    assert MissingModel(NetworkReference(name=name), sizes).words_left_out == 0


def codec_is_of_sound(name: str) -> bool:
    """Whether a codec of this name has waves."""
    return "encodec" in name or "higgs" in name


@pytest.mark.parametrize("size", ["0.6b", "8b"])
def test_networks_of_the_shipped_recipes_are_known(size: str, tmp_path: Path) -> None:
    recipe = recipes.read(f"tokens_qwen3_{size}", out=tmp_path)
    for stage in ("rows", "mmpt"):
        found = missing_models.missing(recipe, stage, tmp_path)
        assert set(found) == {"llm", "image_codec", "audio_codec"}
        assert recipe.stages[stage].settings.epoch_duration == "1h"
