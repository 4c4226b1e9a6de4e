"""A language model's folder is opened as transformers opens it, or refused in one line: never as something
else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from muomni.errors import CheckpointError
from muomni.inspection import inspect
from muomni.models import pretrained, store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
IDS = torch.arange(3, 30)[None]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
GONE = "gone"  # a key that config.json leaves out
Tensors = dict[str, Tensor]


def model(seed: int, kind: str = "dense", **sizes: Any) -> Any:
    torch.manual_seed(seed)
    if kind == "experts":
        return transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**{**SIZES, **EXPERTS, **sizes})
        ).eval()
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**SIZES, **sizes})).eval()


@torch.no_grad()
def theirs(folder: Path) -> Tensor:
    logits: Tensor = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
    )
    return logits


@torch.no_grad()
def ours(folder: Path) -> Tensor:
    logits: Tensor = pretrained.open_decoder(folder, dtype=torch.float32)(IDS)
    return logits


def demand_same(folder: Path) -> None:
    assert (ours(folder) - theirs(folder)).abs().max() <= 2e-5 * max(1.0, float(theirs(folder).std()))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        pretrained.open_decoder(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def edit_config(folder: Path, **changes: Any) -> None:
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not GONE})
    )


def edit_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / store.WEIGHTS)), folder / store.WEIGHTS, metadata={"format": "pt"})


# Which file of several


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes that earlier tests printed are printed again."""
    monkeypatch.setattr(store, "_TOLD", set())


@pytest.mark.parametrize("with_old_shards", [True, False])
def test_an_index_of_older_weights_is_passed_over_and_told(
    told: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_old_shards: bool
) -> None:
    """save_pretrained of one file leaves the index of an earlier, sharded save there, with or without its
    shards."""
    old, new = model(1), model(2)
    old.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    if with_old_shards:
        new.save_pretrained(tmp_path / "new")
        shutil.copy(tmp_path / "new" / store.WEIGHTS, tmp_path / "m")
    else:
        new.save_pretrained(tmp_path / "m")
        assert not list((tmp_path / "m").glob("model-*"))
    assert (tmp_path / "m" / store.INDEX).is_file()
    capsys.readouterr()
    with torch.no_grad():
        assert (ours(tmp_path / "m") - new(IDS).logits).abs().max() <= 1e-4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(lines) == 1
    assert str(tmp_path / "m" / store.INDEX) in lines[0]
    demand_same(tmp_path / "m")
    assert store.weight_files(tmp_path / "m") == [tmp_path / "m" / store.WEIGHTS]
    assert inspect(tmp_path / "m")["parameters"] == sum(
        each.numel() for each in load_file(tmp_path / "m" / store.WEIGHTS).values()
    )


