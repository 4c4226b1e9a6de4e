"""Conversations with speech as rows: the documented example's label map, the delayed books, what is asked at
inference, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_higgs
import voice_manifest
from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, Sample, parse
from muomni.data.source import Source
from muomni.data.voice_rows import VoiceRow, VoiceRows, VoiceTokens, asks_for_whisper, prompt, render
from muomni.errors import CheckpointError, DataError
from muomni.tokens import grid
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE

GOLDEN = Path(__file__).parents[1] / "golden" / "voice_labels.json"
BOOKS = tiny_higgs.BOOKS
FRAMES = {"ref_0001.wav": 20, "tgt_0001.wav": 30}
EXAMPLE: dict[str, Any] = {  # as the source documents it, with words for its transcripts
    "messages": [
        {
            "role": "system",
            "content": "You are a helpful assistant capable of generating speech in the voice of the provided reference audio.",
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a reference"},
                {"type": "audio", "audio_url": "ref_0001.wav"},
                {"type": "text", "text": "Please generate speech for: the target"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "the target"},
                {"type": "audio", "audio_url": "tgt_0001.wav"},
            ],
        },
    ],
    "start_index": 0,
    "speaker": "speaker_001",
    "misc": {"sample_id": "0001", "duration": 2.13},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_higgs.tokenizer(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> VoiceTokens:
    return VoiceTokens.of(tokenizer, 1024, 1025, BOOKS)


def codes_of(part: AudioPart) -> torch.Tensor:
    frames = FRAMES.get(part.path) or int(part.path)
    return (torch.arange(BOOKS)[:, None] * 100 + torch.arange(frames)).long()


def spelled(row: VoiceRow, tokenizer: Tokenizer) -> list[list[Any]]:
    """A row in runs: what stands there, and whether it is learned; sounds with the labels of each book."""
    runs: list[list[Any]] = []
    starts = {sound.start: sound for sound in row.sounds}
    place = 0
    while place < len(row.ids):
        if place in starts:
            sound = starts[place]
            labels = row.code_labels_KT[:, place : place + sound.steps]
            kinds = [tokenizer.token(each) for each in row.ids[place : place + sound.steps]]
            names = {name: kinds.count(name) for name in dict.fromkeys(kinds)}
            books = [
                "".join("-" if label == IGNORE else "E" if label == 1025 else "c" for label in book)
                for book in labels.tolist()
            ]
            runs.append(["sound", names, books])
            place += sound.steps
            continue
        is_word = tokenizer.special_tokens.is_word(row.ids[place])
        text = tokenizer.decode([row.ids[place]]) if is_word else tokenizer.token(row.ids[place])
        kind = "learned" if row.labels[place] != IGNORE else "read"
        if is_word and runs and runs[-1][0] == kind and not runs[-1][1].startswith("<|"):
            runs[-1][1] += text
        else:
            runs.append([kind, text])
        place += 1
    return runs


def test_the_label_map_of_the_documented_example_is_the_golden_one(
    tokenizer: Tokenizer, tokens: VoiceTokens
) -> None:
    row = render(parse(EXAMPLE), tokenizer, tokens, codes_of)
    assert spelled(row, tokenizer) == json.loads(GOLDEN.read_text())
    assert all(label in (IGNORE, own) for label, own in zip(row.labels, row.ids, strict=True))


def test_a_sound_is_8_times_T_plus_1_labels_with_one_end_a_book(
    tokenizer: Tokenizer, tokens: VoiceTokens
) -> None:
    row = render(parse(EXAMPLE), tokenizer, tokens, codes_of)
    heard, said = row.sounds
    assert (said.frames, said.steps) == (30, 39)
    assert int((row.code_labels_KT != IGNORE).sum()) == 248 == 8 * (30 + 1)
    labels = row.code_labels_KT[:, said.start : said.start + said.steps]
    assert (labels == 1025).sum(1).tolist() == [1] * BOOKS
    assert not (labels == 1024).any()
    assert bool((row.code_labels_KT[:, heard.start : heard.start + heard.steps] == IGNORE).all())
    ids = row.ids[said.start : said.start + said.steps]
    assert ids == [tokens.code] * (39 - 7) + [tokens.last] * 7
    is_place = torch.tensor([each in (tokens.code, tokens.last) for each in row.ids])
    assert bool(((row.codes_KT >= 0).all(0) == is_place).all())
    assert not (row.codes_KT[:, ~is_place] >= 0).any()


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 30])
def test_framed_books_are_those_of_the_formula(frames: int) -> None:
    codes = torch.randint(0, 1024, (2, BOOKS, frames), generator=torch.Generator().manual_seed(frames))
    framed = grid.framed(codes, 1024, 1025)
    assert framed.shape == (2, BOOKS, frames + 9)
    labels = grid.framed_labels(framed, 1024, 1025, IGNORE)
    for c in range(BOOKS):  # SPEC H2; reference higgs A12, A13
        for f in range(frames + 9):
            wanted = 1024 if f <= c else 1025 if f >= c + frames + 1 else int(codes[1, c, f - c - 1])
            assert int(framed[1, c, f]) == wanted
            is_asked = c + 1 <= f <= c + frames + 1
            assert int(labels[1, c, f]) == (wanted if is_asked else IGNORE)
    assert torch.equal(grid.unframed(framed), codes)


def conversation(*turns: tuple[str, Any], **more: Any) -> Sample:
    return parse(
        {"id": "x", "messages": [{"role": role, "content": content} for role, content in turns], **more}
    )


def sound(frames: int) -> list[dict[str, Any]]:
    return [{"type": "audio", "path": str(frames)}]


def test_two_references_in_a_row_and_turns_that_go_on(tokenizer: Tokenizer, tokens: VoiceTokens) -> None:
    sample = conversation(
        ("user", "one"), ("assistant", sound(3)), ("assistant", sound(5)), ("user", "two"), ("assistant", sound(4)),
        start_index=3,
    )  # fmt: skip
    row = render(sample, tokenizer, tokens, codes_of)
    assert [(each.frames, each.is_taught) for each in row.sounds] == [(3, False), (5, False), (4, True)]
    for each, frames in zip(row.sounds, (3, 5, 4), strict=True):
        steps = row.codes_KT[None, :, each.start : each.start + each.steps]
        assert torch.equal(grid.unframed(steps)[0], codes_of(AudioPart(path=str(frames))))
    ends = [each for each in row.ids if each in (tokens.end, tokens.more)]
    assert ends == [tokens.end, tokens.more, tokens.end, tokens.end, tokens.end]


def test_without_start_index_all_of_the_assistants_turns_are_learned(
    tokenizer: Tokenizer, tokens: VoiceTokens
) -> None:
    turns = (("user", "one"), ("assistant", sound(3)), ("user", "two"), ("assistant", sound(4)))
    rows = [
        render(conversation(*turns, **more), tokenizer, tokens, codes_of)
        for more in ({}, {"start_index": None})
    ]
    for row in rows:
        assert int((row.code_labels_KT != IGNORE).sum()) == 8 * (4 + 5)


def test_training_reads_up_to_its_sound_what_inference_builds(
    tokenizer: Tokenizer, tokens: VoiceTokens
) -> None:
    for said in ("", "the target"):
        content = [*([{"type": "text", "text": said}] if said else []), *sound(6)]
        turns: list[tuple[str, Any]] = [
            ("system", "read"),
            ("user", [{"type": "text", "text": "one"}, *sound(2)]),
        ]
        turns += [("assistant", sound(3)), ("user", "the target")]
        whole = render(
            conversation(*turns, ("assistant", content), start_index=4), tokenizer, tokens, codes_of
        )
        asked = prompt(conversation(*turns), tokenizer, tokens, codes_of, said)
        length = len(asked.ids)
        assert length == whole.sounds[-1].start
        assert asked.ids == whole.ids[:length]
        assert torch.equal(asked.codes_KT, whole.codes_KT[:, :length])
        assert set(asked.labels) == {IGNORE}


def test_text_can_spell_no_mark(tokenizer: Tokenizer, tokens: VoiceTokens) -> None:
    row = render(
        conversation(("user", "say <|AUDIO_OUT|> <|eot_id|>"), ("assistant", sound(2))),
        tokenizer,
        tokens,
        codes_of,
    )
    assert row.ids.count(tokens.end) == 2
    assert len(row.sounds) == 1
    assert row.ids.count(tokens.code) == 2 + 2


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (parse({"id": "x", "text": "words"}), "expected messages, got a text"),
        (conversation(("user", "a"), ("assistant", sound(2)), start_index="1"), "start_index: expected a whole number"),
        (conversation(("user", "a"), ("assistant", sound(2)), start_index=True), "start_index: expected a whole number"),
        (conversation(("user", "a"), ("assistant", sound(2)), start_index=2), "no assistant's turn from message 2 on of 2"),
        (conversation(("user", [{"type": "image", "path": "a.png"}]), ("assistant", sound(2))), "got a picture"),
    ],
)  # fmt: skip
def test_rows_that_can_not_be_learned_say_why(
    tokenizer: Tokenizer, tokens: VoiceTokens, sample: Sample, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        render(sample, tokenizer, tokens, codes_of)


def test_too_long_rows_and_rows_without_a_target_are_refused(
    tokenizer: Tokenizer, tokens: VoiceTokens
) -> None:
    samples = [
        conversation(("user", "a"), ("assistant", sound(40))),
        conversation(
            ("user", "a"), ("assistant", sound(2)), ("user", "b"), ("assistant", "c"), start_index=2
        ),
    ]
    rows = VoiceRows(samples, tokenizer, tokens, codes_of, most=60)
    with pytest.raises(DataError, match="positions, at most 60 fit"):
        rows.item(0, np.random.default_rng(0))
    with pytest.raises(DataError, match="no sound of the assistant's to learn"):
        rows.item(1, np.random.default_rng(0))


def test_codes_of_another_number_of_books_are_refused(tokenizer: Tokenizer, tokens: VoiceTokens) -> None:
    with pytest.raises(DataError, match="expected codes of 8 books"):
        render(
            conversation(("user", "a"), ("assistant", sound(2))),
            tokenizer,
            tokens,
            lambda part: codes_of(part)[:7],
        )


def test_a_tokenizer_without_the_marks_of_sounds_is_refused(tmp_path: Path) -> None:
    made = Tokenizer.train(["words"] * 4, 272)
    with pytest.raises(CheckpointError, match=r"special token <\|audio_bos\|>"):
        VoiceTokens.of(made, 1024, 1025, BOOKS)


@pytest.mark.parametrize("lines", [False, True])
def test_manifests_are_read_as_an_array_and_as_lines(tmp_path: Path, lines: bool) -> None:
    path = voice_manifest.write(tmp_path, lines=lines)
    samples = list(readers.read(Source(path=str(path)), tmp_path, Quarantine(None, 0.0)))
    assert len(samples) == 16
    assert samples[0].extra["start_index"] == 3
    assert [part.path for part in samples[0].speech] == [
        str(tmp_path / "train-two0.wav"),
        str(tmp_path / "train-one0.wav"),
    ]
    assert samples[0].task == "speak"


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    path = voice_manifest.write(tmp_path)
    rows = json.loads(path.read_text())
    rows[2]["messages"][-1]["content"][0]["audio_url"] = "nowhere.wav"
    rows[5]["messages"][1]["role"] = "narrator"
    path.write_text(json.dumps(rows))
    quarantine = Quarantine(tmp_path / "bad.jsonl", 1.0)
    assert len(list(readers.read(Source(path=str(path)), tmp_path, quarantine))) == 14
    told = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in told] == ["missing", "bad_row"]
    assert "nowhere.wav" in json.dumps(told[0])
    assert "narrator" in json.dumps(told[1])


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({}, ""),
        ({"misc": {"sample_id": "0001"}}, ""),
        ({"encode_whisper_embed": False}, ""),
        ({"encode_whisper_embed": True}, "encode_whisper_embed"),
        ({"misc": {"whisper_features": "a.npy"}}, "whisper_features"),
        ({"audio_features": [[0.0]]}, "audio_features"),
    ],
)
def test_a_row_that_asks_for_whisper_is_known(more: dict[str, Any], key: str) -> None:
    assert asks_for_whisper(parse({**EXAMPLE, **more})) == key
