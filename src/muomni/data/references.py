"""Recordings of speakers -> conversations with a reference: each clip is asked for after other clips of its
speaker were heard."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from muomni import files
from muomni.data import formats, readers, schema_inference, uses, utterances
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, Message, Sample
from muomni.data.source import Source
from muomni.data.split import assign
from muomni.errors import ConfigError, DataError
from muomni.media import stored

Style = Literal["turn", "user"]
MIN_S, MAX_S = 0.5, 30.0  # of a clip that is taken, as the source's own converter has it
NAMED = 6  # speakers in a line


@dataclass(frozen=True)
class Clip:
    """A recording with its words.

    speaker, group  who speaks; what must never straddle a split, None: the speaker
    content         what is equal for equal sounds, whatever their files are called
    """

    id: str
    sound: AudioPart
    words: str
    speaker: str
    group: str | None
    split: str | None
    content: str

    @property
    def pool(self) -> tuple[str, str, str]:
        """What clips share that may be each other's reference: none leads to the other side of a split."""
        return self.speaker, self.group or "", self.split or ""


@dataclass
class Conversion:
    """Rows of ChatML, and what became of the rest.

    rows      with a reference that was found here, or that their own row named (`as_they_were`)
    alone     speakers of clips that have no other clip to be heard before
    left      clips that were left out, by reason
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    as_they_were: int = 0
    speakers: set[str] = field(default_factory=set)
    alone: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """What there is to say, a line each."""
        out = []
        if self.alone:
            names = sorted(self.alone)
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            out.append(
                f"{self.alone.total()} clips are left out, since no other clip of their speaker may be their "
                f"reference: {', '.join(names[:NAMED])}{more}"
            )
        return out + [f"{count} clips are left out: {reason}" for reason, count in self.left.most_common()]


def convert(
    sources: Sequence[Source],
    quarantine: Quarantine,
    *,
    style: Style = "turn",
    references: int = 1,
    seed: int = 0,
    speaker: str | None = None,
    held_out: float = 0.0,
    min_s: float = MIN_S,
    max_s: float = MAX_S,
    home: Path | None = None,
) -> Conversion:
    """Conversations of the clips of all sources; those of one file, speaker and seed are the same wherever they lie.

    A reference is of the same speaker, and where rows name a group or a side of the split of that too. It never
    holds the sound of its target, under whatever name.

    Takes   style: turn, an earlier turn of the assistant's with its words as the user's; user, in the user's
            turn before the text. Both are what `muomni speak` asks with;
            references: of each row, fewer where a speaker has fewer;
            held_out: share of each speaker's clips that is valid, targets and references alike, where rows name no
            side: sentences of a voice that is learned. Their group is the speaker's, and the side;
            speaker: who speaks in all clips; None: whom the rows name, and one speaker for an LJSpeech folder;
            home: where the rows will lie: media below it are named from there.
    Raises  DataError (empty) where nothing is left; as the readers do, and for too many bad rows.
    """
    if references < 1:
        raise ConfigError(f"references: expected at least 1, got {references}")
    out, ids, total = Conversion(), Counter[str](), 0
    pools: dict[tuple[str, str, str], dict[str, Clip]] = defaultdict(dict)
    clips: list[Clip] = []
    for source in sources:
        only = speaker or _only_speaker(source)
        for sample in readers.read(source, Path(), quarantine):
            total += 1
            ids[sample.id] += 1
            name = sample.id if ids[sample.id] == 1 else f"{sample.id}.{ids[sample.id]}"
            if _has_reference(sample):
                out.rows.append(_as_it_is(sample, name, only, home))
                out.as_they_were += 1
                out.speakers |= {voice for voice in [only or utterances.voice_of(sample)] if voice}
                continue
            clip = _clip(sample, name, only, min_s, max_s)
            if isinstance(clip, str):
                out.left[clip] += 1
            else:
                clip = _sided(clip, held_out, seed)
                clips.append(clip)
                pools[clip.pool].setdefault(clip.content, clip)
    quarantine.check(total + quarantine.total)
    ordered = {pool: sorted(held.values(), key=lambda clip: clip.id) for pool, held in pools.items()}
    for clip in clips:
        heard = _drawn(clip, ordered[clip.pool], references, seed)
        if not heard:
            out.alone[clip.speaker] += 1
            continue
        out.speakers.add(clip.speaker)
        out.rows.append(_row(clip, heard, style, home))
    if not out.rows:
        reasons = "; ".join(out.lines()) or quarantine.summary() or "no rows"
        raise DataError("empty", f"expected clips with another one of their speaker, got none: {reasons}")
    return out


def _only_speaker(source: Source) -> str | None:
    """The one voice of an LJSpeech folder, whose groups are chapters; None: rows say who speaks."""
    path = readers.locate(source, Path())
    kind = formats.sniff(path, schema_inference.table(path, source))
    return formats.home(path).absolute().name if kind == "ljspeech" else None


def _has_reference(sample: Sample) -> bool:
    """Whether a row already is a conversation of several sounds that ends in the assistant's."""
    sounds = len(sample.audios) + len(sample.speech)
    ends = bool(sample.messages) and any(part.type == "audio" for part in sample.messages[-1].media)
    return sounds > 1 and ends and sample.messages[-1].role == "assistant"


