import json
import typing

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from muomni.errors import CheckpointError
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Decoder(DecoderConfig(vocab_size=20, width=16, layers=2, heads=2, ffn_width=32))


def test_what_is_saved_is_opened(model, tmp_path):
    store.save(model, tmp_path, extra={"stage": "thinker", "step": 3})
    again = store.load(tmp_path)
    assert store.digest(again) == store.digest(model)
    assert again.config.to_file() == model.config.to_file()
    assert not again.training
    assert store.extra_of(tmp_path) == {"stage": "thinker", "step": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_digest_sees_every_change(model):
    before = store.digest(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
    assert store.digest(model) != before


def test_a_readable_diff_names_missing_unexpected_and_shape(model, tmp_path):
    store.save(model, tmp_path)
    tensors = load_file(tmp_path / store.WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["stranger"] = torch.zeros(2)
    tensors["model.norm.weight"] = torch.zeros(17)
    save_file(tensors, tmp_path / store.WEIGHTS)
    with pytest.raises(CheckpointError) as error:
        store.load(tmp_path)
    for part in (
        "missing model.layers.0.mlp.up_proj.weight",
        "unexpected stranger",
        "model.norm.weight: expected (16,), got (17,)",
        "Decoder",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 2000])
def test_a_torn_file_is_named(model, tmp_path, keep):
    store.save(model, tmp_path)
    path = tmp_path / store.WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is torn"):
        store.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json is missing"),
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ('{"model_type": "llama"}', "model_type must be one of qwen3"),
        ('{"model_type": "qwen3"}', "lacks 'vocab_size'"),
        (
            '{"model_type": "qwen3", "vocab_size": 0, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,'
            ' "intermediate_size": 8}',
            "vocab_size",
        ),
    ],
)
def test_hostile_configs(tmp_path, content, message):
    if content is not None:
        (tmp_path / store.CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        store.load(tmp_path)


def test_a_pickle_is_never_opened(model, tmp_path):
    store.save(model, tmp_path)
    (tmp_path / store.WEIGHTS).unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        store.load(tmp_path)


def test_shards_with_an_index(model, tmp_path):
    store.save(model, tmp_path)
    tensors = load_file(tmp_path / store.WEIGHTS)
    names = sorted(tensors)
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, tmp_path / file)
    (tmp_path / store.WEIGHTS).unlink()
    (tmp_path / store.INDEX).write_text(json.dumps({"weight_map": files}))
    assert store.digest(store.load(tmp_path)) == store.digest(model)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        store.load(tmp_path)
    (tmp_path / store.INDEX).write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        store.load(tmp_path)


def test_a_tensor_with_two_names_is_stored_once_and_comes_back_tied(tmp_path):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 3, bias=False)
            self.second = torch.nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight
            self.config, self.model_type = DecoderConfig(vocab_size=1), "twice"

    twice, again = Twice(), Twice()
    store.save(twice, tmp_path)
    tensors = store.read_tensors(tmp_path)
    assert list(tensors) == ["first.weight"]
    store.adopt(again, tensors, where="here", device="cpu", dtype="stored")
    assert again.second.weight is again.first.weight
    assert again.second.weight.equal(twice.first.weight)


def test_a_repeated_head_of_a_tied_model_is_accepted(model):
    tensors = dict(model.state_dict())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    store.check(model, tensors, where="here")


class MixedConfig(BaseModel):
    size: int = 3


class Mixed(torch.nn.Module):
    """Floats and whole numbers, parameters and buffers, one table under two names, one frozen."""

    model_type = "mixed"

    def __init__(self, config: MixedConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.second, self.frozen = (
            torch.nn.Linear(config.size, config.size, bias=False) for _ in range(3)
        )
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("mean", torch.rand(3))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, torch.float32), ("stored", torch.bfloat16), (torch.float64, torch.float64)],
)
def test_what_is_adopted_is_cast_but_for_whole_numbers_and_stays_tied_and_frozen(
    tmp_path, monkeypatch, dtype, expected
):
    monkeypatch.setitem(store.CLASSES.ours, "mixed", f"{__name__}:Mixed")
    saved = Mixed(MixedConfig()).to(torch.bfloat16)
    store.save(saved, tmp_path)
    before = torch.random.get_rng_state()
    again = store.load(tmp_path, dtype=dtype)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.second.weight is again.first.weight
    assert {
        name: each.dtype for name, each in again.state_dict().items() if name != "steps"
    } == dict.fromkeys(("first.weight", "second.weight", "frozen.weight", "mean"), expected)
    assert (again.steps.dtype, int(again.steps)) == (torch.int64, 7)
    assert again.first.weight.requires_grad
    assert not again.frozen.weight.requires_grad
    for name, tensor in saved.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(again.state_dict()[name].dtype)), name


def test_training_a_mapped_network_leaves_its_file_alone(model, tmp_path):
    store.save(model, tmp_path)
    before = (tmp_path / store.WEIGHTS).read_bytes()
    loaded = store.load(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)
    assert store.digest(loaded) != store.digest(model)
    assert (tmp_path / store.WEIGHTS).read_bytes() == before
    assert store.digest(store.load(tmp_path)) == store.digest(model)


@pytest.mark.parametrize("kind", store.CLASSES.ours)
def test_no_network_keeps_state_that_its_file_does_not(kind):
    """`load` builds on the meta device: what __init__ computed and no file holds would be lost."""
    network = store.CLASSES.find(kind)
    shape = typing.get_type_hints(network.__init__)["config"]
    sizes = {name: 8 for name, field in shape.model_fields.items() if field.is_required()}
    with torch.device("meta"):
        model = network(shape(**sizes))
    for part in model.modules():
        assert not part._non_persistent_buffers_set, part
        assert not [key for key, value in vars(part).items() if isinstance(value, torch.Tensor)], part
