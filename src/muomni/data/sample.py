"""The one shape of a training sample, whatever file it came from: a conversation, or a text document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muomni import files
from muomni.data.source import Source as Source
from muomni.errors import DataError, nearest
from muomni.media import stored

KEY_END = re.compile(r'"[ \t\r\n]*:')
ENOUGH_LUCK = 64  # lines in vain after which no more are tried
MOST_DEPTH = 100  # of what stands in `extra`; pydantic writes 255
RATES = ("rate_hz", "sample_rate", "sampling_rate")  # how parts and rows state the rate of a sound's file
Role = Literal["system", "user", "assistant"]
Split = Literal["train", "valid"]


class _Row(BaseModel):
    # Kinds of parts are told by `type`: asking a class of pydantic whether it has an instance takes twice as
    # long. Keys alone are kept between rows: the parser would hold 16,000 values too.
    # JSON of Python's own kind, in which NaN and Infinity are numbers: `extra` may hold what it read.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants", cache_strings="keys"
    )


class TextPart(_Row):
    """Words in a message."""

    type: Literal["text"] = "text"
    text: str


class ImagePart(_Row):
    """A picture; path is a file or a `data:` URI."""

    type: Literal["image"] = "image"
    path: str = Field(min_length=1)


class AudioPart(_Row):
    """A sound or a stretch of one, in seconds; in an assistant's turn it is the model's target.

    channel  which one to take, counted from 0; None: the mean of all
    rate_hz  what its row says of the file; a file of another rate is refused. None: the row says nothing
    """

    type: Literal["audio"] = "audio"
    path: str = Field(min_length=1)
    start: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    channel: int | None = Field(default=None, ge=0)  # from 0; None: all, mixed
    speaker: str | None = None
    rate_hz: int | None = Field(default=None, gt=0)


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Message(_Row):
    """One turn of a conversation; content is plain text or parts in their order."""

    role: Role
    content: str | list[Part]

    @property
    def parts(self) -> list[TextPart | ImagePart | AudioPart]:
        """The content as parts, plain text too."""
        return [TextPart(text=self.content)] if isinstance(self.content, str) else list(self.content)

    @property
    def media(self) -> list[ImagePart | AudioPart]:
        """The pictures and sounds of the turn, in their order."""
        return [] if isinstance(self.content, str) else [part for part in self.content if part.type != "text"]

    @property
    def text(self) -> str:
        """The words of the turn, media left out."""
        return (
            self.content
            if isinstance(self.content, str)
            else "".join([p.text for p in self.content if p.type == "text"])
        )


class Negative(_Row):
    """A caption with one attribute changed, so that it no longer fits the picture."""

    kind: str
    text: str


class Sample(_Row):
    """What one training step may see: `messages` or `text`, never both."""

    id: str = Field(min_length=1)
    group: str = Field(
        default="?", min_length=1
    )  # what must never straddle a split: speaker, clip, photo; `parse` fills it
    task: str = "?"  # what is asked; `parse` fills it
    # factories: a default value would be copied deeply for each sample
    messages: list[Message] = Field(default_factory=list)
    text: str | None = None
    split: Split | None = None
    negatives: list[Negative] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)

    @property
    def images(self) -> list[ImagePart]:
        """The pictures that the model sees, in their order."""
        return [part for part in self._parts(spoken=False) if part.type == "image"]

    @property
    def audios(self) -> list[AudioPart]:
        """The sounds that the model hears, in their order."""
        return [part for part in self._parts(spoken=False) if part.type == "audio"]

    @property
    def speech(self) -> list[AudioPart]:
        """The sounds that the model must produce: the assistant's audio parts."""
        return [part for part in self._parts(spoken=True) if part.type == "audio"]

    @property
    def answer(self) -> str:
        """The last assistant turn's words, "" if there is none."""
        return next((m.text for m in reversed(self.messages) if m.role == "assistant"), "")

    @property
    def question(self) -> str:
        """The last user turn's words, "" if there is none."""
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def media(self) -> list[ImagePart | AudioPart]:
        """Every file that the sample needs, heard, seen or to be said."""
        return [part for message in self.messages for part in message.media]

    def _parts(self, *, spoken: bool) -> list[TextPart | ImagePart | AudioPart]:
        chosen = [
            m.content
            for m in self.messages
            if not isinstance(m.content, str) and (m.role == "assistant") == spoken
        ]
        return [part for content in chosen for part in content]


