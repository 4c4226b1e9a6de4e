"""Flat rows -> sample rows by a declarative template, so that a new manifest needs no code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from muomni.data.layouts import fields, media, placeholders
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.media.modality import MODALITIES

PLACEHOLDER = re.compile(r"\{([^\W\d][\w.\- ]*)\}")
ROLES = ("system", "user", "assistant")
KEPT = ("license", "source")  # what an answer's page shows of where a row comes from


class Template:
    """The template of a source, and what its rows say beside it: id, group, speaker, side, times."""

    def __init__(self, source: Source, *, honours_split: bool = True) -> None:
        self.source = source
        self.about = fields.About(source, honours_split=honours_split)
        self._ignored = frozenset(source.ignore)
        self._says_frames = any(
            fields.TIMES.get(fields.fold(key), ("", 1.0))[1] is None
            for part in _media_parts(source)
            for key in part
        )
        templates = source.model_dump(
            include={"id", "group", "task", "split", "class_name", "messages", "text"}
        )
        self.fields = {name.partition(".")[0] for name in PLACEHOLDER.findall(json.dumps(templates))}
        self.fields |= {
            *source.where,
            *([source.expand] if source.expand else []),
            *([source.negatives] if source.negatives else []),
        }

    @property
    def in_frames(self) -> bool:
        """Whether times of its rows may be samples of their files."""
        return self._says_frames or self.about.in_frames

    def fill(self, row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[str], str]]:
        """The sample rows of one flat row, the fields that each used, and whence its group comes; none if
        `where` refuses it.

        Raises  DataError (bad_row) if a field of the template is missing or null in the row.
        """
        source = self.source
        if not all(_matches(row.get(key), value) for key, value in source.where.items()):
            return
        if source.expand is None:
            yield self._one(row, "")
            return
        items = _field(row, source.expand)
        if not isinstance(items, list):
            raise DataError(
                "bad_row", f"field {source.expand!r}: expected a list to expand, got {type(items).__name__}"
            )
        for number, item in enumerate(items):
            yield self._one({**row, "item": item}, f"#{number}")

    def _one(self, row: dict[str, Any], suffix: str) -> tuple[dict[str, Any], list[str], str]:
        source, out = self.source, dict[str, Any]()
        used = [key for key in row if key in self.fields]
        if source.id is not None:
            out["id"] = text(source.id, row)
        out |= about(source, row)
        if source.messages is not None and isinstance(
            row.get("words"), list
        ):  # [word, start, end] each: see data/segments.py
            out["extra"]["words"] = row["words"]
            used.append("words")
        if source.text is not None:
            out["text"] = text(source.text, row)
        if source.messages is not None:
            out["messages"] = [_message(message, row, self._ignored) for message in source.messages]
        if source.negatives is not None:
            out["negatives"] = _field(row, source.negatives)
        notes, whence = self.about.complete(out, row)
        if suffix and "id" in out:
            out["id"] += suffix
        return out, used + notes, whence


def _media_parts(source: Source) -> Iterator[dict[str, Any]]:
    for message in source.messages or ():
        for content in message.values():
            yield from (
                part
                for part in (content if isinstance(content, list) else [content])
                if isinstance(part, dict)
            )


def about(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    """What a source's template says about a row besides its turns: group, task, split, and in `extra` what it
    comes from and must name.

    Raises  DataError (bad_row) if a field is missing or null in the row.
    """
    extra = {key: row[key] for key in KEPT if key in row}
    if source.class_name is not None:
        extra["names"] = text(source.class_name, row)
    about_sample: dict[str, Any] = {"extra": extra}
    for key in ("group", "task", "split"):
        template = getattr(source, key)
        if template is not None:
            about_sample[key] = text(template, row)
    return about_sample


def _message(message: dict[str, Any], row: dict[str, Any], ignored: frozenset[str]) -> dict[str, Any]:
    if len(message) != 1 or next(iter(message)) not in ROLES:
        raise DataError(
            "bad_row", f"template: expected one of {', '.join(ROLES)} a message, got {sorted(message)}"
        )
    role, content = next(iter(message.items()))
    if isinstance(content, str):
        return {"role": role, "content": text(content, row)}
    parts = [
        filled
        for part in (content if isinstance(content, list) else [content])
        for filled in _parts(part, row)
    ]
    if role == "user" and any(
        part["type"] == "text" and placeholders.may_hold(part["text"]) for part in parts
    ):
        parts = media.at_places(parts, ignored)
    return {"role": role, "content": parts}


def _parts(part: Any, row: dict[str, Any]) -> list[dict[str, Any]]:
    """A part of a template filled: several where its field lists several media."""
    if isinstance(part, str):
        return [{"type": "text", "text": text(part, row)}]
    kind = next((kind for kind in MODALITIES if isinstance(part, dict) and kind in part), None)
    if kind is None:
        media_parts = " or ".join(f"{{{kind}: ...}}" for kind in MODALITIES)
        raise DataError("bad_row", f"template: expected text, {media_parts}, got {part!r}")
    more: dict[str, Any] = {}
    times: dict[str, tuple[fields.Time, Any]] = {}
    for key, value in part.items():
        if key == kind:
            continue
        filled = text(str(value), row)
        of, unit_s = fields.TIMES.get(fields.fold(key), ("", None))
        if of:
            times[of] = fields.Time(key, of, unit_s), filled
        elif key == "channel":
            more[key] = fields.channel(key, filled)
        else:
            more[key] = filled
    more |= fields.window(times) if times else {}
    paths = _paths(part[kind], row)
    return [{"type": kind, "path": path, **more} for path in paths]


def _paths(template: str, row: dict[str, Any]) -> list[str]:
    """The files that a template names: a field may hold a path, a list of paths, or what `datasets` puts in a
    path's place."""
    names = _names(template)
    if len(names) == 1 and template == f"{{{names[0]}}}":
        value = _field(row, names[0])
        if not isinstance(value, str):
            return media.paths_of(names[0], value) or [""]
    return [text(template, row)]


def names(template: str | None) -> set[str]:
    """The fields of a row that a template names."""
    return set() if template is None else {name.partition(".")[0] for name in _names(template)}


@lru_cache(maxsize=4096)
def _names(template: str) -> tuple[str, ...]:
    return tuple(PLACEHOLDER.findall(template))


def text(template: str, row: dict[str, Any]) -> str:
    """A template with its {fields} filled from a row; raises DataError (bad_row) for one that the row
    lacks."""
    if not (names := _names(template)):
        return template
    if len(names) == 1 and len(template) == len(names[0]) + 2:
        return _spelt(_field(row, names[0]))
    return PLACEHOLDER.sub(lambda match: _spelt(_field(row, match[1])), template)


def _spelt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _field(row: dict[str, Any], name: str) -> Any:
    value: Any = row.get(name)
    if value is None:
        value = row
        for step in name.split("."):
            value = value.get(step) if isinstance(value, dict) else None
    if value is None:
        raise DataError(
            "bad_row", f"field {name!r}: missing in the row, which has {', '.join(map(str, row))[:120]}"
        )
    return value


def _matches(value: Any, pattern: Any) -> bool:
    """Equal as is or as text (a CSV knows only text), or one of a list."""
    if isinstance(pattern, list):
        return any(_matches(value, one) for one in pattern)
    return bool(value == pattern) or (value is not None and str(value) == str(pattern))
