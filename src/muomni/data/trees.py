"""Folders as they are unpacked or sorted by hand: LJSpeech, LibriSpeech, VCTK, Common Voice, sets of Higgs Audio
trainers, pictures or sounds in folders of classes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.errors import DataError, DataNote
from muomni.media.modality import of_suffix

LJ_TABLE, LJ_SOUNDS = "metadata.csv", "wavs"
LIBRI_TEXTS = "*.trans.txt"
LIBRI_DEPTH = 4  # from the folder that holds train-clean-100 and its like down to a chapter's files
LIBRI_LINE = re.compile(r"(?P<id>(?P<speaker>\d+)-(?P<chapter>\d+)-\d+)\s+(?P<words>\S.*)")
HELD_OUT = {"dev-clean", "dev-other", "test-clean", "test-other"}
VCTK_TEXTS, VCTK_SOUNDS = "txt", ("wav48_silence_trimmed", "wav48")
VCTK_ENDS = (
    "_mic1.flac",
    ".wav",
    ".flac",
    "_mic2.flac",
)  # the first that is there; mic2 has the same words once more
HIGGS_TABLE = "metadata.json"
HIGGS_HEAD = re.compile(rb'\s*\{\s*"(?:dataset_info|samples)"\s*:\s*[\[{]')
CLIPS = "clips"
COMMON_VOICE = ("train.tsv", "dev.tsv", "test.tsv")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDES = {"train": "train", "training": "train"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "test", "eval"), "valid"
)
ENTRIES = 10_000  # files that are looked at to tell sounds from pictures


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data: `.git`, `.ipynb_checkpoints`, `._a.png`, and what macOS
    puts beside a zip's files."""
    return name.startswith(".") or name == "__MACOSX"


def files(path: Path) -> Iterator[Path]:
    """The files of a folder and below it that are not hidden, in the order of their names."""
    with os.scandir(path) as entries:
        entries_sorted = sorted(
            (entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)
        )
    for name, is_folder in entries_sorted:
        if is_folder:
            yield from files(path / name)
        else:
            yield path / name


def is_ljspeech(path: Path) -> bool:
    """Whether a folder, or the table in it, is in LJSpeech's layout: wavs/ beside a metadata.csv whose first
    line has pipes, no header."""
    table = path / LJ_TABLE if path.is_dir() else path
    if not (table.suffix.lower() == ".csv" and table.is_file() and (table.parent / LJ_SOUNDS).is_dir()):
        return False
    with table.open("rb") as stream:
        first = stream.readline(1 << 16)
    return first.count(b"|") in (1, 2) and b"," not in first.partition(b"|")[0]


def ljspeech(line: str) -> dict[str, Any]:
    """A row of `id|text` or `id|text|text as it is read`: the words, said by the assistant.

    There is one speaker, so what must not straddle a split is the chapter, LJ001 of LJ001-0042; an id without
    a dash is its own group.
    Raises  DataError: bad_row, empty.
    """
    cells = line.split("|")
    if len(cells) not in (2, 3):
        raise DataError(
            "bad_row",
            f"LJSpeech: expected id|text|text as it is read, got {len(cells)} cells in {line[:60]!r}",
        )
    name, words = cells[0].strip(), cells[-1].strip() or cells[1].strip()
    if not name or "/" in name or name.startswith("."):
        raise DataError(
            "bad_row", f"LJSpeech: expected the name of a sound in {LJ_SOUNDS}/, got {name[:60]!r}"
        )
    if not words:
        raise DataError("empty", f"LJSpeech: {name}: expected words, got none")
    sound = {"type": "audio", "path": f"{LJ_SOUNDS}/{name}.wav"}
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": [sound]}]
    return {"id": name, "group": name.partition("-")[0], "task": "speak", "messages": turns}


def transcripts(path: Path) -> Iterator[Path]:
    """The transcript files of a LibriSpeech tree, or of a part of it, in the order of their names."""
    yield from sorted(
        file for file in path.rglob(LIBRI_TEXTS) if not any(map(is_hidden, file.relative_to(path).parts))
    )


def texts(path: Path) -> Iterator[Path]:
    """The files of words of a tree of LibriSpeech or VCTK, or of a set of a Higgs Audio trainer."""
    if is_higgs(path):
        yield from (file for file in files(path) if file.suffix == ".txt" or file.name == HIGGS_TABLE)
    elif is_vctk(path):
        yield from (file for file in files(path / VCTK_TEXTS) if file.suffix == ".txt")
    else:
        yield from transcripts(path)


def is_librispeech(path: Path) -> bool:
    """Whether a folder holds LibriSpeech's transcripts, at most as deep as its own tree is."""
    patterns = ("*/" * depth + LIBRI_TEXTS for depth in range(LIBRI_DEPTH))
    return any(next(islice(path.glob(pattern), 1), None) is not None for pattern in patterns)