FIELDS = frozenset(Sample.model_fields)
TRAIN_WORDS = {"train", "training", "trn", "tr", "trainset"}
VALID_WORDS = {
    *(
        "valid",
        "validation",
        "val",
        "dev",
        "devel",
        "development",
        "eval",
        "evaluation",
        "test",
        "testing",
        "tst",
        "cv",
    ),
    *("heldout", "held", "holdout", "devset", "testset", "valset", "validset", "evalset", "testa", "testb"),
}


def side(word: Any, key: str = "split") -> Split:
    """The side of the split that a word names: train, or what is held out, as people spell it (`dev`,
    `test-clean`, `Validation`).

    Raises  DataError (bad_row): a word that is neither must not be trained on.
    """
    side_name = _side(word) if isinstance(word, str) else None
    if side_name is None:
        raise DataError(
            "bad_row",
            f"{key}: expected train or valid (validation, dev, eval, test, ...), got {word!r:.60}",
            hint=f"`ignore: [{key}]` leaves the side to the hash of the group",
        )
    return side_name


@lru_cache(maxsize=1024)
def _side(word: str) -> Split | None:
    """The side that the first or the last of its words names, unless another one names the other side."""
    spelt = re.findall(r"[a-z]+", word.casefold())
    sides = {
        "train" if one in TRAIN_WORDS else "valid"
        for one in spelt
        if one in TRAIN_WORDS or one in VALID_WORDS
    }
    if len(sides) != 1 or not {spelt[0], spelt[-1]} & (TRAIN_WORDS | VALID_WORDS):
        return None
    return "train" if sides == {"train"} else "valid"


class OfSamples:
    """Base of datasets that make an item of each sample."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The sample's id."""
        return self.samples[index].id


def parse(row: Any) -> Sample:
    """A sample of one JSON row: ours, OpenAI's (`image_url`, `input_audio`) or Higgs' (`audio_url`) spelling.

    Without an id the content's hash is taken; without a group the first picture, else the first sound, else
    the id; without a task, it is told from the parts. Keys that are none of ours go to `extra`, unless they
    look like a slip of the pen.
    Raises  DataError: bad_row (what, where, expected, got), empty.
    """
    if not isinstance(row, dict):
        raise DataError("bad_row", f"row: expected a JSON object, got {type(row).__name__}")
    known_fields = {key: value for key, value in row.items() if key in FIELDS and value is not None}
    extra = known_fields.pop("extra", {})
    if not isinstance(extra, dict):
        raise DataError("bad_row", f"extra: expected an object, got {type(extra).__name__}")
    extra = dict(extra)
    for key, value in row.items():
        if key not in FIELDS:
            meant = _meant(key)
            if meant and meant not in row:
                raise DataError("bad_row", f"row: unknown key {key!r}", hint=f"did you mean {meant!r}?")
            extra[key] = value
    if any(isinstance(value, list | dict) for value in extra.values()) and not _is_shallow(extra, MOST_DEPTH):
        raise DataError("bad_row", "row: nested too deeply")
    if "messages" in known_fields:
        rate_hz = next((extra[key] for key in RATES if extra.get(key) is not None), None)
        known_fields["messages"] = _messages(known_fields["messages"], rate_hz)
    for key in ("id", "group"):
        if isinstance(known_fields.get(key), int) and not isinstance(known_fields[key], bool):
            known_fields[key] = str(known_fields[key])
    if "split" in known_fields:
        known_fields["split"] = (
            side(known_fields["split"]) if isinstance(known_fields["split"], str) else known_fields["split"]
        )
    try:
        if "id" not in known_fields:
            known_fields["id"] = files.sha256_json(row)[:16]
        sample = Sample.model_validate({**known_fields, "extra": extra})
    except ValidationError as error:
        raise DataError("bad_row", f"row: {_first(error)}") from error
    except UnicodeEncodeError as error:
        raise DataError("bad_row", "row: expected valid Unicode, got a lone surrogate") from error
    return _complete(sample, has_group="group" in known_fields, has_task="task" in known_fields)


