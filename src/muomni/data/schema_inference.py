"""Schema inference: columns of a flat manifest, recognised by their names and values, when there is no
template."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.data import formats, shards
from muomni.data.layouts import fields, media
from muomni.data.layouts.fields import fold
from muomni.data.source import Recognised, Source
from muomni.errors import ConfigError
from muomni.media.modality import MODALITIES

QUESTIONS = ("question", "prompt", "instruction", "query")
ANSWERS = ("answer", "response", "output", "completion")
TRANSCRIPTS = (
    "text",
    "transcript",
    "transcription",
    "sentence",
    "word",
    "normalizedtext",
    "rawtext",
    "transcribedtext",
    "utterance",
    "txt",
)
WORDS = (
    "captions",
    "caption",
    *TRANSCRIPTS,
    "label",
    "name",
    "intent",
    "class",
    "description",
    "alttext",
    "category",
)
CLIPS = "clips"  # where Common Voice keeps the sounds of the tables beside it
LOOKED_AT = 1000  # rows
BLANK_SHARE = 0.05


def recognise(path: Path, source: Source) -> Source:
    """The source with the template or option that fits its file; as it is where it has a format or a
    template, or needs none."""
    if formats.kind(path) == ".txt" and source.format is None and path.is_file():
        return source.model_copy(update={"paragraphs": source.paragraphs or _has_paragraphs(path)})
    return table(path, source)


def table(path: Path, source: Source) -> Source:
    """The source with the template that fits the columns of its table; as it is where it has a format or a
    template, or needs none."""
    if source.is_template or source.format not in (None, "images", "sounds"):
        return source
    if path.is_dir() and not shards.is_whole(path):
        kind = formats.sniff(path, source) if shards.is_set(path) else None
        return (
            _described(path, source.model_copy(update={"format": kind}))
            if kind in ("images", "sounds")
            else source
        )
    if source.format is not None or not formats.is_table(path) or _is_known_table(path, source):
        return source
    return _described(path, source)


def _described(table: Path, source: Source) -> Source:
    """A source with the template that its table's columns tell; as it is where they tell none."""
    rows = [row for _, row in islice(formats.dicts(table, source), LOOKED_AT) if isinstance(row, dict)]
    if not rows or any("messages" in row for row in rows):
        return source
    home = formats.home(table)
    root = home / source.root if source.root is not None else home
    template = _template(source, rows, root)
    return Recognised.of(source, **template) if template else source


def describe(source: Source) -> str:
    """What of a source was recognised, as it could stand in a recipe."""
    keys = ("paragraphs", "expand", "group", "task", "messages")
    set_keys = source.model_dump(include=set(keys), exclude_defaults=True)
    return (
        json.dumps({key: set_keys[key] for key in keys if key in set_keys}, ensure_ascii=False)
        if set_keys
        else ""
    )


def _is_known_table(path: Path, source: Source) -> bool:
    try:
        return formats.sniff(path, source) != "samples"
    except ConfigError:
        return False


def _template(source: Source, rows: list[dict[str, Any]], root: Path) -> dict[str, Any]:
    """The template that most rows fit: files from the user, words from the assistant; empty where no such
    columns are found."""
    common = _common(rows)
    folded = {fold(key): key for key in reversed(common)}
    shown = _media(rows, common)
    question = next((folded[key] for key in QUESTIONS if key in folded), None)
    answer = next((folded[key] for key in (ANSWERS if question else ()) if key in folded), None)
    named = {key for _, key in shown}
    words = answer or next((folded[key] for key in WORDS if key in folded and folded[key] not in named), None)
    if words is None or not shown:
        return {}
    heard = [key for kind, key in shown if kind == "audio"]
    columns = fields.plan_of(tuple(common))
    window = _window(columns, rows) if len(heard) == 1 else {}
    user_parts: list[Any] = []
    for kind, key in shown:
        prefix = f"{CLIPS}/" if kind == "audio" and _lies_in_clips(rows, key, root) else ""
        user_parts.append({kind: f"{prefix}{{{key}}}", **(window if kind == "audio" else {})})
    if question and answer:
        user_parts.append(f"{{{question}}}")
    elif source.prompt:
        user_parts.append(source.prompt)
    is_list = isinstance(rows[0].get(words), list)
    template: dict[str, Any] = {
        "messages": [{"user": user_parts}, {"assistant": "{item}" if is_list else f"{{{words}}}"}]
    }
    if is_list:
        template["expand"] = words
    if heard and source.task is None:
        template["task"] = "transcribe" if fold(words) in TRANSCRIPTS else words
    group = columns.group or (columns.persons[0] if len(columns.persons) == 1 else None)
    if (
        group
        and source.group is None
        and all(isinstance(row.get(group), str | int) and row[group] != "" for row in rows)
    ):
        template["group"] = f"{{{group}}}"
    return template


