"""Samples as the Thinker reads them: a conversation rendered to ids and labels, with its pictures and sounds as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from muomni.data.cache import Cache, shared
from muomni.data.sample import AudioPart, ImagePart, Message, Sample, inline_bytes
from muomni.data.uses import says_words
from muomni.errors import DataError
from muomni.media import audio, image
from muomni.media.frames import DOWNSAMPLE, MAX_AUDIO_TOKENS, PAD_S, STATES_HZ, num_states
from muomni.media.mel import MelSpec, log_mel
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer


@dataclass(frozen=True)
class MediaSpec:
    """How media become arrays and how many tokens they fill; the numbers belong to the towers that read them.

    image_size    pixels of a side, resampled as the eyes were trained; image_tokens positions a picture fills
    mel           spectrum of the ears; downsample and pool: mel frames of one token; max_audio_tokens: SPEC M-E's ctx_len // 4
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
        """Positions that a sound of so many mel frames fills: exact, as the ears' strides and the pool give them."""
        return -(-num_states(frames, self.downsample) // self.audio_pool)


@dataclass
class Item:
    """One conversation, ready for a batch: ids and labels (see tokens.chat), pictures (H,W,3) uint8 and sounds (F,M) float32.

    shared, starts  where questions stand apart: how many first ids (the media) each goes on from, and where each begins
    """

    sample_id: str
    task: str
    ids: list[int]
    labels: list[int]
    pictures: list[NDArray[np.uint8]]
    mels: list[NDArray[np.float32]]
    shared: int = 0
    starts: list[int] = field(default_factory=list)


class Changes(Protocol):
    """Augmentation of pictures (data.pictures.PictureAugment)."""

    def change(self, pixels: NDArray[np.uint8], rng: np.random.Generator, task: str) -> NDArray[np.uint8]: ...


def read_picture(part: ImagePart, size: int, resample: Literal["bicubic", "bilinear"] = "bicubic") -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of an image part; raises DataError."""
    return image.to_array(image.read(inline_bytes(part.path) or Path(part.path)), size, resample=resample)


def read_wave(part: AudioPart, rate_hz: int, *, max_s: float = 60.0) -> NDArray[np.float32]:
    """Mono samples (S,) of an audio part; raises DataError."""
    return audio.read(inline_bytes(part.path) or part.path, rate_hz, start_s=part.start, end_s=part.end, channel=part.channel, max_s=max_s)


def wave_to_mel(wave_S: NDArray[np.float32], spec: MelSpec, pad_s: float) -> NDArray[np.float32]:
    """Log-mel (F, M) of a wave with silence on both sides."""
    silence = np.zeros(round(pad_s * spec.rate_hz), dtype=np.float32)
    padded = torch.from_numpy(np.concatenate([silence, wave_S, silence]))
    out: NDArray[np.float32] = log_mel(padded[None], spec)[0].numpy()
    return out


def positions(mels: Sequence[NDArray[np.float32]], spec: MediaSpec, name: str) -> list[int]:
    """Positions that each sound fills; raises DataError (too_long) beyond max_audio_tokens, naming whose sound it is."""
    counts = [spec.audio_tokens(len(mel)) for mel in mels]
    if counts and max(counts) > spec.max_audio_tokens:
        raise DataError(
            "too_long",
            f"{name}: a sound fills {max(counts)} positions, at most {spec.max_audio_tokens} are allowed",
            hint="cut it into parts, or raise max_audio_tokens or audio_pool",
        )
    return counts


def prepare(sample: Sample, tokenizer: Tokenizer, spec: MediaSpec, ctx_len: int, *, reply: bool = False, apart: bool = False) -> Item:
    """Read a sample's media and render its turns; see `rendered`.

    Raises  DataError: unreadable media, a sound longer than its budget, or a conversation that can't fit ctx_len (media are never cut).
    """
    pictures = [read_picture(part, spec.image_size, spec.resample) for part in sample.images]
    mels = [wave_to_mel(read_wave(part, spec.mel.rate_hz), spec.mel, spec.pad_s) for part in sample.audios]
    item = rendered(sample, tokenizer, spec, ctx_len, positions(mels, spec, sample.id), reply=reply, apart=apart)
    return replace(item, pictures=pictures, mels=mels)


def rendered(
    sample: Sample,
    tokenizer: Tokenizer,
    spec: MediaSpec,
    ctx_len: int,
    audio_tokens: Sequence[int] = (),
    *,
    reply: bool = False,
    apart: bool = False,
) -> Item:
    """A sample's turns as ids and labels, its media unread; a text document is learned whole.

    Takes   audio_tokens: positions that each sound fills, in their order.
            reply=True stops where the assistant is to speak.
            With `apart` each question is rendered as if it was the first: all share the ids of the media that they are about, and none
            reads what others were told. In a dialogue the answers given before say much of what the next one asks for.
    Gives   an Item without pictures and sounds.
    Raises  DataError: a conversation that can't fit ctx_len (media are never cut), or whose assistant answers by sound alone.
    """
    if sample.text is not None:
        return _document(sample, tokenizer, ctx_len)
    if not reply and sample.speech and not says_words(sample):
        raise DataError("bad_row", f"{sample.id}: the assistant says nothing in words", hint="stages codec and talker learn from its sound")
    counts = dict(zip(sample.audios, audio_tokens, strict=False))
    in_turns = all(message.role == ("assistant" if number % 2 else "user") for number, message in enumerate(sample.messages))
    shared = _shared(sample) if apart and in_turns and sample.messages[-1].role == "assistant" else []
    rows = [
        chat.fit(
            chat.render(
                tokenizer,
                one.messages,
                image_tokens=[spec.image_tokens] * len(one.images),
                audio_tokens=[counts[part] for part in one.audios],
                reply=reply,
            ),
            ctx_len,
            shorten=not reply,
        )
        for one in (questions(sample) if shared else [sample])
    ]
    item = Item(sample.id, sample.task, list(rows[0].ids), list(rows[0].labels), [], [])
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
    """The media that all questions are about: the first one's, without its sounds if later ones bring media of their own."""
    first, *later = [message.media for message in sample.messages if message.role == "user"] or [[]]
    return [part for part in first if not any(later) or isinstance(part, ImagePart)]


def questions(sample: Sample) -> list[Sample]:
    """Each question of a sample as a sample of its own, in front of its words the media that all are about and those that it brings.

    `extra["kind"]` is that of `extra["kinds"]`.
    """
    shared = _shared(sample)
    kinds = sample.extra.get("kinds") or [sample.extra.get("kind", "")] * len(sample.messages)
    singles = []
    pairs = [(a, b) for a, b in zip(sample.messages, sample.messages[1:]) if a.role == "user" and b.role == "assistant"]
    for number, (question, answer) in enumerate(pairs):
        own = [part for part in question.parts if not any(part is one for one in shared)]
        asked = Message(role="user", content=[*shared, *sorted(own, key=lambda part: part.type == "text")])
        extra = {**sample.extra, "kind": kinds[number] if number < len(kinds) else ""}
        singles.append(sample.model_copy(update={"id": f"{sample.id}/{number}", "messages": [asked, answer], "extra": extra}))
    return singles


def _document(sample: Sample, tokenizer: Tokenizer, ctx_len: int) -> Item:
    """A text document as a row of its own, all of it learned; a longer one loses its end, never its end symbol."""
    assert sample.text is not None
    ids = chat.document(tokenizer, sample.text)
    if len(ids) > ctx_len:
        ids = [*ids[: ctx_len - 1], ids[-1]]
    return Item(sample.id, sample.task, ids, [chat.IGNORE, *ids[1:]], [], [])


class Conversations:
    """Samples as a dataset of `Item`s; media and ids are kept in the cache, `changes` are made anew each time.

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

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The sample's id."""
        return self.samples[index].id

    def item(self, index: int, rng: np.random.Generator) -> Item:
        """One prepared sample."""
        sample = self.samples[index]
        pictures = [self._picture(part) for part in sample.images]
        mels = [self._mel(part) for part in sample.audios]
        found = replace(self._rendered(index, sample, mels), pictures=pictures, mels=mels)
        if self.changes is None or not pictures:
            return found
        return replace(found, pictures=[self.changes.change(picture, rng, found.task) for picture in pictures])

    def _picture(self, part: ImagePart) -> NDArray[np.uint8]:
        """A picture, kept once for all samples that show it."""
        return self.kept.get(("image", part.path), lambda: [read_picture(part, self.spec.image_size, self.spec.resample)])[0]

    def _mel(self, part: AudioPart) -> NDArray[np.float32]:
        """A sound, kept once for all samples that it stands in."""
        spec = self.spec
        make = lambda: [wave_to_mel(read_wave(part, spec.mel.rate_hz), spec.mel, spec.pad_s)]  # noqa: E731
        return self.kept.get(("audio", part.path, part.start, part.end, part.channel), make)[0]

    def _rendered(self, index: int, sample: Sample, mels: Sequence[NDArray[np.float32]]) -> Item:
        """The ids and labels of a sample, its media left out."""

        def make() -> list[NDArray[np.int64]]:
            counts = positions(mels, self.spec, sample.id)
            item = rendered(sample, self.tokenizer, self.spec, self.ctx_len, counts, apart=self.apart)
            return [np.array(row, np.int64) for row in (item.ids, item.labels, item.starts, [item.shared])]

        ids, labels, starts, shared_ids = (row.tolist() for row in self.kept.get(index, make))
        return Item(sample.id, sample.task, ids, labels, [], [], shared_ids[0], starts)

    def lengths(self) -> NDArray[np.int32]:
        """A cheap guess of each row's length, for batches of like lengths, (len,)."""
        return np.fromiter((self._length(sample) for sample in self.samples), np.int32, len(self.samples))

    def _length(self, sample: Sample) -> int:
        words = min(2000, len(sample.text or "") + sum(len(message.text) for message in sample.messages)) // 4
        sounds = sum(int(STATES_HZ / self.spec.audio_pool * ((part.end or 3.0) - (part.start or 0.0))) for part in sample.audios)
        return words + len(sample.images) * self.spec.image_tokens + sounds
