"""Samples -> records: media are opened and encoded in batches, each medium once a shard, and a bad one is
set aside alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from muomni.data import split, uses
from muomni.data.sample import AudioPart, ImagePart, Sample
from muomni.data.tokenized.index import Bad, Side
from muomni.data.tokenized.record import BLANK, FIELDS, Ids, Record, digest_of, key_of
from muomni.errors import DataError, ShapeError
from muomni.media import audio, image, stored
from muomni.tokens.codec import Codec, encode_by_length
from muomni.tokens.space import TokenSpace

HELD_BYTES = 64 << 20  # of decoded media that wait for their batch
BATCH_NUMBERS = 1 << 18  # samples or pixel values of a batch, 11 s at 24 kHz: larger ones leave a CPU's cache
MAX_S = 60.0
NONE = np.zeros(0, np.int32)
Numbers = dict[str, float | int]
PlaceOf = tuple[str, ...]
Failed = dict[PlaceOf, DataError]


class Tokens(Protocol):
    """What shards need of `tokens.unified.UnifiedTokenizer`."""

    @property
    def space(self) -> TokenSpace: ...
    @property
    def codecs(self) -> Mapping[str, Codec]: ...
    def encode_text(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Wanted:
    """What a sample becomes: its task, the one medium, and the words before and after it."""

    task: str
    medium: ImagePart | AudioPart
    text_in: str
    text_out: str

    @property
    def place(self) -> PlaceOf:
        """What is equal for samples that share a medium."""
        if isinstance(self.medium, ImagePart):
            return (self.medium.path,)
        return (self.medium.path, repr((self.medium.start, self.medium.end, self.medium.channel)))


@dataclass(frozen=True)
class Medium:
    """A decoded medium: values (S,) or (3, H, W) float32, and what its sample's JSON says of it."""

    values: Tensor
    about: Numbers


def wanted(sample: Sample) -> Wanted | str:
    """The task of a sample, or what it lacks.

    i2t and a2t: the user shows one medium and the assistant answers in words; t2i and t2a: the user's words,
    and the assistant gives
    one medium.
    """
    if (reason := uses.refusal("rows", sample)) is not None:
        return reason
    (role, part) = next((message.role, part) for message in sample.messages for part in message.media)
    kind = {"image": "i", "audio": "a"}[part.type]
    task = f"{kind}2t" if role == "user" else f"t2{kind}"
    return Wanted(task, part, sample.question.strip(), sample.answer.strip())


def read(medium: ImagePart | AudioPart, codec: Codec) -> Medium:
    """A medium as its codec takes it: a wave at the codec's rate, with zeros up to a whole code frame;
    pixels in [0, 1].

    Whole frames make many clips equally long, so that they can share a batch: a codec gives a clip that is
    padded in a batch other
    codes than alone. The zeros belong to the clip, whether it is encoded alone or not; `samples` says where
    it ends.

    Raises  DataError, as the readers of media do.
    """
    source = stored.content(medium.path) or medium.path
    if isinstance(medium, ImagePart):
        assert codec.size_px is not None
        assert codec.grid is not None
        picture = image.read(source)
        pixels_HW3 = torch.from_numpy(image.to_array(picture, codec.size_px))
        values = pixels_HW3.permute(2, 0, 1).float().div(255).contiguous()
        rows, columns = codec.grid
        sizes = {"file_height": picture.height, "file_width": picture.width, "size_px": codec.size_px}
        return Medium(values, {**sizes, "codebooks": codec.codebooks, "rows": rows, "columns": columns})
    assert codec.sample_rate_hz is not None
    decoded = audio.decode(
        source, start_s=medium.start, end_s=medium.end, channel=medium.channel, max_s=MAX_S
    )
    wave_S = audio.resampled(decoded, codec.sample_rate_hz, audio.name_of(source))
    values = torch.from_numpy(np.pad(wave_S, (0, whole_frames(codec, len(wave_S)) - len(wave_S))))
    return Medium(
        values,
        {
            "file_rate_hz": decoded.info.rate_hz,
            "rate_hz": codec.sample_rate_hz,
            "seconds": len(wave_S) / codec.sample_rate_hz,
            "samples": len(wave_S),
            "codebooks": codec.codebooks,
            "frames": codec.frames(len(values)),
        },
    )


def whole_frames(codec: Codec, samples: int) -> int:
    """To how many samples a wave is filled up: those of so many whole code frames that decoding gives all of
    it back."""
    frames = codec.frames(samples)
    length = max(samples, codec.samples(frames))
    while codec.samples(codec.frames(length)) < samples:  # a codec that leaves out a frame that is not full
        frames += 1
        length = max(length, codec.samples(frames))
    return length


