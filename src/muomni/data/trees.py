"""Speech corpora as they are unpacked: LJSpeech (metadata.csv beside wavs/) and LibriSpeech (SPEAKER/CHAPTER/*.trans.txt beside flac)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.errors import DataError

LJ_TABLE, LJ_SOUNDS = "metadata.csv", "wavs"
LIBRI_TEXTS = "*.trans.txt"
LIBRI_DEPTH = 4  # from the folder that holds train-clean-100 and its like down to a chapter's files
LIBRI_LINE = re.compile(r"(?P<id>(?P<speaker>\d+)-(?P<chapter>\d+)-\d+)\s+(?P<words>\S.*)")
HELD_OUT = {"dev-clean", "dev-other", "test-clean", "test-other"}


def is_ljspeech(path: Path) -> bool:
    """Whether a folder, or the table in it, is in LJSpeech's layout: wavs/ beside a metadata.csv whose first line has pipes, no header."""
    table = path / LJ_TABLE if path.is_dir() else path
    if not (table.suffix.lower() == ".csv" and table.is_file() and (table.parent / LJ_SOUNDS).is_dir()):
        return False
    with table.open("rb") as stream:
        first = stream.readline(1 << 16)
    return first.count(b"|") in (1, 2) and b"," not in first.partition(b"|")[0]


def ljspeech(line: str) -> dict[str, Any]:
    """A row of `id|text` or `id|text|text as it is read`: the words, said by the assistant.

    There is one speaker, so what must not straddle a split is the chapter, LJ001 of LJ001-0042; an id without a dash is its own group.
    Raises  DataError: bad_row, empty.
    """
    cells = line.split("|")
    if len(cells) not in (2, 3):
        raise DataError("bad_row", f"LJSpeech: expected id|text|text as it is read, got {len(cells)} cells in {line[:60]!r}")
    name, words = cells[0].strip(), cells[-1].strip() or cells[1].strip()
    if not name or "/" in name or name.startswith("."):
        raise DataError("bad_row", f"LJSpeech: expected the name of a sound in {LJ_SOUNDS}/, got {name[:60]!r}")
    if not words:
        raise DataError("empty", f"LJSpeech: {name}: expected words, got none")
    sound = {"type": "audio", "path": f"{LJ_SOUNDS}/{name}.wav"}
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": [sound]}]
    return {"id": name, "group": name.partition("-")[0], "task": "speak", "messages": turns}


def transcripts(path: Path) -> Iterator[Path]:
    """The transcript files of a LibriSpeech tree, or of a part of it, in the order of their names."""
    yield from sorted(path.rglob(LIBRI_TEXTS))


def is_librispeech(path: Path) -> bool:
    """Whether a folder holds LibriSpeech's transcripts, at most as deep as its own tree is."""
    patterns = ("*/" * depth + LIBRI_TEXTS for depth in range(LIBRI_DEPTH))
    return any(next(islice(path.glob(pattern), 1), None) is not None for pattern in patterns)


def librispeech(line: str, tree: Path, inside: Path, prompt: str | None = None) -> dict[str, Any]:
    """A row of `SPEAKER-CHAPTER-NUMBER WORDS` in the transcript file `inside` of a tree: the sound, written down.

    The group is the speaker. Words are in lower case: capitals throughout say nothing. The parts called dev and test are held out, as they
    are for everyone.
    Raises  DataError: bad_row.
    """
    found = LIBRI_LINE.fullmatch(line.strip())
    chapter = inside.name.removesuffix(LIBRI_TEXTS[1:])
    if found is None or f"{found['speaker']}-{found['chapter']}" != chapter:
        raise DataError("bad_row", f"LibriSpeech: expected {chapter}-NUMBER and words, got {line[:60]!r}")
    sound: list[dict[str, Any]] = [{"type": "audio", "path": str(inside.parent / f"{found['id']}.flac")}]
    if prompt:
        sound.append({"type": "text", "text": prompt})
    turns = [{"role": "user", "content": sound}, {"role": "assistant", "content": found["words"].lower()}]
    row = {"id": found["id"], "group": found["speaker"], "task": "transcribe", "messages": turns}
    return {**row, "split": "valid"} if HELD_OUT & {*tree.absolute().parts[-3:], *inside.parts} else row
