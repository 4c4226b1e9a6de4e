"""The media that a sample may hold, one row each: how they are named, and what can be done to them as arrays.

A room that does more with a medium than this (tokens, reading, encoders, pages) has its own small table with the same names as keys;
docs/modalities.md lists them. Text is no row: it fills no pads, is never an array, and has no blank or noisy version.
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
    """One kind of media. Arrays are those that its encoder takes, one a medium; a function of two gives the first one's shape.

    noun, encoder  what people call a medium and the network that reads it
    suffixes       of its files, with the dot, in lower case
    swap           another medium in the place of this one
    blank          a medium that shows nothing
    noise          a medium of chance alone
    """

    noun: str
    encoder: str
    suffixes: frozenset[str]
    swap: Callable[[Array, Array], Array]
    blank: Callable[[Array], Array]
    noise: Callable[[Array, np.random.Generator], Array]


MODALITIES: dict[str, Modality] = {
    "image": Modality(  # pixels (H, W, 3) uint8, all of one size
        "picture",
        "eyes",
        frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"}),
        swap=lambda own, other: other,
        blank=np.zeros_like,
        noise=lambda own, rng: rng.integers(0, 256, own.shape, dtype=np.uint8),
    ),
    "audio": Modality(  # log-mel (F, M) float32; a swap cuts or repeats it, since the pads of the own one are counted already
        "sound",
        "ears",
        frozenset(
            {
                *(".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".au", ".caf", ".w64", ".m4a", ".aac", ".wma"),
                *(".amr", ".aifc", ".snd", ".voc", ".rf64", ".sph", ".nist", ".mp2", ".m4b", ".mka", ".weba", ".wv", ".ape", ".tta"),
            }
        ),
        swap=lambda own, other: np.resize(other, own.shape).astype(np.float32),
        blank=lambda own: np.full_like(own, own.min()),
        noise=lambda own, rng: rng.normal(own.mean(), own.std(), own.shape).astype(np.float32),
    ),
}
"""By the `type` of a part, which facts, gates, special tokens and batches are named after too; pictures come before sounds."""


def of_suffix(suffix: str) -> str | None:
    """The modality whose files end so (".png"), None for those of no medium."""
    return next((name for name, row in MODALITIES.items() if suffix in row.suffixes), None)
