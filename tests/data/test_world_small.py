"""The small world speaks few words, and keeps every rule of the large one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muomni.data.world import build as build_world
from muomni.data.world import lexicon, picture_rows, scene, voices
from muomni.data.world.asking import Asker
from muomni.data.world.build import Counts, counts
from muomni.data.world.language import Sentences
from muomni.data.world.vocabulary import FEW, TEMPLATES, WHOLE

Row = dict[str, Any]


def few_rows() -> Counts:
    """The small world's counts, a fiftieth of its rows."""
    much = counts("small")
    splits = {
        name: {s: -(-n // 50) + 2 * (n > 0) for s, n in value.items()}
        for name, value in vars(much).items()
        if isinstance(value, dict)
    }
    return replace(much, **splits, repeats=1, least=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys.modules["muomni.data.world.build"], "_SMALL", few_rows()
        )  # the package has a function of that name
        build_world(out, seed=1, size="small")
    return out


def rows(world: Path) -> list[tuple[str, Row]]:
    return [
        (path.stem, json.loads(line))
        for path in sorted(world.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def texts(row: Row) -> list[str]:
    """Everything that a row writes or says, a sentence each."""
    content = [turn["content"] for turn in row.get("messages", [])]
    written = [
        part if isinstance(part, str) else part.get("text", "")
        for one in content
        for part in ([one] if isinstance(one, str) else one)
    ]
    written += [negative["text"] for negative in row.get("negatives", [])]
    written += [
        row.get("text", ""),
        row.get("extra", {}).get("text", ""),
        *row.get("extra", {}).get("texts", []),
    ]
    return [sentence for text in written for sentence in text.replace("?", ".").split(". ") if sentence]


def test_it_says_words_of_its_vocabulary_only(world: Path) -> None:
    listed = (world / "vocabulary.txt").read_text().split()
    assert tuple(listed) == FEW.words
    assert set(FEW.words) < set(lexicon.WORDS)
    said = {word for _, row in rows(world) for text in texts(row) for word in lexicon.words(text)}
    assert said == set(FEW.words)


def test_nothing_held_out_is_trained(world: Path) -> None:
    trained = {"voices": set[str](), "said": set[str]()}
    marks: dict[tuple[str, str], int] = {}
    for name, row in rows(world):
        extra = row.get("extra", {})
        if row["split"] == "train":
            for text in texts(row):
                assert not lexicon.is_held_out(text), (name, text)
            trained["said"] |= {*extra.get("texts", []), extra.get("text", "")}
        for _, colour, shape, place in extra.get("scene", []):
            assert row["split"] == "valid" or (colour, shape) not in lexicon.HELD_OUT_PAIRS
            assert shape in FEW.shapes
            assert place in FEW.places
            assert colour in (*FEW.colours, scene.UNNAMED)
        if "pairs" in extra:
            marks[row["split"], extra["pairs"]] = marks.get((row["split"], extra["pairs"]), 0) + 1
        speakers = {
            part["speaker"]
            for turn in row.get("messages", [])
            for part in turn["content"]
            if isinstance(part, dict) and "speaker" in part
        }
        assert speakers <= set(
            voices.TRAIN if row["split"] == "train" else (*voices.HELD_OUT, voices.ANSWER_VOICE)
        )
    assert marks["valid", "held_out"] > 2 * marks["valid", "seen"] > 0
    for name, row in rows(world):
        if (
            row["split"] == "valid"
            and name in ("transcripts", "speak")
            and row["extra"].get("sentence") != "seen"
        ):
            assert row["extra"]["text"] not in trained["said"]


def test_pictures_are_small(world: Path) -> None:
    for path in (world / "images").iterdir():
        with Image.open(path) as image:
            assert image.size == (64, 64)


@pytest.mark.parametrize("vocabulary", [WHOLE, FEW], ids=["whole", "few"])
def test_every_word_is_said_often_enough(vocabulary: Any) -> None:
    source = Sentences(np.random.default_rng(0), vocabulary)
    said = source.many(200, held_out=False, distinct=False)
    said += source.cover(said, 10)
    counted = [word for text in said for word in lexicon.words(text)]
    assert set(vocabulary.words) - set(counted) <= {
        "yes",
        "no",
    }  # answers that no sentence of a small vocabulary holds are said alone
    assert all(counted.count(word) >= 10 for word in vocabulary.words)


def test_the_whole_vocabulary_is_the_lexicon() -> None:
    assert WHOLE.words == lexicon.WORDS
    assert set(WHOLE.held_out_pairs) == lexicon.HELD_OUT_PAIRS
    assert {*WHOLE.seen_pairs} == {*product(lexicon.COLOURS, lexicon.SHAPES)} - lexicon.HELD_OUT_PAIRS
    assert WHOLE.templates is TEMPLATES


def test_each_shape_of_the_few_loses_one_pair() -> None:
    assert sorted(shape for _, shape in FEW.held_out_pairs) == sorted(FEW.shapes)
    assert len(FEW.seen_pairs) == len(FEW.colours) * len(FEW.shapes) - len(FEW.shapes)


def test_the_picture_that_readme_and_makefile_ask_about_shows_what_they_say() -> None:
    """Of the world of seed 1, as the quickstart makes it; few training scenes are drawn, since each split has
    a generator of its own."""
    shown = picture_rows.show(1, "question", 11, {"train": 0, "valid": 4}, counts("small").asked, FEW)[3]
    assert shown.picture.path == "images/question-valid-00003.png"
    assert [(thing.colour, thing.shape, thing.place) for thing in shown.scene] == [("red", "star", "top")]
    for name in ("README.md", "Makefile"):
        text = (Path(__file__).parents[2] / name).read_text()
        assert "question-valid-00003.png" in text
        assert "what colour is the star?" in text


def test_captions_and_questions_of_few_words_are_true() -> None:
    rng = np.random.default_rng(3)
    kinds: set[str] = set()
    for index in range(200):
        things = scene.sample(rng, 1 + index % 2, held_out=index % 3 == 0, vocabulary=FEW)
        caption = scene.describe(rng, things, FEW)
        assert caption.holds(things)
        assert set(lexicon.words(caption.text())) <= set(FEW.words)
        for negative in picture_rows.negatives(rng, caption, things, training=False, vocabulary=FEW):
            kinds.add(negative["kind"])
            assert negative["text"] != caption.text()
        every = set(scene.questions(things))
        assert set(scene.questions(things, FEW)) == {
            asked for asked in every if FEW.asks(asked[1]) and set(lexicon.words(asked[1])) <= set(FEW.words)
        }
    assert kinds == {"colour", "shape", "place"}


def test_guessing_without_looking_gains_little_in_few_words() -> None:
    rng = np.random.default_rng(5)
    asker = Asker(rng, training=True, vocabulary=FEW)
    asked = [turn for _ in range(400) for turn in asker.ask(scene.sample(rng, 1, vocabulary=FEW), 4)]
    for kind, most in {"yes no": 0.55, "colour": 0.25, "shape": 0.3, "where": 0.3}.items():
        answers = [said for one, _, said in asked if one == kind]
        assert len(answers) > 200
        assert max(answers.count(said) for said in set(answers)) / len(answers) <= most, kind
