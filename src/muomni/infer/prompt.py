"""What a user brings (words, pictures, sounds, earlier turns) -> the ids and arrays that the Thinker
reads."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL.Image import Image

from muomni.data import conversation
from muomni.data.conversation import MediaSpec
from muomni.data.sample import AudioPart, ImagePart, Message, Role, Sample, TextPart, parse
from muomni.errors import CheckpointError, ContextError, DataError, ShapeError
from muomni.media import image
from muomni.media.modality import MODALITIES, Array
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer

Wave = NDArray[np.float32]
Picture = str | Path | ImagePart | bytes | Image | NDArray[np.uint8]
"""A file, a part of a sample, its bytes, a PIL picture, or pixels (H, W, 3) uint8."""
Sound = str | Path | AudioPart | Wave | tuple[Wave, int]
"""A file, a part of a sample, a mono wave (S,) at the model's rate, or such a wave with its rate in Hz."""


@dataclass(frozen=True)
class Medium:
    """A picture or a sound in memory, as a part of a turn; `type` names its modality."""

    type: str
    source: Any


@dataclass(frozen=True)
class Turn:
    """One message whose media are in memory: nothing of it names a file."""

    role: Role
    parts: Sequence[TextPart | Medium]


Messages = Sequence[Message | Mapping[str, Any]] | Sequence[Turn]


@dataclass(frozen=True)
class Request:
    """One question: words, or a whole conversation whose last user turn is to be answered; media go before
    that turn's words."""

    ask: str | Sample | Messages | None = None
    images: Sequence[Picture] = ()
    audios: Sequence[Sound] = ()


@dataclass(frozen=True)
class Prompt:
    """A rendered request: ids with pads where media go, and the media as an `Item` holds them."""

    ids: list[int]
    media: Mapping[str, Sequence[Array]]


@dataclass(frozen=True)
class _Medium:
    type: str
    array: Array


@dataclass(frozen=True)
class _Turn:
    role: str
    content: list[Any]


def build(
    request: Request,
    tokenizer: Tokenizer,
    ctx_len: int,
    spec: MediaSpec | None,
    questions: Mapping[str, str],
    *,
    cut: bool = True,
) -> Prompt:
    """Read the media and render the turns, up to where the assistant is to speak.

    Takes   spec: how media become tokens, None for a model that only reads;
            questions: by modality, what is asked of a medium that comes without words;
            cut: a sound that fills too many positions loses its end, which is told in a line; else it is
            refused.
    Raises  DataError (media or turns that can't be used), CheckpointError (media for a model without eyes or
            ears), ContextError (no room for an answer within ctx_len).
    """
    turns = [_read(message, spec, cut) for message in _messages(request.ask)]
    beside = {"image": request.images, "audio": request.audios}
    read_media = [_array(kind, source, spec, cut) for kind, sources in beside.items() for source in sources]
    last = replace(turns[-1], content=[*read_media, *turns[-1].content])
    if not any(isinstance(part, TextPart) and part.text.strip() for part in last.content):
        kinds = {part.type for part in last.content if isinstance(part, _Medium)}
        if not kinds:
            raise DataError("empty", "nothing is asked: expected words, a picture or a sound")
        question = questions.get(kinds.pop()) if len(kinds) == 1 else None
        media = [part for part in last.content if isinstance(part, _Medium)]
        last = replace(last, content=[*media, TextPart(text=question)] if question else media)
    turns[-1] = last
    parts = [part for turn in turns for part in turn.content if isinstance(part, _Medium)]
    by_kind = {kind: [part.array for part in parts if part.type == kind] for kind in MODALITIES}
    arrays = {kind: some for kind, some in by_kind.items() if some}
    counts = conversation.positions(arrays, spec, "request") if spec else {}
    ids = chat.render(tokenizer, turns, positions=counts, reply=True).ids
    if len(ids) >= ctx_len:
        each = [f"{sum(counts.get(kind, ()))} of {row.noun}s" for kind, row in MODALITIES.items()]
        media_tokens = ", ".join(each)
        raise ContextError(
            f"prompt: {len(ids)} tokens ({media_tokens}) leave no room for an answer in ctx_len {ctx_len}",
            hint="shorten the text or the conversation, or send fewer media",
        )
    return Prompt(ids, arrays)


