"""Naming: whole words of the right class and of no other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.data.sample import Sample, parse
from muomni.errors import ShapeError
from muomni.evaluate.open_set_classes import facts, named

CLASSES = ["cat", "dog", "traffic light", "light", "sunflower", "flower", "tulip", "oxeye_daisy", "c++"]


@pytest.mark.parametrize(
    ("answer", "truth", "hit"),
    [
        ("a photo of a cat", "cat", True),
        ("Two CATS.", "cat", True),
        ("a category", "cat", False),
        ("a bobcat", "cat", False),
        ("a cat and a dog", "cat", False),
        ("a cat, no other cat", "cat", True),
        ("a traffic light", "traffic light", True),
        ("a traffic  light", "traffic light", True),
        ("a traffic light", "light", False),
        ("a traffic light in the light", "traffic light", False),
        ("sunflowers", "sunflower", True),
        ("a sunflower", "flower", False),
        ("an oxeye daisy", "oxeye_daisy", True),
        ("written in c++", "c++", True),
        ("it's the cat's", "cat", True),
        ("", "cat", False),
        ("a bird", "bird", True),
    ],
)
def test_names(answer: str, truth: str, hit: bool) -> None:
    assert named([answer], [truth], CLASSES)[0] == [hit]


def test_the_floor_is_the_commonest_truth() -> None:
    hits, fact = named(["a cat", "a cat", "a dog", "nothing"], ["cat", "dog", "Cat", "cat"], CLASSES)
    assert hits == [True, False, False, False]
    assert (fact.value, fact.n, fact.floor) == (0.25, 4, 0.75)
    assert fact.ci is not None
    assert math.isnan(named([], [], CLASSES)[1].value)
    with pytest.raises(ShapeError, match="2 answers for 1"):
        named(["a", "b"], ["a"], CLASSES)


def make(number: int, **extra: object) -> Sample:
    return parse({"id": str(number), "messages": [{"role": "user", "content": "what?"}], "extra": extra})


def test_facts_are_of_samples_that_say_what_must_be_named() -> None:
    samples = [
        make(0, names="rose"),
        make(1, names="daisy"),
        make(2),
        make(3, names=["rose"]),
        make(4, names="rose"),
    ]
    found = facts("caption", ["a rose", "a rose", "a rose", "a rose", "roses"], samples)
    assert list(found) == ["caption_names"]
    fact = found["caption_names"]
    assert (fact.value, fact.n, fact.floor) == (2 / 3, 3, 2 / 3)
    assert facts("caption", ["x"], [make(0)]) == {}


@given(
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=6)), max_size=6),
    st.lists(st.text(max_size=6), max_size=6),
)
def test_no_words_break_it(pairs: list[tuple[str, str]], classes: list[str]) -> None:
    hits, fact = named([answer for answer, _ in pairs], [truth for _, truth in pairs], classes)
    assert len(hits) == fact.n == len(pairs)
