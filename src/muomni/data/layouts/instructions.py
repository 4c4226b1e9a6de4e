"""Instructions and answers as Alpaca, LLaMA-Factory, ms-swift (query, response), Dolly and OpenOrca write
them -> messages.

What is asked is the instruction and, on a line of its own, the input that it is about: so LLaMA-Factory and
ms-swift join them.
"""

from __future__ import annotations

from typing import Any

from muomni.data.layouts import chat, media
from muomni.data.layouts.fields import fold
from muomni.errors import DataError

INSTRUCTIONS = ("instruction", "query", "prompt", "question")
INPUTS = ("input", "inputs", "context", "passage")
ANSWERS = ("output", "response", "completion", "answer")
HISTORY = "history"


def knows(row: dict[str, Any]) -> bool:
    """Whether a row asks in words and answers in words; question and answer alone are left to be a
    document."""
    names = {fold(key): key for key in row}
    instruction = next((names[name] for name in INSTRUCTIONS if name in names), None)
    answered = next((names[name] for name in ANSWERS if name in names), None)
    if (
        instruction is None
        or answered is None
        or not isinstance(row[instruction], str)
        or not isinstance(row[answered], str)
    ):
        return False
    is_document = fold(instruction) == "question" and fold(answered) == "answer"
    return not is_document or bool(names.keys() & {*INPUTS, HISTORY, *chat.SYSTEMS})


def convert(row: dict[str, Any], ignored: frozenset[str] = frozenset()) -> chat.Made:
    """A row as `{"messages"}`.

    Raises  DataError: bad_row, empty.
    """
    chat.refuse(row)
    names = {fold(key): key for key in row}
    instructions = [names[name] for name in INSTRUCTIONS if name in names]
    answered = next((names[name] for name in ANSWERS if name in names), None)
    if not instructions or answered is None:
        raise DataError(
            "bad_row", f"row: expected an instruction and an output, got {', '.join(map(str, row))[:80]}"
        )
    inputs = [names[name] for name in INPUTS if name in names]
    prompt_words = [_words(row, key) for key in [instructions[0], *inputs]]
    turns, history = _history(row, names)
    turns += [
        ("user", "\n".join(words for words in prompt_words if words.strip()), {}),
        ("assistant", _words(row, answered), {}),
    ]
    media_paths, used = media.collect(row, chat.shape_of(tuple(row)).media)
    turns, system = chat.with_system(turns, row)
    sample = {"messages": chat.placed(turns, media_paths, ignored, where="turns")}
    return sample, [instructions[0], *inputs, answered, *history, *used, *system], {}


def _words(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return ""
    if not isinstance(row[key], str):
        raise DataError("bad_row", f"{key}: expected words, got {row[key]!r:.60}")
    return str(row[key])


def _history(row: dict[str, Any], names: dict[str, str]) -> tuple[list[chat.Turn], list[str]]:
    """Earlier turns: [[question, answer], ...]."""
    key = names.get(HISTORY)
    if key is None:
        return [], []
    turns: list[chat.Turn] = []
    pairs = row[key] or []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (
            isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(one, str) for one in pair)
        ):
            raise DataError("bad_row", f"{key}: expected pairs of question and answer, got {pair!r:.60}")
        turns += [("user", pair[0], {}), ("assistant", pair[1], {})]
    return turns, [key]