def librispeech(line: str, tree: Path, inside: Path, prompt: str | None = None) -> dict[str, Any]:
    """A row of `SPEAKER-CHAPTER-NUMBER WORDS` in the transcript file `inside` of a tree: the sound, written
    down.

    The group is the speaker. Words are in lower case: capitals throughout say nothing. The parts called dev
    and test are held out, as they are for everyone.
    Raises  DataError: bad_row.
    """
    match = LIBRI_LINE.fullmatch(line.strip())
    chapter = inside.name.removesuffix(LIBRI_TEXTS[1:])
    if match is None or f"{match['speaker']}-{match['chapter']}" != chapter:
        raise DataError("bad_row", f"LibriSpeech: expected {chapter}-NUMBER and words, got {line[:60]!r}")
    sound: list[dict[str, Any]] = [{"type": "audio", "path": str(inside.parent / f"{match['id']}.flac")}]
    if prompt:
        sound.append({"type": "text", "text": prompt})
    turns = [{"role": "user", "content": sound}, {"role": "assistant", "content": match["words"].lower()}]
    row = {"id": match["id"], "group": match["speaker"], "task": "transcribe", "messages": turns}
    return {**row, "split": "valid"} if HELD_OUT & {*tree.absolute().parts[-3:], *inside.parts} else row


def is_higgs(path: Path) -> bool:
    """Whether a folder, or the metadata.json in it, is a set of a Higgs Audio trainer: an object of `dataset_info`
    and `samples`."""
    table = path / HIGGS_TABLE if path.is_dir() else path
    if table.name != HIGGS_TABLE or not table.is_file():
        return False
    with table.open("rb") as stream:
        return HIGGS_HEAD.match(stream.read(4096).removeprefix(b"\xef\xbb\xbf")) is not None


