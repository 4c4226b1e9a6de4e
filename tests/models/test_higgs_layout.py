"""Higgs Audio v2 as its makers lay it out: the same logits as the library's, strictly read, and written back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_higgs
from muomni.errors import CheckpointError, ConfigError
from muomni.models import higgs_layout, store
from muomni.models.higgs import Higgs
from muomni.models.reference import NetworkReference
from muomni.tokens.bpe import Tokenizer

# As transformers' script of its conversion has them (convert_higgs_audio_v2_to_hf.py).
PUBLISHED = (
    (r"^audio_codebook_embeddings\.", "model.embed_audio_tokens.embed_audio_tokens."),
    (r"^(embed_tokens|layers|norm)", r"model.\1"),
    (r"^audio_decoder_proj\.", ""),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout") / "base"
    tiny_higgs.saved(folder)
    return folder


def logits(model: Higgs) -> torch.Tensor:
    """Of words and of all books, of a row of words with a stretch of codes."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, 250, (1, 14), generator=generator)
    ids_BT[0, 4:12] = model.placeholders[0]
    codes = torch.randint(0, 34, (1, model.books, 14), generator=generator)
    columns = torch.cat([ids_BT[:, None], codes], 1)
    with torch.no_grad():
        states = model.hidden(model.embed(columns), is_audio_BT=model.is_audio(ids_BT))
        return torch.cat([model.network.text_lm_head(states), model.network.audio_lm_head(states)], -1)


@pytest.mark.parametrize("halves", [False, True])
def test_the_makers_layout_gives_the_logits_of_the_converted_one(
    base: Path, tmp_path: Path, halves: bool
) -> None:
    tiny_higgs.original(base, tmp_path / "original", halves=halves)
    ours, theirs = Higgs.open(tmp_path / "original"), Higgs.open(base)
    assert torch.equal(logits(ours), logits(theirs))
    same = ("codebook_size", "audio_token_id", "audio_bos_token_id", "audio_delay_token_id", "eos_token_id",
            "audio_stream_bos_id", "audio_stream_eos_id", "pad_token_id", "rope_parameters", "head_dim")  # fmt: skip
    assert {key: getattr(ours.config, key) for key in same} == {
        key: getattr(theirs.config, key) for key in same
    }


def test_names_are_those_of_the_published_conversion(base: Path, tmp_path: Path) -> None:
    tiny_higgs.original(base, tmp_path / "original")
    for name in load_file(tmp_path / "original" / "model.safetensors"):
        published = name
        for pattern, new in PUBLISHED:
            published = re.sub(pattern, new, published)
        assert higgs_layout.library_name(name) == published
        assert name == "audio_codebook_weights" or higgs_layout.original_name(published) == name


def test_rope_as_the_released_weights_have_it(base: Path, tmp_path: Path) -> None:
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 64, "rope_type": "llama3"}  # fmt: skip
    tiny_higgs.original(base, tmp_path / "original")
    path = tmp_path / "original" / "config.json"
    content = json.loads(path.read_text())
    content["text_config"] |= {"rope_scaling": scaling, "rope_theta": 500000.0}
    path.write_text(json.dumps(content))
    model = Higgs.open(tmp_path / "original")
    assert dict(model.config.rope_parameters) == {**scaling, "rope_theta": 500000.0}
    back = higgs_layout.original_config(model.config, Tokenizer.load(base), torch.bfloat16)
    assert (back["text_config"]["rope_scaling"], back["text_config"]["rope_theta"]) == (scaling, 500000.0)
    assert back["torch_dtype"] == "bfloat16"


