"""LLaVA's files as they are published, in small: read whole, pictures at their places, and each wrong row
named by its line."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import formats, readers
from muomni.data.layouts.chat import convert
from muomni.data.quarantine import Quarantine
from muomni.data.readers import Corpus
from muomni.data.sample import ImagePart, Sample, TextPart, parse
from muomni.data.source import Source
from muomni.errors import DataError

REAL = Path(os.environ.get("MUOMNI_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
real = pytest.mark.skipif(not (REAL / "captions.jsonl").exists(), reason="MUOMNI_DATA is absent")

Read = Callable[..., tuple[list[Sample], Quarantine]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read these rows as a file beside a.png and b.png."""

    def inner(*rows: Any, name: str = "m.json", **source: Any) -> tuple[list[Sample], Quarantine]:
        for picture in ("a.png", "b.png"):
            (tmp_path / picture).write_bytes(b"x")
        text = json.dumps(rows, indent=1) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
        (tmp_path / name).write_text(text)
        quarantine = Quarantine()
        return list(readers.read(Source(path=name, **source), tmp_path, quarantine)), quarantine

    return inner


def row(*turns: str, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    """A row of turns that are by turns the human's and the machine's."""
    conversations = [
        {"from": ("human", "gpt")[number % 2], "value": words} for number, words in enumerate(turns)
    ]
    return {"id": "1", **({} if image is None else {"image": image}), "conversations": conversations, **more}


def shape(sample: Sample, turn: int = 0) -> list[str]:
    """A turn as words and names of pictures."""
    return [
        Path(part.path).name if isinstance(part, ImagePart) else part.text
        for part in sample.messages[turn].parts
    ]  # type: ignore[union-attr]


def load(folder: Path, **source: Any) -> Corpus:
    quarantine = Quarantine(limit=0.0)
    return readers.load([Source(**source)], base=folder, val_split=0.2, seed=0, quarantine=quarantine)


def pretraining(count: int) -> list[dict[str, Any]]:
    """blip_laion_cc_sbu_558k.json of our photos: the placeholder stands before or after the instruction."""
    asks = cycle(
        [
            "Render a clear and concise summary of the photo.\n<image>",
            "<image>\nWrite a terse but informative summary.",
        ]
    )
    rows = [json.loads(line) for line in (REAL / "captions.jsonl").read_text().splitlines()[:count]]
    turns = [
        [{"from": "human", "value": next(asks)}, {"from": "gpt", "value": r["captions"][0]}] for r in rows
    ]
    return [
        {"id": Path(r["path"]).stem, "image": r["path"], "conversations": said}
        for r, said in zip(rows, turns)
    ]


def instructions() -> list[dict[str, Any]]:
    """llava_instruct_150k.json of our photos: several rows of one id, of one turn or many."""
    by_photo: dict[str, list[dict[str, Any]]] = {}
    for line in (REAL / "vqa.jsonl").read_text().splitlines():
        asked = json.loads(line)
        by_photo.setdefault(asked["image"], []).append(asked)
    rows = []
    for photo, asked in by_photo.items():
        told = [value for one in asked for value in (one["question"], one["answer"])]
        for first in (f"<image>\n{told[0]}", f"{told[0]}\n<image>"):
            rows.append({**row(first, *told[1:], image=photo), "id": Path(photo).stem})
        rows.append({**row(f"{told[0]}\n<image>", told[1], image=photo), "id": Path(photo).stem})
    return rows


@pytest.mark.real
@real
def test_a_pretraining_file_is_read_whole(tmp_path: Path) -> None:
    rows = pretraining(60)
    (tmp_path / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    corpus = load(tmp_path, path="blip_laion_cc_sbu_558k.json", root=str(REAL))
    samples = {sample.id: sample for sample in [*corpus.train, *corpus.valid]}
    assert len(samples) == 60
    assert not corpus.leaks
    for given_row in rows:
        sample = samples[given_row["id"]]
        assert (sample.group, sample.task, sample.answer) == (
            given_row["image"],
            "question",
            given_row["conversations"][1]["value"],
        )
        assert sample.images[0].path == str(REAL / given_row["image"])
        order = [part.type for part in sample.messages[0].parts]
        assert order == (
            ["image", "text"]
            if given_row["conversations"][0]["value"].startswith("<image>")
            else ["text", "image"]
        )
        assert "\n" not in sample.question


@pytest.mark.real
@real
@pytest.mark.parametrize("name", ["llava_instruct_150k.json", "llava_instruct.jsonl"])
def test_an_instruction_file_is_read_whole(tmp_path: Path, name: str) -> None:
    rows = instructions()
    (tmp_path / name).write_text(
        json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
    )
    corpus = load(tmp_path, path=name, root=str(REAL), task="instruct")
    samples = [*corpus.train, *corpus.valid]
    assert len(samples) == len(rows) == len({sample.id for sample in samples})
    assert {sample.task for sample in samples} == {"instruct"}
    assert not corpus.leaks, "all rows of a photo are on one side"
    assert Counter(sample.id.partition("#")[0] for sample in samples) == Counter(r["id"] for r in rows)
    assert Counter(len(sample.messages) for sample in samples) == Counter(
        len(r["conversations"]) for r in rows
    )


def test_pictures_stand_where_the_words_say(read: Read) -> None:
    samples, _ = read(
        row("<image>\nwhat?", "x"),
        row("what?\n<image>", "x"),
        row(
            "from <image> to\n\n<image>\nwhat changed?",
            "x",
            "and\n<image>?",
            "y",
            image=["a.png", "b.png", "a.png"],
        ),
        row("what?", "x", "why?", "y", image=["a.png", "b.png"]),
        row("what?", "x", image=["b.png"]),
    )
    assert [shape(sample) for sample in samples] == [
        ["a.png", "what?"],
        ["what?", "a.png"],
        ["from", "a.png", "to", "b.png", "what changed?"],
        ["a.png", "b.png", "what?"],
        ["b.png", "what?"],
    ]
    assert shape(samples[2], 2) == ["and", "a.png", "?"]
    assert [sample.id for sample in samples] == ["1", "1#2", "1#3", "1#4", "1#5"]


def test_all_spellings(read: Read) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "text": "<image>\nwhat?"},
        {"role": "assistant", "content": "x"},
    ]
    samples, quarantine = read(
        {"conversations": turns, "image_path": "a.png"},
        {"conversations": turns, "image_id": "b.png"},
        {"id": 7, "conversations": turns[2:], "image": None, "image_id": "000000000123"},
        row("what is two and two?", "four", image=None),
        {"image": "a.png", "caption": " a cat "},
        {"image": ["a.png", "b.png"], "blip_caption": "two"},
        name="m.jsonl",
        prompt="Describe it.",
    )
    assert not quarantine.total
    assert [m.role for m in samples[0].messages] == ["system", "user", "assistant"]
    assert [shape(sample, 1)[0] for sample in samples[:2]] == ["a.png", "b.png"]
    assert (samples[2].id, samples[2].images, samples[3].task) == ("7", [], "chat")
    assert [(s.task, shape(s), s.answer) for s in samples[4:]] == [
        ("caption", ["a.png", "Describe it."], "a cat"),
        ("caption", ["a.png", "b.png", "Describe it."], "two"),
    ]


