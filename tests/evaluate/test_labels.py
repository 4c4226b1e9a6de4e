"""What a whole training set teaches: cut answers, rows that can't fit, and rows without labels are counted,
no picture is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.data import conversation
from muomni.data.conversation import Conversations, MediaSpec, prepare, rendered
from muomni.data.sample import Sample, parse
from muomni.errors import DataError
from muomni.evaluate import labels
from muomni.evaluate.gates import judge
from muomni.evaluate.thresholds import COVERAGE
from muomni.media.mel import MelSpec
from muomni.tokens.bpe import Tokenizer

SPEC = MediaSpec(image_size=32, image_tokens=4, mel=MelSpec(), audio_pool=2, max_audio_tokens=64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["abcdefgh"], 280)


def asks(name: str, answer: str, *, path: str = "no_such_file.png", kind: str = "image") -> Sample:
    content = [{"type": kind, "path": path}, {"type": "text", "text": "x" * 4}]
    return parse(
        {
            "id": name,
            "group": name,
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        }
    )


def of(samples: list[Sample], tokenizer: Tokenizer, ctx_len: int = 40, **more: Any) -> Conversations:
    return Conversations(samples, tokenizer, SPEC, ctx_len, **more)


def test_whatever_is_cut_or_left_out_is_counted(tokenizer: Tokenizer) -> None:
    samples = [
        asks("fits", "y" * 10),
        asks("cut", "y" * 30),
        asks("left out", "y" * 90),
        parse({"id": "long", "text": "z" * 90}),
    ]
    facts = labels.whole(of(samples, tokenizer), tokenizer)
    assert (facts["truncated_share"].value, facts["truncated_share"].n) == (0.75, 4)
    assert facts["truncated_share"].note == "cut, left out, long"
    assert facts["zero_label_rows"].value == 0
    taught = [of(samples, tokenizer).tokenizer.encode("y" * 10)]
    assert facts["label_tokens_mean"].n == 3
    fits = labels.whole(of(samples[:1], tokenizer), tokenizer)
    assert fits["label_tokens_mean"].value == len(taught[0]) + 1, "the words and their end"
    assert [row.verdict for row in judge(COVERAGE, fits)] == ["green", "green"]
    assert [row.verdict for row in judge(COVERAGE, facts)] == ["red", "green"]


def test_the_share_is_that_of_what_the_loader_sees(tokenizer: Tokenizer, media: Path) -> None:
    samples = [asks(f"{n}", "y" * n, path=str(media / "red.png")) for n in range(1, 60)]
    dataset, cut = of(samples, tokenizer), 0
    for index, sample in enumerate(samples):
        try:
            said = tokenizer.decode(
                [
                    i
                    for i in dataset.item(index, np.random.default_rng(0)).labels
                    if tokenizer.special_tokens.is_word(i)
                ]
            )
            cut += said != sample.answer
        except DataError:
            cut += 1
    assert 0 < cut < 59
    assert labels.whole(dataset, tokenizer)["truncated_share"].value == cut / 59


def test_rows_without_labels_are_named(tokenizer: Tokenizer) -> None:
    mute = parse({"id": "mute", "messages": [{"role": "user", "content": "x"}]})
    facts = labels.whole(of([mute, asks("a", "y")], tokenizer), tokenizer)
    assert (facts["zero_label_rows"].value, facts["zero_label_rows"].note) == (1.0, "mute")
    assert [row.verdict for row in judge(COVERAGE, facts)] == ["green", "red"]


def test_no_picture_is_read_and_sounds_are(
    tokenizer: Tokenizer, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "read_picture", lambda *_: pytest.fail("a picture was read"))
    heard = [
        asks(name, "y", path=str(media / f"{name}.wav"), kind="audio") for name in ("high", "low", "broken")
    ]
    short, long = (len(prepare(sample, tokenizer, SPEC, 200).ids) for sample in heard[:2])
    assert short < long
    facts = labels.whole(of([asks("a", "y"), *heard], tokenizer, short), tokenizer)
    assert (facts["truncated_share"].value, facts["truncated_share"].n) == (1 / 3, 3), (
        "what can't be read is left to the loader"
    )
    assert facts["truncated_share"].note == "low"


def test_beyond_most_it_is_thinned_evenly(tokenizer: Tokenizer) -> None:
    samples = [asks(str(n), "y" * (1 if n < 500 else 90)) for n in range(1000)]
    facts = labels.whole(of(samples, tokenizer), tokenizer, most=100)
    assert (facts["truncated_share"].value, facts["truncated_share"].n) == (0.5, 100)


def test_nothing_measured_is_red(tokenizer: Tokenizer) -> None:
    facts = labels.whole(of([asks("a", "y", path="no.wav", kind="audio")], tokenizer), tokenizer)
    assert {row.verdict for row in judge(COVERAGE, facts)} == {"red"}


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("reply", [False, True])
def test_rendering_is_what_prepare_does_but_for_media(
    tokenizer: Tokenizer, media: Path, apart: bool, reply: bool
) -> None:
    content = [{"type": "image", "path": str(media / "red.png")}, {"type": "text", "text": "x"}]
    more = [
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "z"},
        {"role": "assistant", "content": "w"},
    ]
    sample = parse({"messages": [{"role": "user", "content": content}, *more]})
    whole = prepare(sample, tokenizer, SPEC, 200, reply=reply, apart=apart)
    bare = rendered(sample, tokenizer, SPEC, 200, reply=reply, apart=apart)
    assert (bare.ids, bare.labels, bare.shared, bare.starts) == (
        whole.ids,
        whole.labels,
        whole.shared,
        whole.starts,
    )
    assert (len(whole.media["image"]), bare.media) == (1, {})
