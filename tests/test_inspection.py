from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from muomni import files
from muomni.errors import UserError
from muomni.inspection import inspect
from muomni.train import checkpoint


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def weights(path: Path) -> Path:
    save_file(
        {"a.weight": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.tensor(1)},
        path,
        metadata={"format": "pt"},
    )
    return path


def network(folder: Path) -> Path:
    folder.mkdir()
    weights(folder / "model.safetensors")
    files.write_json(folder / "config.json", {"model_type": "qwen3", "width": 4})
    return folder


def certificate(folder: Path, verdict: str) -> None:
    gates = [{"name": "learns", "verdict": verdict, "value": 1.0}]
    files.write_json(
        folder / "certificate.json", {"stage": folder.name, "verdict": verdict, "facts": {}, "gates": gates}
    )


def test_weights_by_their_header(tmp_path: Path) -> None:
    found = inspect(weights(tmp_path / "a.safetensors"))
    assert found["kind"] == "weights"
    assert found["parameters"] == 12 + 5 + 1
    assert found["tensors"]["a.weight"] == {"shape": [3, 4], "dtype": "F32"}
    assert found["tensors"]["b"]["dtype"] == "BF16"
    assert found["tensors"]["c"]["shape"] == []
    json.dumps(found)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.99])
def test_torn_weights(tmp_path: Path, share: float) -> None:
    path = weights(tmp_path / "a.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "torn" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{]",
        (9).to_bytes(8, "little") + b'{"a": 12}',
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
    ],
)
def test_hostile_headers(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refusal(tmp_path / "a.safetensors")


def test_a_header_whose_shapes_lie(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert "tensor a" in refusal(tmp_path / "a.safetensors")


def test_a_network_folder(tmp_path: Path) -> None:
    folder = network(tmp_path / "net")
    found = inspect(folder)
    assert (found["kind"], found["model_type"], found["parameters"], found["verdict"]) == (
        "network",
        "qwen3",
        18,
        None,
    )
    certificate(folder, "green")
    assert inspect(folder)["verdict"] == "green"
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)


def test_a_network_in_shards_stays_in_its_folder(tmp_path: Path) -> None:
    folder = network(tmp_path / "net")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    files.write_json(
        folder / "model.safetensors.index.json", {"weight_map": {"a.weight": "model-1.safetensors"}}
    )
    assert inspect(folder)["parameters"] == 18
    files.write_json(folder / "model.safetensors.index.json", {"weight_map": {"a.weight": "../secret"}})
    with pytest.raises(UserError, match="outside"):
        inspect(folder)


def test_a_run_and_its_stages(tmp_path: Path) -> None:
    for name, verdict in {"hearing": "green", "vision": "red"}.items():
        certificate(tmp_path / name, verdict)
    files.write_text(tmp_path / "thinker" / "config.yaml", "seed: 0\n")
    (tmp_path / "hearing" / "step_000010").mkdir()
    rows = [
        {"step": 1, "loss": 2.0, "steps_per_s": 3.0, "audio_s_per_s": 4.5, "mfu": 0.5, "lr": 1.0},
        {"step": 1, "val_loss": 1.0},
    ]
    files.write_text(
        tmp_path / "hearing" / "metrics.jsonl",
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "lo',
    )
    (tmp_path / "notes").mkdir()
    assert inspect(tmp_path)["stages"] == {"hearing": "green", "thinker": None, "vision": "red"}
    stage = inspect(tmp_path / "hearing")
    assert (stage["kind"], stage["verdict"], stage["gates"]) == ("stage", "green", {"learns": "green"})
    assert stage["checkpoints"] == ["step_000010"]
    assert stage["speed"] == {"steps_per_s": 3.0, "audio_s_per_s": 4.5, "mfu": 0.5}
    assert inspect(tmp_path / "thinker")["speed"] == {}
    assert inspect(tmp_path / "thinker")["verdict"] is None
    (tmp_path / "vision" / "certificate.json").write_text('{"stage": "vis')
    refusal(tmp_path / "vision")
    with pytest.raises(UserError, match="vision"):
        inspect(tmp_path)


def test_a_checkpoint_and_a_torn_one(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    checkpoint.save(tmp_path / "step_000007", model, checkpoint.State({"step": 7}, {}, {}, {}))
    found = inspect(tmp_path / "step_000007")
    assert (found["kind"], found["step"], found["parameters"]) == ("checkpoint", 7, 8)
    assert "train_state.pt" in found["files"]
    state = tmp_path / "step_000007" / "train_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    assert "torn" in refusal(tmp_path / "step_000007")


def test_a_data_folder(tmp_path: Path) -> None:
    files.write_json(tmp_path / "manifest.json", {"seed": 3})
    assert inspect(tmp_path)["manifest"] == {"seed": 3}


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_sound(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (96_000, 2)), 48_000)
    found = inspect(path)
    assert (found["kind"], found["rate_hz"], found["channels"], found["seconds"]) == ("sound", 48_000, 2, 2.0)
    path.write_bytes(path.read_bytes()[:100_000])
    refusal(path)


def test_picture(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 4), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    found = inspect(tmp_path / "a.png")
    assert (found["width"], found["height"], found["mode"], found["format"]) == (50, 40, "RGBA", "PNG")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    refusal(tmp_path / "b.png")


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"id": "1", "text": "ä"}\n\n{"id": "2"}\n', encoding="utf-8")
    found = inspect(path)
    assert (found["kind"], found["rows"], found["keys"]) == ("jsonl", 2, ["id", "text"])
    path.write_text('{"id": 1}\n{"id": ')
    assert f"{path}:2" in refusal(path)
    path.write_text("[1]\n")
    assert "list" in refusal(path)
    path.write_text("")
    assert inspect(path)["rows"] == 0


