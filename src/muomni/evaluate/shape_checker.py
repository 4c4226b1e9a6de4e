"""A checker by rules, which nobody trains: it names colour, shape, size and place of the toy world's objects
in a picture.

It judges pictures that a model made, so it must know nothing of models: objects are what differs from the
ground, their shape is the one of the world's own silhouettes that overlaps best, their colour the nearest
paint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muomni.data.world import render
from muomni.data.world.lexicon import SHAPES, SIZES
from muomni.errors import ShapeError

SIDE = 64  # pixels; larger pictures are averaged down to it
GROUND_DISTANCE = 30.0  # of 8-bit RGB: white on the lightest ground lies 50 off; a codec at 28 dB errs by 10
LEAST_PIXELS = 16  # the smallest object covers 60
LEAST_OVERLAP = (
    0.6  # a tenth of a pixel's turn or shift costs 0.02; a splash of paint overlaps with nothing by half
)
ANGLES = (-0.1, -0.05, 0.0, 0.05, 0.1)
RADII = 24  # silhouettes of each shape, from the smallest radius to the largest
TRIED_RADII = 5  # of them, around the one that covers as much as the object
SHIFTS = (-1, 0, 1)  # pixels, around equal middles

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Recognised:
    """One object; overlap is intersection over union with its silhouette."""

    colour: str
    shape: str
    size: str
    place: str
    overlap: float


@dataclass(frozen=True)
class _Template:
    """A silhouette with its middle at (row, column), and the part of it that is paint alone."""

    shape: str
    radius: float
    covered: Mask
    painted: Mask
    middle: tuple[float, float]

    @property
    def pixels(self) -> int:
        return int(self.covered.sum())


def recognise(pixels: Pixels) -> list[Recognised]:
    """The objects of a picture, largest first; what overlaps with no silhouette is left out.

    Takes   pixels (H, W, 3) uint8, square, at least SIDE.
    Raises  ShapeError for another shape.
    """
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 3
        or pixels.shape[0] != pixels.shape[1]
        or pixels.shape[2] != 3
        or len(pixels) < SIDE
    ):
        raise ShapeError(
            f"shape checker: expected uint8 (H, H, 3), H >= {SIDE}, got {pixels.dtype} {pixels.shape}"
        )
    if len(pixels) != SIDE:
        pixels = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    values = pixels.astype(np.float32)
    edge = np.concatenate(
        [
            values[:2].reshape(-1, 3),
            values[-2:].reshape(-1, 3),
            values[:, :2].reshape(-1, 3),
            values[:, -2:].reshape(-1, 3),
        ]
    )
    ground = np.median(edge, axis=0)  # no object covers half of the edge
    stands_out = np.linalg.norm(values - ground, axis=-1) > GROUND_DISTANCE
    found = [_named(values, part) for part in _parts(stands_out)]
    return [each for each in found if each is not None]


def only(pixels: Pixels) -> Recognised | None:
    """The object of a picture that shows exactly one; raises as `recognise`."""
    found = recognise(pixels)
    return found[0] if len(found) == 1 else None


def _parts(mask: Mask) -> list[Mask]:
    """The connected parts (also over corners) of at least LEAST_PIXELS, largest first."""
    left, parts = mask.copy(), []
    while left.any():
        part = np.zeros_like(mask)
        part.flat[int(left.argmax())] = True
        size = 0
        while int(part.sum()) > size:
            size = int(part.sum())
            part = _grown(part) & left
        left &= ~part
        if size >= LEAST_PIXELS:
            parts.append(part)
    return sorted(parts, key=lambda part: -int(part.sum()))


def _grown(mask: Mask) -> Mask:
    """The mask and all its neighbours."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    grown = np.zeros_like(mask)
    for down in range(3):
        for right in range(3):
            grown |= padded[down : down + rows, right : right + columns]
    return grown


def _named(values: NDArray[np.float32], part: Mask) -> Recognised | None:
    """What a part of the picture is; None where no silhouette fits."""
    middle = _middle(part)
    best: tuple[float, _Template, Mask] | None = None
    for template in _candidates(int(part.sum())):
        down, right = (round(there - here) for there, here in zip(middle, template.middle))
        for rows in SHIFTS:
            for columns in SHIFTS:
                covered = _moved(template.covered, down + rows, right + columns)
                overlap = float((covered & part).sum() / (covered | part).sum())
                if best is None or overlap > best[0]:
                    best = overlap, template, _moved(template.painted, down + rows, right + columns)
    if best is None or best[0] < LEAST_OVERLAP:
        return None
    overlap, template, painted = best
    inside = values[painted & part]
    if not len(inside):
        return None
    paint = np.median(inside, axis=0)
    colour = min(render.PAINT, key=lambda name: math.dist(render.PAINT[name], paint))
    return Recognised(colour, template.shape, _size(template.radius), _place(middle), overlap)


def _middle(mask: Mask) -> tuple[float, float]:
    rows, columns = mask.nonzero()
    return float(rows.mean()), float(columns.mean())


def _moved(mask: Mask, down: int, right: int) -> Mask:
    """The mask moved by whole pixels; what leaves the picture is lost."""
    moved = np.zeros_like(mask)
    rows, columns = mask.shape
    moved[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)] = mask[
        max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)
    ]
    return moved


def _size(radius: float) -> str:
    """The size whose radii are nearest."""
    return min(SIZES, key=lambda size: abs(radius - sum(render.radii(size)) / 2))


def _place(middle: tuple[float, float]) -> str:
    """The place that an object with this middle stands at: objects lean on an edge, or on none."""
    down, right = (2 * value / (SIDE - 1) - 1 for value in middle)
    if max(abs(down), abs(right)) < 0.25:
        return "middle"
    if abs(right) > abs(down):
        return "left" if right < 0 else "right"
    return "top" if down < 0 else "bottom"


@lru_cache(maxsize=1)
def _templates() -> dict[str, list[_Template]]:
    """Silhouettes of every shape at every radius and angle, smallest first."""
    low, high = min(render.radii(size)[0] for size in SIZES), max(render.radii(size)[1] for size in SIZES)
    made: dict[str, list[_Template]] = {}
    for shape in SHAPES:
        row = []
        for radius in np.linspace(low, high, RADII):
            for angle in ANGLES if shape not in ("circle", "ring") else (0.0,):
                covered, painted = render.silhouette(shape, SIDE, 0.5, 0.5, float(radius), angle)
                mask = covered >= 0.35  # a pixel stands out before half of it is covered
                row.append(_Template(shape, float(radius), mask, painted >= 0.95, _middle(mask)))
        made[shape] = sorted(row, key=lambda template: template.pixels)
    return made


def _candidates(pixels: int) -> list[_Template]:
    """Of each shape the silhouettes that cover about as many pixels."""
    chosen: list[_Template] = []
    for shape, row in _templates().items():
        count = TRIED_RADII * (1 if shape in ("circle", "ring") else len(ANGLES))
        chosen += sorted(row, key=lambda template: abs(template.pixels - pixels))[:count]
    return chosen
