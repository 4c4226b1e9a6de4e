"""Samples as the Thinker reads them: a conversation rendered to ids and labels, with its pictures and sounds
as arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from muomni.data.cache import Cache, shared
from muomni.data.sample import AudioPart, ImagePart, Message, OfSamples, Sample, inline_bytes
from muomni.data.uses import says_words
from muomni.errors import DataError
from muomni.media import audio, image
from muomni.media.frames import DOWNSAMPLE, MAX_AUDIO_TOKENS, PAD_S, STATES_HZ, num_states
from muomni.media.mel import MelSpec, log_mel
from muomni.media.modality import MODALITIES, Array
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer


@dataclass(frozen=True)
class MediaSpec:
    """How media become arrays and how many tokens they fill; the numbers belong to the towers that read them.

    image_size    pixels of a side, resampled as the eyes were trained; image_tokens positions a picture fills
    mel           spectrum of the ears; downsample and pool: mel frames of one token; max_audio_tokens: SPEC
                  M-E's ctx_len // 4
    pad_s         silence put on both sides of a sound, so that the shortest word has frames enough
    """

    image_size: int = 224
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    image_tokens: int = 1
    mel: MelSpec = field(default_factory=MelSpec)
    downsample: int = DOWNSAMPLE
    audio_pool: int = 1
    max_audio_tokens: int = MAX_AUDIO_TOKENS
    pad_s: float = PAD_S

    def audio_tokens(self, frames: int) -> int:
        """Positions that a sound of so many mel frames fills: exact, as the ears' strides and the pool give
        them."""
        return -(-num_states(frames, self.downsample) // self.audio_pool)


@dataclass
class Item:
    """One conversation, ready for a batch: ids and labels (see tokens.chat), and its media as arrays.

    media           by modality, in the order of the conversation: pictures (H,W,3) uint8, log-mels (F,M)
                    float32
    shared, starts  where questions stand apart: how many first ids (the media) each goes on from, and where
                    each begins
    """

    sample_id: str
    task: str
    ids: list[int]
    labels: list[int]
    media: Mapping[str, Sequence[Array]] = field(default_factory=dict)
    shared: int = 0
    starts: list[int] = field(default_factory=list)


class Changes(Protocol):
    """Augmentation of pictures (data.pictures.PictureAugment)."""

    def change(self, pixels: NDArray[np.uint8], rng: np.random.Generator, task: str) -> NDArray[np.uint8]: ...


def read_picture(
    part: ImagePart, size: int, resample: Literal["bicubic", "bilinear"] = "bicubic"
) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of an image part; raises DataError."""
    return image.to_array(image.read(inline_bytes(part.path) or Path(part.path)), size, resample=resample)


def read_wave(part: AudioPart, rate_hz: int, *, max_s: float = 60.0) -> NDArray[np.float32]:
    """Mono samples (S,) of an audio part; raises DataError."""
    return audio.read(
        inline_bytes(part.path) or part.path,
        rate_hz,
        start_s=part.start,
        end_s=part.end,
        channel=part.channel,
        max_s=max_s,
    )


def wave_to_mel(wave_S: NDArray[np.float32], spec: MelSpec, pad_s: float) -> NDArray[np.float32]:
    """Log-mel (F, M) of a wave with silence on both sides."""
    silence = np.zeros(round(pad_s * spec.rate_hz), dtype=np.float32)
    padded = torch.from_numpy(np.concatenate([silence, wave_S, silence]))
    out: NDArray[np.float32] = log_mel(padded[None], spec)[0].numpy()
    return out


@dataclass(frozen=True)
class MediaReader:
    """How a medium of one modality is read for a conversation.

    read      its array
    key       what is the same wherever the same content is named
    guess     positions that it fills, before it is read
    most      positions that one may fill
    fills     positions that its array fills; None: the guess is exact, whatever it holds
    lasts     later questions of a dialogue are about it too, though they bring media of their own
    """

    read: Callable[[Any, MediaSpec], Array]
    key: Callable[[Any], Hashable]
    guess: Callable[[Any, MediaSpec], int]
    most: Callable[[MediaSpec], int]
    fills: Callable[[Array, MediaSpec], int] | None = None
    lasts: bool = False