class Quick:
    """Samples of lines that spell all of them as the schema does, made by its own parser: those that `parse`
    makes, sooner.

    It stops trying where too few lines are spelt so.
    """

    def __init__(self) -> None:
        self._luck = ENOUGH_LUCK

    def __call__(self, line: str) -> Sample | None:
        """The sample of a row of JSON; None: `parse` must look at the row, since something in it is spelt
        otherwise, doubled or wrong."""
        if self._luck <= 0:
            return None
        sample = _plain(line)
        self._luck = min(ENOUGH_LUCK, self._luck + 1) if sample is not None else self._luck - 1
        return sample


def _plain(line: str) -> Sample | None:
    try:
        sample = Sample.model_validate_json(line)
    except ValidationError:
        return None
    fields_set, text = sample.model_fields_set, sample.text
    if sample.extra or bool(sample.messages) == (text is not None) or (text is not None and not text.strip()):
        return None
    shown: Shown = []
    keys = len(fields_set) + 2 * (len(sample.messages) + len(sample.negatives))
    for message in sample.messages:
        content = message.content
        if isinstance(content, str):
            words, holds_media = content, False
        else:
            words, before = "", len(shown)
            for part in content:
                keys += len(part.model_fields_set)
                if part.type == "text":
                    words += part.text
                elif part.type == "audio" and _is_reversed(part):
                    return None
                else:
                    shown.append((message.role == "assistant", part))
            holds_media = len(shown) > before
        if "<" in words or "[" in words or not (holds_media or words.strip()):  # it may stand for a medium
            return None
    # A parser keeps the last of two equal keys. Each key ends in a quotation mark and a colon, so that as
    # many of these as keys were found leave no room for another one.
    if len(KEY_END.findall(line)) != keys:
        return None
    return _filled(sample, shown, has_group="group" in fields_set, has_task="task" in fields_set)


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether lists and objects lie at most so deep in one another."""
    if not isinstance(value, list | dict):
        return True
    return depth > 0 and all(
        _is_shallow(one, depth - 1) for one in (value if isinstance(value, list) else value.values())
    )


def inline_bytes(path: str) -> bytes | None:
    """The bytes of a medium that has no file of its own, None for the path of a file; see `media.stored`."""
    return stored.content(path)


@lru_cache(maxsize=1024)
def _meant(key: str) -> str | None:
    """The key of ours that this one is a slip of the pen of."""
    return nearest(key, Sample.model_fields, cutoff=0.8)


Shown = list[tuple[bool, ImagePart | AudioPart]]  # whether the assistant shows it, and what


def _complete(sample: Sample, *, has_group: bool, has_task: bool) -> Sample:
    """Check what the fields can't say one by one, and fill group and task."""
    if bool(sample.messages) == (sample.text is not None):
        raise DataError(
            "bad_row",
            f"row: expected either messages or text, got {', '.join(sample.extra)[:80] or 'neither or both'}",
            hint='e.g. {"text": ...} or {"messages": [{"role": "user", ...}]}',
        )
    shown: Shown = []
    if sample.text is not None and not sample.text.strip():
        raise DataError("empty", "text: expected words, got none")
    for number, message in enumerate(sample.messages):
        media = message.media
        if not media and not message.text.strip():
            raise DataError("empty", f"message {number} ({message.role}): expected content, got none")
        for part in media:
            if part.type == "audio" and _is_reversed(part):
                raise DataError(
                    "bad_row", f"message {number}: expected end > start, got {part.start}..{part.end} s"
                )
            shown.append((message.role == "assistant", part))
    return _filled(sample, shown, has_group=has_group, has_task=has_task)


def _is_reversed(part: AudioPart) -> bool:
    return part.end is not None and part.end <= (part.start or 0)


def _filled(sample: Sample, shown: Shown, *, has_group: bool, has_task: bool) -> Sample:
    if not has_group:
        first = next((part for _, part in shown if part.type == "image"), shown[0][1] if shown else None)
        object.__setattr__(
            sample, "group", first.path if first else sample.id
        )  # frozen, but nobody else has seen it yet
    if not has_task:
        object.__setattr__(sample, "task", _task(sample, shown))
    return sample


def _task(sample: Sample, shown: Shown) -> str:
    """What a sample asks, by its media: whether the assistant shows them, and each."""
    if sample.text is not None:
        return "text"
    if any(is_said and part.type == "audio" for is_said, part in shown):
        return "speak"
    images = any(not is_said and part.type == "image" for is_said, part in shown)
    audios = any(not is_said and part.type == "audio" for is_said, part in shown)
    if images and audios:
        return "spoken_question"
    if images:
        return "question" if sample.question.strip() else "caption"
    return "transcribe" if audios else "chat"


