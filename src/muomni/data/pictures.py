"""Pictures alone, as a codec learns from them, and with their captions, true and false, as the eyes do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muomni import files
from muomni.config import Strict
from muomni.data.cache import Cache, shared
from muomni.data.conversation import read_picture
from muomni.data.sample import ImagePart, OfSamples, Sample
from muomni.errors import DataError
from muomni.media import augment
from muomni.tokens.bpe import Tokenizer

Pixels = NDArray[np.uint8]
CAPTIONS_KEPT = 4096


class PictureAugment(Strict):
    """Changes of a training picture, drawn anew each time."""

    shift: int = Field(0, ge=0, description="pixels, at most, down and right")
    crop: float | None = Field(None, gt=0, lt=1, description="least share of the edge that is kept")
    flip_tasks: list[str] = Field([], description="tasks whose pictures may be mirrored")
    jitter: bool = False
    degrees: float = Field(0.0, ge=0, le=45, description="largest turn")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative zoom of each axis")
    shear: float = Field(0.0, ge=0, lt=1)
    shift_only_tasks: list[str] = Field(
        [],
        description="tasks whose pictures are shifted and no more: colour, place and size are what they are about",
    )

    def change(self, pixels: Pixels, rng: np.random.Generator, task: str) -> Pixels:
        """A changed picture of the same size."""
        if self.shift:
            down, right = rng.integers(-self.shift, self.shift + 1, 2)
            pixels = augment.shift(pixels, int(down), int(right))
        if task in self.shift_only_tasks:
            return pixels
        if self.degrees or self.scale or self.shear:
            pixels = augment.warp(pixels, rng, degrees=self.degrees, scale=self.scale, shear=self.shear)
        if self.crop is not None:
            pixels = augment.crop(pixels, float(rng.uniform(self.crop, 1.0)), rng)
        if task in self.flip_tasks and rng.random() < 0.5:
            pixels = augment.flip(pixels)
        return augment.jitter(pixels, rng) if self.jitter else pixels


@dataclass
class Captioned:
    """A picture (H,W,3) uint8, the ids of its caption, ids of false captions, and a key that equal captions
    share."""

    sample_id: str
    pixels: Pixels
    caption_ids: list[int]
    negatives: list[list[int]]
    key: int


@dataclass
class Still:
    """A picture (H,W,3) uint8."""

    sample_id: str
    pixels: Pixels


class Stills(OfSamples):
    """Samples with one picture, which the user shows or the assistant draws, as a dataset; pixels are kept in
    the cache.

    A picture is stretched to the square (media.image, "squash"), whatever its aspect.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        image_size: int,
        *,
        changes: PictureAugment | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.samples, self.image_size, self.changes = samples, image_size, changes
        self.kept = (cache or shared()).part()

    def pixels(self, index: int) -> Pixels:
        """The picture as it is.

        Raises  DataError
        """
        sample = self.samples[index]
        parts = self._parts(sample)
        if len(parts) != 1:
            raise DataError("bad_row", f"{sample.id}: expected one picture, got {len(parts)}")
        part = parts[0]
        return self.kept.get(part.path, lambda: [read_picture(part, self.image_size)])[0]

    def changed(self, index: int, rng: np.random.Generator) -> Pixels:
        """The picture with the changes that training asks for, drawn anew; raises DataError."""
        pixels = self.pixels(index)
        if self.changes is not None:
            pixels = self.changes.change(pixels, rng, self.samples[index].task)
        return np.ascontiguousarray(pixels)

    def item(self, index: int, rng: np.random.Generator) -> Any:
        """One picture."""
        return Still(self.samples[index].id, self.changed(index, rng))

    def _parts(self, sample: Sample) -> list[ImagePart]:
        """The pictures of a sample that count."""
        return [part for part in sample.media if part.type == "image"]


class Pictures(Stills):
    """Samples with one picture that is shown and a caption (the answer) as a dataset.

    negatives   false captions drawn for each picture; max_tokens longer captions lose their end
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenizer: Tokenizer,
        image_size: int,
        *,
        negatives: int = 0,
        max_tokens: int = 64,
        changes: PictureAugment | None = None,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(samples, image_size, changes=changes, cache=cache)
        self.tokenizer, self.negatives, self.max_tokens = tokenizer, negatives, max_tokens
        self._ids: OrderedDict[str, list[int]] = OrderedDict()

    def ids(self, text: str) -> list[int]:
        """Ids of a caption; those of the last few thousand are kept, since many captions say the same."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer.encode(text)[: self.max_tokens]
            if len(self._ids) > CAPTIONS_KEPT:
                self._ids.popitem(last=False)
        return self._ids[text]

    def item(self, index: int, rng: np.random.Generator) -> Captioned:
        """One picture with its caption and `negatives` false ones, drawn without repetition."""
        sample = self.samples[index]
        if not sample.answer.strip():
            raise DataError("empty", f"{sample.id}: expected a caption, got none")
        pixels = self.changed(index, rng)
        false = [n.text for n in sample.negatives]
        chosen = rng.permutation(len(false))[: self.negatives].tolist()
        key = int(files.sha256_bytes(sample.answer.encode())[:15], 16)
        return Captioned(
            sample.id, pixels, self.ids(sample.answer), [self.ids(false[i]) for i in chosen], key
        )

    def _parts(self, sample: Sample) -> list[ImagePart]:
        return sample.images
