"""Counts against a hand's: every kind of batch agrees, numbers typed here from its rows included, and each
miscount is seen by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from muomni.data.batch import SequenceBatch
from muomni.data.conversation import Item
from muomni.data.corpus import Row
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.evaluate import counting, soundness, thresholds
from muomni.evaluate.soundness import Bench
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.codec import Codec, CodecConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from muomni.models.omni import Omni, Projectors, ProjectorsConfig
from muomni.models.talker import Talker, TalkerConfig
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.nn import masks
from muomni.runtime import Runtime
from muomni.tokens.chat import IGNORE
from muomni.tokens.special_tokens import SPECIAL
from muomni.train.objective import Objective
from muomni.train.objectives import ctc
from muomni.train.objectives.codec import CodecBatch, CodecObjective
from muomni.train.objectives.contrast import Contrast, VisionBatch
from muomni.train.objectives.image_codec import ImageCodecBatch, ImageCodecObjective
from muomni.train.objectives.language import NextToken, collate, collate_rows
from muomni.train.objectives.talker import TalkerItem, TalkerObjective
from muomni.train.objectives.talker import collate as collate_speech
from muomni.train.settings import TrainSettings

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32}
Made = tuple[Objective, Any, dict[str, float], dict[str, float]]  # objective, batch, targets, contents


def decoder() -> Decoder:
    return Decoder(DecoderConfig(vocab_size=40, ctx_len=32, dropout=0.0, **SMALL))


def packed() -> Made:
    """Two documents of 3 and 2, and one of 4: the first of each has nothing before it. Padding makes 6 of
    each row."""
    rows = [("a", [20, 21, 22, 30, 31], [0, 0, 0, 1, 1]), ("b", [20, 21, 22, 23], [0, 0, 0, 0])]
    padded = []
    for name, ids, documents in rows:
        more = 6 - len(ids)
        labels = np.array([*ids, *[IGNORE] * more])
        row = Row(np.array([*ids, *[0] * more]), labels, np.array([*documents, *[-1] * more]))
        padded.append((name, row))
    return (
        NextToken(decoder()),
        collate_rows(padded),
        {"text": 6, "misses": 6},
        {"samples": 2, "tokens": 9, "labels": 6},
    )


def questions() -> Made:
    """A shared beginning of 2, and two questions of 3 and 2 upon it, their last two and one learned; and a
    plain row."""
    apart = Item("a", "t", list(range(20, 27)), [IGNORE, IGNORE, IGNORE, 23, 24, IGNORE, 26], {}, 2, [2, 5])
    plain = Item("b", "t", [20, 21, 22], [IGNORE, 21, 22])
    batch = collate([apart, plain])
    assert batch.documents_BT is not None
    assert (batch.documents_BT == masks.SHARED).any()
    return NextToken(decoder()), batch, {"text": 5, "misses": 5}, {"samples": 2, "tokens": 10, "labels": 5}


def fused() -> Made:
    """A picture, two sounds of 8 and 12 mel frames (at 100 a second), and a row of text."""
    body = decoder()
    eyes = VisionEncoder(VisionEncoderConfig(image_size=16, patch_size=8, embed_dim=8, **SMALL))
    ears = AudioEncoder(AudioEncoderConfig(channels=2, **SMALL))
    model = Omni(body, eyes, ears, Projectors(ProjectorsConfig(width=16, vision_width=16, audio_width=16)))  # type: ignore[arg-type]
    picture = np.zeros((16, 16, 3), np.uint8)
    sounds = [np.zeros((frames, 128), np.float32) for frames in (8, 12)]
    items = [
        Item("a", "t", [SPECIAL.image_pad, 20, 21], [IGNORE, IGNORE, 21], {"image": [picture]}),
        Item("b", "t", [*[SPECIAL.audio_pad] * 5, 30], [*[IGNORE] * 5, 30], {"audio": sounds}),
        Item("c", "t", [20, 21], [IGNORE, 21]),
    ]
    contents = {"samples": 3, "tokens": 11, "labels": 3, "pictures": 1, "audio_s": 0.2}
    return NextToken(body, model), collate(items), {"text": 3, "misses": 3}, contents


def hearing() -> Made:
    encoder = AudioEncoder(AudioEncoderConfig(channels=2, **SMALL))
    mels = [torch.randn(frames, 128) for frames in (40, 60)]
    return (
        ctc.Hearing(encoder),
        ctc.collate(["a", "b"], mels, [[3, 4], [5, 6, 7]]),
        {"ctc": 5},
        {"samples": 2, "audio_s": 1.0, "labels": 5},
    )


def codec() -> Made:
    """Clips of 16 and 20 frames: 2 and 3 codes at 8 frames a code."""
    model = Codec(
        CodecConfig(codebook_size=8, width=16, latent_width=4, blocks=1, fine_width=8, fine_blocks=1)
    )
    bins = model.config.mel.num_mels
    batch = CodecBatch(["a", "b"], torch.randn(2, 20, bins), torch.tensor([16, 20]))
    terms = {"l1": 36 * bins, "mse": 36 * bins, "delta": 34 * bins, "commitment": 5}
    return CodecObjective(model), batch, terms, {"samples": 2, "audio_s": 0.36}


def image_codec() -> Made:
    model = ImageCodec(ImageCodecConfig(image_size=16, width=8, fine_width=8))
    batch = ImageCodecBatch(["a", "b"], torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    return ImageCodecObjective(model), batch, {"l1": 1536, "mse": 1536}, {"samples": 2, "pictures": 2}


def talker() -> Made:
    model = Talker(TalkerConfig(text_vocab=30, codebooks=2, codebook_size=8, **SMALL))
    items = [
        TalkerItem("a", [3, 4], torch.zeros(2, 5, dtype=torch.int64)),
        TalkerItem("b", [3, 4, 5], torch.zeros(2, 7, dtype=torch.int64)),
    ]
    contents = {"samples": 2, "tokens": 5, "code_frames": 12}
    return TalkerObjective(model), collate_speech(items, model.config), {"book0": 14, "book1": 12}, contents


def contrast() -> Made:
    """Captions of 3 tokens (one twice) and 2; the first picture has a false caption of 3."""
    eyes = VisionEncoder(VisionEncoderConfig(image_size=16, patch_size=8, embed_dim=8, **SMALL))
    words = TextTower(TextTowerConfig(kind="bow", vocab_size=30, width=16, embed_dim=8))
    keep = torch.tensor([[True, True, True], [True, True, False]])
    false = torch.tensor([[[5, 6, 9]], [[0, 0, 0]]])
    batch = VisionBatch(
        ["a", "b"],
        torch.zeros(2, 16, 16, 3, dtype=torch.uint8),
        torch.tensor([[5, 6, 5], [7, 8, 0]]),
        keep,
        torch.tensor([0, 1]),
        false,
        false > 0,
    )
    return (
        Contrast(eyes, words, word_weight=1.0),
        batch,
        {"contrast": 2, "words": 4},
        {"samples": 2, "pictures": 2, "tokens": 8},
    )


KINDS = [packed, questions, fused, hearing, codec, image_codec, talker, contrast]


def checked(objective: Objective, batch: Any) -> Any:
    objective.warm_start(batch)
    none: Any = Loader([], Order([1], batch_size=1, seed=0), lambda items: items)  # type: ignore[arg-type]
    return soundness.counts(Bench(objective.eval(), [], batch, none, CPU, TrainSettings()))


@pytest.mark.parametrize("make", KINDS)
def test_a_hand_counts_what_is_typed_here_and_what_the_objective_says(make: Callable[[], Made]) -> None:
    objective, batch, targets, contents = make()
    by_hand = counting.by_hand(objective, batch)
    assert by_hand is not None
    assert by_hand[0] == targets
    assert by_hand[1] == pytest.approx(contents)
    assert objective.counts(batch) == targets
    assert objective.contents(batch) == pytest.approx(contents)
    fact = checked(objective, batch)["count_error"]
    assert (fact.value, fact.note) == (0.0, "")
    assert fact.n == 2 * len(targets) + len(contents)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("method", ["counts", "contents"])
def test_each_number_that_is_doubled_is_seen_by_its_name(make: Callable[[], Made], method: str) -> None:
    objective, batch, *_ = make()
    true = getattr(objective, method)
    for name in true(batch):
        setattr(objective, method, lambda given, name=name: {**true(given), name: 2 * true(given)[name]})
        fact = checked(objective, batch)["count_error"]
        assert fact.value >= 1
        assert name in fact.note


def test_targets_given_twice_are_seen_though_they_were_announced_so() -> None:
    class Twice(NextToken):
        def counts(self, batch: SequenceBatch) -> dict[str, int]:
            return {name: 2 * count for name, count in super().counts(batch).items()}

        def forward(self, batch: SequenceBatch) -> Any:
            terms = super().forward(batch)
            for term in terms.values():
                term.count *= 2
            return terms

    _, batch, *_ = packed()
    fact = checked(Twice(decoder()), batch)["count_error"]
    assert fact.value == 4
    assert "text announced: 12 for 6" in fact.note


def test_an_objective_that_nobody_counted_for_has_no_fact_and_a_red_gate() -> None:
    class Other(Objective):
        pass

    assert counting.by_hand(Other(), None) is None
    assert soundness.counts(Bench(Other(), [], None, None, CPU, TrainSettings())) == {}  # type: ignore[arg-type]
    assert "counts" in {gate.name for gate in thresholds.START}