def test_a_caption_may_stand_alone(read: Read) -> None:
    rows = [{"image": "a.png", "text": "a cat"}]
    ((sample,), _) = read(*rows, format="llava")
    assert (sample.task, shape(sample)) == ("caption", ["a.png"])
    ((sample,), _) = read(row("<image>", "a cat"))
    assert (sample.task, shape(sample)) == ("caption", ["a.png"])
    ((sample,), _) = read(
        row("<image>", "a cat", about="cats"), task="look", group="{about}", class_name="{about}"
    )
    assert (sample.task, sample.group, sample.extra["names"]) == ("look", "cats", "cats")


HOSTILE = [
    (row("<image><image>", "x"), "bad_row", "2 for 1"),
    (row("<image>", "x", image=["a.png", "b.png"]), "bad_row", "1 for 2"),
    (row("<image>", "x", image=None), "bad_row", "1 for 0"),
    (row("what?", "an <image>"), "bad_row", "in one of assistant"),
    (row("what?", " \n "), "empty", "(assistant)"),
    (row("", "x", image=None), "empty", "(user)"),
    (row("<image>"), "bad_row", "got none"),
    ({"id": "1", "image": "a.png", "conversations": []}, "bad_row", "got none"),
    ({"image": "a.png", "conversations": [{"from": "gpt", "value": "x"}]}, "bad_row", "0 for 1"),
    (row("<image>", "x", image=[["a.png"]]), "bad_row", "a path or a list"),
    (row("<image>", "x", image=7), "bad_row", "a path or a list"),
    (row("<image>", "x", image=""), "bad_row", "1 for 0"),
    (row("<image>", "x", image="c.png"), "missing", "c.png"),
    ({"image": "a.png", "conversations": [{"from": "robot", "value": "x"}]}, "bad_row", "conversations 0"),
    ({"image": "a.png", "conversations": [{"from": ["gpt"], "value": "x"}]}, "bad_row", "conversations 0"),
    ({"image": "a.png", "conversations": [{"from": "gpt", "value": 3}]}, "bad_row", "conversations 0"),
    ({"image": "a.png", "conversations": ["x"]}, "bad_row", "conversations 0"),
    ({"image": "a.png", "conversations": "x"}, "bad_row", "a list of conversations"),
    ({"image": "a.png"}, "bad_row", "a list of conversations"),
    ({"caption": "x"}, "bad_row", "a list of conversations"),
    (["x"], "bad_row", "object"),
]


