"""Flat rows -> sample rows by a declarative template, so that a new manifest needs no code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from muomni.data.source import Source
from muomni.errors import DataError

PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")
ROLES = ("system", "user", "assistant")
MEDIA = ("image", "audio")


def fill(source: Source, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sample rows of one flat row: none if `where` refuses it, several with `expand`.

    Raises  DataError (bad_row) if a field of the template is missing or null in the row.
    """
    if not all(_matches(row.get(key), wanted) for key, wanted in source.where.items()):
        return
    if source.expand is None:
        yield _one(source, row, "")
        return
    items = _field(row, source.expand)
    if not isinstance(items, list):
        raise DataError("bad_row", f"field {source.expand!r}: expected a list to expand, got {type(items).__name__}")
    for number, item in enumerate(items):
        yield _one(source, {**row, "item": item}, f"#{number}")


def _one(source: Source, row: dict[str, Any], suffix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if source.id is not None:
        out["id"] = text(source.id, row)
    elif isinstance(row.get("id"), str | int):
        out["id"] = str(row["id"])
    if "id" in out:
        out["id"] += suffix
    out |= about(source, row)
    if source.messages is not None and isinstance(row.get("words"), list):  # [word, start, end] each: see data/segments.py
        out["extra"]["words"] = row["words"]
    if source.text is not None:
        out["text"] = text(source.text, row)
    if source.messages is not None:
        out["messages"] = [_message(message, row) for message in source.messages]
    if source.negatives is not None:
        out["negatives"] = _field(row, source.negatives)
    return out


def about(source: Source, row: dict[str, Any]) -> dict[str, Any]:
    """What a source's template says about a row besides its turns: group, task, split, and in `extra` what it comes from and must name.

    Raises  DataError (bad_row) if a field is missing or null in the row.
    """
    given = {key: getattr(source, key) for key in ("group", "task", "split")}
    extra = {key: value for key, value in row.items() if key in ("license", "source")}
    if source.names is not None:
        extra["names"] = text(source.names, row)
    return {"extra": extra, **{key: text(template, row) for key, template in given.items() if template is not None}}


def _message(message: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    if len(message) != 1 or next(iter(message)) not in ROLES:
        raise DataError("bad_row", f"template: expected one of {', '.join(ROLES)} a message, got {sorted(message)}")
    role, content = next(iter(message.items()))
    if isinstance(content, str):
        return {"role": role, "content": text(content, row)}
    parts = content if isinstance(content, list) else [content]
    return {"role": role, "content": [_part(part, row) for part in parts]}


def _part(part: Any, row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": text(part, row)}
    kind = next((kind for kind in MEDIA if isinstance(part, dict) and kind in part), None)
    if kind is None:
        raise DataError("bad_row", f"template: expected text, {{image: ...}} or {{audio: ...}}, got {part!r}")
    out: dict[str, Any] = {"type": kind, "path": text(part[kind], row)}
    for key, value in part.items():
        if key in ("start", "end"):
            filled = text(str(value), row)
            try:
                out[key] = float(filled)
            except ValueError as error:
                raise DataError("bad_row", f"{key}: expected seconds, got {filled!r}") from error
        elif key != kind:
            out[key] = text(str(value), row)
    return out


def text(template: str, row: dict[str, Any]) -> str:
    """A template with its {fields} filled from a row; raises DataError (bad_row) for one that the row lacks."""

    def value(match: re.Match[str]) -> str:
        found = _field(row, match[1])
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    return PLACEHOLDER.sub(value, template)


def _field(row: dict[str, Any], name: str) -> Any:
    value: Any = row
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if value is None:
        raise DataError("bad_row", f"field {name!r}: missing in the row, which has {', '.join(map(str, row))[:120]}")
    return value


def _matches(value: Any, wanted: Any) -> bool:
    """Equal as is or as text (a CSV knows only text), or one of a list."""
    if isinstance(wanted, list):
        return any(_matches(value, one) for one in wanted)
    return bool(value == wanted) or (value is not None and str(value) == str(wanted))
