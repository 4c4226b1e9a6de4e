"""Speakers of a text -> the tags of the prompt: a name that a row gives becomes its number, `[SPEAKER0]`, as Higgs
Audio v2 was taught."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from muomni.data.sample import AudioPart, ImagePart, Message, Sample, TextPart
from muomni.errors import DataError

SPEAKERS = "speakers"  # the key of a row, and of `extra`: names or numbers, in the order of their tags
NUMBERED = re.compile(r"\[SPEAKER(\d+)\]")
Parts = list[TextPart | ImagePart | AudioPart]


def speakers_of(sample: Sample) -> list[str]:
    """The speakers that a row names, in the order of their tags; none where it names none.

    Raises  DataError (bad_row) for what is no list of different names.
    """
    named = sample.extra.get(SPEAKERS)
    if named is None:
        return []
    is_list = isinstance(named, list) and named
    if not is_list or any(isinstance(each, bool) or not isinstance(each, str | int) for each in named):
        raise DataError("bad_row", f"{sample.id}: {SPEAKERS}: expected a list of names, got {named!r:.60}")
    names = [str(each).strip() for each in named]
    if "" in names or len(set(names)) < len(names):
        raise DataError("bad_row", f"{sample.id}: {SPEAKERS}: expected different names, got {named!r:.60}")
    return names


def tagged(sample: Sample) -> Sample:
    """A sample of named speakers with the prompt's tags; any other as it is.

    In words `[NAME]`, and `NAME: ` at the begin of a line, become `[SPEAKERi]`, where NAME is the i-th of the
    row's `speakers`. Where these are several, a reference whose sound says its `speaker` is announced: `SPEAKERi: `
    before a sound in a system's or user's turn, and `[SPEAKERi] ` before the user's words that an earlier turn of
    the assistant's speaks.

    Raises  DataError (bad_row) as `speakers_of`, for a tag of a number that nobody has, and for a sound of a speaker
            who is not among them.
    Source  boson-ai/higgs-audio, examples/generation.py: the form of its prompts, with and without
            `ref_audio_in_system_message`.
    """
    names = speakers_of(sample)
    if not names:
        return sample
    numbers = {name: number for number, name in enumerate(names)}
    spell = _Spelling(sample.id, names)
    start = sample.extra.get("start_index") or 0
    turns = [_respelled(message, spell) for message in sample.messages]
    if len(names) > 1:
        for place, parts in enumerate(turns):
            role = sample.messages[place].role
            if role != "assistant":
                turns[place] = _announced(parts, numbers, sample.id)
            elif place < start and place and sample.messages[place - 1].role == "user":
                who = {
                    _number(part.speaker, numbers, sample.id)
                    for part in parts
                    if isinstance(part, AudioPart) and part.speaker
                }
                if len(who) == 1:
                    turns[place - 1] = _prefixed(turns[place - 1], f"[SPEAKER{who.pop()}] ")
    messages = [
        message.model_copy(update={"content": _content(message, parts)})
        for message, parts in zip(sample.messages, turns, strict=True)
    ]
    return sample.model_copy(update={"messages": messages})


class _Spelling:
    """Words with names -> words with tags."""

    def __init__(self, sample_id: str, names: Sequence[str]) -> None:
        self.sample_id, self.names = sample_id, names
        self._numbers = {name: number for number, name in enumerate(names)}
        known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        self._named = re.compile(rf"\[[ \t]*({known})[ \t]*\]|^({known}):[ \t]+", re.MULTILINE)

    def __call__(self, words: str) -> str:
        for match in NUMBERED.finditer(words):
            if int(match[1]) >= len(self.names) and match[0][1:-1] not in self._numbers:
                raise DataError(
                    "bad_row",
                    f"{self.sample_id}: {match[0]} has no speaker: the row names {len(self.names)}",
                    hint=f"they are numbered from 0 in the order of `{SPEAKERS}`",
                )
        return self._named.sub(self._tag, words)

    def _tag(self, match: re.Match[str]) -> str:
        tag = f"[SPEAKER{self._numbers[match[1] or match[2]]}]"
        return tag if match[1] else f"{tag} "


def _respelled(message: Message, spell: _Spelling) -> Parts:
    return [TextPart(text=spell(part.text)) if isinstance(part, TextPart) else part for part in message.parts]


def _announced(parts: Parts, numbers: Mapping[str, int], sample_id: str) -> Parts:
    """The parts with a speaker's number before each of the sounds that say whose they are."""
    out: Parts = []
    for part in parts:
        if isinstance(part, AudioPart) and part.speaker:
            name = f"SPEAKER{_number(part.speaker, numbers, sample_id)}: "
            before = out.pop().text if out and isinstance(out[-1], TextPart) else ""  # type: ignore[union-attr]
            # One part with the words before it: apart, a tokenizer would cut them otherwise than the source's.
            out.append(TextPart(text=before if before.endswith(name) else before + name))
        out.append(part)
    return out


def _prefixed(parts: Parts, tag: str) -> Parts:
    """The parts with a tag before their words, unless these have one."""
    if any(isinstance(part, TextPart) and NUMBERED.search(part.text) for part in parts):
        return parts
    if parts and isinstance(parts[0], TextPart):
        return [TextPart(text=tag + parts[0].text), *parts[1:]]
    return [TextPart(text=tag), *parts]


def _number(speaker: str | None, numbers: Mapping[str, int], sample_id: str) -> int:
    if speaker is None or speaker not in numbers:
        raise DataError(
            "bad_row",
            f"{sample_id}: a sound is of speaker {speaker!r}, the row's {SPEAKERS} are {', '.join(numbers)}",
        )
    return numbers[speaker]


def _content(message: Message, parts: Parts) -> str | Parts:
    """Words alone as a text, where they were one."""
    if isinstance(message.content, str):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return parts