def _clip(sample: Sample, name: str, only: str | None, min_s: float, max_s: float) -> Clip | str:
    """A sample as a clip, or what keeps it from being one."""
    try:
        sound, words = uses.spoken(sample)
    except DataError:
        return "not one sound with its words"
    who = only or utterances.voice_of(sample)
    if who is None:
        return "nobody says who speaks"
    seconds = utterances.duration_s(sound)
    if not seconds:
        return "their sound can't be read"
    if not min_s <= seconds <= max_s:
        return f"shorter than {min_s:g} s or longer than {max_s:g} s"
    try:
        whole = stored.digest(sound.path, files.sha256_once)
    except (OSError, DataError):
        return "their sound can't be read"
    content = f"{whole} {sound.start} {sound.end} {sound.channel}"
    return Clip(name, sound, words.strip(), who, utterances.named_group(sample), sample.split, content)


def _sided(clip: Clip, held_out: float, seed: int) -> Clip:
    """A clip on a side of its own speaker, where nobody said on which it stands; equal sounds on the same."""
    if not held_out or clip.split is not None:
        return clip
    side = assign(clip.content, held_out, seed)
    return replace(clip, group=f"{clip.group or clip.speaker} ({side})", split=side)


def _drawn(clip: Clip, pool: Sequence[Clip], count: int, seed: int) -> list[Clip]:
    """Other clips of its pool, drawn by the seed and the clip's own id."""
    # A pool holds each sound once, so the sound of the target stands at one place at most.
    own = next(place for place, other in enumerate(pool) if other.content == clip.content)
    places = random.Random(f"{seed}\0{clip.id}").sample(range(len(pool) - 1), min(count, len(pool) - 1))
    return [pool[place + (place >= own)] for place in places]


def _row(clip: Clip, heard: Sequence[Clip], style: Style, home: Path | None) -> dict[str, Any]:
    """The conversation of a clip and its references, in ChatML."""
    messages: list[dict[str, Any]] = []
    sounds = [_part(other.sound, home) for other in heard]
    asked: list[dict[str, Any]] | str = clip.words
    if style == "turn":
        for other, sound in zip(heard, sounds, strict=True):
            messages += [{"role": "user", "content": other.words}, {"role": "assistant", "content": [sound]}]
    else:
        asked = [*sounds, {"type": "text", "text": clip.words}]
    messages += [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": [_part(clip.sound, home)]},
    ]
    row: dict[str, Any] = {"id": clip.id, "messages": messages, "start_index": len(messages) - 1}
    row["speaker"] = clip.speaker
    more = {"group": clip.group if clip.group != clip.speaker else None, "split": clip.split}
    return row | {key: value for key, value in more.items() if value is not None}


def _as_it_is(sample: Sample, name: str, only: str | None, home: Path | None) -> dict[str, Any]:
    """A row that names its references, in ChatML."""
    messages = [{"role": message.role, "content": _content(message, home)} for message in sample.messages]
    start = sample.extra.get("start_index", len(messages) - 1)
    row: dict[str, Any] = {"id": name, "messages": messages, "start_index": start}
    who, group = only or utterances.voice_of(sample), utterances.named_group(sample)
    more = {"speaker": who, "group": group if group != who else None, "split": sample.split}
    return row | {key: value for key, value in more.items() if value is not None}


def _content(message: Message, home: Path | None) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    return list(_parts(message, home))


def _parts(message: Message, home: Path | None) -> Iterator[dict[str, Any]]:
    for part in message.parts:
        if isinstance(part, AudioPart):
            yield _part(part, home)
        elif part.type == "text":
            yield {"type": "text", "text": part.text}
        else:
            raise DataError("bad_row", f"{part.path}: expected words and sounds, got a picture")


def _part(sound: AudioPart, home: Path | None) -> dict[str, Any]:
    """A sound as Higgs' ChatML spells it; what that can't say (a channel) stands beside it in our own spelling."""
    path = Path(sound.path)
    is_below = home is not None and not sound.path.startswith("data:") and path.is_relative_to(home)
    named = os.path.relpath(path, home) if is_below else sound.path
    if sound.channel is not None:
        times = {"start": sound.start, "end": sound.end}
        kept = {key: value for key, value in times.items() if value is not None}
        return {"type": "audio", "path": named, **kept, "channel": sound.channel}
    out: dict[str, Any] = {"type": "audio", "audio_url": named}
    if sound.start:
        out["offset"] = sound.start
    if sound.end is not None:
        out["duration"] = round(sound.end - (sound.start or 0.0), 9)
    return out


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a manifest, one JSON array (.json) or JSON lines (.jsonl), whole or not at all.

    Raises  ConfigError for another suffix.
    """
    if path.suffix == ".jsonl":
        files.write_jsonl(path, list(rows))
    elif path.suffix == ".json":
        files.write_json(path, list(rows))
    else:
        raise ConfigError(f"{path}: expected a name that ends in .json or .jsonl")