def test_the_digest_names_the_file_that_is_opened(tmp_path: Path) -> None:
    model(1).save_pretrained(tmp_path, max_shard_size="20KB")
    model(2).save_pretrained(tmp_path)
    before = pretrained.digest(tmp_path)
    (tmp_path / store.INDEX).unlink()
    assert pretrained.digest(tmp_path) == before
    edit_tensors(tmp_path, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    assert pretrained.digest(tmp_path) != before


@pytest.mark.parametrize(
    "beside", ["pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors"]
)
def test_other_files_beside_the_weights_change_nothing(tmp_path: Path, beside: str) -> None:
    model(1).save_pretrained(tmp_path)
    other = model(2).state_dict()
    torch.save(other, tmp_path / beside) if beside.endswith("bin") else save_file(other, tmp_path / beside)
    demand_same(tmp_path)


@pytest.mark.parametrize(
    "alone", ["pytorch_model.bin", "model.fp16.safetensors", "adapter_model.safetensors"]
)
def test_what_lies_there_instead_of_weights_is_named(tmp_path: Path, alone: str) -> None:
    model(1).save_pretrained(tmp_path)
    (tmp_path / store.WEIGHTS).rename(tmp_path / alone)
    assert f"found {alone}" in refusal(tmp_path)


@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_weights_that_config_json_names_come_first(tmp_path: Path, shard: str) -> None:
    model(1).save_pretrained(tmp_path)
    model(2).save_pretrained(tmp_path / "new", max_shard_size=shard)
    for path in (tmp_path / "new").glob("model*"):
        shutil.copy(path, tmp_path / path.name.replace("model.safetensors", "other.safetensors"))
    named = "other.safetensors" + (".index.json" if shard == "20KB" else "")
    edit_config(tmp_path, transformers_weights=named)
    demand_same(tmp_path)
    assert inspect(tmp_path)["kind"] == "network"
    edit_config(tmp_path, transformers_weights="../other.safetensors")
    assert "transformers_weights" in refusal(tmp_path)


def test_shards(tmp_path: Path) -> None:
    """What an index leaves out, or names in vain, does not matter; a shard that is missing does. Of a doubled
    tensor the last counts."""
    model(1).save_pretrained(tmp_path, max_shard_size="20KB")
    demand_same(tmp_path)
    index = json.loads((tmp_path / store.INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    first = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    last = load_file(tmp_path / shards[-1])
    save_file({**last, first: model(2).state_dict()[first]}, tmp_path / shards[-1], metadata={"format": "pt"})
    demand_same(tmp_path)
    save_file(last, tmp_path / shards[-1], metadata={"format": "pt"})
    home = index["weight_map"].pop("model.norm.weight")
    (tmp_path / store.INDEX).write_text(
        json.dumps({**index, "weight_map": {**index["weight_map"], "ghost": home}})
    )
    demand_same(tmp_path)
    (tmp_path / shards[0]).unlink()
    assert shards[0] in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": ["a"]}']
)
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    model(1).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / store.INDEX).write_text(content)
    refusal(tmp_path)


def test_an_adapter_beside_the_weights_is_not_left_out(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model(1).save_pretrained(tmp_path)
    plain = theirs(tmp_path)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model(1), lora).save_pretrained(tmp_path)
    assert (theirs(tmp_path) - plain).abs().max() > 0.01  # transformers adds it without a word
    assert "merge" in refusal(tmp_path)


# The head


@pytest.mark.parametrize("kind", ["dense", "experts"])
@pytest.mark.parametrize("says", [True, False, GONE])
@pytest.mark.parametrize("holds", ["no head", "the same head", "another head", "the head alone"])
def test_the_head_is_tied_where_transformers_ties_it(
    told: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, says: Any, holds: str
) -> None:
    model(1, kind, tie_word_embeddings=True).save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=says)
    table = load_file(tmp_path / store.WEIGHTS)[store.TABLE]
    heads = {
        "no head": {},
        "the same head": {store.HEAD: table.clone()},
        "another head": {store.HEAD: torch.randn_like(table)},
    }
    if holds == "the head alone":
        edit_tensors(
            tmp_path,
            lambda tensors: {
                (store.HEAD if name == store.TABLE else name): each for name, each in tensors.items()
            },
        )
    else:
        edit_tensors(tmp_path, lambda tensors: {**tensors, **heads[holds]})
    capsys.readouterr()
    if says is not True and holds in (
        "no head",
        "the head alone",
    ):  # transformers draws the missing one at random
        assert "missing" in refusal(tmp_path)
        return
    demand_same(tmp_path)
    assert ("untied" in capsys.readouterr().err) == (says is True and holds == "another head")
    opened = pretrained.open_decoder(tmp_path)
    store.save(opened, tmp_path / "again")
    assert torch.equal(ours(tmp_path / "again"), ours(tmp_path))
    demand_same(tmp_path / "again")


