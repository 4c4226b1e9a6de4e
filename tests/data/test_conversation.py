"""Samples as the Thinker reads them: ids, labels and media that fit each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muomni.data.cache import Cache
from muomni.data.conversation import Conversations, MediaSpec, prepare, questions, wave_to_mel
from muomni.data.sample import Message, Sample, parse
from muomni.errors import DataError
from muomni.media import audio
from muomni.media.mel import MelSpec
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.special_tokens import SPECIAL

SPEC = MediaSpec(image_size=32, image_tokens=3, mel=MelSpec(), audio_pool=2, max_audio_tokens=20)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["what do you see and hear? a red circle, one two three"] * 3, 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("media")
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (40, 30), colour).save(out / f"{name}.png")
    for name, seconds in (("short", 0.3), ("long", 1.0), ("endless", 3.0)):
        times = np.arange(int(16000 * seconds)) / 16000
        audio.write(out / f"{name}.wav", (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32), 16000)
    (out / "broken.png").write_bytes(b"no picture")
    return out


def sample(folder: Path, *parts: dict[str, object], answer: str = "a red circle") -> Sample:
    content = [
        {**part, "path": str(folder / str(part["path"]))} if "path" in part else part for part in parts
    ]
    return parse(
        {
            "id": "s",
            "group": "g",
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        }
    )


RED, BLUE = {"type": "image", "path": "red.png"}, {"type": "image", "path": "blue.png"}
SHORT, LONG = {"type": "audio", "path": "short.wav"}, {"type": "audio", "path": "long.wav"}
ASKS = {"type": "text", "text": "what do you see?"}


def test_pads_are_as_many_as_the_media_fill(tokenizer: Tokenizer, folder: Path) -> None:
    item = prepare(sample(folder, RED, SHORT, BLUE, LONG, ASKS), tokenizer, SPEC, 200)
    assert [picture.shape for picture in item.media["image"]] == [(32, 32, 3)] * 2
    assert item.media["image"][0][0, 0].argmax() == 0
    assert item.media["image"][1][0, 0].argmax() == 2
    assert item.ids.count(SPECIAL.image_pad) == 2 * 3
    sounds = [SPEC.audio_tokens(len(mel)) for mel in item.media["audio"]]
    assert item.ids.count(SPECIAL.audio_pad) == sum(sounds)
    kinds = [i for i in item.ids if i in (SPECIAL.image, SPECIAL.audio)]
    assert kinds == [SPECIAL.image, SPECIAL.audio, SPECIAL.image, SPECIAL.audio], (
        "the order of the turn is kept"
    )
    learned = [i for i in item.labels if i >= 0]
    assert tokenizer.decode(learned[:-1]) == "a red circle"
    assert learned[-1] == SPECIAL.end
    assert all(label in (-100, i) for i, label in zip(item.ids, item.labels, strict=True))


@pytest.mark.parametrize("downsample", [2, 4, 8])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_the_count_of_a_sound_is_that_of_the_ears(downsample: int, pool: int) -> None:
    ears = AudioEncoder(
        AudioEncoderConfig(width=16, layers=1, heads=2, ffn_width=32, channels=2, downsample=downsample)
    )  # type: ignore[arg-type]
    spec = MediaSpec(downsample=downsample, audio_pool=pool)
    for frames in [*range(1, 40), 99, 100, 101]:
        assert spec.audio_tokens(frames) == -(-ears.length(frames) // pool)


def test_silence_is_put_on_both_sides() -> None:
    wave = (0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16000)).astype(np.float32)
    mel = wave_to_mel(wave, MelSpec(), 0.1)
    assert mel.shape == (30, 128)
    assert mel[15].max() > mel[2].max() + 3
    assert mel[15].max() > mel[-3].max() + 3
    assert wave_to_mel(wave, MelSpec(), 0.0).shape == (10, 128)


def test_too_long_a_sound_is_refused_by_name(tokenizer: Tokenizer, folder: Path) -> None:
    endless = {"type": "audio", "path": "endless.wav"}
    with pytest.raises(DataError, match=r"s: a sound fills 40 positions, at most 20") as caught:
        prepare(sample(folder, endless, ASKS), tokenizer, SPEC, 500)
    assert caught.value.reason == "too_long"
    cut = {**endless, "start": 1.0, "end": 1.5}
    assert len(prepare(sample(folder, cut, ASKS), tokenizer, SPEC, 500).media["audio"][0]) == 70


def test_media_are_never_cut_and_answers_may_be_shortened(tokenizer: Tokenizer, folder: Path) -> None:
    whole = prepare(sample(folder, RED, ASKS, answer="one two three " * 20), tokenizer, SPEC, 500)
    shorter = prepare(
        sample(folder, RED, ASKS, answer="one two three " * 20), tokenizer, SPEC, len(whole.ids) - 20
    )
    assert len(shorter.ids) == len(whole.ids) - 20
    assert shorter.ids[-1] == shorter.labels[-1] == SPECIAL.end
    assert shorter.ids.count(SPECIAL.image_pad) == 3
    with pytest.raises(DataError, match="at most 12"):
        prepare(sample(folder, RED, ASKS), tokenizer, SPEC, 12)


def dialogue(folder: Path, *media: dict[str, object], later: list[dict[str, object]] | None = None) -> Sample:
    first = sample(folder, *media, ASKS).model_dump(exclude_none=True)
    ask = [
        {"type": "text", "text": "what do you hear?"},
        *[{**part, "path": str(folder / str(part["path"]))} for part in later or []],
    ]
    first["messages"] += [{"role": "user", "content": ask}, {"role": "assistant", "content": "one two"}]
    return parse(first)


@pytest.mark.parametrize(
    "later", [[], [LONG], [RED, LONG]], ids=["the same sound", "a sound of its own", "the picture again"]
)
def test_questions_apart_are_each_what_it_would_be_alone(
    tokenizer: Tokenizer, folder: Path, later: list[dict[str, object]]
) -> None:
    asked = dialogue(folder, RED, SHORT, later=later)
    item = prepare(asked, tokenizer, SPEC, 200, apart=True)
    alone = [prepare(one, tokenizer, SPEC, 200) for one in questions(asked)]
    assert item.starts == [item.shared, len(alone[0].ids)]
    assert item.ids[item.shared - 1] == (SPECIAL.image_end if later else SPECIAL.audio_end)
    for start, end, one in zip(item.starts, [item.starts[1], len(item.ids)], alone, strict=True):
        assert item.ids[: item.shared] + item.ids[start:end] == one.ids
        assert item.labels[: item.shared] + item.labels[start:end] == one.labels
    assert len(item.media["image"]) == 1 + later.count(RED)
    assert item.ids.count(SPECIAL.image_pad) == len(item.media["image"]) * SPEC.image_tokens
    sounds = (
        [alone[0].media["audio"][0], alone[1].media["audio"][0]] if later else [alone[0].media["audio"][0]]
    )
    assert [mel.shape for mel in item.media["audio"]] == [mel.shape for mel in sounds]
    assert all((a == b).all() for a, b in zip(item.media["audio"], sounds, strict=True))


def test_a_conversation_out_of_turn_stays_one(tokenizer: Tokenizer, folder: Path) -> None:
    asked = dialogue(folder, RED, later=[BLUE])
    told = Message(role="system", content="look well")
    for messages in ([told, *asked.messages], asked.messages[:-1], [*asked.messages, asked.messages[-2]]):
        item = prepare(asked.model_copy(update={"messages": messages}), tokenizer, SPEC, 200, apart=True)
        assert item.starts == []
        assert item.ids.count(SPECIAL.image_pad) == len(item.media["image"]) * SPEC.image_tokens
    alone = questions(asked.model_copy(update={"messages": [told, *asked.messages]}))
    assert [len(one.images) for one in alone] == [1, 2], "what was shown before stands before each question"


def test_where_nothing_is_shared_a_dialogue_stays_one(tokenizer: Tokenizer, folder: Path) -> None:
    for asked in (dialogue(folder, SHORT, later=[LONG]), dialogue(folder)):
        item = prepare(asked, tokenizer, SPEC, 200, apart=True)
        assert (item.ids, item.starts) == (prepare(asked, tokenizer, SPEC, 200).ids, [])


def test_a_reply_stops_where_the_model_is_to_speak(tokenizer: Tokenizer, folder: Path) -> None:
    item = prepare(sample(folder, RED, ASKS), tokenizer, SPEC, 200, reply=True)
    assert item.ids[-1] == SPECIAL.assistant
    assert not [label for label in item.labels if label >= 0]
    whole = prepare(sample(folder, RED, ASKS), tokenizer, SPEC, 200)
    assert whole.ids[: len(item.ids)] == item.ids, "what is asked in training is what is asked later"


def test_an_unreadable_picture_is_a_data_error(tokenizer: Tokenizer, folder: Path) -> None:
    data = Conversations(
        [sample(folder, {"type": "image", "path": "broken.png"}, ASKS)], tokenizer, SPEC, 200
    )
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            data.item(0, np.random.default_rng(0))
        assert caught.value.reason == "undecodable"


def test_the_cache_changes_nothing_and_is_bounded(tokenizer: Tokenizer, folder: Path) -> None:
    samples = [sample(folder, RED, ASKS), sample(folder, BLUE, ASKS), sample(folder, SHORT)]
    rng = np.random.default_rng(0)
    full, none = Cache(7 * SPEC.image_size**2), Cache(0)  # room for two pictures
    kept, bare = (
        Conversations(samples, tokenizer, SPEC, 200, cache=full),
        Conversations(samples, tokenizer, SPEC, 200, cache=none),
    )
    for index in (0, 1, 2, 1, 0):
        a, b = kept.item(index, rng), bare.item(index, rng)
        assert a.ids == b.ids
        assert a.media.keys() == b.media.keys()
        assert all(
            (x == y).all() for kind in a.media for x, y in zip(a.media[kind], b.media[kind], strict=True)
        )
    assert 6 * SPEC.image_size**2 < full.used_bytes <= full.budget_bytes
    assert none.records == 0
    assert kept.name(0) == "s"
    assert len(kept) == 3


def test_guessed_lengths_order_the_samples(tokenizer: Tokenizer, folder: Path) -> None:
    samples = [sample(folder, ASKS, answer="one"), sample(folder, RED, ASKS, answer="one two three " * 30)]
    lengths = Conversations(samples, tokenizer, SPEC, 500).lengths()
    assert lengths[0] < lengths[1]
    assert lengths.dtype == "int32"


def test_a_text_document_is_learned_whole_and_keeps_its_end(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["the red star is big"] * 3, 300)
    words = "the red star is big " * 40
    for ctx_len in (20, 4000):
        item = prepare(parse({"id": "d", "text": words}), tokenizer, MediaSpec(), ctx_len)
        assert item.ids[0] == tokenizer.special_tokens.bos
        assert item.labels == [-100, *item.ids[1:]]
        assert item.ids[-1] == tokenizer.special_tokens.eos
        assert len(item.ids) <= ctx_len
    assert tokenizer.decode(item.ids) == words
