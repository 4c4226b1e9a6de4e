"""LoRA on our decoder: nothing changes at first, transformers reads the same from its folder, and cached
decoding hears it."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from muomni.errors import CheckpointError, ConfigError
from muomni.infer.generate import generate
from muomni.models import lora, store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.lora import LoraSettings

peft = pytest.importorskip("peft")

SIZES = {
    "vocab_size": 40,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 64,
    "ctx_len": 64,
    "dropout": 0.0,
}
QWEN3_8B = {
    "width": 4096,
    "layers": 36,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "ffn_width": 12288,
    "tied": False,
}
QWEN3_06B = {
    "width": 1024,
    "layers": 28,
    "heads": 16,
    "kv_heads": 8,
    "head_dim": 128,
    "ffn_width": 3072,
    "tied": True,
}


def tiny(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.2)
    return model


def stirred(model: Decoder, settings: LoraSettings | None = None, scale: float = 0.3) -> Decoder:
    """With an adapter whose A and B both count."""
    lora.attach(model, settings or LoraSettings(r=4, alpha=8))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * scale)
    return model


def ids_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(1))


def base_of(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out = model(ids_of(2, 9))
    return out if isinstance(out, torch.Tensor) else out.logits


def assert_alike(one: torch.Tensor, other: torch.Tensor) -> None:
    """To 1e-5 of the largest logit: sums in another order."""
    assert float((one - other).abs().max() / other.abs().max()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_changes_at_first_and_what_trains_is_float32(dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    before = logits(model)
    assert lora.plain(model)
    assert lora.attach(model, LoraSettings()) is model
    assert not lora.plain(model)
    assert torch.equal(logits(model), before)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert all(p.dtype == dtype for name, p in model.named_parameters() if name not in trained)
    assert all(bool(p.any()) == (".lora_A." in name) for name, p in trained.items())
    assert not any(part.training for part in model.modules())


def test_the_same_seed_draws_the_same() -> None:
    drawn = []
    for seed in (5, 5, 6):
        model = tiny()
        torch.manual_seed(seed)
        drawn.append(store.digest(lora.attach(model, LoraSettings())))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_target_that_matches_nothing_is_named() -> None:
    model = tiny(tied=False)
    with pytest.raises(
        ConfigError, match=r"match nothing: c_attn, lm_head"
    ):  # logits read the table past any adapter
        lora.attach(model, LoraSettings(targets=["q_proj", "c_attn", "lm_head"]))
    assert lora.plain(model)
    lora.attach(model, LoraSettings(targets=["q_proj"]))
    with pytest.raises(ConfigError, match="already"):
        lora.attach(model, LoraSettings())


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def none(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(ConfigError, match=r"muomni\[hf\]"):
        lora.attach(tiny(), LoraSettings())


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_and_peft_read_the_same_from_our_folders(tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny(tied=tied)
    store.save(model, tmp_path / "base")
    lora.save(stirred(model), tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        plainly = theirs(ids_of(2, 9)).logits
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert_alike(logits(model), logits(opened))
    assert (logits(model) - plainly).abs().max() > 0.1


def test_the_folder_is_light(tmp_path: Path) -> None:
    model = stirred(tiny(vocab_size=4000))
    lora.save(model, tmp_path, base="Qwen/Qwen3-8B")
    tensors = load_file(tmp_path / lora.WEIGHTS)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(tensors) == len(trained)
    assert all(
        name.startswith("base_model.model.model.layers.")
        and name.endswith((".lora_A.weight", ".lora_B.weight"))
        for name in tensors
    )
    assert (tmp_path / lora.WEIGHTS).stat().st_size < 4 * sum(p.numel() for p in trained) + 8192
    config = json.loads((tmp_path / lora.CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("Qwen/Qwen3-8B", 4, 8)
    assert config["target_modules"] == sorted(LoraSettings().targets)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    model = stirred(tiny(), LoraSettings(r=3, alpha=6, dropout=0.25, targets=["v_proj", "up_proj"]))
    lora.save(model, tmp_path, base="x")
    other = lora.load(tiny(), tmp_path)
    assert store.digest(other) == store.digest(model)
    assert torch.equal(logits(other), logits(model))
    dropped = {part.p for part in other.modules() if isinstance(part, torch.nn.Dropout) and part.p}
    assert dropped == {0.25}
    with pytest.raises(ConfigError, match="already"):
        lora.load(other, tmp_path)
    with pytest.raises(ConfigError, match="no adapter"):
        lora.save(tiny(), tmp_path / "none", base="x")


def test_a_folder_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    lora.save(stirred(tiny()), tmp_path, base="x")
    tensors, config = load_file(tmp_path / lora.WEIGHTS), json.loads((tmp_path / lora.CONFIG).read_text())
    first = sorted(tensors)[0]

    def refused(match: str, changed: dict[str, torch.Tensor] | None = None, **values: Any) -> None:
        save_file(tensors if changed is None else changed, tmp_path / lora.WEIGHTS)
        (tmp_path / lora.CONFIG).write_text(json.dumps(config | values))
        model = tiny()
        before = store.digest(model)
        with pytest.raises(CheckpointError, match=match):
            lora.load(model, tmp_path)
        assert store.digest(model) == before

    refused(f"missing {first}", {name: t for name, t in tensors.items() if name != first})
    refused("unexpected lm_head.weight", tensors | {"lm_head.weight": torch.zeros(2)})
    refused(r"shape .*expected \(2, 32\), got \(4, 32\)", r=2)
    refused("use_dora, bias", use_dora=True, bias="all")
    refused("peft_type LORA", peft_type="IA3")
    refused("no LoRA configuration", target_modules="all-linear")
    (tmp_path / lora.CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="and 8 more"):
        lora.load(tiny(layers=4), tmp_path)
    (tmp_path / lora.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="torn"):
        lora.load(tiny(), tmp_path)
    with pytest.raises(CheckpointError, match="missing"):
        lora.load(tiny(), tmp_path / "nowhere")


@pytest.mark.parametrize("tied", [True, False])
def test_merged_says_the_same_in_plain_names_and_leaves_the_original(tied: bool, tmp_path: Path) -> None:
    model = stirred(tiny(tied=tied))
    before, names = store.digest(model), set(tiny(tied=tied).state_dict())
    out = lora.merged(model)
    assert lora.plain(out)
    assert set(out.state_dict()) == names
    assert_alike(logits(out), logits(model))
    assert store.digest(model) == before
    assert out.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert not any(p.requires_grad for p in out.parameters())
    store.save(out, tmp_path)
    assert torch.equal(logits(Decoder.open(tmp_path)), logits(out))
    half = stirred(tiny().to(torch.bfloat16))
    assert {p.dtype for p in lora.merged(half).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("targets", [LoraSettings().targets, ["o_proj"], ["gate_proj"], ["k_proj"]])
def test_cached_decoding_hears_the_adapter(targets: list[str]) -> None:
    model, ids = stirred(tiny(), LoraSettings(r=4, alpha=8, targets=targets), scale=0.6), ids_of(3, 7)
    slow = ids.clone()
    with torch.no_grad():
        for _ in range(16):
            slow = torch.cat((slow, model(slow)[:, -1:].argmax(-1)), 1)
    assert generate(model, ids, max_new=16) == slow[:, 7:].tolist()
    assert generate(tiny(), ids, max_new=16) != slow[:, 7:].tolist()


def test_training_moves_the_adapter_alone_and_dropout_rests_in_evaluation() -> None:
    model = stirred(tiny(), LoraSettings(r=4, alpha=8, dropout=0.5))
    base, start = base_of(model), logits(model)
    assert torch.equal(logits(model), start)
    model.train()
    assert not torch.equal(logits(model), start)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        torch.nn.functional.cross_entropy(
            model(ids_of(2, 9)).flatten(0, 1), ids_of(2, 9).flatten()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    assert not torch.equal(logits(model.eval()), start)


@pytest.mark.parametrize(
    ("sizes", "base", "adapter"),
    [(QWEN3_8B, 8_190_735_360, 43_646_976), (QWEN3_06B, 596_049_920, 10_092_544)],
)
def test_parameters_of_the_real_sizes(sizes: dict[str, Any], base: int, adapter: int) -> None:
    vocabulary, width, layers, hidden, dim = (
        151_936,
        sizes["width"],
        sizes["layers"],
        sizes["ffn_width"],
        sizes["head_dim"],
    )
    ends = [
        (width, sizes["heads"] * dim),
        (width, sizes["kv_heads"] * dim),
        (width, sizes["kv_heads"] * dim),
        (sizes["heads"] * dim, width),
    ]
    ends += [(width, hidden), (width, hidden), (hidden, width)]
    norms = 2 * width + 2 * dim
    assert (
        base
        == (1 if sizes["tied"] else 2) * vocabulary * width
        + layers * (sum(a * b for a, b in ends) + norms)
        + width
    )
    assert adapter == layers * 16 * sum(a + b for a, b in ends)
    with torch.device("meta"):
        model = lora.attach(Decoder(DecoderConfig(vocab_size=vocabulary, **sizes)), LoraSettings())
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == base
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == adapter