def higgs(row: Any, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A row of such a set, and its fields that were used: the words, said by the assistant; a reference that it names
    is an earlier turn, or stands before the words where its own are not written down.

    Raises  DataError: bad_row, missing (a text), empty, undecodable.
    """
    if not isinstance(row, dict):
        raise DataError("bad_row", f"sample: expected an object, got {type(row).__name__}")
    name, speaker = row.get("id"), row.get("speaker_id")
    for key in ("id", "audio_file", "speaker_id", "ref_audio_file", "ref_transcript"):
        if row.get(key) is not None and (not isinstance(row[key], str) or not row[key]):
            raise DataError("bad_row", f"{key}: expected a text, got {row[key]!r:.40}")
    if "audio_file" not in row:
        raise DataError("bad_row", f"{name or 'sample'}: expected audio_file, got {', '.join(row)[:80]}")
    used = [key for key in ("id", "audio_file", "speaker_id") if row.get(key) is not None]
    words_key = "transcript_file" if row.get("transcript_file") else "transcript"
    words, sound = _words(row.get(words_key), words_key, folder), _sound(row["audio_file"], speaker)
    turns: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    used.append(words_key)
    if row.get("ref_audio_file"):
        heard = _sound(row["ref_audio_file"], speaker)
        used.append("ref_audio_file")
        if row.get("ref_transcript"):
            used.append("ref_transcript")
            turns += [
                {"role": "user", "content": row["ref_transcript"]},
                {"role": "assistant", "content": [heard]},
            ]
        else:
            asked = [heard]
    start = len(turns) + 1
    said = [*asked, {"type": "text", "text": words}] if asked else words
    turns += [{"role": "user", "content": said}, {"role": "assistant", "content": [sound]}]
    sample = {"task": "speak", "messages": turns, "start_index": start}
    sample |= {"id": name} if name else {}
    return sample | ({"group": speaker} if speaker else {}), used


def _sound(path: str, speaker: str | None) -> dict[str, Any]:
    return {"type": "audio", "path": path, **({"speaker": speaker} if speaker else {})}


def _words(value: Any, key: str, folder: Path) -> str:
    """The words of a field, or of the file that it names."""
    if not isinstance(value, str) or not value.strip():
        raise DataError("empty", f"{key}: expected words, got {value!r:.40}")
    if key != "transcript_file":
        return value.strip()
    try:
        words = (folder / value).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise DataError("missing", f"{value}: expected a text, can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            "undecodable", f"{value}: expected UTF-8, got byte 0x{error.object[error.start]:02x}"
        ) from error
    if not words:
        raise DataError("empty", f"{value}: expected words, got none")
    return words


def is_vctk(path: Path) -> bool:
    """Whether a folder is VCTK's, of version 0.92 (flac of two microphones) or 0.80 (wav)."""
    return (
        path.is_dir() and (path / VCTK_TEXTS).is_dir() and any((path / name).is_dir() for name in VCTK_SOUNDS)
    )


def vctk(path: Path, prompt: str | None = None) -> Iterator[dict[str, Any] | DataError]:
    """A row of each text of VCTK: the sound of its first microphone, written down. The group is the speaker.

    A sound without a text is passed over (p315 has none); the second microphone's recordings of the same
    words are left, and told.
    """
    sounds = next(name for name in VCTK_SOUNDS if (path / name).is_dir())
    left = 0
    for folder in sorted(
        each for each in (path / VCTK_TEXTS).iterdir() if each.is_dir() and not is_hidden(each.name)
    ):
        speaker = folder.name
        there = set(os.listdir(path / sounds / speaker)) if (path / sounds / speaker).is_dir() else set[str]()
        left += sum(
            name.endswith("_mic2.flac") and name.replace("_mic2.", "_mic1.") in there for name in there
        )
        for file in sorted(
            each for each in folder.iterdir() if each.suffix == ".txt" and not is_hidden(each.name)
        ):
            inside = f"{VCTK_TEXTS}/{speaker}/{file.name}"
            name = next((file.stem + end for end in VCTK_ENDS if file.stem + end in there), None)
            try:
                words = " ".join(file.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                yield DataError(
                    "undecodable", f"{inside}: expected UTF-8, got byte 0x{error.object[error.start]:02x}"
                )
                continue
            if not words:
                yield DataError("empty", f"{inside}: expected words, got none")
            elif name is None:
                yield DataError(
                    "missing",
                    f"{inside}: expected its sound, {sounds}/{speaker}/{file.stem}{VCTK_ENDS[0]} or .wav",
                )
            else:
                heard = {"type": "audio", "path": f"{sounds}/{speaker}/{name}", "speaker": speaker}
                user_parts: list[dict[str, Any]] = (
                    [heard, {"type": "text", "text": prompt}] if prompt else [heard]
                )
                turns = [{"role": "user", "content": user_parts}, {"role": "assistant", "content": words}]
                yield {"id": file.stem, "group": speaker, "task": "transcribe", "messages": turns}
    if left:
        yield DataNote(
            "repaired", f"{left} recordings of the second microphone (mic2) say the same words: they are left"
        )


def common_voice(path: Path) -> list[Path]:
    """The tables of a folder of Common Voice: train, dev and test where they are there, else validated; none
    of another folder."""
    if not (path / CLIPS).is_dir():
        return []
    tables = [path / name for name in COMMON_VOICE if (path / name).is_file()]
    return tables or [path / name for name in ("validated.tsv",) if (path / name).is_file()]


def tables(path: Path) -> list[Path]:
    """The tables of a folder of media that Hugging Face's imagefolder and audiofolder read: its own, else one
    in each folder of a split."""
    own = [path / name for name in TABLES if (path / name).is_file()]
    if own:
        return own[:1]
    inside = sorted(each for each in path.iterdir() if each.name.lower() in SIDES and each.is_dir())
    return [
        table for each in inside for table in [each / name for name in TABLES if (each / name).is_file()][:1]
    ]


def sounds_alone(path: Path) -> bool:
    """Whether a folder holds sounds and no other media."""
    return {of_suffix(file.suffix.lower()) for file in islice(files(path), ENTRIES)} - {None} == {"audio"}


def classes(path: Path, suffixes: frozenset[str]) -> Iterator[tuple[Path, str, str | None] | DataError]:
    """Media in folders of classes: each file as it is seen from the folder, its class, and its side, where
    folders of splits say it.

    A folder called train, val or test is a split where it holds folders of classes, or where all folders
    beside it are splits too.
    """
    tops = sorted(each.name for each in path.iterdir() if each.is_dir() and not is_hidden(each.name))
    are_all = all(name.lower() in SIDES for name in tops)
    splits = {name for name in tops if name.lower() in SIDES and (are_all or _has_folders(path / name))}
    says = {SIDES[name.lower()] for name in splits} == {"train", "valid"}
    deep: Path | None = None
    for file in files(path):
        if file.suffix.lower() not in suffixes:
            continue
        inside = file.relative_to(path)
        top = inside.parts[0] if inside.parts[0] in splits else None
        within = inside.parts[1:] if top else inside.parts
        if len(within) < 2:
            hint = "or add metadata.jsonl with file_name and text"
            yield DataError("bad_row", f"{inside}: expected it in a class folder", hint=hint)
            continue
        if len(within) > 2 and deep is None:
            deep = inside
            yield DataNote(
                "ambiguous",
                f"{inside}: its class is the folder in which it lies, {within[-2]!r}, not {within[0]!r}",
            )
        yield inside, within[-2].replace("_", " "), SIDES[top.lower()] if top and says else None


def _has_folders(path: Path) -> bool:
    return any(each.is_dir() and not is_hidden(each.name) for each in path.iterdir())
