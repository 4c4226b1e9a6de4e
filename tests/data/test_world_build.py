"""A built world: whole, repeatable, balanced, and its held-out part never leaks."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni import files
from muomni.data.world import build as build_world
from muomni.data.world import formant, lexicon, picture_rows, speech, speech_rows, utterance, voices
from muomni.data.world.language import Sentences
from muomni.data.world.lexicon import NUMBERS
from muomni.data.world.vocabulary import TEMPLATES
from muomni.errors import ConfigError, InternalError

Row = dict[str, Any]
SPOKEN = ("transcripts", "digits", "spoken_questions", "speak")


@pytest.fixture(scope="module")
def world(tiny_world: Path) -> Path:
    return tiny_world


def rows(world: Path) -> dict[str, list[Row]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(world.glob("*.jsonl"))
    }


def parts(row: Row) -> list[Row]:
    return [
        part
        for turn in row.get("messages", [])
        for part in turn["content"]
        if isinstance(turn["content"], list)
    ]


def texts(row: Row) -> list[str]:
    said = [turn["content"] for turn in row.get("messages", []) if isinstance(turn["content"], str)]
    said += [part["text"] for part in parts(row) if part["type"] == "text"]
    said += [negative["text"] for negative in row.get("negatives", [])]
    said += [row["text"]] if "text" in row else []
    return said + heard(row)


def heard(row: Row) -> list[str]:
    """What the row's sounds say."""
    extra = row.get("extra", {})
    return [*extra.get("texts", []), *([extra["text"]] if "text" in extra else [])]


def test_no_held_out_pair_or_sentence_in_any_training_row(world: Path) -> None:
    for name, content in rows(world).items():
        for row in content:
            if row["split"] == "train":
                for text in texts(row):
                    assert not lexicon.pairs(text) & lexicon.HELD_OUT_PAIRS, (name, text)
                    assert not any(
                        lexicon.is_held_out(part) for part in text.replace("?", ".").split(". ")
                    ), (name, text)
                for _, colour, shape, _ in row.get("extra", {}).get("scene", []):
                    assert (colour, shape) not in lexicon.HELD_OUT_PAIRS


def test_valid_pictures_show_held_out_pairs_where_marked(world: Path) -> None:
    marks: Counter[tuple[str, bool]] = Counter()
    for name in ("captions", "questions", "probe", "spoken_questions"):
        for row in rows(world)[name]:
            if "scene" in row["extra"]:
                has = any(
                    (colour, shape) in lexicon.HELD_OUT_PAIRS for _, colour, shape, _ in row["extra"]["scene"]
                )
                assert has == (row["extra"]["pairs"] == "held_out")
                marks[row["split"], has] += 1
    assert marks["train", True] == 0
    assert marks["valid", True] > 2 * marks["valid", False] > 0


def test_voices_are_disjoint(world: Path) -> None:
    assert not set(voices.TRAIN) & set(voices.HELD_OUT)
    assert voices.ANSWER_VOICE in voices.TRAIN
    assert 0.17 < len(voices.HELD_OUT) / (len(voices.TRAIN) + len(voices.HELD_OUT)) < 0.23
    for name in ("transcripts", "digits", "spoken_questions"):
        for row in rows(world)[name]:
            allowed = voices.TRAIN if row["split"] == "train" else voices.HELD_OUT
            assert {part["speaker"] for part in parts(row) if part["type"] == "audio"} <= set(allowed)


def test_valid_sentences_are_not_in_training(world: Path) -> None:
    everything = rows(world)
    trained = {
        text for name in SPOKEN for row in everything[name] if row["split"] == "train" for text in heard(row)
    }
    for name in ("transcripts", "speak"):
        valid = [
            row
            for row in everything[name]
            if row["split"] == "valid" and row["extra"].get("sentence") != "seen"
        ]
        assert valid
        for row in valid:
            assert row["extra"]["text"] not in trained


def test_ids_are_unique_and_media_exist(world: Path) -> None:
    everything = rows(world)
    ids = [row["id"] for content in everything.values() for row in content]
    assert len(ids) == len(set(ids))
    media = {
        part["path"]
        for content in everything.values()
        for row in content
        for part in parts(row)
        if part["type"] != "text"
    }
    assert media == {
        str(path.relative_to(world)) for folder in ("images", "audio") for path in (world / folder).iterdir()
    }


def test_valid_captions_are_distinct() -> None:
    shown = picture_rows.show(1, "scene", 10, {"valid": 640}, picture_rows.SCENES)
    assert len({one.caption.text() for one in shown}) == 640


def test_images_and_audio_have_their_sizes(world: Path) -> None:
    for path in (world / "images").iterdir():
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((112, 112), "RGB")
    for path in (world / "audio").iterdir():
        wave, rate_hz = soundfile.read(path, dtype="float32")
        assert (rate_hz, wave.ndim) == (16_000, 1)
        assert np.isfinite(wave).all()
        assert 0.55 < np.abs(wave).max() < 0.65
        assert 0.1 < len(wave) / rate_hz < 10
        assert np.abs(wave[:480]).max() == 0  # the pad


def test_every_word_is_said_and_numbers_are_not_rare() -> None:
    source = Sentences(np.random.default_rng(0))
    said = source.many(600, held_out=False, distinct=False)
    said += source.cover(said, 20)
    counts = Counter(word for text in said for word in lexicon.words(text))
    assert set(counts) == set(lexicon.WORDS)
    assert min(counts.values()) >= 20
    for slot in (lexicon.COLOURS, lexicon.SHAPES, lexicon.PLACES[:2], lexicon.NUMBERS[2:]):
        assert max(counts[word] for word in slot) < 1.5 * min(counts[word] for word in slot)


