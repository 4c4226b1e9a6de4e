"""Scenes to pictures: drawn large, then averaged down, so edges are smooth and the bytes repeat."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from muomni.data.world.lexicon import HELD_OUT_PAIRS
from muomni.data.world.scene import Scene, Thing

PAINT = {
    "red": (222, 16, 28),
    "green": (20, 158, 48),
    "blue": (28, 66, 232),
    "yellow": (252, 232, 20),
    "black": (8, 8, 8),
    "white": (255, 255, 255),
    "purple": (122, 24, 172),
    "orange": (255, 136, 0),
    "pink": (255, 128, 196),
    "brown": (112, 62, 20),
}
_RADIUS = {"big": (0.178, 0.212), "small": (0.112, 0.146)}
_TOWARDS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}
_GAP = 0.012  # least free space between two objects, in widths
_BORDER = 0.004
_OVERSAMPLE = 3

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How far pictures of one scene differ.

    spread  of sizes, places and turns, as a share of the widest
    tint    of the ground, at most, in levels of 256
    paint   how far a level of the paint may lie from that of its name
    """

    spread: float = 1.0
    tint: int = 8
    paint: int = 0


VARIED = Style()
# What is drawn on request: less that no word asks for is learned sooner. Paint that varies is for the pairs of colour
# and shape that training lacks (docs/log.md).
PLAIN = Style(spread=0.3, tint=0, paint=28)


def _paint(rng: np.random.Generator, thing: Thing, style: Style) -> Colour:
    """The colour of an object. One without a name is any that is not nearest to the colour in which its shape
    is held out."""
    if thing.colour and style.paint:
        return _near(rng, thing.colour, style.paint)
    if thing.colour:
        return PAINT[thing.colour]
    held_out = next(colour for colour, shape in HELD_OUT_PAIRS if shape == thing.shape)
    while True:
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        nearest = min(PAINT, key=lambda name: math.dist(PAINT[name], (red, green, blue)))
        if nearest != held_out:
            return (red, green, blue)


def _near(rng: np.random.Generator, name: str, most: int) -> Colour:
    """A colour that differs from a named one by at most so many levels, and from no other less; white stays
    lighter than any ground."""
    least = 239 if name == "white" else 0
    while True:
        moved = np.clip(np.array(PAINT[name]) + rng.integers(-most, most + 1, size=3), least, 255)
        red, green, blue = (int(value) for value in moved)
        if min(PAINT, key=lambda other: math.dist(PAINT[other], (red, green, blue))) == name:
            return (red, green, blue)


def _outline(paint: Colour) -> Colour:
    """A rim that shows on any background: light around black, dark grey around white, a deeper shade else."""
    if sum(paint) < 60:
        return (235, 235, 235)
    if sum(paint) > 740:
        return (40, 40, 40)
    return (paint[0] * 45 // 100, paint[1] * 45 // 100, paint[2] * 45 // 100)


def _corners(shape: str, radius: float) -> list[Point]:
    """The corners of a polygonal shape around (0, 0), y downwards."""
    if shape == "square":
        side = 0.9 * radius
        return [(-side, -side), (side, -side), (side, side), (-side, side)]
    if shape == "diamond":
        return [(0, -1.08 * radius), (0.66 * radius, 0), (0, 1.08 * radius), (-0.66 * radius, 0)]
    if shape == "triangle":
        return [(0, -0.95 * radius), (0.98 * radius, 0.78 * radius), (-0.98 * radius, 0.78 * radius)]
    if shape == "cross":
        arm, reach = 0.31 * radius, radius
        quarter = [(-arm, -reach), (arm, -reach), (arm, -arm)]
        return [turned for turn in range(4) for turned in _turn(quarter, turn * math.pi / 2)]
    if shape == "star":
        lengths = [1.08 * radius, 0.44 * radius] * 5
        return [
            (size * math.sin(index * math.pi / 5), -size * math.cos(index * math.pi / 5))
            for index, size in enumerate(lengths)
        ]
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)  # heart
    across = 16 * np.sin(angles) ** 3
    up = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return [
        (float(x) * radius / 16.5, -float(y + 2.5) * radius / 15) for x, y in zip(across, up, strict=True)
    ]


def _turn(points: list[Point], angle: float) -> list[Point]:
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _draw(
    canvas: ImageDraw.ImageDraw,
    thing: Thing,
    x: float,
    y: float,
    radius: float,
    angle: float,
    ground: Colour,
    paint: Colour,
) -> None:
    rim = max(2, round(0.010 * canvas.im.size[0]))
    if thing.shape in ("circle", "ring"):
        canvas.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=paint, outline=_outline(paint), width=rim
        )
        if thing.shape == "ring":
            hole = 0.52 * radius
            canvas.ellipse(
                (x - hole, y - hole, x + hole, y + hole), fill=ground, outline=_outline(paint), width=rim
            )
        return
    corners = [(x + across, y + down) for across, down in _turn(_corners(thing.shape, radius), angle)]
    canvas.polygon(corners, fill=paint)
    canvas.line([*corners, corners[0], corners[1]], fill=_outline(paint), width=rim, joint="curve")


