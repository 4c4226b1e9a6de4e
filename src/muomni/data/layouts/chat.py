"""Conversations as LLaVA, ShareGPT, LLaMA-Factory, ms-swift, TRL, OpenAI and Ollama write them -> messages,
media at their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from muomni.data.layouts import media, placeholders
from muomni.data.layouts.fields import fold
from muomni.data.layouts.placeholders import Kind
from muomni.data.sample import FIELDS, Role
from muomni.errors import DataError

ROLES: dict[str, Role] = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
TOOL_ROLES = {
    "tool",
    "tools",
    "function",
    "function_call",
    "function_response",
    "tool_call",
    "tool_response",
    "observation",
    "ipython",
}
SPEAKERS, WORDS = ("from", "role"), ("value", "content", "text")
TURN_KEYS = {*SPEAKERS, *WORDS}
CAPTIONS = (
    "caption",
    "blip_caption",
    "text",
)  # of rows without conversations, as in blip_laion_cc_sbu_558k_meta.json
SYSTEMS = ("system", "systemprompt", "systemmessage")
# Fields that change what a row teaches, where they hold something.
PREFERENCES = {
    *(
        "chosen",
        "rejected",
        "rejectedresponse",
        "rejectedmessages",
        "rejectedimages",
        "chosenresponse",
        "chosenmessages",
    ),
    *("ktotag", "bettermessage", "worsemessage", "rejectedanswer", "chosenanswer"),
}
TOOLS = {"tools", "functions", "toolcalls", "functioncall", "toolcallid", "toolchoice"}
GROUNDING = {"ref", "bbox", "bboxtype", "imageid"}
ENOUGH = (1, 1.0, True)  # `weight`, `loss`: a turn is learned as any other
Turn = tuple[Role, Any, dict[str, Any]]  # who, what (words or parts), what else the turn has


@dataclass(frozen=True)
class Shape:
    """What the fields of a row are for a conversation, by their names: `risky` make it another thing where
    they hold something."""

    risky: tuple[tuple[str, str], ...]
    media: tuple[tuple[str, Kind], ...]
    system: str | None


@lru_cache(maxsize=4096)
def shape_of(columns: tuple[str, ...]) -> Shape:
    """The shape of rows with these fields."""
    risky = tuple((key, what) for key in columns if (what := _risk(fold(key))))
    shown = tuple(
        (key, kind) for key in columns if key not in FIELDS and (kind := media.kind_of_key(key)) is not None
    )
    return Shape(risky, shown, next((key for key in columns if fold(key) in SYSTEMS), None))


def _risk(name: str) -> str:
    if name in PREFERENCES:
        return "preference data (DPO, KTO), which no stage learns from"
    if name in TOOLS:
        return "tools, which no model here calls"
    return {
        "label": "a label of KTO, which no stage learns from",
        "objects": "boxes of grounding, which no stage learns from",
    }.get(name, "")


def refuse(row: dict[str, Any]) -> None:
    """Raises DataError (bad_row) for a field that makes a row another thing than a conversation to learn
    from."""
    for key, what in shape_of(tuple(row)).risky:
        value, name = row[key], fold(key)
        if name == "label":
            is_one = isinstance(value, bool)
        elif name == "objects":
            is_one = (
                isinstance(value, dict)
                and bool(GROUNDING & {fold(one) for one in value})
                and any(value.values())
            )
        else:
            is_one = value not in (None, "", [], "[]", {})
        if is_one:
            hint = f"`ignore: [{key}]` leaves the field out"
            raise DataError("bad_row", f"{key}: expected a conversation to learn from, got {what}", hint=hint)


Made = tuple[
    dict[str, Any], list[str], dict[str, Any]
]  # a row for `sample.parse`, the fields that were used, what was left in its turns


def convert(row: dict[str, Any], ignored: frozenset[str] = frozenset(), prompt: str | None = None) -> Made:
    """A row with `conversations`, or a caption and an image, as `{"messages"}`.

    A bare caption answers `prompt` and has its task. Words lose their outer blanks.
    Raises  DataError: bad_row (media and placeholders that differ in number, a turn that can't be read,
            nothing to learn), empty.
    """
    name = turns_key(row)
    if name is not None:
        messages, used, left = _turned(row, name, "conversations", ignored, strips=True)
        return {"messages": messages}, used, left
    refuse(row)
    media_paths, used = media.collect(row, shape_of(tuple(row)).media)
    _look_at_image_id(row, media_paths, used)
    caption = next((key for key in CAPTIONS if isinstance(row.get(key), str)), None)
    if "conversations" in row or not media_paths.get("image") or caption is None:
        got = ", ".join(map(str, row))[:80]
        raise DataError(
            "bad_row", f"row: expected a list of conversations, or a caption and an image, got {got}"
        )
    turns: list[Turn] = [("user", prompt or "", {}), ("assistant", row[caption], {})]
    return {"task": "caption", "messages": placed(turns, media_paths, ignored)}, [*used, caption], {}


def messages(
    row: dict[str, Any], ignored: frozenset[str] = frozenset()
) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """The messages of a row of `messages` with what stands beside them (media, a system prompt), what was
    used, and what was left in them.

    Raises  DataError: bad_row, empty.
    """
    if not isinstance(row["messages"], list):
        raise DataError("bad_row", f"messages: expected a list, got {type(row['messages']).__name__}")
    return _turned(row, "messages", "messages", ignored, strips=False)


def _turned(
    row: dict[str, Any], name: str, where: str, ignored: frozenset[str], *, strips: bool
) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """The turns in a field of a row, with what stands beside them."""
    refuse(row)
    shape = shape_of(tuple(row))
    media_paths, used = media.collect(row, shape.media)
    if name != "messages":
        _look_at_image_id(row, media_paths, used)
    listed = list(row[name])
    for other in (
        row if name not in ("messages", "conversations") else ()
    ):  # TRL's answers stand in a list of their own
        if other != name and _are_turns(row[other]):
            if (fold(name), fold(other)) != ("prompt", "completion"):
                hint = f"leave one out: `ignore: [{other}]`"
                raise DataError(
                    "bad_row", f"row: expected one list of turns, got {name} and {other}", hint=hint
                )
            listed += row[other]
            used.append(other)
    turns = [_turn(where, number, turn) for number, turn in enumerate(listed)]
    if shape.system is not None:
        turns, system_keys = with_system(turns, row)
        used += system_keys
    used.append(name)
    messages = placed(turns, media_paths, ignored, where=where, strips=strips)
    return messages, used, {f"{name}.{key}": value for _, _, more in turns for key, value in more.items()}


def turns_key(row: dict[str, Any]) -> str | None:
    """The field of a row that holds turns: `conversations`, else another list of objects that say who and
    what."""
    if isinstance(row.get("conversations"), list):
        return "conversations"
    return next(
        (
            key
            for key, value in row.items()
            if key not in FIELDS and fold(key) not in PREFERENCES and _are_turns(value)
        ),
        None,
    )


def _are_turns(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return (
        isinstance(first, dict)
        and any(key in first for key in SPEAKERS)
        and any(key in first for key in WORDS)
    )


def is_plain(row: dict[str, Any]) -> bool:
    """Whether a row of `messages` needs nothing of this: our own fields, turns of role and content, no
    placeholders."""
    if not row.keys() <= FIELDS:
        return False
    turns = row["messages"]
    if not isinstance(turns, list):
        return True  # the schema says what it should be
    for turn in turns:
        if (
            not isinstance(turn, dict)
            or turn.keys() != media.MESSAGE_KEYS
            or turn["role"] not in ("system", "user", "assistant")
        ):
            return False
        content = turn["content"]
        for part in content if isinstance(content, list) else (content,):
            words = part.get("text") if isinstance(part, dict) else part
            if isinstance(words, str) and ("<" in words or "[" in words):
                return False
            if isinstance(part, dict) and len(part) == 1:
                return False
    return True


def placed(
    turns: Sequence[Turn],
    media_paths: dict[Kind, list[str]],
    ignored: frozenset[str] = frozenset(),
    *,
    where: str = "conversations",
    strips: bool = True,
) -> list[dict[str, Any]]:
    """Messages with each medium at its place; before the first user's words where no place is named.

    Raises  DataError (bad_row, empty).
    """
    roles = [role for role, _, _ in turns]
    if "assistant" not in roles and where != "messages":  # of our own rows `data check` says it
        raise DataError(
            "bad_row", f"{where}: expected a turn of the assistant, got none: nothing is to be learned"
        )
    counts: dict[Kind, int] = {}
    first: dict[Kind, str] = {}
    for number, (role, content, _) in enumerate(turns):
        if isinstance(content, str) and not placeholders.may_hold(content):
            continue
        for kind, spelt in _places(content, ignored):
            if role != "user" and (media_paths.get(kind) or spelt.startswith("{")):
                raise DataError(
                    "bad_row", f"{where} {number}: expected {spelt} in a user's turn, got it in one of {role}"
                )
            counts[kind] = counts.get(kind, 0) + 1
            first.setdefault(kind, spelt)
    ahead: list[dict[str, Any]] = []
    for kind in {**counts, **media_paths}:
        paths, places = media_paths.get(kind, []), counts.get(kind, 0)
        if paths and not places and "user" in roles:
            ahead += [{"type": kind, "path": path} for path in paths]
        elif places != len(paths):
            spelt = first.get(kind, f"<{kind}>")
            hint = (
                "one place for each file"
                if paths
                else f'name its file in the row, or take it as words: `ignore: ["{spelt}"]`'
            )
            raise DataError(
                "bad_row",
                f"{where}: expected as many {spelt} as {kind}s, got {places} for {len(paths)}",
                hint=hint,
            )
    places_of = media.Places(
        {kind: paths for kind, paths in media_paths.items() if counts.get(kind)}, ignored, strips=strips
    )
    out = []
    for number, (role, content, more) in enumerate(turns):
        parts = places_of.fill(content)
        own = _own(more) if more else []
        if own or (ahead and role == "user"):
            text_parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            parts = [
                *own,
                *(ahead if role == "user" else []),
                *(one for one in text_parts if not isinstance(one, dict) or one.get("text") != ""),
            ]
            ahead = ahead if role != "user" else []
        if not parts:
            raise DataError("empty", f"{where} {number} ({role}): expected words, got none")
        out.append({"role": role, "content": parts})
    return out


def _places(content: Any, ignored: frozenset[str]) -> Iterator[tuple[Kind, str]]:
    """The places for media of the row in a turn: placeholders in its words, and parts of a type without a
    path."""
    for part in content if isinstance(content, list) else (content,):
        if isinstance(part, dict) and media.is_bare(part):
            yield part["type"], f"{{type: {part['type']}}}"
            continue
        words = part.get("text") if isinstance(part, dict) else part
        if isinstance(words, str):
            yield from (
                (one.kind, one.spelt)
                for one in placeholders.find(words)
                if one.path is None and one.spelt not in ignored
            )


def _own(more: dict[str, Any]) -> list[dict[str, Any]]:
    """Media that a turn itself lists, as Ollama does."""
    media_paths, used = media.collect(more, shape_of(tuple(more)).media)
    for key in used:
        del more[key]
    return [{"type": kind, "path": path} for kind, paths in media_paths.items() for path in paths]


def _look_at_image_id(row: dict[str, Any], media_paths: dict[Kind, list[str]], used: list[str]) -> None:
    """An `image_id` is a picture only where it looks like a file."""
    name = row.get("image_id")
    if not media_paths.get("image") and isinstance(name, str) and media.has_suffix(name):
        media_paths["image"] = [name]
        used.append("image_id")


def _turn(where: str, number: int, turn: Any) -> Turn:
    """Role, words or parts, and the rest of one turn."""
    if isinstance(turn, dict) and len(turn) == 2:  # what nearly all turns are
        speaker, words = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if isinstance(words, str) and isinstance(speaker, str) and speaker in ROLES:
            return ROLES[speaker], words, {}
    values = turn if isinstance(turn, dict) else {}
    speaker = next((values[key] for key in SPEAKERS if key in values), None)
    words = next((values[key] for key in WORDS if values.get(key) is not None), None)
    more = {
        key: value for key, value in values.items() if key not in TURN_KEYS and value not in (None, "", [])
    }
    if isinstance(speaker, str) and speaker.casefold() in TOOL_ROLES:
        raise DataError(
            "bad_row",
            f"{where} {number}: expected a turn of {_known()}, got a tool's ({speaker}), which no model here calls",
        )
    role = ROLES.get(speaker.casefold()) if isinstance(speaker, str) else None
    for key in list(more):
        name = fold(key)
        if name in TOOLS or name in PREFERENCES:
            raise DataError(
                "bad_row",
                f"{where} {number}: expected words, got {key}, which no model here learns",
                hint="leave the row out",
            )
        if name in ("weight", "loss", "lossscale", "train", "trainonturn"):
            if more[key] not in ENOUGH:
                hint = f"`ignore: [{key}]` learns from it all the same"
                raise DataError(
                    "bad_row",
                    f"{where} {number}: expected {key} 1: each answer is learned from, got {more[key]!r:.20}",
                    hint=hint,
                )
            del more[key]
    if (
        role is None
        or not isinstance(words, str | list | dict)
        or (where == "conversations" and isinstance(words, dict))
    ):
        keys = "from" if where == "conversations" else "role"
        value = "value" if where == "conversations" else "content"
        raise DataError(
            "bad_row", f"{where} {number}: expected {keys} (one of {_known()}) and {value}, got {turn!r:.60}"
        )
    return role, words, more


def _known() -> str:
    return ", ".join(ROLES)


def with_system(turns: list[Turn], row: dict[str, Any]) -> tuple[list[Turn], list[str]]:
    """The turns behind the system prompt that stands beside them, and the field that it stands in."""
    key = shape_of(tuple(row)).system
    if key is None:
        return turns, []
    words = row[key]
    if words is None or words == "":
        return turns, [key]
    if not isinstance(words, str):
        raise DataError("bad_row", f"{key}: expected words, got {words!r:.60}")
    if turns and turns[0][0] == "system":
        if turns[0][1] == words:
            return turns, [key]
        raise DataError(
            "bad_row",
            f"{key}: expected one system prompt, got one beside the turns and another in them",
            hint=f"`ignore: [{key}]`",
        )
    return [("system", words, {}), *turns], [key]


class Unique:
    """Makes ids unique: LLaVA-Instruct asks several rows of one photo under one id."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """The name, or where it is taken name#2, name#3, ..."""
        taken, unique = self._taken, name
        while unique in taken:
            taken[name] += 1
            unique = f"{name}#{taken[name]}"
        taken[unique] = 1
        return unique