MEDIA_READERS: dict[str, MediaReader] = {
    "image": MediaReader(
        read=lambda part, spec: read_picture(part, spec.image_size, spec.resample),
        key=lambda part: part.path,
        guess=lambda _, spec: spec.image_tokens,
        most=lambda spec: spec.image_tokens,
        lasts=True,
    ),
    "audio": MediaReader(
        read=lambda part, spec: wave_to_mel(read_wave(part, spec.mel.rate_hz), spec.mel, spec.pad_s),
        key=lambda part: (part.path, part.start, part.end, part.channel),
        guess=lambda part, spec: int(STATES_HZ / spec.audio_pool * ((part.end or 3.0) - (part.start or 0.0))),
        most=lambda spec: spec.max_audio_tokens,
        fills=lambda mel_FM, spec: spec.audio_tokens(len(mel_FM)),
    ),
}
Positions = dict[str, list[int]]
"""By modality, how many positions each medium fills, in the order of the conversation."""


def input_media(sample: Sample) -> dict[str, list[Any]]:
    """The media that the model takes in, by modality, in the order of the conversation; none of a modality:
    absent."""
    parts = [part for message in sample.messages if message.role != "assistant" for part in message.media]
    return {kind: some for kind in MODALITIES if (some := [part for part in parts if part.type == kind])}


def positions(media: Mapping[str, Sequence[Array]], spec: MediaSpec, name: str) -> Positions:
    """Positions that media fill; raises DataError (too_long) for one that fills more than it may, by its
    owner's name."""
    counts: Positions = {}
    for kind, arrays in media.items():
        reader = MEDIA_READERS[kind]
        counts[kind] = filled = [(reader.fills or reader.guess)(array, spec) for array in arrays]
        if max(filled, default=0) > (most := reader.most(spec)):
            noun, hint = MODALITIES[kind].noun, "cut it into parts, or raise max_audio_tokens or audio_pool"
            message = f"{name}: a {noun} fills {max(filled)} positions, at most {most} are allowed"
            raise DataError("too_long", message, hint=hint)
    return counts


def prepare(
    sample: Sample,
    tokenizer: Tokenizer,
    spec: MediaSpec,
    ctx_len: int,
    *,
    reply: bool = False,
    apart: bool = False,
) -> Item:
    """Read a sample's media and render its turns; see `rendered`.

    Raises  DataError: unreadable media, a sound longer than its budget, or a conversation that can't fit
            ctx_len (media are never cut).
    """
    parts = input_media(sample)
    media = {kind: [MEDIA_READERS[kind].read(part, spec) for part in some] for kind, some in parts.items()}
    filled = positions(media, spec, sample.id)
    return replace(rendered(sample, tokenizer, spec, ctx_len, filled, reply=reply, apart=apart), media=media)


def rendered(
    sample: Sample,
    tokenizer: Tokenizer,
    spec: MediaSpec,
    ctx_len: int,
    filled: Positions | None = None,
    *,
    reply: bool = False,
    apart: bool = False,
) -> Item:
    """A sample's turns as ids and labels, its media unread; a text document is learned whole.

    Takes   filled: positions of its media; None: as guessed, for media of which the guess is exact.
            reply=True stops where the assistant is to speak.
            With `apart` each question is rendered as if it was the first: all share the ids of the media that
            they are about, and none reads what others were told. In a dialogue the answers given before say
            much of what the next one asks for.
    Gives   an Item without the media's arrays.
    Raises  DataError: a conversation that can't fit ctx_len (media are never cut), or whose assistant answers
            by sound alone.
    """
    if sample.text is not None:
        return _document(sample, tokenizer, ctx_len)
    if not reply and sample.speech and not says_words(sample):
        raise DataError(
            "bad_row",
            f"{sample.id}: the assistant says nothing in words",
            hint="stages codec and talker learn from its sound",
        )
    media = input_media(sample)
    if filled is None:
        filled = {
            kind: [MEDIA_READERS[kind].guess(part, spec) for part in parts] for kind, parts in media.items()
        }
    counts = {
        part: count for kind, parts in media.items() for part, count in zip(parts, filled[kind], strict=True)
    }
    in_turns = all(
        message.role == ("assistant" if number % 2 else "user")
        for number, message in enumerate(sample.messages)
    )
    shared = _shared(sample) if apart and in_turns and sample.messages[-1].role == "assistant" else []
    rows = [
        chat.fit(
            chat.render(
                tokenizer,
                one.messages,
                positions={kind: [counts[part] for part in some] for kind, some in input_media(one).items()},
                reply=reply,
            ),
            ctx_len,
            shorten=not reply,
        )
        for one in (questions(sample) if shared else [sample])
    ]
    item = Item(sample.id, sample.task, list(rows[0].ids), list(rows[0].labels))
    if len(rows) > 1:
        last = rows[0].spans[len(shared) - 1]
        item.shared = last.start + last.length + 1  # with the mark that closes it
        item.starts = [item.shared]
        for row in rows[1:]:
            item.starts.append(len(item.ids))
            item.ids += row.ids[item.shared :]
            item.labels += row.labels[item.shared :]
    return item


