"""Weights that are no numbers are refused where they are opened, naming file and tensor; so is what a network
gives, naming the module."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from muomni.cli import main
from muomni.errors import CheckpointError
from muomni.infer.engine import Engine
from muomni.models import finite, store
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.decoder import Decoder

# a stage's network -> the tensor that is broken there, and what then can't be done
BROKEN = {
    "omni/final/thinker": ("model.layers.1.mlp.up_proj.weight", ["chat", "--text", "the"]),
    "omni/final/projectors": ("vision.weight", ["chat", "--text", "the", "--image", "{media}/red.png"]),
    "omni/final/vision": (
        "blocks.0.mlp.up_proj.bias",
        ["chat", "--text", "the", "--image", "{media}/red.png"],
    ),
    "hearing/final": ("convs.0.weight", ["transcribe", "{media}/high.wav"]),
    "talker/final": ("heads.0.weight", ["speak", "the red", "--out", "{out}/said.wav"]),
    "talker/final/codec": ("to_mel.bias", ["speak", "the red", "--out", "{out}/said.wav"]),
}


def poison(folder: Path, name: str, value: float, places: int = 1) -> None:
    """So many numbers of a stored tensor are none."""
    path = folder / store.WEIGHTS
    tensors = load_file(path)
    tensors[name].view(-1)[:places] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", BROKEN)
def test_a_broken_weight_is_told_in_a_line(
    place: str, value: float, copy: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, command = BROKEN[place]
    poison(copy / place, name, value, 2)
    asked = [each.format(media=media, out=tmp_path) for each in command[1:]]
    with pytest.raises(SystemExit) as left:
        main([command[0], str(copy), *asked])
    out, told = capsys.readouterr()
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert left.value.code == CheckpointError.exit_code == 2
    assert len(errors) == 1
    assert f"{copy / place / store.WEIGHTS}: {name}: 2 of " in errors[0]
    assert not out.strip()
    assert not (tmp_path / "said.wav").exists()


def test_a_file_of_questions_is_refused_once(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(copy / "omni/final/thinker", "lm_head.weight", math.nan)
    rows = '{"id": "%d", "messages": [{"role": "user", "content": "the"}]}'
    (tmp_path / "in.jsonl").write_text("\n".join(rows % number for number in range(3)))
    with pytest.raises(SystemExit) as left:
        main(["chat", str(copy), "--batch", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    assert left.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert "lm_head.weight" in told[0]


def test_embeddings_are_refused_too(copy: Path, media: Path) -> None:
    poison(copy / "vision/final/text_tower", "tokens.weight", math.nan)
    with pytest.raises(CheckpointError, match=r"text_tower/model.safetensors: tokens.weight: 1 of "):
        Engine.load(copy).embed(texts=["the red"])


@pytest.mark.parametrize(
    "part", ["thinker", "hearing", "projectors"]
)  # opened, copied, and copied without being opened
def test_what_is_exported_is_looked_at(part: str, copy: Path, tmp_path: Path) -> None:
    from muomni.infer import export

    name = {"thinker": "model.norm.weight", "hearing": "head.bias", "projectors": "audio.weight"}[part]
    poison(copy / "omni/final" / part, name, math.inf)
    certificate = {"stage": "omni", "verdict": "green", "weights": "", "gates": [], "facts": {}}
    with pytest.raises(CheckpointError, match=f"{part}/model.safetensors: {name}: 1 of "):
        export.export(copy / "omni/final", tmp_path / "out", "omni", certificate)
    assert not (tmp_path / "out").exists()


def test_the_shard_is_named(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.tensor([1.0, math.nan])}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"b.safetensors: b: 1 of 2 numbers"):
        finite.demand_weights(tensors, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_numbers_are_numbers(dtype: torch.dtype) -> None:
    large = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert finite.bad({"large": large, "whole": torch.ones(3, dtype=torch.int64)}) == []
    finite.demand(large, nn.Linear(1, 1), "numbers")
    large[7] = math.nan
    assert finite.bad({"sound": torch.ones(3, dtype=dtype), "large": large}) == ["large"]


def test_opposite_infinities_do_not_cancel() -> None:
    assert finite.bad({"both": torch.tensor([math.inf, -math.inf])}) == ["both"]


# --- what networks give -------------------------------------------------------------------------------------------------------------------


def break_after_loading(network: nn.Module, name: str) -> None:
    """As weights that overflow in a narrow format would: sound when they were opened."""
    dict(network.named_parameters())[name].data.view(-1)[0] = math.nan


ASKED: dict[str, tuple[str, str, Any]] = {
    "thinker": (
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj",
        lambda e, m: e.answer("the", max_new=4),
    ),
    "omni": (
        "projectors.vision.weight",
        "projectors.vision",
        lambda e, m: e.answer("the", images=[m / "red.png"], max_new=4),
    ),
    "hearing": (
        "blocks.0.mlp.up_proj.weight",
        "blocks.0.mlp.up_proj",
        lambda e, m: e.transcribe([m / "high.wav"]),
    ),
}


@pytest.mark.parametrize("part", ASKED)
def test_the_module_where_it_begins_is_named(part: str, copy: Path, media: Path) -> None:
    engine = Engine.load(copy)
    name, module, ask = ASKED[part]
    break_after_loading(getattr(engine.parts, part), name)
    place = copy / ("hearing/final" if part == "hearing" else "omni/final")
    with pytest.raises(CheckpointError, match=f"first in module {module}$|first in module {module} ") as told:
        ask(engine, media)
    assert str(place) in told.value.message
    assert not any(part._forward_hooks for part in getattr(engine.parts, part).modules())


def test_many_answers_and_logits_and_embeddings_are_seen(copy: Path, media: Path) -> None:
    engine = Engine.load(copy)
    break_after_loading(engine.parts.thinker, "model.norm.weight")
    break_after_loading(engine.parts.vision[0], "proj.weight")
    for ask in (
        lambda: engine.answer_many(["the", "red"], max_new=4),
        lambda: engine.logits([[5, 6]]),
        lambda: engine.embed(images=[media / "red.png"]),
    ):
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            ask()


@pytest.mark.parametrize("part", ["talker", "codec"])
def test_speech_is_seen(part: str, copy: Path) -> None:
    engine = Engine.load(copy)
    break_after_loading(
        getattr(engine.parts.voice, part), "norm.weight" if part == "talker" else "to_mel.bias"
    )
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        engine.speak(["the red"])


def test_a_later_step_is_seen(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from muomni.models.stepper import Stepper

    engine = Engine.load(copy)
    assert len(engine.answer("the", max_new=4).token_ids) > 1, "or nothing is asked here"
    true = Stepper.read

    def poisoned(self: Stepper, x_BTD: Tensor, *given: Any, **how: Any) -> list[Tensor]:
        """Of the second token on, its scores are no numbers."""
        return [each * (math.nan if x_BTD.shape[1] == 1 else 1) for each in true(self, x_BTD, *given, **how)]

    monkeypatch.setattr(Stepper, "read", poisoned)
    with pytest.raises(CheckpointError, match="scores of token 1 are NaN"):
        engine.answer("the", max_new=4)


def test_networks_are_opened_as_before(copy: Path) -> None:
    """The look changes nothing."""
    for place, kind in (("thinker/final", Decoder), ("hearing/final", AudioEncoder)):
        network = store.load(copy / place)
        assert isinstance(network, kind)
        stored = load_file(copy / place / store.WEIGHTS)
        assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())