def test_templates_know_lexicon_words_only() -> None:
    known = {*lexicon.WORDS, *"SCHPNMLRA"}
    assert not {token for template in TEMPLATES for token in template.split()} - known
    assert not {word for word in lexicon.WORDS if not word.isalpha() or not word.islower()}


def test_vocabulary_is_the_lexicon(world: Path) -> None:
    assert (world / "vocabulary.txt").read_text().split() == list(lexicon.WORDS)


def test_same_seed_same_bytes_in_another_process(world: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "muomni.data.world",
        "--out",
        str(tmp_path / "again"),
        "--seed",
        "1",
        "--size",
        "tiny",
    ]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "77", "PATH": ""})
    assert files.read_json(tmp_path / "again" / "manifest.json") == files.read_json(world / "manifest.json")
    for path in world.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(world)).read_bytes() == path.read_bytes()


def test_another_seed_is_another_world_with_the_same_held_out_part(world: Path, tmp_path: Path) -> None:
    other = build_world(tmp_path / "other", seed=2, size="tiny")
    first = files.read_json(world / "manifest.json")
    assert other["media_sha256"] != first["media_sha256"]
    assert all(other["sha256"][name] != first["sha256"][name] for name in first["sha256"])
    assert (other["voices"], other["held_out_pairs"]) == (first["voices"], first["held_out_pairs"])


def test_built_world_is_given_back_untouched(world: Path) -> None:
    before = (world / "manifest.json").stat().st_mtime_ns
    assert build_world(world, seed=1, size="tiny") == files.read_json(world / "manifest.json")
    assert (world / "manifest.json").stat().st_mtime_ns == before


def test_folder_that_is_no_world_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no world"):
        build_world(tmp_path, seed=1, size="tiny")
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize(("seed", "size"), [(1, "huge"), (-1, "tiny")])
def test_wrong_arguments_are_named(tmp_path: Path, seed: int, size: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        build_world(tmp_path / "out", seed=seed, size=size)


def test_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(utterance, "speak", fail)
    with pytest.raises(KeyboardInterrupt):
        build_world(tmp_path / "out", seed=1, size="tiny")
    assert list(tmp_path.iterdir()) == []


def test_failing_speech_process_is_told(tmp_path: Path) -> None:
    if importlib.util.find_spec("espeakng_loader") is None:
        pytest.skip("the formant voice knows every name")
    with pytest.raises(InternalError, match="nobody"):
        utterance.speak([utterance.Job("a.wav", "one", "nobody", 160, 50, 1)], tmp_path)


def test_formant_voice_speaks_without_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    jobs = [
        {"path": f"{word}.wav", "text": word, "voice": "en-us+m6", "rate_wpm": 160, "pitch": 50, "seed": 1}
        for word in ("one", "two")
    ]
    files.write_jsonl(tmp_path / "jobs.jsonl", jobs)
    speech.main(tmp_path / "jobs.jsonl", tmp_path)
    assert files.read_json(tmp_path / ".speech.json")["voice"] == "formant"
    first, again, other = (
        formant.say(*said, 160, 50, 1) for said in (("star", "m6"), ("star", "m6"), ("star", "f2"))
    )
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()
    assert len(formant.say("star", "m6", 80, 50, 1)) > 1.8 * len(first)
    assert not np.array_equal(first, other)


def test_silence_is_not_passed_on() -> None:
    with pytest.raises(InternalError, match="silence"):
        speech.finish(np.zeros(100, np.float32))


def test_number_rows_hold_out_strings_of_digits_and_say_each_digit() -> None:
    rng = np.random.default_rng(3)
    rows = speech_rows.number_rows(rng, speech_rows.Speakers(rng), {"train": 900, "valid": 120})
    texts = {
        split: [row["extra"]["text"] for row in rows if row["split"] == split] for split in ("train", "valid")
    }
    assert (len(texts["train"]), len(texts["valid"])) == (900, 120)
    assert not {*texts["train"]} & {*texts["valid"]}
    for digit in NUMBERS[:10]:
        assert texts["train"].count(digit) == 4
        assert any(digit in text.split() for text in texts["valid"])
    for side, expected in (("valid", {2: 40, 3: 40, 4: 40}), ("train", {1: 40, 2: 287, 3: 287, 4: 286})):
        assert Counter(len(text.split()) for text in texts[side]) == expected
    said = Counter(text for text in texts["train"] if len(text.split()) == 2)
    assert len(said) == 60
    assert max(said.values()) - min(said.values()) <= 1
    assert all(1 <= len(text.split()) <= 4 for texts_of in texts.values() for text in texts_of)
    assert all(row["messages"][0]["content"] == row["extra"]["text"] for row in rows)


def test_prompts_to_draw_are_new_sentences_half_of_them_about_new_pairs() -> None:
    vocabulary = importlib.import_module("muomni.data.world.build").counts("tokens").pictured
    drawings = picture_rows.show_alone(1, "draw", 13, {"train": 2_000, "valid": 300}, vocabulary)
    prompts = {
        split: [one.prompt for one in drawings if one.shown.split == split] for split in ("train", "valid")
    }
    assert len(prompts["train"]) == 2_000
    assert not {*prompts["train"]} & {*prompts["valid"]}
    assert not any(lexicon.is_held_out(prompt) for prompt in prompts["train"])
    assert len(set(prompts["valid"])) == len(prompts["valid"])
    new_pairs = [bool(lexicon.pairs(prompt) & lexicon.HELD_OUT_PAIRS) for prompt in prompts["valid"]]
    assert new_pairs == [one.shown.held_out for one in drawings if one.shown.split == "valid"]
    assert min(sum(new_pairs), len(new_pairs) - sum(new_pairs)) >= 100
