"""Stage voice_base: a new model that transformers opens and stage voice adapts, a given one of which all weights train,
and what it says when it is asked to speak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny_higgs
import voice_manifest
from muomni.errors import ConfigError
from muomni.evaluate import certificate
from muomni.execution import recipe as recipes
from muomni.execution import runner
from muomni.infer.voice import conversation, export_merged, open_cloner
from muomni.models.higgs import Higgs

pytest.importorskip("peft")
pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 300,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 96,
    "ctx_len": 256,
}
LUCK = ["overfits", "text_wins", "reference_wins", "ends", "tuned", "held_out_gap"]  # of so few steps


def written(folder: Path, base: dict[str, Any], *, voice: bool, **changes: Any) -> str:
    common = {
        "data": [{"path": str(folder / "data" / "manifest.json")}],
        "codec": str(folder / "codec"),
        "batch_size": 4,
        "max_steps": 4,
        "warmup_steps": 1,
        "precision": "fp32",
        "threads": 1,
        "eval_items": 4,
    }
    stages = {"voice_base": {**common, **base, **changes}}
    if voice:
        stages["voice"] = {**common, "base": "voice_base", "lora": {"r": 2, "alpha": 4}}
    path = folder / f"{'-'.join([*stages, *base])}.yaml"
    path.write_text(yaml.safe_dump({"seed": 1, "device": "cpu", **stages}, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, a codec, and a base that is there already."""
    folder = tmp_path_factory.mktemp("voice_base")
    voice_manifest.write(folder / "data")
    tiny_higgs.codec(folder / "codec")
    tiny_higgs.saved(folder / "given")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A new base, and an adapter on it."""
    recipe, out = written(folder, {"model": SIZES}, voice=True), folder / "run"
    for stage in ("voice_base", "voice"):
        runner.run(recipe, stages=[stage], out=out, waive=LUCK, reason="four steps teach nothing", alone=True)
    return out


def test_it_is_proven_and_the_adapter_stands_on_it(run: Path) -> None:
    base, voice = (certificate.read(run / stage) for stage in ("voice_base", "voice"))
    assert base is not None
    assert voice is not None
    assert {row["verdict"] for row in base["gates"] if row["name"] not in LUCK} <= {"green", "told"}
    assert "adapter_gaps" not in base["facts"]
    assert "adapter_gaps" in voice["facts"]
    assert base["facts"]["ends_taught"]["value"] == 1


def test_the_library_opens_it_and_says_the_same(run: Path) -> None:
    final = run / "voice_base" / "final"
    library = tiny_higgs.transformers
    plain, told = library.HiggsAudioV2ForConditionalGeneration.from_pretrained(
        final, use_text_head=True, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    words = library.AutoTokenizer.from_pretrained(final)
    ours = open_cloner(run / "voice_base")
    assert words("so it is", add_special_tokens=False)["input_ids"] == ours.tokenizer.encode("so it is")
    ids = torch.tensor([ours.tokenizer.encode("so it is, one")])
    columns = torch.cat([ids[:, None], torch.full((1, ours.model.books, ids.shape[1]), -1)], 1)
    with torch.no_grad():
        states = ours.model.hidden(ours.model.embed(columns), is_audio_BT=ours.model.is_audio(ids))
        theirs = plain.model(input_ids=ids).last_hidden_state
    assert torch.equal(states, theirs)


def test_all_of_it_has_learned(run: Path) -> None:
    """From the same seed the same model begins; each tensor is another at the end."""
    trained = load_file(run / "voice_base" / "final" / "model.safetensors")
    assert {name.split(".")[0] for name in trained} == {"model", "text_lm_head", "audio_lm_head"}
    assert (run / "voice_base" / "account.json").is_file()
    assert set(trained) == set(Higgs.open(run / "voice_base" / "final").network.state_dict())


def test_it_speaks_with_and_without_the_adapter(run: Path, folder: Path, tmp_path: Path) -> None:
    heard = folder / "data" / "valid-two0.wav"
    for where in (run, run / "voice_base"):
        cloner = open_cloner(where)
        said = cloner.say(cloner.row(conversation("one", heard, "two")), max_frames=5)
        assert said.codes_KF.shape[0] == tiny_higgs.BOOKS
    found: Any = certificate.read(run / "voice_base")
    for layout in ("hf", "boson"):
        export_merged(run / "voice_base" / "final", tmp_path / layout, found, layout)  # type: ignore[arg-type]
    a, b = (Higgs.open(tmp_path / layout).network.state_dict() for layout in ("hf", "boson"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_given_base_trains_whole(folder: Path) -> None:
    recipe, out = written(folder, {"base": str(folder / "given")}, voice=False), folder / "tuned"
    runner.run(recipe, out=out, waive=LUCK, reason="four steps teach nothing", alone=True)
    before = load_file(folder / "given" / "model.safetensors")
    after = load_file(out / "voice_base" / "final" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    words = (folder / "given" / "tokenizer.json", out / "voice_base" / "final" / "tokenizer.json")
    assert words[0].read_bytes() == words[1].read_bytes()


def test_two_starts_are_refused(folder: Path) -> None:
    recipe = written(folder, {"base": str(folder / "given"), "model": SIZES}, voice=False)
    with pytest.raises(ConfigError, match="model and base are both given"):
        recipes.read(recipe)
