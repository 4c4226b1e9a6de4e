"""Fields that mean the same in every layout, by their names: ids, groups, persons, sides of the split, times,
channels.

Names are compared without case, underscores, dashes, dots and blanks: `speakerID`, `speaker_id` and `Speaker
ID` are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from muomni.data.sample import side
from muomni.data.source import Source
from muomni.errors import DataError

IDS = ("id", "uttid", "utteranceid", "uid", "uuid", "key", "sampleid", "segmentid", "utt")
GROUPS = ("group", "groupid", "splitgroup")
PERSONS = (
    *(
        "speakerid",
        "speaker",
        "spkid",
        "spk",
        "spkrid",
        "spkr",
        "clientid",
        "readerid",
        "reader",
        "talkerid",
        "talker",
        "userid",
    ),
    *(
        "speakername",
        "speakerlabel",
        "speakerkey",
        "speakeruid",
        "speakeruuid",
        "speakerhash",
        "speakercode",
        "speakernumber",
        "speakerno",
    ),
    *(
        "speakernum",
        "speakerindex",
        "speakeridx",
        "spkname",
        "spkindex",
        "spkidx",
        "mainspeaker",
        "personid",
        "person",
        "participantid",
    ),
    *(
        "participant",
        "patientid",
        "subjectid",
        "singerid",
        "singer",
        "narratorid",
        "narrator",
        "voiceid",
        "voicename",
        "signerid",
        "actorid",
    ),
    *("contributorid", "readername", "talkername", "speakers", "utt2spk"),
)
SPLITS = ("split", "datasplit", "datasetsplit", "partition")  # a word that is no side is an error
SETS = ("subset", "set", "fold")  # a side where they say one; a corpus, a size or a number else
CHANNELS = ("channel", "channelid", "audiochannel")
SECONDS = ("", "s", "sec", "secs", "second", "seconds", "ins", "insec", "inseconds")
MILLISECONDS = ("ms", "msec", "msecs", "millis", "millisecond", "milliseconds", "inms", "inmilliseconds")
STARTS = ("start", "begin", "offset", "starttime", "begintime", "startoffset", "tstart", "onset", "startts")
ENDS = ("end", "stop", "endtime", "stoptime", "endoffset", "tend", "finish", "endts")
DURATIONS = ("duration", "dur")
FRAMES = {  # samples of the file at its own rate, as torchaudio and soundfile count them
    "start": (
        "startframe",
        "frameoffset",
        "startsample",
        "beginsample",
        "beginframe",
        "offsetsamples",
        "offsetframes",
        "startsamples",
        "startframes",
    ),
    "end": ("endframe", "stopframe", "endsample", "stopsample", "endsamples", "endframes"),
    "duration": ("numframes", "numsamples", "nframes", "nsamples", "durationsamples", "durationframes"),
}
PARTS = (
    "segment",
    "seg",
    "audio",
    "utt",
    "utterance",
    "clip",
    "chunk",
    "speech",
    "cut",
)  # of whose start or end a name may say so
PAIRS = ("timestamp", "timestamps", "interval", "timespan")  # [start, end] in seconds
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
LENGTH = "length_s"  # in `extra`: how long a row says that its sound is
SAME_S = 0.05  # an end that is told twice may be rounded twice
CHANNEL_NAMES = {"a": 0, "b": 1, "l": 0, "r": 1, "left": 0, "right": 1}
KNOWN_SHAPES = 4096  # sets of columns whose plan is kept


@lru_cache(maxsize=8192)
def fold(name: object) -> str:
    """A field's name as names are compared."""
    return re.sub(r"[\s_.\-]+", "", str(name)).casefold()


@lru_cache(maxsize=8192)
def _is_person(key: str) -> bool:
    return fold(key) in PERSONS


def names_person(key: str, value: Any) -> bool:
    """Whether a field, or one inside it, says by its name who a row is from."""
    if isinstance(value, dict):
        inside = ((str(name), one) for name, one in value.items())  # numbers count things: {"person": 2}
        return any(
            names_person(name, one)
            for name, one in inside
            if isinstance(one, str | dict) or fold(name).endswith("id")
        )
    return _is_person(key) and value not in (None, "")


@dataclass(frozen=True)
class Time:
    """A column that says when: `of` is start, end or duration; a number times `unit_s` is seconds; frames
    have no unit_s."""

    key: str
    of: str
    unit_s: float | None


@dataclass
class Plan:
    """Which columns of a row mean what."""

    id: str | None = None
    group: str | None = None
    persons: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    channel: str | None = None
    times: dict[str, Time] = field(default_factory=dict)
    said: list[Time] = field(default_factory=list)  # all of them
    pair: str | None = None
    is_blank: bool = True  # nothing of all this


