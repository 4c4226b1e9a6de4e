"""What a stage that learns to see will need: on stand-ins, as a sweep, and upon networks that are not on this
machine."""

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
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.reference import NetworkReference
from muomni.planning import extrapolate, forecast, missing_models, published_sizes, survey
from muomni.planning.building import Task
from muomni.planning.published_sizes import Tower

pytest.importorskip("transformers")
pytest.importorskip("peft")

LLM = DecoderConfig(
    vocab_size=20_000, width=256, layers=8, heads=4, kv_heads=2, ffn_width=768, ctx_len=2048, dropout=0.0
)
EYES = Tower(width=192, layers=6, heads=3, hidden=768, size=112, patch=16)
LETTERS = Sample(
    id="letters", group="letters", task="text", text=" ".join("abcdefghijklmnopqrstuvwxyz") + " what is this?"
)
COMMON = {"data": [{"path": "nowhere.json"}], "batch_size": 4, "max_steps": 6, "warmup_steps": 2}


def write(folder: Path, llm: str, eyes: str, **stages: dict[str, Any]) -> Path:
    """A recipe of the given stages; align upon these bases."""
    small = {"connector": {"width": 128, "tokens": 16}, "max_seq_len": 256}
    content = {
        "threads": 1,
        "device": "cpu",  # not a GPU that is planned for: what is drawn out is then held in the format of this chip
        "align": {**COMMON, **small, "llm": llm, "vision_tower": eyes, **stages.pop("align", {})},
        **{name: {**(COMMON if name != "sweep" else {}), **settings} for name, settings in stages.items()},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def whole(folder: Path) -> tuple[str, str]:
    """The networks themselves, as folders, in the formats in which such are published: a chip with bf16 opens
    each as it is stored."""
    torch.manual_seed(0)
    store.save(Decoder(LLM).to(published_sizes.STORED[DecoderConfig]), folder / "llm")
    (folder / "llm" / "tokenizer.json").write_text(missing_models._vocabulary([LETTERS] * 3))
    missing_models._tower(EYES, published_sizes.STORED[Tower], folder / "eyes")
    return str(folder / "llm"), str(folder / "eyes")


def surveyed(path: Path, stage: str, folder: Path, *, after: str | None = None) -> dict[str, Any]:
    """A survey in this process, of a stage that builds on another one's stand-in."""
    folder.mkdir()

    def task(name: str, **how: Any) -> Task:
        return Task(str(path), [], name, str(folder / "run"), str(folder), probe=0, **how)

    if after is not None:
        survey.survey(task(after, is_needed=True, is_stand_in=True))
    return survey.survey(task(stage))


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("align", {}),
        ("align", {"gradient_checkpointing": True}),
        ("instruct", {"gradient_checkpointing": True, "max_seq_len": 256}),
    ],
)
def test_what_is_drawn_out_is_what_is_counted_on_the_whole(
    stage: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_sizes, "sizes", {"test/llm": LLM, "test/eyes": EYES}.get)
    extra = {stage: settings} if stage == "align" else {"instruct": {"connector": "align", **settings}}
    there = write(tmp_path, *whole(tmp_path), **extra)
    direct = surveyed(there, stage, tmp_path / "direct", after="align" if stage == "instruct" else None)
    drawn_out = surveyed(write(tmp_path, "test/llm", "test/eyes", **extra), stage, tmp_path / "drawn")
    assert drawn_out["parameters"] == direct["parameters"]
    for part in ("weights", "gradients", "optimizer"):
        assert drawn_out["memory"][part] == direct["memory"][part]
    assert drawn_out["memory"]["activations"] == pytest.approx(direct["memory"]["activations"], rel=0.05)
    assert drawn_out["flops_per_update"] == pytest.approx(direct["flops_per_update"], rel=0.05)
    assert drawn_out["disk"]["total"] == pytest.approx(direct["disk"]["total"], rel=0.01)
    assert "drawn out" in drawn_out["notes"][-1]


def test_a_sweep_costs_as_often_as_it_has_points(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        *whole(tmp_path),
        align={"max_seq_len": 64, "connector": {"tokens": 4, "width": 128}},
        sweep={"grid": {"lr": [1e-3, 2e-3], "connector": {"vision_ln": ["off", "trained"]}}},
        instruct={"max_seq_len": 192},
    )
    found = forecast.plan(str(path), stages=["sweep", "instruct"], out=tmp_path / "run", probe=1, probe_s=0.1)
    sweep, instruct = found["stages"]
    assert (sweep["stage"], sweep["points"], instruct["stage"], instruct["points"]) == (
        "sweep",
        4,
        "instruct",
        1,
    )
    assert sweep["total_s"] == pytest.approx(4 * 6 * sweep["speed"]["update_s"])
    assert found["total_s"] == pytest.approx(sweep["total_s"] + instruct["total_s"])
    assert sweep["disk"]["total"] > 4 * sweep["disk"]["checkpoint"]
    assert "4 points are taken to cost the same" in sweep["notes"][0]
    assert any("stage sweep is not trained yet" in note for note in instruct["notes"])
    assert instruct["parameters"]["trained"] > sweep["parameters"]["trained"]


def test_a_network_that_is_neither_there_nor_known_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "someone/none-7B", "google/siglip2-base-patch16-384")
    with pytest.raises(
        ConfigError, match="someone/none-7B is not on this machine, and its sizes are not known"
    ) as error:
        missing_models.missing(recipes.read(str(path)), "align", tmp_path / "run")
    assert "hf download someone/none-7B" in str(error.value.hint)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B-Base", 4_022_468_096),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
    ],
)
def test_known_sizes_give_the_published_number_of_parameters(name: str, count: int) -> None:
    sizes = published_sizes.sizes(name)
    assert isinstance(sizes, DecoderConfig)
    with torch.device("meta"):
        model = Decoder(sizes)
    assert sum(p.numel() for p in model.parameters()) == count
    left_out = missing_models.MissingModel(NetworkReference(name=name), sizes).words_left_out
    assert left_out == (151_936 - missing_models.CUT_VOCABULARY) * sizes.width * (1 if sizes.tied else 2)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-7B", "Qwen/Qwen3-8B-FP8", "google/siglip2-large-patch16-224", "me/Qwen3-8B"]
)
def test_other_names_are_not_known(name: str) -> None:
    assert published_sizes.sizes(name) is None


def test_a_line_goes_through_every_number() -> None:
    first = {"a": 1, "parts": [{"count": 10, "name": "x", "rates": [0.5]}], "is": True, "none": None}
    deeper = {"a": 3, "parts": [{"count": 14, "name": "x", "rates": [0.5]}], "is": True, "none": None}
    drawn_out = extrapolate.line(first, [(deeper, 7)])
    assert drawn_out == {
        "a": 15,
        "parts": [{"count": 38, "name": "x", "rates": [0.5]}],
        "is": True,
        "none": None,
    }