# What config.json says, and leaves out


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": GONE},
        {"rope_parameters": GONE, "rope_theta": 1e6},
        {"rope_parameters": GONE, "rope_theta": 1e6, "rope_scaling": None},
        {"rope_parameters": GONE, "rope_theta": 1e6, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e3},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": 1e3},
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rope_scaling": {"rope_type": "default"},
        },
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rope_scaling": {"rope_type": "default", "rope_theta": 1e3},
        },
        {"rms_norm_eps": GONE, "hidden_act": GONE, "max_position_embeddings": GONE, "layer_types": GONE},
        {"dtype": GONE, "torch_dtype": "bfloat16", "architectures": ["Qwen3ForSequenceClassification"]},
    ],
    ids=str,
)
def test_rotary_settings_and_defaults_mean_what_they_mean_there(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model(1, rope_parameters={"rope_type": "default", "rope_theta": 1e4}).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    demand_same(tmp_path)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("dense", {"head_dim": 128}),
        ("dense", {"num_attention_heads": 32, "num_key_value_heads": 32}),
        ("experts", {"head_dim": 8}),
        ("experts", {"num_attention_heads": 8, "num_key_value_heads": 4}),
    ],
)
def test_sizes_that_are_left_out_are_those_of_their_class(
    tmp_path: Path, kind: str, sizes: dict[str, int]
) -> None:
    model(1, kind, **sizes).save_pretrained(tmp_path)
    edit_config(tmp_path, **dict.fromkeys([name for name in sizes if name != "num_attention_heads"], GONE))
    demand_same(tmp_path)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "sizes", [{"norm_topk_prob": True}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}], ids=str
)
def test_experts(tmp_path: Path, sizes: dict[str, Any], old: bool) -> None:
    model(1, "experts", **sizes).save_pretrained(tmp_path)
    if old:
        edit_config(tmp_path, num_experts=EXPERTS["num_experts"], num_local_experts=GONE)
    demand_same(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope type"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope type",
        ),  # beside rope_parameters, which transformers then leaves unread
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
            "rope settings by kind of layer",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": None}, "tied"),
        ({"vocab_size": 70}, "model.embed_tokens.weight"),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1"),
        ({"hidden_size": GONE}, "hidden_size"),
        ({"num_experts": 4, "num_local_experts": 8}, "4 experts"),
        ({"model_type": "llama"}, "llama"),
    ],
    ids=str,
)
def test_what_this_decoder_does_not_compute_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    model(1).save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    assert named in refusal(tmp_path)


# What the file holds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("says", ["float32", "bfloat16"])
def test_number_formats_of_files(tmp_path: Path, dtype: torch.dtype, is_mixed: bool, says: str) -> None:
    model(1).save_pretrained(tmp_path)
    edit_tensors(
        tmp_path,
        lambda tensors: {
            k: each if is_mixed and "norm" in k else each.to(dtype) for k, each in tensors.items()
        },
    )
    edit_config(tmp_path, dtype=says)
    demand_same(tmp_path)
    assert store.stored_format(tmp_path) == dtype


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: {**tensors, "extra": torch.zeros(3)}, "unexpected extra"),
        (
            lambda tensors: {name: each for name, each in tensors.items() if "up_proj" not in name},
            "missing model.layers.0.mlp.up_proj",
        ),
        (lambda tensors: {name.removeprefix("model."): each for name, each in tensors.items()}, "missing"),
        (
            lambda tensors: {
                k: each.to(torch.float8_e4m3fn) if "proj" in k else each for k, each in tensors.items()
            },
            "float8_e4m3fn",
        ),
        (
            lambda tensors: {
                k: (each * 9).to(torch.int8) if "up_proj" in k else each for k, each in tensors.items()
            },
            "torch.int8",
        ),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, change: Callable[[Tensors], Tensors], named: str) -> None:
    model(1).save_pretrained(tmp_path)
    edit_tensors(tmp_path, change)
    assert named in refusal(tmp_path)


@pytest.mark.parametrize(("dtype", "lines"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 0)])
def test_half_precision_that_is_widened_is_told(
    told: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, lines: int
) -> None:
    model(1).to(dtype).save_pretrained(tmp_path)
    capsys.readouterr()
    for _ in range(2):
        pretrained.open_decoder(tmp_path, dtype=torch.float32)
    assert capsys.readouterr().err.count("opened in float32") == lines
    pretrained.open_decoder(tmp_path)
    assert not capsys.readouterr().err