def test_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    added = [{"content": "<pad>", "id": 0}, {"content": "<bos>", "id": 3}]
    files.write_json(
        path, {"added_tokens": added, "model": {"type": "BPE", "vocab": {"<pad>": 0, "a": 1, "b": 2}}}
    )
    for place in (path, tmp_path):
        found = inspect(place)
        assert (found["kind"], found["vocab_size"], found["special"]) == ("tokenizer", 4, ["<pad>", "<bos>"])
    files.write_json(path, {"model": 3})
    refusal(path)


def test_a_real_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<pad>"], show_progress=False)
    tokenizer.train_from_iterator(["the red circle and the blue square"] * 4, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert inspect(tmp_path / "tokenizer.json")["vocab_size"] == tokenizer.get_vocab_size()


def test_json_and_text(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert inspect(tmp_path / "a.json")["keys"] == ["x"]
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert inspect(tmp_path / "a.txt")["lines"] == 2
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    refusal(tmp_path / "b.txt")
    (tmp_path / "b.json").write_text("3")
    refusal(tmp_path / "b.json")


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    for name in ("a.pt", "a.bin", "a.safetensors", "a.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refusal(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_nothing_unknown_and_empty(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "none")
    (tmp_path / "a.xyz").write_text("?")
    assert "unknown kind" in refusal(tmp_path / "a.xyz")
    (tmp_path / "empty").mkdir()
    assert "not a folder of ours" in refusal(tmp_path / "empty")


def test_noise_under_any_name_is_refused_in_one_line(tmp_path: Path) -> None:
    source = random.Random(0)
    for suffix in ("safetensors", "wav", "flac", "png", "jpg", "jsonl", "json", "txt"):
        path = tmp_path / f"noise.{suffix}"
        path.write_bytes(b"\xff" + source.randbytes(300))
        refusal(path)


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """align and instruct on a Qwen3 and a SigLIP in folders."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from muomni.models.reference import NetworkReference
    from seeing_run import save_qwen, save_siglip, save_stage

    save_qwen(tmp_path / "qwen")
    save_siglip(tmp_path / "siglip")
    for name in ("align", "instruct"):
        save_stage(
            tmp_path,
            name,
            NetworkReference(name="qwen"),
            NetworkReference(name="siglip"),
            with_lora=name == "instruct",
        )
    return tmp_path


def test_what_a_model_that_sees_stands_on(seeing: Path) -> None:
    from muomni.models import pretrained

    found = inspect(seeing / "align" / "final")
    assert (found["kind"], found["verdict"], found["image_tokens"], found["image_size"]) == (
        "omni",
        "green",
        4,
        32,
    )
    assert (found["connector"]["tokens"], found["connector"]["width"], found["connector"]["depth"]) == (
        4,
        16,
        1,
    )
    assert found["bases"]["thinker"]["name"] == "qwen"
    assert found["bases"]["vision"] == {
        "name": "siglip",
        "revision": None,
        "digest": pretrained.digest(seeing / "siglip"),
        "stage": False,
    }
    assert set(found["parameters"]) == {"projectors"}
    assert "lora" not in found
    json.dumps(found)
    lora = inspect(seeing / "instruct" / "final")["lora"]
    assert (lora["rank"], lora["alpha"], lora["base"]) == (4, 8, "qwen")
    assert lora["parameters"] == 2 * 4 * (
        4 * (32 + 32) + 3 * (32 + 64)
    )  # layers * rank * (in + out) of seven projections
    assert inspect(seeing / "instruct" / "final" / "lora") == {
        "path": str(seeing / "instruct" / "final" / "lora"),
        **lora,
    }


def test_what_was_exported(seeing: Path) -> None:
    from muomni.infer import export

    certificate = files.read_json(seeing / "instruct" / "certificate.json")
    for form in ("omni", "hf"):
        export.export(seeing / "instruct" / "final", seeing / form, form, certificate)  # type: ignore[arg-type]
    found = inspect(seeing / "omni")
    assert (found["kind"], found["verdict"], found["bases"]) == ("omni", "green", {})
    assert set(found["parameters"]) == {"projectors", "thinker", "vision"}
    assert found["origin"]["bases"]["thinker"]["name"] == "qwen"
    network = inspect(seeing / "hf")
    assert (network["kind"], network["model_type"], network["verdict"], network["lora"]["rank"]) == (
        "network",
        "qwen3",
        "green",
        4,
    )
    assert network["origin"] == found["origin"]
    for name, kind in (("qwen", "qwen3"), ("siglip", "siglip_vision_model")):
        base = inspect(seeing / name)
        assert (base["kind"], base["model_type"], base["parameters"] > 0) == ("network", kind, True)


@pytest.mark.parametrize(
    "name",
    ["omni.json", "lora/adapter_config.json", "lora/adapter_model.safetensors", "projectors/config.json"],
)
@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"media": 3}', '{"media": {}, "bases": {"thinker": 3}}', "3"]
)
def test_a_torn_model_that_sees_is_refused_in_one_line(seeing: Path, name: str, content: str) -> None:
    if name == "projectors/config.json" and content.startswith('{"'):
        pytest.skip("a config of other keys is told as it is")
    (seeing / "instruct" / "final" / name).write_text(content)
    refusal(seeing / "instruct" / "final")
