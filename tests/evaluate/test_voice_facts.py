"""Facts about rows of speech and about the adapter, counted apart from what makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_higgs
from muomni.data.sample import AudioPart, parse
from muomni.data.voice_rows import VoiceRows, VoiceTokens
from muomni.evaluate import soundness, voice_evaluation
from muomni.models import lora
from muomni.models.higgs import Higgs
from muomni.models.lora import LoraSettings
from muomni.runtime import Runtime
from muomni.tokens import grid
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives import voice
from muomni.train.objectives.voice import VoiceObjective, collate
from muomni.train.settings import TrainSettings

pytest.importorskip("peft")

CONVERSATION: dict[str, Any] = {
    "id": "one",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "audio", "path": "ref.wav"}, {"type": "text", "text": "say it"}],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "it"}, {"type": "audio", "path": "said.wav"}],
        },
    ],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_higgs.saved(folder)
    return folder


def codes_of(part: AudioPart) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(part.path))
    return torch.randint(0, 32, (tiny_higgs.BOOKS, len(part.path)), generator=generator)


@pytest.fixture
def rows(base: Path) -> VoiceRows:
    words = Tokenizer.load(base)
    tokens = VoiceTokens.of(words, 32, 33, tiny_higgs.BOOKS)
    return VoiceRows([parse(CONVERSATION)], words, tokens, codes_of, 500)


def test_codes_stand_where_they_are_said(rows: VoiceRows) -> None:
    fact = voice_evaluation.labels(rows)["misplaced_codes"]
    # a reference of 7 frames and a target of 8, each framed by a start, an end and the books' delays
    assert (fact.value, fact.n) == (0, 8 * (7 + 9 + 8 + 9))


def test_one_code_in_another_place_is_counted_and_its_row_is_named(
    rows: VoiceRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = grid.framed

    def framed(codes_BKF: torch.Tensor, start: int, end: int) -> torch.Tensor:
        grid_BKS = true(codes_BKF, start, end)
        grid_BKS[0, 5, 7] = (grid_BKS[0, 5, 7] + 1) % 32
        return grid_BKS

    monkeypatch.setattr(grid, "framed", framed)
    fact = voice_evaluation.labels(rows)["misplaced_codes"]
    assert (fact.value, fact.note) == (2, "one")  # of each of the two sounds one


@pytest.mark.parametrize("groups", [["attn"], ["text_ffn"], ["attn", "text_ffn", "audio_ffn"]])
def test_an_adapter_on_its_groups_has_no_gaps(base: Path, groups: list[str]) -> None:
    model = Higgs.open(base)
    lora.attach(model, LoraSettings(r=2, targets=model.targets(groups)))
    fact = voice_evaluation.adapter(model, groups)["adapter_gaps"]
    assert (fact.value, fact.n) == (0, 2 * 10 + 2)  # the heads are looked at too


@pytest.mark.parametrize(
    ("asked", "attached", "gaps", "told"),
    [
        (["attn", "audio_ffn"], ["attn"], 6, "audio_mlp.down_proj has none"),
        (["attn"], ["attn", "text_ffn"], 6, "mlp.down_proj has one"),
        (["audio_ffn"], ["text_ffn"], 12, "audio_mlp.down_proj has none"),
    ],
)
def test_layers_that_lack_the_adapter_or_have_it_unasked_are_counted(
    base: Path, asked: list[str], attached: list[str], gaps: int, told: str
) -> None:
    model = Higgs.open(base)
    lora.attach(model, LoraSettings(r=2, targets=model.targets(attached)))
    fact = voice_evaluation.adapter(model, asked)["adapter_gaps"]
    assert fact.value == gaps
    assert told in fact.note


def test_an_adapter_on_a_head_is_a_gap(base: Path) -> None:
    peft = pytest.importorskip("peft")
    model = Higgs.open(base)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules="all-linear"), model.adapted)
    fact = voice_evaluation.adapter(model, ["attn", "text_ffn", "audio_ffn"])["adapter_gaps"]
    assert fact.value == 2
    assert "audio_lm_head has one" in fact.note


@pytest.mark.parametrize("book", [0, 4, 7])
@pytest.mark.parametrize(("turn", "leaks"), [(1, True), (-1, False)])
def test_each_book_is_asked_whether_it_is_shifted_once(
    base: Path, rows: VoiceRows, monkeypatch: pytest.MonkeyPatch, book: int, turn: int, leaks: bool
) -> None:
    """One book of eight that is asked a step early copies; one that is asked a step late does not depend on what stands
    before."""
    true = voice.targets_of_codes

    def rolled(batch: Any) -> list[torch.Tensor]:
        return [each.roll(turn, -1) if k == book else each for k, each in enumerate(true(batch))]

    monkeypatch.setattr(voice, "targets_of_codes", rolled)
    row = rows.row(rows.samples[0])
    batch = collate([row, row], rows.tokens.pad)
    run = Runtime(torch.device("cpu"), torch.float32)
    loader: Any = None
    bench = soundness.Bench(VoiceObjective(Higgs.open(base)), [row, row], batch, loader, run, TrainSettings())
    facts = soundness.past_and_future(bench)
    if leaks:
        assert facts["future_leak"].value > 1e-3
    else:
        assert facts["past_seen"].value < 1
    assert facts["past_seen"].n > tiny_higgs.BOOKS + 3
    assert np.isfinite(facts["future_leak"].value)
