"""Samples of a stage: a few held-out items with its outputs, the worst and the best too, for a person to
judge."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image

from muomni import files
from muomni.media import audio

MOST = 24  # items of a kind
EDGE_PX = 224
RATE_HZ = 16_000
LONGEST_S = 6.0
ROWS = "album.jsonl"


@dataclass(frozen=True)
class Picture:
    """Pixels (H, W, 3) uint8, to be kept as a PNG of at most EDGE_PX."""

    pixels: NDArray[np.uint8]
    suffix: ClassVar = "png"

    def write(self, path: Path) -> None:
        """Put it into a file."""
        picture = Image.fromarray(np.ascontiguousarray(self.pixels))
        picture.thumbnail((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        files.write_bytes(path, stream.getvalue())


@dataclass(frozen=True)
class Sound:
    """A mono wave (S,), to be kept as 16-bit wav of at most LONGEST_S at RATE_HZ."""

    wave_S: NDArray[np.float32]
    rate_hz: int
    suffix: ClassVar = "wav"

    def write(self, path: Path) -> None:
        """Put it into a file."""
        wave_S = np.asarray(self.wave_S, np.float32)[: round(LONGEST_S * self.rate_hz)]
        wave_S = wave_S if self.rate_hz == RATE_HZ else soxr.resample(wave_S, self.rate_hz, RATE_HZ)
        audio.write(path, wave_S, RATE_HZ)


class StageSamples:
    """Rows of several kinds with their media, in memory until `write`; one that is never written leaves no
    trace.

    It only looks: facts, weights and generators are the same with it and without.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._media: dict[str, Picture | Sound] = {}
        self._kinds: Counter[str] = Counter()

    def add(self, kind: str, **row: Any) -> None:
        """One row; values may be Pictures and Sounds. Beyond MOST of a kind nothing more is taken."""
        if self._kinds[kind] >= MOST:
            return
        self._kinds[kind] += 1
        stored: dict[str, Any] = {"kind": kind}
        for key, value in row.items():
            if isinstance(value, Picture | Sound):
                name = f"{kind}_{self._kinds[kind]:02d}_{key}.{value.suffix}"
                self._media[name] = value
                stored[key] = name
            elif value is not None:
                stored[key] = value
        self.rows.append(stored)

    def confusion(self, task: str, pairs: Iterable[tuple[str, str]]) -> None:
        """How often each truth was answered by each guess, of all items; a task whose truths are not single
        words is left out."""
        counts = Counter(pairs)
        if counts and all(len(truth.split()) == 1 for truth, _ in counts):
            self.add(
                "confusion",
                task=task,
                counts=[[truth, guess, n] for (truth, guess), n in sorted(counts.items())],
            )

    def write(self, folder: Path) -> None:
        """Put rows and media into `folder`, in place of what was there."""
        with files.fresh_folder(folder) as part:
            files.write_jsonl(part / ROWS, self.rows)
            for name, medium in self._media.items():
                medium.write(part / name)


def chosen(errors: Sequence[float], most: int = MOST) -> list[tuple[int, str]]:
    """Indices of items worth a look and why each was taken: a third are the worst, a sixth the best, the
    others lie evenly between.

    Takes   an error for each item; where all are equal the choice is even.
    Gives   (index, "worst", "best" or "even"), worst first; the same for the same errors.
    """
    if len(set(errors)) < 2:
        return [(i, "even") for i in _evenly(range(len(errors)), most)]
    order = sorted(range(len(errors)), key=lambda i: (-errors[i], i))
    worst, best = order[: most // 3], order[most // 3 :][-(most // 6) :] if most >= 6 else []
    taken = {*worst, *best}
    between = _evenly([i for i in range(len(errors)) if i not in taken], most - len(taken))
    return [*((i, "worst") for i in worst), *((i, "even") for i in between), *((i, "best") for i in best)]


def _evenly(items: Sequence[int], most: int) -> list[int]:
    return (
        [items[i] for i in np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)]
        if len(items)
        else []
    )