def _times() -> dict[str, tuple[str, float | None]]:
    times: dict[str, tuple[str, float | None]] = {}
    for of, stems in (("start", STARTS), ("end", ENDS), ("duration", DURATIONS)):
        names = [part + stem for part in ("", *PARTS) for stem in stems]
        for units, unit_s in ((SECONDS, 1.0), (MILLISECONDS, 1e-3)):
            times |= {name + unit: (of, unit_s) for name in names for unit in units}
        times |= dict.fromkeys(FRAMES[of], (of, None))
    return times


TIMES = _times()
_plans: dict[tuple[str, ...], Plan] = {}


def plan_of(columns: tuple[str, ...]) -> Plan:
    """What the columns of a row mean, by their names."""
    cached = _plans.get(columns)
    if cached is None:
        if len(_plans) >= KNOWN_SHAPES:
            _plans.clear()
        cached = _plans[columns] = _plan(columns)
    return cached


def _plan(columns: tuple[str, ...]) -> Plan:
    folded = {fold(key): key for key in reversed(columns)}
    column_plan = Plan(
        id=next((folded[name] for name in IDS if name in folded), None),
        group=next((folded[name] for name in GROUPS if name in folded), None),
        persons=[folded[name] for name in PERSONS if name in folded],
        splits=[folded[name] for name in SPLITS if name in folded],
        sets=[folded[name] for name in SETS if name in folded],
        channel=next((folded[name] for name in CHANNELS if name in folded), None),
        pair=next((folded[name] for name in PAIRS if name in folded), None),
    )
    is_event = any(name.startswith("onset") for name in folded)  # of sound events `offset` is the end
    for name, key in reversed(folded.items()):
        of, unit_s = TIMES.get(name, ("", None))
        if is_event and name.startswith("offset"):
            of = "end"
        if of:
            column_plan.said.append(Time(key, of, unit_s))
    for time in sorted(
        column_plan.said, key=lambda time: time.unit_s is None
    ):  # seconds before frames, for which the file must be opened
        column_plan.times.setdefault(time.of, time)
    column_plan.is_blank = not any(
        (
            column_plan.id,
            column_plan.group,
            column_plan.persons,
            column_plan.splits,
            column_plan.sets,
            column_plan.channel,
            column_plan.times,
            column_plan.pair,
        )
    )
    return column_plan


def holds_out(key: str, word: Any) -> bool:
    """Whether a word in a column of sides says that a row is held out, or in a `split` that it can't be
    read."""
    try:
        return side(word, key) == "valid"
    except (DataError, TypeError):
        return fold(key) in SPLITS


class About:
    """Completes the rows of one source by what their fields say of id, group, speaker, side, times and
    channel.

    What the source says itself, or a layout has put there already, stays.
    """

    def __init__(self, source: Source, *, honours_split: bool = True) -> None:
        keys = {fold(key) for key in source.where}
        self._honours_split = honours_split and source.split is None and not keys & {*SPLITS, *SETS}
        self.in_frames = False  # a row had times in samples of its file
        self._names_sides: dict[
            str, bool
        ] = {}  # of a column like `subset`: whether it has said a side so far

    def complete(self, sample: dict[str, Any], row: dict[str, Any]) -> tuple[list[str], str]:
        """Put into `made` what `row` says; gives the fields that were used, and whence its group comes:
        group, person or "".

        Raises  DataError (bad_row): a side, a time or a channel that can't be read, two sides or two persons
                at odds.
        """
        columns = plan_of(tuple(row))
        if columns.is_blank:
            return [], "group" if sample.get("group") is not None else ""
        used: list[str] = []
        if columns.id is not None and (name := _name(row[columns.id])):
            used.append(columns.id)
            sample.setdefault("id", name)
        whence = self._group(columns, sample, row, used)
        if (columns.splits or columns.sets) and sample.get("split") is None and self._honours_split:
            self._split(columns, sample, row, used)
        if columns.times or columns.pair or columns.channel or columns.persons:
            parts = sounds(sample)
            if (columns.times or columns.pair) and parts:
                _place(parts, columns, row, used, sample)
                self.in_frames = self.in_frames or any(time.unit_s is None for time in columns.times.values())
            if columns.channel is not None and len(parts) == 1 and row[columns.channel] not in (None, ""):
                used.append(columns.channel)
                parts[0].setdefault("channel", channel(columns.channel, row[columns.channel]))
            if columns.persons and len(parts) == 1 and (who := _name(row[columns.persons[0]])):
                parts[0].setdefault("speaker", who)
                used.append(columns.persons[0])
        return used, whence

    def split(self, sample: dict[str, Any], row: dict[str, Any]) -> list[str]:
        """Put the side that a row says into `made`; gives the fields that were used."""
        used: list[str] = []
        if self._honours_split and "split" not in sample:
            self._split(plan_of(tuple(row)), sample, row, used)
        return used

    def _group(self, columns: Plan, sample: dict[str, Any], row: dict[str, Any], used: list[str]) -> str:
        """Group of a row: its own, else the person's, else the fold's."""
        if sample.get("group") is not None:
            return "group"
        if columns.group is not None and (name := _name(row[columns.group])):
            sample["group"] = name
            used.append(columns.group)
            return "group"
        named = {key: name for key in columns.persons if (name := _name(row[key]))}
        if len(set(named.values())) > 1:
            names = ", ".join(f"{key} {name!r}" for key, name in list(named.items())[:3])
            raise DataError(
                "bad_row",
                f"row: expected one person, got {names}",
                hint=f'say which is meant: group: "{{{next(iter(named))}}}" or ignore: [{list(named)[1]}]',
            )
        if named:
            sample["group"] = next(iter(named.values()))
            used.extend(named)
            return "person"
        fold_key = next((key for key in columns.sets if fold(key) == "fold"), None)
        if fold_key is not None and (name := _name(row[fold_key])):
            sample["group"] = f"{fold_key} {name}"
            used.append(fold_key)
            return "group"
        return ""

    def _split(self, columns: Plan, sample: dict[str, Any], row: dict[str, Any], used: list[str]) -> None:
        """Side of a row."""
        sides: dict[str, str] = {}
        for key in columns.splits:
            if row[key] not in (None, ""):
                sides[key] = side(row[key], key)
        for key in columns.sets:
            if row[key] in (None, ""):
                continue
            try:
                side_name = side(row[key], key)
            except DataError:
                if self._names_sides.get(key) and not sides:
                    raise
                continue
            self._names_sides[key] = True
            sides.setdefault(key, side_name)
        if len(set(sides.values())) > 1:
            shown = ", ".join(f"{key} {row[key]!r}" for key in sides)
            raise DataError(
                "bad_row",
                f"row: expected one side, got {shown}",
                hint=f"leave one out: ignore: [{next(iter(sides))}]",
            )
        if sides:
            sample["split"] = next(iter(sides.values()))
            used.extend(sides)


