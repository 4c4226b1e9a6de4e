"""The objective of stage voice under accumulation: four rows one by one are four rows at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import CPU, settings

import tiny_higgs
from muomni.data.sample import AudioPart, parse
from muomni.data.voice_rows import VoiceRow, VoiceTokens, render
from muomni.models import lora
from muomni.models.higgs import Higgs
from muomni.models.lora import LoraSettings
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.voice import VoiceObjective, collate
from muomni.train.step import StepResult, update

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_higgs.saved(folder)
    return folder


def codes_of(part: AudioPart) -> torch.Tensor:
    frames = int(Path(part.path).stem)
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 32, (tiny_higgs.BOOKS, frames), generator=generator)


@pytest.fixture
def rows(base: Path) -> list[VoiceRow]:
    """Of unlike words and sounds, some with a reference."""
    words = Tokenizer.load(base)
    tokens = VoiceTokens.of(words, 32, 33, tiny_higgs.BOOKS)

    def sound(frames: int) -> dict[str, Any]:
        return {"type": "audio", "path": f"{frames}.wav"}

    made = []
    for number, (text, heard, said) in enumerate(
        [("a", 0, 3), ("a few words", 9, 12), ("more", 0, 30), ("", 5, 7)]
    ):
        content = [*([sound(heard)] if heard else []), {"type": "text", "text": f"say {text}"}]
        answer = [{"type": "text", "text": text}, sound(said)]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        made.append(render(parse({"id": str(number), "messages": turns}), words, tokens, codes_of))
    return made


def tuned(base: Path, micro: list[list[VoiceRow]]) -> tuple[VoiceObjective, StepResult]:
    """The objective after one update by plain steps, whose sizes show the gradients."""
    model = Higgs.open(base)
    torch.manual_seed(0)
    lora.attach(
        model, LoraSettings(r=4, dropout=0.0, targets=model.targets(["attn", "text_ffn", "audio_ffn"]))
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # else A gets no gradient yet
                weight.normal_(0, 0.02)
    objective = VoiceObjective(model)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batches = [collate(some, 0) for some in micro]
    return objective, update(objective, objective, optimizer, scaler, batches, settings(), CPU)


@pytest.mark.parametrize("pieces", [[[0], [1], [2], [3]], [[2, 0], [1, 3]], [[0, 1, 2], [3]]])
def test_four_rows_in_pieces_are_four_rows_at_once(
    base: Path, rows: list[VoiceRow], pieces: list[list[int]]
) -> None:
    """1 x 4 = 4 x 1, to 1e-6, though rows have unlike numbers of words, of codes and of padding."""
    assert len({len(row.ids) for row in rows}) == len({row.frames for row in rows}) == 4
    one, at_once = tuned(base, [rows])
    other, pieced = tuned(base, [[rows[place] for place in piece] for piece in pieces])
    assert not at_once.skipped
    assert pieced.counts == at_once.counts
    assert pieced.loss == pytest.approx(at_once.loss, abs=1e-6)
    trained = {name: p for name, p in one.named_parameters() if p.requires_grad}
    for name, weight in trained.items():
        torch.testing.assert_close(other.get_parameter(name), weight, atol=1e-6, rtol=0)
    start = tuned(base, [[rows[0]]])[0]
    moved = max(float((start.get_parameter(name) - p).detach().abs().max()) for name, p in trained.items())
    assert moved > 1e-3, "another batch gives other weights"