def _media(rows: list[dict[str, Any]], common: list[str]) -> list[tuple[str, str]]:
    """Kind and name of each column of files; of two that name the same files, one."""
    columns: list[tuple[str, str]] = []
    for key in common:
        kind = _kind(key, [row.get(key) for row in rows]) if media.is_file_key(key) else None
        if kind is None:
            continue
        is_copy = any(
            all(_first_path(row.get(key)) == _first_path(row.get(other)) for row in rows)
            for _, other in columns
        )
        if not is_copy:
            columns.append((kind, key))
    return columns


def _window(columns: fields.Plan, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The stretch of a sound that columns say, as parts of a template have it; only where all rows say it:
    else each row is asked."""
    times = columns.times
    if not times.keys() & {"start", "end"} or any(time.unit_s is None for time in times.values()):
        return {}
    if not all(row.get(time.key) not in (None, "") for time in times.values() for row in rows):
        return {}
    return {time.of if time.unit_s == 1.0 else f"{time.of}_ms": f"{{{time.key}}}" for time in times.values()}


def _lies_in_clips(rows: list[dict[str, Any]], key: str, root: Path) -> bool:
    names = [name for row in rows[:20] if (name := _first_path(row.get(key))) and "/" not in name]
    return (
        bool(names)
        and (root / CLIPS).is_dir()
        and any((root / CLIPS / name).is_file() for name in names)
        and not any((root / name).is_file() for name in names)
    )


def _common(rows: list[dict[str, Any]]) -> list[str]:
    """The columns that at least half of the rows fill, in their order."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [key for key in keys if 2 * sum(row.get(key) is not None for row in rows) >= len(rows)]


def _first_path(value: Any) -> str:
    """The file that a cell names, "" where it names none."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("path") or value.get("url")
    if not isinstance(value, str):
        return ""
    if value.startswith("data:"):  # of which the suffix stands in front: data:image/png;base64,...
        return f"inline.{value[5:60].partition(';')[0].rpartition('/')[2]}"
    return value if len(value) < 4096 else ""


def _kind(key: str, values: list[Any]) -> str | None:
    """The modality that at least half of the values name, by their suffixes, else by the column's name."""
    paths = [_first_path(value) for value in values]
    suffixes = [Path(path).suffix.lower() for path in paths]
    counts = {kind: sum(suffix in row.suffixes for suffix in suffixes) for kind, row in MODALITIES.items()}
    kind = max(reversed(counts), key=lambda name: counts[name])
    if 2 * counts[kind] >= len(suffixes):
        return kind
    named = media.kind_of_key(key)  # suffixes that few know, or none: media are known by their first bytes
    files = sum(path != "" and not media.is_word(key, path) for path in paths)
    return (
        named
        if named in counts and sum(counts.values()) == counts[named] and 2 * files >= len(paths)
        else None
    )


def _has_paragraphs(path: Path) -> bool:
    """Whether blank lines part blocks of several lines."""
    first = [line.strip() for _, line in islice(formats.lines(path), LOOKED_AT) if isinstance(line, str)]
    blank = sum(not line for line in first)
    blocks = sum(bool(line) and (i == 0 or not first[i - 1]) for i, line in enumerate(first))
    return blank >= BLANK_SHARE * len(first) and len(first) - blank >= 1.5 * max(1, blocks)