def sounds(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The audio parts of a row in our spelling, not parsed yet."""
    return list(_sounds(sample.get("messages")))


def _sounds(messages: Any) -> Iterator[dict[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else (content,):
            if isinstance(part, dict) and part.get("type") in ("audio", "audio_url", "input_audio"):
                yield part


def _place(
    parts: list[dict[str, Any]], columns: Plan, row: dict[str, Any], used: list[str], sample: dict[str, Any]
) -> None:
    """Give the one sound of a row the stretch that its columns say."""
    times, values = (
        columns.times,
        {of: row[time.key] for of, time in columns.times.items() if row[time.key] not in (None, "")},
    )
    if (
        columns.pair is not None
        and not values.keys() & {"start", "end"}
        and isinstance(row[columns.pair], list)
        and len(row[columns.pair]) == 2
    ):
        times = {of: Time(columns.pair, of, 1.0) for of in ("start", "end")}
        values = dict(zip(times, row[columns.pair], strict=True))
    if not values.keys() & {"start", "end"}:
        if "duration" in values and (unit_s := times["duration"].unit_s) is not None and len(parts) == 1:
            _claim(sample, seconds(times["duration"].key, values["duration"]) * unit_s)
            used.append(times["duration"].key)
        return
    if any(part.keys() & {"start", "end", "offset"} for part in parts):
        return
    used += _agreeing(columns, row, values) if times is columns.times else []
    if (
        {"start", "end"} <= values.keys()
        and "duration" in values
        and times["duration"].unit_s is None
        and times["end"].unit_s is not None
    ):
        del values["duration"]  # how many samples the file has
    if len(parts) > 1:
        keys = ", ".join(times[of].key for of in values)
        raise DataError(
            "bad_row",
            f"{keys}: expected one sound to cut, got {len(parts)}",
            hint="say which in a `messages:` template",
        )
    used.extend(times[of].key for of in values)
    parts[0].update(window({of: (times[of], value) for of, value in values.items()}))


def _agreeing(columns: Plan, row: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Further columns that say the same times.

    Raises  DataError (bad_row) where they say other ones.
    """
    used = []
    for other in columns.said:
        time = columns.times[other.of]
        if (
            other is time
            or other.of not in values
            or row[other.key] in (None, "")
            or other.unit_s is None
            or time.unit_s is None
        ):
            continue
        if (
            abs(
                seconds(other.key, row[other.key]) * other.unit_s
                - seconds(time.key, values[other.of]) * time.unit_s
            )
            > SAME_S
        ):
            shown = f"{time.key} {values[other.of]!r:.20} and {other.key} {row[other.key]!r:.20}"
            raise DataError(
                "bad_row",
                f"row: expected one {other.of}, got {shown}",
                hint=f"leave one out: ignore: [{other.key}]",
            )
        used.append(other.key)
    return used


def _claim(sample: dict[str, Any], length_s: float) -> None:
    """A duration alone is how long the file is, which `data check` compares with the file; it cuts nothing:
    many tables round it."""
    extra = sample.get("extra")
    if extra is None or isinstance(extra, dict):
        sample["extra"] = {**(extra or {}), LENGTH: length_s}


def window(times: dict[str, tuple[Time, Any]]) -> dict[str, float]:
    """start and end, in seconds (or `start_frame`, `end_frame`, in samples of the file) of what columns say.

    Raises  DataError (bad_row).
    """
    if any(time.unit_s is None for time, _ in times.values()):
        return _in_frames(times)
    read = {of: seconds(time.key, value) * (time.unit_s or 1.0) for of, (time, value) in times.items()}
    return _closed(read, times, SAME_S, ("start", "end"))


def _in_frames(times: dict[str, tuple[Time, Any]]) -> dict[str, float]:
    mixed = [time.key for time, _ in times.values()]
    if not all(time.unit_s is None for time, _ in times.values()):
        raise DataError(
            "bad_row",
            f"{', '.join(mixed)}: expected one unit, got frames and seconds",
            hint="leave one out: ignore: [...]",
        )
    read = {}
    for of, (time, value) in times.items():
        number = seconds(time.key, value)
        if number != int(number):
            raise DataError("bad_row", f"{time.key}: expected whole frames, got {value!r:.40}")
        read[of] = number
    return _closed(read, times, 1.0, ("start_frame", "end_frame"))


def _closed(
    read: dict[str, float], times: dict[str, tuple[Time, Any]], slack: float, names: tuple[str, str]
) -> dict[str, float]:
    """Start and end of two or three of start, end and duration."""
    start = read.get("start", 0.0)
    if start < 0:
        raise DataError(
            "bad_row",
            f"{times['start'][0].key}: expected a time of at least 0, got {times['start'][1]!r:.40}",
        )
    out = {names[0]: start} if "start" in read else {}
    if "duration" in read:
        if read["duration"] <= 0:
            raise DataError(
                "bad_row",
                f"{times['duration'][0].key}: expected more than 0, got {times['duration'][1]!r:.40}",
            )
        end = start + read["duration"]
        if "end" in read and abs(read["end"] - end) > slack:
            keys = [times[of][0].key for of in ("start", "duration", "end") if of in times]
            got = f"{read['end']:g} and {end:g}"
            raise DataError(
                "bad_row",
                f"{', '.join(keys)}: expected one end, got {got}",
                hint=f"leave one out: ignore: [{times['duration'][0].key}]",
            )
        read.setdefault("end", end)
    if "end" in read:
        if read["end"] <= start:
            key = (times.get("end") or times["duration"])[0].key
            raise DataError(
                "bad_row", f"{key}: expected an end behind the start, got {start:g}..{read['end']:g}"
            )
        out[names[1]] = read["end"]
    return out


def seconds(key: str, value: Any) -> float:
    """A number as a table writes it, or a time of day (`1:02:03.5`), as seconds.

    Raises  DataError (bad_row).
    """
    if isinstance(value, str) and (clock := CLOCK.fullmatch(value.strip())):
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3].replace(",", "."))
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("bad_row", f"{key}: expected a number, got {value!r:.40}") from error
    if number != number or number in (float("inf"), float("-inf")):
        raise DataError("bad_row", f"{key}: expected a number, got {value!r:.40}")
    return number


def channel(key: str, value: Any) -> int:
    """A channel from 0, of a number, or of A and B, left and right.

    Raises  DataError (bad_row).
    """
    if isinstance(value, str) and value.strip().casefold() in CHANNEL_NAMES:
        return CHANNEL_NAMES[value.strip().casefold()]
    try:
        number = seconds(key, value)
    except DataError:
        number = -1.0
    if number < 0 or number != int(number):
        raise DataError(
            "bad_row",
            f"{key}: expected a channel (0, 1, ... or A, B, left, right), got {value!r:.40}",
            hint=f"ignore: [{key}] mixes all channels",
        )
    return int(number)


def _name(value: Any) -> str:
    """A name in a cell, "" where there is none."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and len(value) == 1:
        return _name(value[0])
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value != value or (isinstance(value, list | dict) and not value):
        return ""
    if (
        isinstance(value, float) and value.is_integer()
    ):  # a column of numbers with a gap in it, as pandas writes it
        return str(int(value))
    raise DataError("bad_row", f"row: expected a name, got {value!r:.60}")