def _messages(messages: Any, rate_hz: Any) -> Any:
    """Messages with foreign parts respelled; what is not understood is left for the schema to name.

    Takes   rate_hz: what the row says of all its sounds, None: nothing.
    """
    if not isinstance(messages, list):
        return messages
    out = []
    for message in messages:
        if isinstance(message, dict) and not isinstance(message.get("content"), str):
            content = message.get("content")
            parts = (
                content if isinstance(content, list) else [content]
            )  # Higgs writes a lone part without a list
            message = {**message, "content": [_rated(_part(part), part, rate_hz) for part in parts]}
        out.append(message)
    return out


def _rated(respelled: Any, part: Any, rate_hz: Any) -> Any:
    """A part with the rate that it states, or that its row does, where it is a sound."""
    if not isinstance(respelled, dict) or respelled.get("type") != "audio":
        return respelled
    own = next((part[key] for key in RATES if part.get(key) is not None), rate_hz)
    kept = {key: value for key, value in respelled.items() if key not in RATES}
    return kept if own is None else {**kept, "rate_hz": own}


def _part(part: Any) -> Any:
    """One part in our spelling. Source: OpenAI chat completions API; Higgs Audio v2 ChatML."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind == "image_url" or (kind == "image" and "image_url" in part):
        url = part.get("image_url")
        return {"type": "image", "path": _local(url.get("url") if isinstance(url, dict) else url)}
    if kind == "input_audio":
        sound = part.get("input_audio")
        if not isinstance(sound, dict):
            return part
        return {
            "type": "audio",
            "path": f"data:audio/{sound.get('format', 'wav')};base64,{sound.get('data', '')}",
        }
    if kind in ("audio", "audio_url") and "audio_url" in part:
        url = part["audio_url"]
        audio_part: dict[str, Any] = {
            "type": "audio",
            "path": _local(url.get("url") if isinstance(url, dict) else url),
        }
        raw = part.get("raw_audio")
        if raw and isinstance(raw, str):
            audio_part["path"] = f"data:audio/wav;base64,{raw}"
        offset, length = part.get("offset"), part.get("duration")
        if isinstance(offset, int | float) and offset > 0:
            audio_part["start"] = _seconds("offset", offset)
        if isinstance(length, int | float) and length > 0:
            audio_part["end"] = audio_part.get("start", 0.0) + _seconds("duration", length)
        if isinstance(speaker := part.get("speaker"), str | int) and not isinstance(speaker, bool):
            audio_part["speaker"] = str(speaker)
        return audio_part
    if (
        kind in ("image", "audio") and "path" not in part
    ):  # Qwen's and ms-swift's: {"type": "image", "image": "a.png"}
        url_given = part.get(kind, part.get("url"))
        if isinstance(url_given, str):
            part = {
                "path": _local(url_given),
                **{key: value for key, value in part.items() if key not in (kind, "url")},
            }
    if kind == "video":
        raise DataError(
            "bad_row",
            f"video: expected words, pictures and sounds, got {part!r:.60}",
            hint="take its frames as pictures",
        )
    return {key: value for key, value in part.items() if value is not None}


def _seconds(name: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError as error:  # JSON knows integers of any length
        raise DataError("bad_row", f"{name}: expected seconds, got a number of over 300 digits") from error


def _local(url: Any) -> Any:
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        raise DataError(
            "bad_row",
            f"media: expected a file or data: URI, got {url[:80]!r}",
            hint="nothing is fetched from the network; download it first",
        )
    return url.removeprefix("file://") if isinstance(url, str) else url


def _first(error: ValidationError) -> str:
    """The first complaint in a line: where, what, got."""
    errors = error.errors(include_url=False)
    first = next(
        (e for e in errors if e["loc"][-1:] != ("str",)), errors[0]
    )  # content: the parts' fault says more than "not a string"
    where = (
        ".".join(str(step) for step in first["loc"] if not str(step).startswith(("str", "list["))) or "row"
    )
    got = repr(first["input"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {first['msg'][:200]}, got {got[:60]}{'...' if len(got) > 60 else ''}{more}"
