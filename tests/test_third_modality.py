"""A third medium is a row in each room's table: "touch", a .npy file of pressures (S,), added from here
alone.

What it still needs is code that only it can bring: an encoder and a projector (here four lines), a class of
its part in data/sample.py (here made without validation), and ids in the vocabulary. See docs/modalities.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from muomni.data import conversation, template, trees
from muomni.data.check import media_stats
from muomni.data.check.media_stats import MediaStats
from muomni.data.conversation import Conversations, MediaReader, MediaSpec
from muomni.data.sample import Message, Sample, TextPart
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.evaluate import thresholds
from muomni.evaluate.vqa_evaluation import VqaEvaluation
from muomni.infer.engine import Engine
from muomni.infer.parts import Parts
from muomni.media import modality
from muomni.media.modality import MODALITIES, Modality
from muomni.models import omni as omnis
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.omni import MediaBatch, MediaInput, Omni, Projectors, ProjectorsConfig
from muomni.report import anatomy, explain, token_table
from muomni.report.anatomy import Subject
from muomni.report.html import h
from muomni.runtime import Runtime
from muomni.tokens import special_tokens
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.language import NextToken, collate

SAMPLES_A_TOKEN = 4
SPEC = MediaSpec()
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TouchPart:
    """What a class of data/sample.py would be."""

    path: str
    type: Literal["touch"] = "touch"


class Fingertip(nn.Module):
    """Encoder and projector of four samples a token: the code that a third medium can't do without."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projector = nn.Linear(SAMPLES_A_TOKEN, width)

    def forward(self, stack: MediaBatch) -> Tensor:
        assert stack.lengths_N is not None
        tokens_NTD = self.projector(stack.values_N.unflatten(1, (-1, SAMPLES_A_TOKEN)))
        return tokens_NTD[torch.arange(tokens_NTD.shape[1]) < (stack.lengths_N // SAMPLES_A_TOKEN)[:, None]]


def examined(part: TouchPart, source: str | bytes, name: str) -> MediaStats:
    values_S = np.load(str(part.path))
    return MediaStats(
        name, "touch", "digest", oddities=[] if values_S.any() else [("quiet", f"{name}: no pressure")]
    )


@pytest.fixture(autouse=True)
def touch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows."""
    rows = {
        "swap": lambda own, other: np.resize(other, own.shape),
        "blank": np.zeros_like,
        "noise": lambda own, rng: rng.normal(size=own.shape).astype(np.float32),
    }
    reader = MediaReader(
        read=lambda part, spec: np.load(part.path),
        key=lambda part: part.path,
        guess=lambda part, spec: 2,
        most=lambda spec: 8,
        fills=lambda values_S, spec: len(values_S) // SAMPLES_A_TOKEN,
    )
    entry = MediaInput(
        omnis.padded,
        encode=lambda omni, stack: omni.fingertip(stack),
        projector=lambda omni: getattr(getattr(omni, "fingertip", None), "projector", None),
        other=lambda values_NS: -values_NS,
    )
    monkeypatch.setitem(MODALITIES, "touch", Modality("texture", "fingertip", frozenset({".npy"}), **rows))
    monkeypatch.setitem(conversation.MEDIA_READERS, "touch", reader)
    monkeypatch.setitem(omnis.MEDIA_INPUTS, "touch", entry)
    monkeypatch.setitem(media_stats.EXAMINED, "touch", examined)
    monkeypatch.setitem(explain.ON_DISK, "touch", lambda part: h("p", f"{len(np.load(part.path))} pressures"))
    monkeypatch.setitem(anatomy.AS_READ, "touch", lambda values_S: h("p", f"{len(values_S)} pressures read"))


@pytest.fixture
def tokenizer() -> Iterator[Tokenizer]:
    """Of a vocabulary behind which three ids more are the marks of touch."""
    made = Tokenizer.train(["is it rough or smooth"] * 3, 280)
    first = made.vocab_size
    made.special_tokens = replace(
        made.special_tokens,
        media={**made.special_tokens.media, "touch": special_tokens.MediaTokens(first, first + 1, first + 2)},
        words_to=first,
    )
    return made


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Rough and smooth surfaces, by turns, of 8 to 20 pressures."""
    made = []
    for number in range(8):
        values_S = np.tile([1.0, -1.0] if number % 2 else [0.1, 0.1], 4 + 2 * (number % 4)).astype(np.float32)
        np.save(tmp_path / f"{number}.npy", values_S)
        parts: list[Any] = [
            TouchPart(str(tmp_path / f"{number}.npy")),
            TextPart(text="is it rough or smooth"),
        ]
        turn = Message.model_construct(role="user", content=parts)
        answer = Message(role="assistant", content="rough" if number % 2 else "smooth")
        made.append(Sample(id=str(number), group=str(number), task="touch", messages=[turn, answer]))
    return made


@pytest.fixture
def omni(tokenizer: Tokenizer) -> Omni:
    torch.manual_seed(0)
    decoder = Decoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size + 3,
            width=32,
            layers=1,
            heads=2,
            ffn_width=64,
            ctx_len=96,
            dropout=0.0,
        )
    )
    projectors = Projectors(ProjectorsConfig(width=32, vision_width=8, audio_width=None))
    made = Omni(decoder, None, None, projectors, tokenizer.special_tokens)
    made.fingertip = Fingertip(32)
    return made.eval()


