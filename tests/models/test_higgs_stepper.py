"""Steps of speech by the stepper say what the library's body says, with and without an adapter, and are never stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_higgs
from muomni.errors import ContextError, InternalError
from muomni.models import lora, stepper
from muomni.models.causal import CausalLM
from muomni.models.higgs import Higgs
from muomni.models.higgs_stepper import HiggsStepper
from muomni.models.lora import LoraSettings

BOOKS = tiny_higgs.BOOKS
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 0.125,
    "high_freq_factor": 0.5, "original_max_position_embeddings": 64,
}  # fmt: skip


def opened(folder: Path, **changes: Any) -> Higgs:
    tiny_higgs.saved(folder, **changes)
    return Higgs.open(folder)


@pytest.fixture
def model(tmp_path: Path) -> Higgs:
    return opened(tmp_path)


def prompt(model: Higgs, rows: int = 2) -> Tensor:
    """Words, then a sound of 4 steps, then words again: (rows, 1 + K, 14)."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 250, (rows, 14), generator=draw)
    codes = torch.full((rows, BOOKS, 14), -1)
    ids[:, 5:9] = model.placeholders[0]
    codes[..., 5:9] = torch.randint(0, 32, (rows, BOOKS, 4), generator=draw)
    return torch.cat([ids[:, None], codes], 1)


def steps(model: Higgs, count: int, rows: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(4)
    place = torch.full((rows, 1, 1), model.placeholders[0])
    return [
        torch.cat([place, torch.randint(0, 34, (rows, BOOKS, 1), generator=draw)], 1) for _ in range(count)
    ]


@torch.inference_mode()
def scores(model: Higgs, read: Any, count: int = 6, keep_BT: Tensor | None = None) -> list[list[Tensor]]:
    """What is read off the prompt and each step behind it, by stream."""
    asked = prompt(model)
    cache = model.beside(asked, count)
    out = [read(model.embed(asked), cache, keep_BT)]
    return out + [read(model.embed(column), cache, None) for column in steps(model, count)]


def compare(model: Higgs, keep_BT: Tensor | None = None, legal: Any = None) -> None:
    """The stepper's scores against those of the library's body."""
    assert HiggsStepper.fits(model)
    ours = scores(model, model.reading(legal), keep_BT=keep_BT)
    theirs = scores(model, CausalLM.reading(model, legal), keep_BT=keep_BT)
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == 1 + BOOKS
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_steps_are_those_of_the_librarys_body(model: Higgs) -> None:
    compare(model)


def test_scaled_positions_are_the_librarys(tmp_path: Path) -> None:
    compare(opened(tmp_path, rope_parameters=LLAMA3))


def test_rows_padded_on_the_left_go_on_as_if_alone(model: Higgs) -> None:
    keep_BT = torch.ones(2, 14, dtype=torch.bool)
    keep_BT[1, :3] = False
    compare(model, keep_BT)


def test_only_legal_symbols_are_scored(model: Higgs) -> None:
    place = model.placeholders[0]
    compare(model, legal=[(range(place, place + 1),), (range(5), range(32, 34)), *[None] * (BOOKS - 1)])


def test_an_adapter_is_heard_and_weights_that_change_are_taken_anew(model: Higgs) -> None:
    before = scores(model, model.reading())
    first = stepper.kept(model, HiggsStepper)
    assert stepper.kept(model, HiggsStepper) is first
    lora.attach(model, LoraSettings(r=2, targets=model.targets(["attn", "audio_ffn"]))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    compare(model)
    after = scores(model, model.reading())
    assert (after[-1][3] - before[-1][3]).abs().max() > 1e-2
    with torch.no_grad():
        model.network.audio_lm_head.weight.mul_(2)
    compare(model)
    assert (scores(model, model.reading())[-1][3] - 2 * after[-1][3]).abs().max() < 1e-3


def test_training_gives_its_memory_back(model: Higgs) -> None:
    model.reading()
    assert model.body in stepper._KEPT
    model.train()
    assert model.body not in stepper._KEPT


def test_layers_that_it_does_not_know_are_read_by_the_library(tmp_path: Path) -> None:
    model = opened(tmp_path, hidden_act="gelu")
    assert not HiggsStepper.fits(model)
    model.reading()
    assert model.body not in stepper._KEPT
    assert len(scores(model, model.reading())) == 7


def test_a_cache_says_where_it_ends_and_serves_one_way_of_reading(model: Higgs) -> None:
    asked = prompt(model)
    read = model.reading()
    with torch.inference_mode():
        cache = model.beside(asked, 2)
        read(model.embed(asked), cache, None)
        for number, column in enumerate(steps(model, 2)):
            read(model.embed(column), cache, None)
            assert cache.length == 14 + number + 1
        with pytest.raises(ContextError, match="holds 16 positions"):
            read(model.embed(column), cache, None)
        with pytest.raises(InternalError):
            model.hidden(model.embed(column), cache=cache)
