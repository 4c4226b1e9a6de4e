"""Files of the same bytes under two names on both sides: found in every corpus, and read whole only where
that is needed."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muomni import files
from muomni.data import copies, readers
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source


def load(folder: Path, train: list[str], valid: list[str]) -> readers.Corpus:
    rows: list[dict[str, Any]] = []
    for split, paths in (("train", train), ("valid", valid)):
        for number, path in enumerate(paths):
            turns = [
                {"role": "user", "content": [{"type": "image", "path": path}]},
                {"role": "assistant", "content": "x"},
            ]
            rows.append(
                {"id": f"{split}{number}", "group": f"{split}{number}", "split": split, "messages": turns}
            )
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return readers.load([Source(path="m.jsonl")], base=folder, val_split=0.1, seed=0, quarantine=Quarantine())


def test_a_copy_under_another_name_is_a_leak(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / f"{name}.png").write_bytes(np.random.default_rng(number).bytes(30_000))
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert not load(tmp_path, ["a.png", "b.png"], ["c.png"]).leaks
    found = load(tmp_path, ["a.png", "b.png"], ["c.png", "copy.png"]).leaks
    assert found.contents == [f"{tmp_path / 'copy.png'} holds the bytes of {tmp_path / 'a.png'}"]
    assert found
    assert "1 contents" in str(found)
    assert not load(tmp_path, ["a.png", "copy.png"], ["c.png"]).leaks, "twice on one side is no leak"


def test_a_link_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert load(tmp_path, ["a.png"], ["b.png"]).leaks.paths == [str(tmp_path / "a.png")]


def test_what_is_written_into_the_row_is_compared_too(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(2000)
    (tmp_path / "a.png").write_bytes(content)
    inline = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    (found,) = load(tmp_path, ["a.png"], [inline]).leaks.contents
    assert found.endswith(f"holds the bytes of {tmp_path / 'a.png'}")
    assert len(found) < 300


def test_a_file_on_both_sides_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    found = load(tmp_path, ["a.png"], ["a.png"]).leaks
    assert (len(found.paths), found.contents) == (1, [])


@pytest.mark.parametrize("place", [0, 14_000, 29_999])
def test_one_byte_makes_another_file(tmp_path: Path, place: int) -> None:
    content = bytearray(np.random.default_rng(0).bytes(30_000))
    (tmp_path / "a.png").write_bytes(content)
    content[place] ^= 1
    (tmp_path / "b.png").write_bytes(content)
    assert not load(tmp_path, ["a.png"], ["b.png"]).leaks


def test_only_files_that_agree_in_size_and_stretches_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    looked: list[str] = []
    whole, stretches = files.sha256_file, copies._stretches
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(Path(path).name) or whole(path))
    monkeypatch.setattr(copies, "_stretches", lambda path: looked.append(Path(path).name) or stretches(path))
    rng = np.random.default_rng(1)
    names = [f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(
            rng.bytes(20_000 + (number if number >= 10 else 0))
        )  # the first ten are of one size
    (tmp_path / "copy.png").write_bytes((tmp_path / "3.png").read_bytes())
    assert len(load(tmp_path, names[:30], [*names[30:], "copy.png"]).leaks.contents) == 1
    assert sorted(looked) == sorted([*names[:10], "copy.png"])
    assert sorted(name for name in read if name.endswith("png")) == ["3.png", "copy.png"]
    load(tmp_path, names[:30], [*names[30:], "copy.png"])
    assert sum(name.endswith("png") for name in read) == 2, "once a process"


def test_a_file_that_vanished_is_no_leak_and_no_crash(tmp_path: Path) -> None:
    finder = copies.CopyFinder()
    (tmp_path / "a.png").write_bytes(b"12345")
    corpus = load(tmp_path, ["a.png", "a.png"], [])
    for owner, sample in enumerate(corpus.train):
        finder.add(sample.media, owner)
    os.remove(tmp_path / "a.png")
    assert finder.found(np.array([False, True]), corpus.train[:1], corpus.train[1:]) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.booleans()), min_size=2, max_size=12))
def test_the_same_pairs_as_by_reading_all(tmp_path: Path, shape: list[tuple[int, int, bool]]) -> None:
    sides: dict[bool, list[str]] = {False: [], True: []}
    contents: dict[str, bytes] = {}
    for number, (kind, size, is_valid) in enumerate(shape):
        name = f"f{number}.png"
        contents[name] = bytes([kind]) * (10 + size)
        (tmp_path / name).write_bytes(contents[name])
        sides[is_valid].append(name)
    if not sides[False]:
        return
    found = load(tmp_path, sides[False], sides[True]).leaks.contents
    wanted = [name for name in sides[True] if contents[name] in {contents[other] for other in sides[False]}]
    assert sorted(Path(line.split(" holds ")[0]).name for line in found) == sorted(wanted)
