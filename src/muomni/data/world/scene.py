"""Scenes: what a picture shows, what may be said of it, and whether it is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from muomni.data.world.lexicon import NUMBERS, grammatical, plural
from muomni.data.world.vocabulary import WHOLE, Vocabulary

UNNAMED = ""
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ALONG = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}


@dataclass(frozen=True)
class Thing:
    """One object of a scene; colour UNNAMED is one that the lexicon has no word for."""

    size: str
    colour: str
    shape: str
    place: str


Scene = tuple[Thing, ...]


@dataclass(frozen=True)
class Claim:
    """A description of one object; None is what it does not say."""

    size: str | None
    colour: str | None
    shape: str
    place: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the object is as described."""
        return (
            self.size in (None, thing.size)
            and self.colour in (None, thing.colour)
            and self.shape == thing.shape
            and self.place in (None, thing.place)
        )

    def noun(self) -> str:
        """ "small red circle" """
        return " ".join(part for part in (self.size, self.colour, self.shape) if part)


@dataclass(frozen=True)
class Caption:
    """What a caption says: objects, how many there are if it says so, and how the first lies to the second if
    it says so."""

    claims: tuple[Claim, ...]
    count: int | None = None
    relation: str | None = None

    def text(self) -> str:
        """The caption in words."""
        if self.relation:
            first, second = self.claims
            return f"the {first.noun()} is {self.relation} the {second.noun()}"
        parts = [grammatical(f"a {claim.noun()} at the {claim.place}") for claim in self.claims]
        words = ", ".join([*parts[:-2], " and ".join(parts[-2:])])
        if self.count is None:
            return words
        return f"there {'is' if self.count == 1 else 'are'} {NUMBERS[self.count]} shape{'s' * (self.count != 1)}, {words}"

    def holds(self, scene: Scene) -> bool:
        """Whether the caption is true of the scene: some distinct objects fit its claims, its count and its
        relation."""
        if self.count is not None and self.count != len(scene):
            return False
        for chosen in permutations(scene, len(self.claims)):
            fit = all(claim.fits(thing) for claim, thing in zip(self.claims, chosen, strict=True))
            if fit and (self.relation is None or relation(chosen[0], chosen[1]) == self.relation):
                return True
        return False


def relation(one: Thing, other: Thing) -> str | None:
    """How one object lies to another, where that is clear: only along one axis, never on a diagonal."""
    across = _ALONG[one.place][0] - _ALONG[other.place][0]
    down = _ALONG[one.place][1] - _ALONG[other.place][1]
    if (across == 0) == (down == 0):
        return None
    if across:
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def sample(
    rng: np.random.Generator,
    count: int,
    *,
    held_out: bool = False,
    unnamed: bool = False,
    vocabulary: Vocabulary = WHOLE,
) -> Scene:
    """A scene of `count` objects, no (colour, shape) twice, no place twice.

    Training scenes know seen pairs only; held-out scenes show at least one held-out pair. Colours and shapes
    repeat often enough that "how many red shapes" has every answer. `unnamed` scenes show shapes in colours
    without a name: who has only seen shapes in their own few colours learns the pair, not the shape (a linear
    probe of shape found 0.42 on held-out pairs, 0.68 on seen ones).
    """
    places = [str(place) for place in rng.permutation(vocabulary.places)[:count]]
    like = rng.choice(["nothing", "colour", "shape"], p=[0.55, 0.25, 0.2])
    chosen: list[tuple[str, str]] = []
    while len(chosen) < count:
        pool = (
            vocabulary.held_out_pairs
            if held_out and (not chosen or rng.random() < 0.3)
            else vocabulary.seen_pairs
        )
        if chosen and like != "nothing":
            axis = 0 if like == "colour" else 1
            pool = tuple(pair for pair in vocabulary.seen_pairs if pair[axis] == chosen[0][axis])
        pair = pool[rng.integers(len(pool))]
        if pair not in chosen:
            chosen.append(pair)
    if unnamed:
        chosen = [(UNNAMED, str(shape)) for shape in rng.permutation(vocabulary.shapes)[:count]]
    sizes = [str(size) for size in rng.choice(vocabulary.sizes, size=count)]
    if (
        "middle" in places and sizes[places.index("middle")] == "big"
    ):  # two big ones side by side would overlap
        sizes = ["big" if place == "middle" else "small" for place in places]
    return tuple(Thing(size, *pair, place) for size, pair, place in zip(sizes, chosen, places, strict=True))


def describe(rng: np.random.Generator, scene: Scene, vocabulary: Vocabulary = WHOLE) -> Caption:
    """A true caption: every object with all its attributes; or one relation of two; sometimes with the
    count."""
    if vocabulary.relations and len(scene) == 2 and rng.random() < 0.5:
        ordered = [scene[index] for index in rng.permutation(2)]
        clear = relation(ordered[0], ordered[1])
        if clear:
            sized = rng.random(2) < 0.7
            claims = [
                Claim(thing.size if said else None, thing.colour or None, thing.shape)
                for thing, said in zip(ordered, sized, strict=True)
            ]
            return Caption(tuple(claims), relation=clear)
    claims = [claim(scene[index], vocabulary) for index in rng.permutation(len(scene))]
    return Caption(
        tuple(claims), count=len(scene) if vocabulary.tells_counts and rng.random() < 0.15 else None
    )


