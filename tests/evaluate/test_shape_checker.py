"""The checker by rules against the world's own pictures: those that it must name, and those that it must
not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from muomni.data.world import picture_rows, render
from muomni.data.world.scene import Thing
from muomni.data.world.vocabulary import WHOLE
from muomni.errors import ShapeError
from muomni.evaluate.shape_checker import only, recognise


def drawn(things: tuple[Thing, ...], side: int = 64, seed: int = 0) -> np.ndarray:
    return np.array(render.picture(np.random.default_rng(seed), things, side))


def test_it_names_the_objects_of_held_out_pictures() -> None:
    """200 pictures here; 800 of 800 in docs/log.md."""
    shown = picture_rows.show(1, "probe", 12, {"valid": 200}, picture_rows.PROBES)
    wrong = []
    for one in shown:
        (thing,) = one.scene
        found = only(np.array(one.picture.draw(64)))
        if found is None or (found.colour, found.shape, found.size, found.place) != (
            thing.colour,
            thing.shape,
            thing.size,
            thing.place,
        ):
            wrong.append((thing, found))
    assert len(wrong) <= 2, wrong


def test_it_names_the_objects_of_what_is_drawn_on_request() -> None:
    """Their paint varies; all sizes of the size that models of tokens learn from."""
    vocabulary = replace(WHOLE, sizes=("big",))
    drawings = picture_rows.show_alone(1, "draw", 13, {"train": 100, "valid": 100}, vocabulary)
    wrong = []
    for one in drawings:
        (thing,) = one.shown.scene
        found = only(np.array(one.shown.picture.draw(64)))
        if found is None or (found.colour, found.shape) != (thing.colour, thing.shape):
            wrong.append((thing, found))
    assert len(drawings) == 200
    assert len(wrong) <= 2, wrong


def test_every_colour_of_every_shape_is_named_also_in_larger_pictures() -> None:
    for number, (colour, shape) in enumerate(
        itertools.product(render.PAINT, ("circle", "square", "star", "ring"))
    ):
        found = only(
            drawn((Thing("big", colour, shape, "left"),), side=128 if number % 2 else 64, seed=number)
        )
        assert found is not None
        assert (found.colour, found.shape, found.place) == (colour, shape, "left")


def test_two_objects_are_two_and_not_one() -> None:
    pixels = drawn((Thing("big", "red", "circle", "left"), Thing("small", "blue", "star", "right")))
    assert {(each.colour, each.shape, each.place) for each in recognise(pixels)} == {
        ("red", "circle", "left"),
        ("blue", "star", "right"),
    }
    assert only(pixels) is None


def test_noise_ground_alone_and_splashes_are_nothing() -> None:
    rng = np.random.default_rng(0)
    assert recognise(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) == []
    assert recognise(np.full((64, 64, 3), 140, np.uint8)) == []
    line = np.full((64, 64, 3), 140, np.uint8)
    line[30:33, 4:60] = (222, 16, 28)
    assert recognise(line) == []


def test_a_shape_on_a_noisy_ground_is_still_named() -> None:
    noise = np.random.default_rng(0).normal(0, 8, (64, 64, 3))
    pixels = np.clip(drawn((Thing("big", "green", "cross", "top"),)) + noise, 0, 255).astype(np.uint8)
    found = only(pixels)
    assert found is not None
    assert (found.colour, found.shape, found.place) == ("green", "cross", "top")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 65, 3), np.uint8), np.zeros((64, 64, 3), np.float32)],
)
def test_what_is_no_picture_of_its_size_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="shape checker: expected uint8"):
        recognise(pixels)
