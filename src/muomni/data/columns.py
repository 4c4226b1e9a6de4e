"""How a flat manifest is read without a template: its columns are recognised by their names and by what stands in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.data import formats
from muomni.data.source import Source
from muomni.errors import ConfigError

FILES = ("audio", "wav", "image", "path", "file", "file_name", "filename", "picture", "sound", "clip", "img", "photo")
QUESTIONS = ("question", "prompt", "instruction")
ANSWERS = ("answer", "response", "output", "completion")
WORDS = ("captions", "caption", "text", "transcript", "transcription", "sentence", "word", "label", "name", "intent", "class")
TRANSCRIPTS = ("text", "transcript", "transcription", "sentence", "word")
GROUPS = ("group", "speaker")  # without one, a picture or sound is its own group
LOOKED_AT = 1000  # rows; `split` is looked at in all of them
BLANK_SHARE = 0.05


def recognise(path: Path, source: Source) -> Source:
    """The source with the template or option that fits its file; as it is where it has a format or a template, or needs none."""
    if source.format is not None or source.is_template or path.is_dir():
        return source
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return source.model_copy(update={"paragraphs": source.paragraphs or _has_paragraphs(path)})
    if suffix not in (".jsonl", ".json", ".csv", ".tsv"):
        return source
    rows = [row for _, row in islice(formats.objects(path), LOOKED_AT) if isinstance(row, dict)]
    if not rows or any("messages" in row for row in rows) or _is_known_table(path, source):
        return source
    return source.model_copy(update=_template(path, rows))


def describe(source: Source) -> str:
    """What of a source was recognised, as it could stand in a recipe."""
    keys = ("paragraphs", "expand", "group", "task", "split", "messages")
    given = source.model_dump(include=set(keys), exclude_defaults=True)
    return json.dumps({key: given[key] for key in keys if key in given}, ensure_ascii=False) if given else ""


def _is_known_table(path: Path, source: Source) -> bool:
    try:
        return formats.sniff(path, source) != "samples"
    except ConfigError:
        return False


def _template(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The template that most rows fit: files from the user, words from the assistant; empty where no such columns are found."""
    common = _common(rows)
    media = [(kind, key) for key in FILES if key in common and (kind := _kind(row.get(key) for row in rows))]
    question = next((key for key in QUESTIONS if key in common), None)
    answer = next((key for key in (ANSWERS if question else ()) if key in common), None)
    words = answer or next((key for key in WORDS if key in common), None)
    if words is None or not (media or (answer and question != "question")):
        return {}
    heard = any(kind == "audio" for kind, _ in media)
    window = {key: f"{{{key}}}" for key in ("start", "end") if heard and key in common}
    asked: list[Any] = [{kind: f"{{{key}}}", **(window if kind == "audio" else {})} for kind, key in media]
    if question and answer:
        asked.append(f"{{{question}}}")
    is_list = isinstance(rows[0].get(words), list)
    made: dict[str, Any] = {"messages": [{"user": asked}, {"assistant": "{item}" if is_list else f"{{{words}}}"}]}
    if is_list:
        made["expand"] = words
    if heard:
        made["task"] = "transcribe" if words in TRANSCRIPTS else words
    group = next((key for key in GROUPS if key in common and all(isinstance(row.get(key), str | int) for row in rows)), None)
    if group:
        made["group"] = f"{{{group}}}"
    if "split" in common and _splits(path) - {"train"}:
        made["split"] = "{split}"
    return made


def _common(rows: list[dict[str, Any]]) -> set[str]:
    """The columns that at least half of the rows fill."""
    keys = {key for row in rows for key in row}
    return {key for key in keys if 2 * sum(row.get(key) is not None for row in rows) >= len(rows)}


def _kind(values: Iterable[Any]) -> str | None:
    """What at least half of the values name: `audio` or `image` files."""
    suffixes = [Path(value).suffix.lower() if isinstance(value, str) and len(value) < 4096 else "" for value in values]
    counts = {"audio": sum(s in formats.AUDIO_SUFFIXES for s in suffixes), "image": sum(s in formats.IMAGE_SUFFIXES for s in suffixes)}
    kind = max(counts, key=lambda name: counts[name])
    return kind if 2 * counts[kind] >= len(suffixes) else None


def _splits(path: Path) -> set[str]:
    """Every value of `split`: one that is `train` throughout says nothing, and the hash of the group decides."""
    return {str(row["split"]) for _, row in formats.objects(path) if isinstance(row, dict) and row.get("split") is not None}


def _has_paragraphs(path: Path) -> bool:
    """Whether blank lines part blocks of several lines."""
    first = [line.strip() for _, line in islice(formats.lines(path), LOOKED_AT) if isinstance(line, str)]
    blank = sum(not line for line in first)
    blocks = sum(bool(line) and (i == 0 or not first[i - 1]) for i, line in enumerate(first))
    return blank >= BLANK_SHARE * len(first) and len(first) - blank >= 1.5 * max(1, blocks)
