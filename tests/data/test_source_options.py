"""What a source says does something in its format, or is refused: every field with every format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from muomni.data import formats, readers
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "formats.md"
ASKED = {"role": "user", "content": [{"type": "image", "path": "a.png"}]}
ANSWERED = {"role": "assistant", "content": "a dog"}
SAMPLE = {"id": "one", "group": "g", "task": "t", "kind": "dog", "messages": [ASKED, ANSWERED]}
TALK = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
LLAVA = {"id": "one", "image": "a.png", "kind": "dog", "conversations": TALK}
CAPTION = {"id": "two", "image": "b.png", "kind": "cat", "caption": "a cat"}  # what llava asks `prompt` for
CUT = {
    "id": "c",
    "type": "MonoCut",
    "start": 0.0,
    "duration": 1.0,
    "channel": 0,
    "supervisions": [
        {"id": "s", "recording_id": "r", "start": 0.0, "duration": 1.0, "channel": 0, "text": "hello"}
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 16000,
    },
}
FLAT = {
    "name": "x",
    "image": "a.png",
    "say": "a dog",
    "which": ["a", "b"],
    "false": [{"kind": "animal", "text": "a cat"}],
    "side": "train",
}
TEMPLATE: dict[str, Any] = {"messages": [{"user": [{"image": "{image}"}]}, {"assistant": "{say}"}]}
# The bytes of each format's file, and what a source must say of it.
FILES: dict[str, tuple[str, str]] = {
    "text": ("t.txt", "one\ntwo\n\nthree\n"),
    "samples": ("s.jsonl", json.dumps(SAMPLE)),
    "asr_csv": ("a.csv", "wav,text\na.wav,hello\n"),
    "tts_csv": ("t.csv", "text,wav\nhello,a.wav\n"),
    "ocr_csv": ("o.csv", "image,text\na.png,hello\n"),
    "captions": ("c.json", json.dumps([{"image": "a.png", "caption": "a dog"}])),
    "images": ("folder", ""),
    "sounds": ("heard", ""),
    "llava": ("l.json", json.dumps([LLAVA, CAPTION])),
    "alpaca": (
        "i.json",
        json.dumps(
            [{"instruction": "what?", "input": "", "output": "a dog", "image": "a.png", "kind": "dog"}]
        ),
    ),
    "lhotse": ("cuts.jsonl", json.dumps(CUT)),
    "ljspeech": ("lj", ""),
    "librispeech": ("libri", ""),
    "vctk": ("vctk", ""),
    "higgs": ("higgs", ""),
    "rows": ("r.jsonl", json.dumps(FLAT)),
}
VALUES: dict[str, Any] = {
    "paragraphs": True,
    "root": "other",
    "prompt": "what is it?",
    "captions_as_text": True,
    "id": "id-{name}",
    "group": "{kind}",
    "task": "{kind}",
    "split": "valid",
    "class_name": "{kind}",
    "messages": [{"user": "well?"}, {"assistant": "{say}"}],
    "text": "{say}",
    "negatives": "false",
    "where": {"name": "y"},
    "expand": "which",
}
COMMON = {"path", "format", "weight", "tasks", "val_split", "limit", "held_out_groups", "ignore"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("heard/dog", "other/dog"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.wav").write_bytes(b"x" * (1 + len(name)))
    for place in (tmp_path, tmp_path / "other", tmp_path / "folder" / "dog", tmp_path / "other" / "dog"):
        place.mkdir(parents=True, exist_ok=True)
        for name in ("a.png", "b.png", "a.wav"):
            (place / name).write_bytes(b"x")
    for table, line, sound in (
        ("lj/metadata.csv", "LJ001-0001|Hello.|Hello.", "lj/wavs/LJ001-0001.wav"),
        ("libri/19/198/19-198.trans.txt", "19-198-0000 HELLO", "libri/19/198/19-198-0000.flac"),
        ("vctk/txt/p225/p225_001.txt", "Hello.", "vctk/wav48/p225/p225_001.wav"),
        ("higgs/metadata.json", '{"samples": [{"audio_file": "a.wav", "transcript": "x"}]}', "higgs/a.wav"),
    ):
        (tmp_path / sound).parent.mkdir(parents=True)
        (tmp_path / sound).write_bytes(b"x")
        (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / table).write_text(line + "\n")
    for name, content in FILES.values():
        if content:
            (tmp_path / name).write_text(content + "\n")
    return tmp_path


def source(kind: str, **more: Any) -> Source:
    base = dict(TEMPLATE) if kind == "rows" else {}
    if kind == "rows" and "text" in more:
        base = {}
    for name, value in more.items():  # the fields of another file
        if kind == "rows" and isinstance(value, str):
            more[name] = value.replace("{kind}", "{say}")
    return Source(path=FILES[kind][0], format=kind, **{**base, **more})  # type: ignore[arg-type]


def seen(folder: Path, one: Source) -> Any:
    quarantine = Quarantine(None, 1.0)
    samples = [sample.model_dump() for sample in readers.read(one, folder, quarantine)]
    return samples, quarantine.total


def test_every_field_has_another_value_here() -> None:
    assert COMMON | VALUES.keys() == Source.model_fields.keys()
    assert FILES.keys() == formats.READERS.keys() == formats.USES.keys()


@pytest.mark.parametrize("kind", FILES)
def test_a_field_changes_the_samples_or_is_refused(folder: Path, kind: str) -> None:
    standard = seen(folder, source(kind))
    assert standard[0], standard
    for name, value in VALUES.items():
        changed = source(kind, **{name: value})
        if name in formats.USES[kind]:  # type: ignore[index]
            formats.refuse_idle(folder / FILES[kind][0], changed)
            assert seen(folder, changed) != standard, (kind, name)
        else:
            with pytest.raises(ConfigError, match=f"{name} has no effect on format {kind}"):
                readers.load([changed], base=folder, val_split=0.0, seed=0, quarantine=Quarantine(None, 1.0))


def test_the_table_of_the_docs_is_that_of_the_readers() -> None:
    rows = [
        line.split("|")[1:3]
        for line in DOCS.read_text().splitlines()
        if line.startswith("| ") and line.count("|") == 3
    ]
    told = {
        row[0].strip(): sorted(re.findall(r"`(\w+)`", row[1]))
        for row in rows
        if row[0].strip() in formats.USES
    }
    assert told == {kind: sorted(used) for kind, used in formats.USES.items()}