def test_there_and_back_nothing_changes(base: Path, tmp_path: Path) -> None:
    model = Higgs.open(base)
    out = tmp_path / "out"
    tiny_higgs.original(base, out)
    content = higgs_layout.original_config(model.config, Tokenizer.load(base), torch.float32)
    (out / "config.json").write_text(json.dumps(content))
    save_file(higgs_layout.to_original(model.network.state_dict()), out / "model.safetensors")
    written = Higgs.open(out)
    assert torch.equal(logits(written), logits(model))
    theirs = json.loads((out / "config.json").read_text())
    tiny_higgs.original(base, tmp_path / "again")
    expected = json.loads((tmp_path / "again" / "config.json").read_text())
    del expected["audio_encoder_config"]
    assert expected.pop("text_config").items() <= theirs["text_config"].items()
    assert expected.items() <= theirs.items()
    model.config.codebook_size = 40
    with pytest.raises(ConfigError, match="behind the codes, 38 and 39"):
        higgs_layout.original_config(model.config, Tokenizer.load(base), torch.float32)
    model.config.codebook_size = 34


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another attention over codes": (
        {"use_audio_out_self_attention": True},
        "use_audio_out_self_attention is True",
    ),
    "a projector": ({"use_audio_out_embed_projector": True}, "use_audio_out_embed_projector"),
    "layers before the heads": ({"audio_decoder_proj_num_layers": 2}, "audio_decoder_proj_num_layers is 2"),
    "no delay": ({"use_delay_pattern": False}, "use_delay_pattern is false"),
    "a path in some layers": ({"audio_dual_ffn_layers": [0]}, "in each of 2 layers"),
    "no second path": ({"audio_adapter_type": "stack"}, "'stack'"),
    "no sizes": ({"text_config": None}, "text_config"),
    "another body": ({"text_config": {"model_type": "qwen3"}}, "'qwen3'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_class_has_not_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    tiny_higgs.original(base, tmp_path / "original", **changes)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Higgs.open(tmp_path / "original")


LOST: dict[str, tuple[str, str | None, str]] = {
    "a missing tensor": (
        "layers.1.audio_mlp.up_proj.weight",
        None,
        "missing model.layers.1.audio_mlp.up_proj",
    ),
    "no text head": ("audio_decoder_proj.text_lm_head.weight", None, "missing text_lm_head.weight"),
    "an odd tensor": ("norm.weight", "layers.0.audio_attn.q_proj.weight", "layers.0.audio_attn.q_proj"),
    "Whisper's encoder": ("norm.weight", "audio_tower.conv1.weight", "relies on Whisper conditioning"),
    "half a table": ("norm.weight", "embed_tokens.embedding_frozen.weight", "half a table"),
}


@pytest.mark.parametrize("name", LOST)
def test_it_is_read_strictly(base: Path, tmp_path: Path, name: str) -> None:
    tensor, added, message = LOST[name]
    tiny_higgs.original(base, tmp_path / "original")
    path = tmp_path / "original" / "model.safetensors"
    tensors = load_file(path)
    if added is None:
        del tensors[tensor]
    else:
        tensors[added] = tensors[tensor].clone()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Higgs.open(tmp_path / "original")


def test_a_tower_in_the_librarys_layout_is_named_too(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.audio_tower.conv1.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"relies on Whisper conditioning: model\.audio_tower"):
        Higgs.open(folder)


def test_a_librarys_config_that_asks_for_whisper_is_told(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_TOLD", set())
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "encode_whisper_embed": True}))
    Higgs.open(folder)
    assert capsys.readouterr().err.count("asks for Whisper conditioning") == 1


@pytest.mark.parametrize(
    "changes",
    [{"encode_whisper_embed": True}, {"encode_audio_in_tokens": False}, {"skip_audio_tower": False}],
)
def test_a_config_that_asks_for_whisper_is_told(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, bool],
) -> None:
    monkeypatch.setattr(store, "_TOLD", set())
    tiny_higgs.original(base, tmp_path / "plain")
    Higgs.open(tmp_path / "plain")
    assert "Whisper" not in capsys.readouterr().err
    tiny_higgs.original(base, tmp_path / "original", **changes)
    Higgs.open(tmp_path / "original")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Whisper" in line]
    assert "by their codes alone" in line


def test_a_network_may_lie_in_a_subfolder(base: Path) -> None:
    inside = NetworkReference(name=str(base.parent), subfolder="base")
    assert inside.locate({}, Path()) == base
    for outside in ("nowhere", "../.."):
        with pytest.raises(ConfigError, match="is no folder in"):
            NetworkReference(name=str(base.parent), subfolder=outside).locate({}, Path())
