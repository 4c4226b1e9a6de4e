"""The toy world says only what is so: captions, negatives and answers are re-derived here from the scene, by
words alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from muomni.data.world import lexicon, render, scene
from muomni.data.world.asking import Asker
from muomni.data.world.lexicon import COLOURS, NUMBERS, PLACES, SHAPES, SIZES
from muomni.data.world.picture_rows import Written, negatives

SPOTS = {"left": (0, 1), "right": (2, 1), "top": (1, 0), "bottom": (1, 2), "middle": (1, 1)}
ATTRIBUTES = (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES), ("place", PLACES))


def look(words: list[str], things: scene.Scene) -> list[scene.Thing]:
    """The things that a noun phrase names."""
    said = {name: word for word in words for name, values in ATTRIBUTES if word in values}
    return [thing for thing in things if all(getattr(thing, name) == word for name, word in said.items())]


def lies(one: scene.Thing, how: str, other: scene.Thing) -> bool:
    (x, y), (across, down) = SPOTS[one.place], SPOTS[other.place]
    if x != across and y != down:
        return False
    return {"left of": x < across, "right of": x > across, "above": y < down, "below": y > down}[how]


def is_true(text: str, things: scene.Scene) -> bool:
    """Whether a caption is true, read from its words."""
    if found := re.fullmatch(r"the (.*) is (left of|right of|above|below) the (.*)", text):
        first, how, second = found.groups()
        return any(
            lies(one, how, other)
            for one in look(first.split(), things)
            for other in look(second.split(), things)
            if one is not other
        )
    if found := re.match(r"there (?:is|are) (\w+) shapes?, ", text):
        if NUMBERS.index(found[1]) != len(things):
            return False
        text = text[found.end() :]
    named = [look(part.split(), things) for part in re.split(r", | and ", text)]
    return all(named) and len({thing for part in named for thing in part}) == len(named)


def answer(question: str, things: scene.Scene) -> str:
    """The answer to a question, read from its words."""
    words = question.rstrip("?").split()
    there = look(
        [{lexicon.plural(shape): shape for shape in SHAPES}.get(word, word) for word in words], things
    )
    if words[:2] == ["how", "many"]:
        return NUMBERS[len(there)]
    if words[:2] == ["is", "there"]:
        return "yes" if there else "no"
    if question.startswith("what is at"):
        return (
            f"{'an' if there[0].colour == 'orange' else 'a'} {there[0].colour} {there[0].shape}"
            if there
            else "nothing"
        )
    if words[0] == "is":
        how = next((how for how in lexicon.RELATIONS if f" {how} the " in question), None)
        if how:
            (one,), (other,) = look(words[2:3], things), look(words[-1:], things)
            return "yes" if lies(one, how, other) else "no"
        return "yes" if look(words[2:3], things) == there else "no"
    (thing,) = there
    if words[0] == "where":
        return f"at the {thing.place}"
    return str(getattr(thing, words[1]))


@pytest.mark.parametrize("held_out", [False, True])
def test_captions_hold_and_negatives_change_one_word_to_a_lie(held_out: bool) -> None:
    rng = np.random.default_rng(3)
    kinds: set[str] = set()
    for index in range(600):
        things = scene.sample(rng, 1 + index % 3, held_out=held_out)
        caption = scene.describe(rng, things)
        text = caption.text()
        assert is_true(text, things)
        assert caption.holds(things)
        for negative in negatives(rng, caption, things, training=not held_out):
            kinds.add(negative["kind"])
            assert not is_true(negative["text"], things), (things, negative)
            before, after = (
                [
                    word
                    for word in lexicon.words(part)
                    if word not in ("a", "an", "of", "is", "are", "shape", "shapes")
                ]
                for part in (text, negative["text"])
            )
            assert sum(one != other for one, other in zip(before, after, strict=True)) == 1, (text, negative)
    assert kinds == {"colour", "shape", "place", "size", "count"}


def test_every_answer_follows_from_the_scene() -> None:
    rng = np.random.default_rng(4)
    for index in range(300):
        things = scene.sample(rng, 1 + index % 3, held_out=index % 2 == 0)
        for _, question, said in scene.questions(things):
            assert answer(question, things) == said, (things, question)


def test_guessing_without_looking_gains_little() -> None:
    rng = np.random.default_rng(5)
    asker = Asker(rng, training=True)
    asked = [turn for index in range(400) for turn in asker.ask(scene.sample(rng, 1 + index % 3), 5)]
    for kind, most in {
        "yes no": 0.52,
        "colour": 0.15,
        "shape": 0.17,
        "where": 0.25,
        "count": 0.4,
        "how many": 0.42,
    }.items():
        answers = [said for one, _, said in asked if one == kind]
        assert len(answers) > 200
        assert max(answers.count(said) for said in set(answers)) / len(answers) <= most, kind


def test_pairs_are_found_in_every_form() -> None:
    for text in (
        "a small red star",
        "how many red stars are there",
        "the star is red",
        "is the star red",
        "no the red star",
        "the word star in red",
    ):
        assert lexicon.pairs(text) == {("red", "star")}, text
        assert lexicon.is_held_out(text)
    assert lexicon.pairs("a red circle and a blue star") == {("red", "circle"), ("blue", "star")}
    assert lexicon.pairs("what colour is the star") == set()


def test_each_shape_and_most_colours_lose_one_pair() -> None:
    assert sorted(shape for _, shape in lexicon.HELD_OUT_PAIRS) == sorted(SHAPES)
    assert len({colour for colour, _ in lexicon.HELD_OUT_PAIRS}) == 8


def test_pictures_show_things_of_the_right_colour_at_the_right_place() -> None:
    rng = np.random.default_rng(6)
    side = 112
    for index in range(120):
        things = scene.sample(rng, 1 + index % 3)
        pixels = np.asarray(render.picture(rng, things, side), np.int32)
        assert pixels.shape == (side, side, 3)
        for thing in things:
            near = np.abs(pixels - render.PAINT[thing.colour]).sum(2) < 40
            alike = [other for other in things if other.colour == thing.colour]
            rows, columns = np.nonzero(near)
            centre = (
                np.mean([SPOTS[one.place][0] for one in alike]),
                np.mean([SPOTS[one.place][1] for one in alike]),
            )
            assert near.sum() > 0.004 * side**2
            if len(alike) == 1:
                assert abs(columns.mean() / side - (0.2 + 0.3 * centre[0])) < 0.2
                assert abs(rows.mean() / side - (0.2 + 0.3 * centre[1])) < 0.2


def test_big_covers_more_than_twice_what_small_covers() -> None:
    for shape in SHAPES:
        areas = {}
        for size in SIZES:
            image = render.picture(
                np.random.default_rng(1), (scene.Thing(size, "pink", shape, "middle"),), 112
            )
            areas[size] = (np.abs(np.asarray(image, np.int32) - render.PAINT["pink"]).sum(2) < 60).sum()
        assert areas["big"] > 2 * areas["small"] > 0, shape


def test_written_words_stay_inside_the_picture() -> None:
    for text, name in (("triangle", "triangle"), ("10", "ten"), ("no", "no")):
        image = Written(text, name, "red")
        pixels = np.asarray(render.written(np.random.default_rng(2), image.text, image.colour, 112), np.int32)
        ink = np.abs(pixels - pixels[0, 0]).sum(2) > 60
        assert ink.sum() > 150
        assert not ink[[0, -1]].any()
        assert not ink[:, [0, -1]].any()


def test_png_repeats() -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    assert render.png(image) == render.png(image.copy())