def test_it_stands_in_a_chat_between_its_marks(tokenizer: Tokenizer, samples: list[Sample]) -> None:
    item = Conversations(samples, tokenizer, SPEC, 96).item(3, np.random.default_rng(0))
    own = tokenizer.special_tokens.media["touch"]
    assert item.ids[item.ids.index(own.start) :][:7] == [own.start, *[own.pad] * 5, own.end]
    assert item.media["touch"][0].shape == (20,)
    assert tokenizer.decode([label for label in item.labels if label >= 0][:-1]) == "rough"
    assert set(token_table.roles(item.ids, special_tokens=tokenizer.special_tokens)) == {
        "user",
        "assistant",
        "touch",
        "mark",
    }


def test_too_much_of_it_is_refused(tokenizer: Tokenizer, samples: list[Sample], tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.ones(36, np.float32))
    with pytest.raises(DataError, match="0: a texture fills 9 positions, at most 8"):
        Conversations(samples, tokenizer, SPEC, 96).item(0, np.random.default_rng(0))


def test_it_reaches_the_loss_and_its_projector_learns(
    tokenizer: Tokenizer, samples: list[Sample], omni: Omni
) -> None:
    rows = Conversations(samples, tokenizer, SPEC, 96)
    batch = collate([rows.item(index, np.random.default_rng(0)) for index in range(8)])
    objective = NextToken(omni.decoder, omni)
    (name, other), first = next(iter(objective.media_swaps(batch).items())), objective(batch)["text"].total
    assert name == "touch"
    assert float(objective(other)["text"].total.detach()) != float(first.detach())
    optimizer = torch.optim.Adam(omni.parameters(), lr=3e-3)
    for _ in range(60):
        term = objective(batch)["text"]
        (term.total / term.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(objective(batch)["misses"].total) == 0
    words = collate(
        [replace(rows.item(0, np.random.default_rng(0)), ids=[1, 20, 21], labels=[-100, 20, 21], media={})]
    )
    objective(words)["text"].total.backward()
    assert omni.fingertip.projector.weight.grad is not None, "absent, it still has a gradient"


def test_it_is_swapped_blanked_noised_and_answered(
    tokenizer: Tokenizer, samples: list[Sample], omni: Omni
) -> None:
    engine = Engine(
        Parts.live(
            CPU, thinker=omni.decoder, tokenizer=tokenizer, omni=omni, media=(SPEC, {"touch": "is it rough"})
        )
    )
    facts = VqaEvaluation(engine, 8, Runtime(CPU, torch.float32)).ablations(
        Conversations(samples, tokenizer, SPEC, 96)
    )
    names = ("correct", "swapped", "zero", "noise")
    assert len({facts[f"touch_nats_{name}"].value for name in names}) == 4
    assert all(gate.modality == "touch" and gate.fact in facts for gate in thresholds.ablation("touch"))
    assert engine.answer(samples[0]).finish in ("end", "length")
    silent = Message.model_construct(role="user", content=samples[0].messages[0].content[:1])
    alone = engine.prepare(samples[0].model_copy(update={"messages": [silent]}))
    assert tokenizer.decode(
        [token for token in alone.ids if tokenizer.special_tokens.is_word(token)]
    ).endswith("is it rough")


def test_it_is_checked_and_shown(tokenizer: Tokenizer, samples: list[Sample], tmp_path: Path) -> None:
    np.save(tmp_path / "quiet.npy", np.zeros(8, np.float32))
    found = media_stats.examine(TouchPart(str(tmp_path / "quiet.npy")))  # type: ignore[arg-type]
    assert (found.kind, found.oddities[0][0]) == ("touch", "quiet")
    batch = collate([Conversations(samples, tokenizer, SPEC, 96).item(3, np.random.default_rng(0))])
    blocks = dict(anatomy.language(Subject(batch, None, tokenizer, False)))
    assert "20 pressures read" in str(blocks["Texture 0 as the fingertip read it"])
    assert "8 pressures" in str(explain._shown(samples[0]))


def test_files_and_templates_know_it(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.zeros(8, np.float32))
    assert modality.of_suffix(".npy") == "touch"
    assert not trees.sounds_alone(tmp_path)
    source = Source(path="rows.jsonl", messages=[{"user": [{"touch": "{file}"}]}, {"assistant": "{word}"}])
    ((row, *_),) = template.Template(source).fill({"file": "0.npy", "word": "rough"})
    assert row["messages"][0]["content"] == [{"type": "touch", "path": "0.npy"}]