def read_picture(
    source: Picture, size: int, resample: Literal["bicubic", "bilinear"] = "bicubic"
) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of whatever shows a picture; raises DataError, ShapeError."""
    source = ImagePart(path=str(source)) if isinstance(source, str | Path) else source
    if isinstance(source, ImagePart):
        return conversation.read_picture(source, size, resample)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ShapeError(f"picture: expected uint8 (H, W, 3), got {source.dtype} {source.shape}")
        from PIL.Image import fromarray

        source = fromarray(source)
    return image.to_array(
        image.read(source) if isinstance(source, bytes) else source, size, resample=resample
    )


def read_sound(source: Sound, rate_hz: int, *, max_s: float = 60.0) -> Wave:
    """Mono samples (S,) float32 at rate_hz of whatever sounds; raises DataError, ShapeError."""
    source = AudioPart(path=str(source)) if isinstance(source, str | Path) else source
    if isinstance(source, AudioPart):
        return conversation.read_wave(source, rate_hz, max_s=max_s)
    wave_S, own_rate_hz = source if isinstance(source, tuple) else (source, rate_hz)
    wave_S = np.asarray(wave_S, dtype=np.float32)
    if wave_S.ndim != 1:
        raise ShapeError(f"sound: expected a mono wave (S,), got {wave_S.shape}")
    if len(wave_S) == 0 or not np.isfinite(wave_S).all():
        raise DataError(
            "nonfinite" if len(wave_S) else "empty", "sound: expected finite samples, at least one"
        )
    if len(wave_S) > max_s * own_rate_hz:
        raise DataError("too_long", f"sound: {len(wave_S) / own_rate_hz:.1f} s, at most {max_s:g} s allowed")
    if own_rate_hz != rate_hz:
        wave_S = soxr.resample(wave_S, own_rate_hz, rate_hz).astype(np.float32)
    return wave_S


def _messages(ask: str | Sample | Messages | None) -> list[Message | Turn]:
    """The turns, ending with the user's that is to be answered."""
    if ask is None or isinstance(ask, str):
        return [Message(role="user", content=ask or "")]
    if not isinstance(ask, Sample) and any(isinstance(turn, Turn) for turn in ask):
        return _ending_with_user([turn for turn in ask if isinstance(turn, Turn)])
    if not isinstance(ask, Sample):
        ask = parse(
            {
                "messages": [
                    turn.model_dump() if isinstance(turn, Message) else dict(turn)
                    for turn in ask
                    if not isinstance(turn, Turn)
                ]
            }
        )
    if ask.text is not None:
        return [Message(role="user", content=ask.text)]
    return _ending_with_user(ask.messages)


def _ending_with_user(turns: Sequence[Message | Turn]) -> list[Message | Turn]:
    messages = list(turns)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role != "user":
        raise DataError("bad_row", "messages: expected a last turn of the user, got none")
    return messages


def heard(source: Sound, spec: MediaSpec) -> Wave:
    """The samples of a sound that a chat listens to: only its beginning, if it fills over max_audio_tokens.

    A line says that it was cut. Of a file no more is read than is needed to see that it is too long.
    """
    most, rate_hz = longest_samples(spec), spec.mel.rate_hz
    source = AudioPart(path=str(source)) if isinstance(source, str | Path) else source
    name = ""
    if isinstance(source, AudioPart):
        name = "" if source.path.startswith("data:") else f"{source.path}: "
        end_s = min(source.end or math.inf, (source.start or 0.0) + (most + rate_hz) / rate_hz)
        source = source.model_copy(update={"end": end_s})
    wave_S = read_sound(source, rate_hz, max_s=math.inf)
    if len(wave_S) > most:
        limit = f"in a chat it may fill {spec.max_audio_tokens} positions (max_audio_tokens)"
        note = f"{name}the sound is cut to its first {most / rate_hz:.2f} s: {limit}"
        print(f"note: {note}", file=sys.stderr, flush=True)
    return wave_S[:most]


def longest_samples(spec: MediaSpec) -> int:
    """Samples of the longest sound that fits max_audio_tokens with the silence around it."""
    frames = spec.max_audio_tokens * spec.audio_pool * spec.downsample
    return (frames + 1) * spec.mel.hop_samples - 1 - 2 * round(spec.pad_s * spec.mel.rate_hz)


def _read(message: Message | Turn, spec: MediaSpec | None, cut: bool) -> _Turn:
    """The turn with its media as arrays; what the assistant once said aloud stays a mark without samples."""
    if message.role == "assistant":
        return _Turn(message.role, list(message.parts))
    parts = [
        part
        if isinstance(part, TextPart)
        else _array(part.type, part.source if isinstance(part, Medium) else part, spec, cut)
        for part in message.parts
    ]
    return _Turn(message.role, parts)


def _array(kind: str, source: Any, spec: MediaSpec | None, cut: bool) -> _Medium:
    """A medium that a message holds, or that came beside it."""
    if spec is None:
        hint = f"to take in {MODALITIES[kind].noun}s, stage omni must be there"
        raise CheckpointError(hint, hint="train it: muomni run RECIPE omni")
    if kind in SOURCES:
        return _Medium(kind, SOURCES[kind](source, spec, cut))
    return _Medium(kind, conversation.MEDIA_READERS[kind].read(source, spec))


def _mel(source: Sound, spec: MediaSpec, cut: bool) -> Array:
    wave_S = heard(source, spec) if cut else read_sound(source, spec.mel.rate_hz)
    return conversation.wave_to_mel(wave_S, spec.mel, spec.pad_s)


SOURCES: dict[str, Callable[[Any, MediaSpec, bool], Array]] = {
    "image": lambda source, spec, _: read_picture(source, spec.image_size, spec.resample),
    "audio": _mel,
}
"""By modality, the array of a medium that a caller may have in memory; the last argument: it may be cut."""