def _shared(sample: Sample) -> list[ImagePart | AudioPart]:
    """The media that all questions are about: the first one's; only those that last if later ones bring their
    own."""
    first, *later = [message.media for message in sample.messages if message.role == "user"] or [[]]
    return [part for part in first if not any(later) or MEDIA_READERS[part.type].lasts]


def questions(sample: Sample) -> list[Sample]:
    """Each question of a sample as a sample of its own, in front of its words the media that all are about
    and those that it brings.

    `extra["kind"]` is that of `extra["kinds"]`.
    """
    shared = _shared(sample)
    kinds = sample.extra.get("kinds") or [sample.extra.get("kind", "")] * len(sample.messages)
    singles = []
    pairs = [
        (a, b)
        for a, b in zip(sample.messages, sample.messages[1:])
        if a.role == "user" and b.role == "assistant"
    ]
    for number, (question, answer) in enumerate(pairs):
        own = [part for part in question.parts if not any(part is one for one in shared)]
        user_message = Message(
            role="user", content=[*shared, *sorted(own, key=lambda part: part.type == "text")]
        )
        extra = {**sample.extra, "kind": kinds[number] if number < len(kinds) else ""}
        singles.append(
            sample.model_copy(
                update={"id": f"{sample.id}/{number}", "messages": [user_message, answer], "extra": extra}
            )
        )
    return singles


def _document(sample: Sample, tokenizer: Tokenizer, ctx_len: int) -> Item:
    """A text document as a row of its own, all of it learned; a longer one loses its end, never its end
    symbol."""
    assert sample.text is not None
    ids = chat.document(tokenizer, sample.text)
    if len(ids) > ctx_len:
        ids = [*ids[: ctx_len - 1], ids[-1]]
    return Item(sample.id, sample.task, ids, [chat.IGNORE, *ids[1:]])


class Conversations(OfSamples):
    """Samples as a dataset of `Item`s; media and ids are kept in the cache, `changes` are made anew each
    time.

    apart  questions about the same media do not see each other (see `prepare`)
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenizer: Tokenizer,
        spec: MediaSpec,
        ctx_len: int,
        *,
        apart: bool = False,
        changes: Changes | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.samples, self.tokenizer, self.spec, self.ctx_len = samples, tokenizer, spec, ctx_len
        self.apart = apart
        self.changes = changes
        self.kept = (cache or shared()).part()

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """One prepared sample."""
        sample = self.samples[index]
        media = {kind: [self._array(part) for part in parts] for kind, parts in input_media(sample).items()}
        item = replace(self._rendered(index, sample, media), media=media)
        if self.changes is None or "image" not in media:
            return item
        changed = [self.changes.change(picture, rng, item.task) for picture in media["image"]]
        return replace(item, media={**media, "image": changed})

    def _array(self, part: Any) -> Array:
        """A medium, kept once for all samples that it stands in."""
        reader = MEDIA_READERS[part.type]
        return self.kept.get((part.type, reader.key(part)), lambda: [reader.read(part, self.spec)])[0]

    def _rendered(self, index: int, sample: Sample, media: Mapping[str, Sequence[Array]]) -> Item:
        """The ids and labels of a sample, its media left out."""

        def make() -> list[NDArray[np.int64]]:
            filled = positions(media, self.spec, sample.id)
            item = rendered(sample, self.tokenizer, self.spec, self.ctx_len, filled, apart=self.apart)
            return [np.array(row, np.int64) for row in (item.ids, item.labels, item.starts, [item.shared])]

        ids, labels, starts, shared_ids = (row.tolist() for row in self.kept.get(index, make))
        return Item(sample.id, sample.task, ids, labels, {}, shared_ids[0], starts)

    def lengths(self) -> NDArray[np.int32]:
        """A cheap guess of each row's length, for batches of like lengths, (len,)."""
        return np.fromiter((self._length(sample) for sample in self.samples), np.int32, len(self.samples))

    def _length(self, sample: Sample) -> int:
        words = min(2000, len(sample.text or "") + sum(len(message.text) for message in sample.messages)) // 4
        parts = [part for some in input_media(sample).values() for part in some]
        return words + sum(MEDIA_READERS[part.type].guess(part, self.spec) for part in parts)