def _ground(rng: np.random.Generator, most: int = VARIED.tint) -> Colour:
    """A grey or light background, a little tinted; never so light that white drowns, nor so dark that black
    does."""
    level = int(rng.integers(95, 216))
    tint = rng.integers(-most, most + 1, size=3)
    return (level + int(tint[0]), level + int(tint[1]), level + int(tint[2]))


def _layout(rng: np.random.Generator, scene: Scene, spread: float) -> list[tuple[float, float, float]]:
    """(x, y, radius) of every object in widths: near its place, a few pixels off, apart from the others.

    Each failed try jitters less; without jitter every scene of scene.sample has room.
    """
    for slack in spread * np.linspace(1, 0, 30):
        spots = []
        for thing in scene:
            least, most = _RADIUS[thing.size]
            radius = least + (0.5 * (1 - spread) + slack * rng.random()) * (most - least)
            across, down = _TOWARDS[thing.place]
            offset = 0.5 - 1.08 * radius - _BORDER - slack * 0.04 * rng.random()
            shake = slack * rng.uniform(-0.025, 0.025, size=2)
            x, y = (
                0.5 + across * offset + (0 if across else shake[0]),
                0.5 + down * offset + (0 if down else shake[1]),
            )
            spots.append((float(x), float(y), float(radius)))
        apart = all(
            math.hypot(one[0] - other[0], one[1] - other[1]) >= one[2] + other[2] + _GAP
            for index, one in enumerate(spots)
            for other in spots[:index]
        )
        if apart:
            return spots
    raise ValueError(f"no free layout for {scene}: two big objects side by side?")


def silhouette(
    shape: str, side: int, x: float, y: float, radius: float, angle: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where an object would lie: shares of each pixel (side, side) in [0, 1] that it covers, rim included,
    and that its paint covers.

    Takes   x, y, radius in widths, as `picture` lays them out; angle in radians.
    """
    large = side * _OVERSAMPLE
    image = Image.new("RGB", (large, large), (0, 0, 0))
    thing = Thing("", "", shape, "")
    _draw(
        ImageDraw.Draw(image), thing, x * large, y * large, radius * large, angle, (0, 0, 0), PAINT["white"]
    )
    drawn = np.asarray(image)[..., 0].reshape(side, _OVERSAMPLE, side, _OVERSAMPLE)
    covered, painted = ((drawn >= least).mean((1, 3), dtype=np.float32) for least in (1, 255))
    return covered, painted


def radii(size: str) -> tuple[float, float]:
    """The least and the largest radius of objects of a size, in widths."""
    return _RADIUS[size]


def picture(rng: np.random.Generator, scene: Scene, side: int, style: Style = VARIED) -> Image.Image:
    """An RGB picture (side, side) of a scene, anti-aliased."""
    large = side * _OVERSAMPLE
    ground = _ground(rng, style.tint)
    image = Image.new("RGB", (large, large), ground)
    canvas = ImageDraw.Draw(image)
    for thing, (x, y, radius) in zip(scene, _layout(rng, scene, style.spread), strict=True):
        _draw(
            canvas,
            thing,
            x * large,
            y * large,
            radius * large,
            style.spread * float(rng.uniform(-0.1, 0.1)),
            ground,
            _paint(rng, thing, style),
        )
    return image.reduce(_OVERSAMPLE)


def written(rng: np.random.Generator, text: str, colour: str, side: int) -> Image.Image:
    """An RGB picture (side, side) of digits or a word, as large as fits, a few pixels off the middle."""
    large = side * _OVERSAMPLE
    image = Image.new("RGB", (large, large), _ground(rng))
    canvas = ImageDraw.Draw(image)
    size = (0.62 if len(text) < 3 else 1.3 / len(text) + 0.06) * float(rng.uniform(0.85, 1.0)) * large
    shake = rng.uniform(-0.04, 0.04, size=2) * large
    middle = (large / 2 + float(shake[0]), large / 2 + float(shake[1]))
    rim = max(1, round(0.012 * large))
    canvas.text(
        middle,
        text,
        font=ImageFont.load_default(size),
        fill=PAINT[colour],
        anchor="mm",
        stroke_width=rim,
        stroke_fill=_outline(PAINT[colour]),
    )
    return image.reduce(_OVERSAMPLE)


def png(image: Image.Image) -> bytes:
    """The picture as PNG bytes; little compression, since time counts more than space here."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