@pytest.mark.parametrize(("hostile", "reason", "said"), HOSTILE)
@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
def test_a_wrong_row_is_named_by_its_line(
    read: Read, hostile: Any, reason: str, said: str, name: str
) -> None:
    samples, quarantine = read(row("<image>", "first"), hostile, row("<image>", "last"), name=name)
    assert [sample.answer for sample in samples] == ["first", "last"]
    assert quarantine.counts == {reason: 1}
    (named,) = quarantine.examples[reason]
    assert f"{name}:2" in named
    assert said in named


def test_ids_do_not_clash_and_do_not_move(read: Read) -> None:
    rows = [row("<image>", "x", id=name) for name in ("a", "a#2", "a", "b", "a")]
    assert [sample.id for sample in read(*rows)[0]] == ["a", "a#2", "a#3", "b", "a#4"]
    rows[1] = {**rows[1], "conversations": []}
    assert [sample.id for sample in read(*rows)[0]] == ["a", "a#3", "b", "a#4"], "a bad row keeps its name"


def test_only_conversations_make_a_file_llava(tmp_path: Path) -> None:
    for text, wanted in (
        ('[{"conversations": []}]', "llava"),
        ('[{"conversations": 1}]', "samples"),
        ("[]", "samples"),
    ):
        (tmp_path / "m.json").write_text(text)
        assert formats.sniff(tmp_path / "m.json", Source(path="m.json")) == wanted


@given(
    st.lists(
        st.lists(st.sampled_from(["a", " ", "\n", "<image>"]), max_size=6).map("".join),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 4),
)
@settings(max_examples=300)
def test_as_many_pictures_as_placeholders(words: list[str], images: int) -> None:
    turns = [turn for said in words for turn in (said, "yes")]
    asked = row(*turns, image=[f"{k}.png" for k in range(images)])
    places = sum(said.count("<image>") for said in words)
    is_empty = not all(said.strip() for said in words[places == 0 < images :])
    if is_empty or (places and places != images):
        with pytest.raises(DataError):
            convert(asked)
        return
    sample = parse(convert(asked)[0])
    assert [part.path for part in sample.images] == [f"{k}.png" for k in range(images)]
    assert places in (0, images)
    left = "".join(
        "*" if isinstance(p, ImagePart) else p.text
        for m in sample.messages
        for p in m.parts
        if not hasattr(p, "speaker")
    )  # type: ignore[union-attr]
    wanted = "".join(turns).replace("<image>", "*") if places else "*" * images + "".join(turns)
    assert re.sub(r"\s", "", left) == re.sub(r"\s", "", wanted)