def claim(thing: Thing, vocabulary: Vocabulary) -> Claim:
    """All that can be said of an object."""
    return Claim(
        thing.size if vocabulary.says_sizes else None, thing.colour or None, thing.shape, thing.place
    )


def changes(caption: Caption, vocabulary: Vocabulary = WHOLE) -> Iterator[tuple[str, Caption]]:
    """Every (kind, caption) that changes one attribute of the caption; they may still be true."""
    options = {
        "colour": vocabulary.colours,
        "shape": vocabulary.shapes,
        "place": vocabulary.places,
        "size": vocabulary.sizes,
    }
    for index, claim_changed in enumerate(caption.claims):
        for kind, values in options.items():
            old_value = getattr(claim_changed, kind)
            for value in values if old_value else ():
                if value != old_value:
                    changed = replace(claim_changed, **{kind: value})
                    yield (
                        kind,
                        replace(
                            caption, claims=(*caption.claims[:index], changed, *caption.claims[index + 1 :])
                        ),
                    )
    if caption.relation:
        for value in vocabulary.relations:
            if value != caption.relation:
                yield "place", replace(caption, relation=value)
    if caption.count is not None:
        for count in (1, 2, 3):
            if count != caption.count and count >= len(caption.claims):
                yield "count", replace(caption, count=count)


def questions(scene: Scene, vocabulary: Vocabulary = WHOLE) -> list[tuple[str, str, str]]:
    """Every (kind, question, answer) that has one answer in the scene; a question names an object only where
    the name is unique.

    Where colours have no names, nothing is asked about them.
    """
    triples: list[tuple[str, str, str]] = []

    def add(asked: tuple[str, str, str]) -> None:
        if vocabulary is WHOLE or vocabulary.asks(asked[1]):
            triples.append(asked)

    colours, shapes = Counter(thing.colour for thing in scene), Counter(thing.shape for thing in scene)
    pairs = {(thing.colour, thing.shape) for thing in scene}
    taken = {thing.place: thing for thing in scene}
    is_named = UNNAMED not in colours
    add(("count", "how many shapes are there?", NUMBERS[len(scene)]))
    for colour in vocabulary.colours if is_named else ():
        add(("how many", f"how many {colour} shapes are there?", NUMBERS[colours[colour]]))
    for shape in vocabulary.shapes:
        add(("how many", f"how many {plural(shape)} are there?", NUMBERS[shapes[shape]]))
    for size in vocabulary.sizes:
        add(
            (
                "how many",
                f"how many {size} shapes are there?",
                NUMBERS[sum(thing.size == size for thing in scene)],
            )
        )
    for place in vocabulary.places if is_named else ():
        there = grammatical(f"a {taken[place].colour} {taken[place].shape}") if place in taken else "nothing"
        add(("at", f"what is at the {place}?", there))
    for thing in scene:
        add(("shape", f"what shape is at the {thing.place}?", thing.shape))
        if shapes[thing.shape] == 1:
            _by_shape(thing, scene, vocabulary, is_named, add)
        if not is_named:
            continue
        add(("colour", f"what colour is the shape at the {thing.place}?", thing.colour))
        add(("where", f"where is the {thing.colour} {thing.shape}?", f"at the {thing.place}"))
        add(("yes no", grammatical(f"is there a {thing.colour} {thing.shape}?"), "yes"))
        # A hard no changes one attribute of something that is there.
        for colour, shape in [(colour, thing.shape) for colour in vocabulary.colours] + [
            (thing.colour, shape) for shape in vocabulary.shapes
        ]:
            if (colour, shape) not in pairs:
                add(("yes no", grammatical(f"is there a {colour} {shape}?"), "no"))
        if colours[thing.colour] == 1:
            add(("shape", f"what shape is {thing.colour}?", thing.shape))
    return triples


def _by_shape(
    thing: Thing,
    scene: Scene,
    vocabulary: Vocabulary,
    is_named: bool,
    add: Callable[[tuple[str, str, str]], None],
) -> None:
    """Questions about an object that its shape alone names."""
    shapes = Counter(other.shape for other in scene)
    name = f"the {thing.shape}"
    add(("size", f"what size is {name}?", thing.size))
    add(("where", f"where is {name}?", f"at the {thing.place}"))
    if is_named:
        add(("colour", f"what colour is {name}?", thing.colour))
        for colour in vocabulary.colours:
            add(("yes no", f"is {name} {colour}?", "yes" if colour == thing.colour else "no"))
    for size in vocabulary.sizes:
        add(("yes no", f"is {name} {size}?", "yes" if size == thing.size else "no"))
    for place in vocabulary.places:
        add(("yes no", f"is {name} at the {place}?", "yes" if place == thing.place else "no"))
    for other in scene:
        clear = relation(thing, other)
        if clear and shapes[other.shape] == 1:
            for said in (clear, OPPOSITE[clear]):
                add(("yes no", f"is {name} {said} the {other.shape}?", "yes" if said == clear else "no"))
