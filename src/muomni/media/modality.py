"""The media that a sample may hold, a row each: their names, files, and how one is swapped, blanked and
noised.

Rooms above keep small tables of their own under the same names (docs/modalities.md lists them). Text has no
row: it is no array, fills no pads and is never swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Modality:
    """One kind of media. Its arrays are what its encoder takes; each function gives one of its first one's
    shape.

    noun, encoder  what people call a medium, and the network that reads it
    suffixes       of its files, with the dot, in lower case
    swap           (own, other): the other in the place of this one
    blank          (own): one that shows nothing
    noise          (own, generator): one of chance alone
    """

    noun: str
    encoder: str
    suffixes: frozenset[str]
    swap: Callable[[Array, Array], Array]
    blank: Callable[[Array], Array]
    noise: Callable[[Array, np.random.Generator], Array]


PICTURE_FILES = ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .avif .jp2"
SOUND_FILES = """.wav .flac .ogg .mp3 .opus .oga .aiff .aif .au .caf .w64 .m4a .aac .wma .amr .aifc .snd .voc .rf64
.sph .nist .mp2 .m4b .mka .weba .wv .ape .tta"""
# By the `type` of a part; facts, gates, special tokens and batches are named after it too.
MODALITIES: dict[str, Modality] = {
    "image": Modality(  # pixels (H, W, 3) uint8, all of one size
        "picture",
        "eyes",
        frozenset(PICTURE_FILES.split()),
        swap=lambda own, other: other,
        blank=np.zeros_like,
        noise=lambda own, rng: rng.integers(0, 256, own.shape, dtype=np.uint8),
    ),
    "audio": Modality(  # log-mel (F, M) float32; another is cut or repeated, since the pads are counted already
        "sound",
        "ears",
        frozenset(SOUND_FILES.split()),
        swap=lambda own, other: np.resize(other, own.shape).astype(np.float32),
        blank=lambda own: np.full_like(own, own.min()),
        noise=lambda own, rng: rng.normal(own.mean(), own.std(), own.shape).astype(np.float32),
    ),
}


def of_suffix(suffix: str) -> str | None:
    """The modality of files that end so (".png"); None for others."""
    return next((name for name, row in MODALITIES.items() if suffix in row.suffixes), None)
