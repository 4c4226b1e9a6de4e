"""LLaVA's rows -> the rows of `sample.parse`: pictures stand where the words say `<image>`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from muomni.errors import DataError

HERE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CAPTIONS = ("caption", "blip_caption", "text")  # of rows without conversations, as in blip_laion_cc_sbu_558k_meta.json


def convert(row: dict[str, Any], prompt: str | None = None) -> dict[str, Any]:
    """A row of LLaVA-Pretrain, LLaVA-Instruct or its mixes as `{"messages"}`; a bare caption answers `prompt` and has its task.

    Raises  DataError: bad_row (pictures and placeholders that differ in number, a turn that can't be read, nothing to learn), empty.
    """
    images = _images(row)
    caption = next((row[key] for key in CAPTIONS if isinstance(row.get(key), str)), None)
    if "conversations" not in row and images and caption is not None:
        return {"task": "caption", "messages": _placed([("user", prompt or ""), ("assistant", caption)], images)}
    turns = row.get("conversations")
    if not isinstance(turns, list):
        got = ", ".join(map(str, row))[:80]
        raise DataError("bad_row", f"row: expected a list of conversations, or a caption and an image, got {got}")
    return {"messages": _placed([_turn(number, turn) for number, turn in enumerate(turns)], images)}


def unique(name: str, taken: dict[str, int]) -> str:
    """The name, or where it is taken name#2, name#3, ...: LLaVA-Instruct asks several rows of one photo under one id.

    Takes   taken, how often each name was asked for, which this one is added to.
    """
    found = name
    while found in taken:
        taken[name] += 1
        found = f"{name}#{taken[name]}"
    taken[found] = 1
    return found


def _images(row: dict[str, Any]) -> list[str]:
    """The pictures of a row; an `image_id` is one only where it looks like a file."""
    number = row.get("image_id")
    named = number if isinstance(number, str) and PurePosixPath(number).suffix else []
    given: Any = next((row[key] for key in ("image", "image_path") if row.get(key) is not None), named)
    images: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(image, str) for image in images):
        raise DataError("bad_row", f"image: expected a path or a list of paths, got {given!r:.60}")
    return images


def _turn(number: int, turn: Any) -> tuple[str, str]:
    """Role and words of one turn."""
    found = turn if isinstance(turn, dict) else {}
    said = found.get("from", found.get("role"))
    role = ROLES.get(said) if isinstance(said, str) else None
    words = next((found[key] for key in ("value", "text", "content") if key in found), None)
    if role is None or not isinstance(words, str):
        raise DataError("bad_row", f"conversations {number}: expected from (one of {', '.join(ROLES)}) and value, got {turn!r:.60}")
    return role, words


def _placed(turns: list[tuple[str, str]], images: list[str]) -> list[dict[str, Any]]:
    """Messages with each picture at its place; before the first user's words where no place is named."""
    roles = [role for role, _ in turns]
    if "assistant" not in roles:
        raise DataError("bad_row", "conversations: expected a turn of the assistant, got none: nothing is to be learned")
    elsewhere = [role for role, words in turns if HERE in words and role != "user"]
    if elsewhere:
        raise DataError("bad_row", f"conversations: expected {HERE} in a user's turn, got it in one of {elsewhere[0]}")
    places = sum(words.count(HERE) for _, words in turns)
    if images and not places and "user" in roles:
        first = roles.index("user")
        turns = [(role, HERE * len(images) + words if number == first else words) for number, (role, words) in enumerate(turns)]
    elif places != len(images):
        raise DataError("bad_row", f"conversations: expected as many {HERE} as images, got {places} for {len(images)}")
    left = iter(images)
    messages: list[dict[str, Any]] = []
    for number, (role, words) in enumerate(turns):
        pieces = [piece if piece == HERE else piece.strip() for piece in re.split(f"({HERE})", words)]
        parts = [{"type": "image", "path": next(left)} if piece == HERE else {"type": "text", "text": piece} for piece in pieces if piece]
        if not parts:
            raise DataError("empty", f"conversations {number} ({role}): expected words, got none")
        messages.append({"role": role, "content": parts if HERE in words else words.strip()})
    return messages