class Encoder:
    """Makes the records of a shard. `audit` encodes every medium alone, on one thread, by torch's
    deterministic algorithms only."""

    def __init__(self, tokens: Tokens, *, audit: bool, val_split: float, seed: int) -> None:
        self.tokens, self.audit, self.val_split, self.seed = tokens, audit, val_split, seed

    def records(
        self, samples: Sequence[Sample], side: Side, first: int
    ) -> tuple[list[Record], list[Bad], dict[str, int]]:
        """The records of samples `first`, `first + 1`, ... of a side, those that are unreadable, and how
        many have no task.

        Raises  TokenRangeError: a codec that gives what its token space does not hold.
        """
        tasks = {number: self._wanted(sample) for number, sample in enumerate(samples, start=first)}
        chosen = {number: task for number, task in tasks.items() if isinstance(task, Wanted)}
        skipped = Counter(task for task in tasks.values() if isinstance(task, str))
        ids, failed = self._media(list({task.place: task for task in chosen.values()}.values()))
        made: list[Record] = []
        bad: list[Bad] = []
        for number, task in chosen.items():
            sample = samples[number - first]
            error = failed.get(task.place)
            if error is not None:
                bad.append(Bad(sample.id, stored.shown(task.medium.path), error.reason, str(error)))
            else:
                made.append(self._record(sample, task, side, number, *ids[task.place]))
        return made, bad, dict(skipped)

    def _wanted(self, sample: Sample) -> Wanted | str:
        task = wanted(sample)
        if isinstance(task, Wanted) and task.medium.type not in self.tokens.codecs:
            return f"no codec of the token space for its {task.medium.type}"
        return task

    def _record(
        self, sample: Sample, task: Wanted, side: Side, number: int, ids: Ids, about: Numbers
    ) -> Record:
        modality = task.medium.type
        texts = {"text_in": task.text_in, "text_out": task.text_out}
        held: dict[str, Ids] = dict.fromkeys(FIELDS, NONE)
        held |= {
            name: np.array(self.tokens.encode_text(text), np.int32) for name, text in texts.items() if text
        }
        held[modality] = ids
        by_hash = split.assign(sample.group, self.val_split, self.seed) == side
        return Record(
            {
                "__key__": key_of(number),
                "id": sample.id,
                "group": sample.group,
                "task": task.task,
                "side": side,
                "side_by": "row" if sample.split is not None else "hash" if by_hash else "recipe",
                "token_space_sha256": self.tokens.space.hash,
                "tokens": {name: len(held[name]) for name in FIELDS},
                "tokens_sha256": digest_of(held),
                **{name: {**BLANK[name], **(about if name == modality else {})} for name in BLANK},
            },
            held,
        )

    def _media(self, tasks: Sequence[Wanted]) -> tuple[dict[PlaceOf, tuple[Ids, Numbers]], Failed]:
        """The ids of each medium, and what is wrong with those that have none."""
        made: dict[PlaceOf, tuple[Ids, Numbers]] = {}
        failed: Failed = {}
        for modality in BLANK:
            here = [task for task in tasks if task.medium.type == modality]
            for batch in self._windows(here, failed):
                for task, medium, codes_KF in self._codes(modality, batch, failed):
                    ids = self.tokens.space.ids_of(modality, codes_KF.cpu())
                    made[task.place] = ids.reshape(-1).numpy().astype(np.int32), medium.about
        return made, failed

    def _windows(self, tasks: Sequence[Wanted], failed: Failed) -> Iterator[list[tuple[Wanted, Medium]]]:
        """Decoded media, as many at a time as may wait; those that can't be read go to `failed`."""
        held: list[tuple[Wanted, Medium]] = []
        size = 0
        for task in tasks:
            try:
                medium = read(task.medium, self.tokens.codecs[task.medium.type])
            except DataError as error:
                failed[task.place] = error
                continue
            held.append((task, medium))
            size += medium.values.nbytes
            if size >= HELD_BYTES:
                yield held
                held, size = [], 0
        if held:
            yield held

    def _codes(
        self, modality: str, batch: list[tuple[Wanted, Medium]], failed: Failed
    ) -> Iterator[tuple[Wanted, Medium, Tensor]]:
        """The codes (K, F) of decoded media; a medium that its codec refuses is found by encoding each
        alone."""
        try:
            codes = self._encoded(modality, [medium.values for _, medium in batch])
        except (DataError, ShapeError) as error:
            if len(batch) == 1:
                task = batch[0][0]
                if not isinstance(error, DataError):
                    error = DataError("undecodable", f"{stored.shown(task.medium.path)}: {error}")
                failed[task.place] = error
                return
            for each in batch:
                yield from self._codes(modality, [each], failed)
            return
        for (task, medium), codes_KF in zip(batch, codes, strict=True):
            yield task, medium, codes_KF

    def _encoded(self, modality: str, media: Sequence[Tensor]) -> list[Tensor]:
        codec = self.tokens.codecs[modality]
        places: dict[tuple[int, ...], list[int]] = {}
        for place, values in enumerate(media):
            places.setdefault(tuple(values.shape), []).append(place)
        codes: dict[int, Tensor] = {}
        with torch.inference_mode():
            for equal in places.values():
                most = 1 if self.audit else max(1, BATCH_NUMBERS // media[equal[0]].numel())
                codes.update(
                    zip(equal, encode_by_length(codec, [media[place] for place in equal], most=most))
                )
        return [codes[place] for place in range(len(media))]