def told(messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": "d", "group": "photo", "messages": messages, **more}


LOOKS = [{"type": "image", "path": "no_such_file.png"}, {"type": "text", "text": "what is in the picture?"}]


def test_a_told_picture_is_the_words_of_its_first_answer(read: Read) -> None:
    said = {"role": "assistant", "content": "a photo of a daisy."}
    more = [{"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    samples, quarantine = read(
        told([{"role": "user", "content": LOOKS}, said, *more], split="valid"),
        told([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]),
        {"text": "a document"},
        told([{"role": "user", "content": LOOKS[:1] * 2}, said]),
        captions_as_text=True,
        name="m.jsonl",
    )
    assert not quarantine.total, "the file of a told picture need not be there"
    first = samples[0]
    assert (first.id, first.group, first.split, first.task, first.media) == (
        "d",
        "photo",
        "valid",
        "chat",
        [],
    )
    assert [part.text for part in first.messages[0].parts if isinstance(part, TextPart)] == [
        "a photo of a daisy. ",
        "what is in the picture?",
    ]
    assert [message.text for message in first.messages[1:]] == ["a photo of a daisy.", "sure?", "yes"]
    assert [sample.task for sample in samples] == ["chat", "chat", "text", "chat"]
    assert samples[3].question == "a photo of a daisy. " * 2


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": LOOKS}],
        [
            {"role": "user", "content": LOOKS},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "and?"},
        ],
        [
            {"role": "user", "content": [*LOOKS, {"type": "audio", "path": "a.wav"}]},
            {"role": "assistant", "content": "x"},
        ],
        [
            {"role": "user", "content": LOOKS},
            {"role": "assistant", "content": [{"type": "audio", "path": "a.wav"}]},
        ],
        [{"role": "user", "content": LOOKS}, {"role": "assistant", "content": LOOKS}],
    ],
)
def test_what_cannot_be_told_is_refused(read: Read, messages: list[dict[str, Any]]) -> None:
    samples, quarantine = read(told(messages), captions_as_text=True, name="m.jsonl")
    assert (samples, quarantine.counts) == ([], {"bad_row": 1})


def test_told_samples_are_chosen_by_what_they_were_and_stay_on_their_side(read: Read, tmp_path: Path) -> None:
    rows = [row("<image>", "x", id=str(i), image=f"{i}.png") for i in range(30)]
    sounds = told(
        [
            {"role": "user", "content": [{"type": "audio", "path": "a.wav"}]},
            {"role": "assistant", "content": "x"},
        ]
    )
    samples, quarantine = read(*rows, format="llava", captions_as_text=True, tasks=["caption"])
    assert len(samples) == 30
    assert not quarantine.total
    (tmp_path / "s.jsonl").write_text(json.dumps(sounds))
    (tmp_path / "a.wav").write_bytes(b"x")
    with pytest.raises(DataError, match="no rows that fit"):
        load(tmp_path, path="s.jsonl", captions_as_text=True, tasks=["caption"])
    in_words = load(tmp_path, path="m.json", captions_as_text=True)
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    seen = load(tmp_path, path="m.json")
    assert in_words.valid
    assert [sample.id for sample in in_words.valid] == [sample.id for sample in seen.valid]


def test_a_template_names_what_an_answer_must_name(read: Read) -> None:
    turns = [{"user": [{"image": "{image}"}]}, {"assistant": "a photo of a {label}"}]
    (sample,), _ = read(
        {"image": "a.png", "label": "daisy", "license": "CC0"},
        name="m.jsonl",
        messages=turns,
        class_name="{label}",
    )
    assert sample.extra == {"license": "CC0", "names": "daisy"}
