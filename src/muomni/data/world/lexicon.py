"""Every word of the toy world, and what is held out of training; the one place for both. Source: SPEC 6."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange", "pink", "brown")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
SIZES = ("small", "big")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = ("left", "right", "top", "bottom", "middle")
RELATIONS = ("left of", "right of", "above", "below")
ANSWERS = ("yes", "no", "nothing")
FUNCTION_WORDS = (
    *(
        "a",
        "an",
        "and",
        "are",
        "at",
        "colour",
        "did",
        "does",
        "hear",
        "how",
        "i",
        "in",
        "is",
        "it",
        "many",
        "number",
        "of",
        "say",
        "see",
    ),
    *("shape", "shapes", "size", "the", "there", "what", "where", "word", "you"),
)


def plural(shape: str) -> str:
    """The plural of a shape: "crosses", "rings"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def grammatical(text: str) -> str:
    """The text with "an" where it must be: only orange starts with a vowel."""
    return re.sub(r"\ba orange\b", "an orange", text)


PLURALS = tuple(plural(shape) for shape in SHAPES)
CONTENT = frozenset({*COLOURS, *SHAPES, *PLURALS, *SIZES, *NUMBERS, *PLACES, "above", "below", *ANSWERS})
WORDS = tuple(sorted({*CONTENT, *FUNCTION_WORDS}))
PICTURED_WORDS = (*SHAPES, *SIZES, "yes", "no", "one", "two", "three", "ten")

# One pair a shape, each of another colour, so neither a colour nor a shape is rare in training. Constants:
# another seed never leaks them.
HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("green", "heart"),
        ("blue", "ring"),
        ("yellow", "cross"),
        ("black", "diamond"),
        ("white", "circle"),
        ("purple", "square"),
        ("orange", "triangle"),
    }
)

_SINGULAR = {plural(shape): shape for shape in SHAPES}
_HELD_OUT_SHARE = 0.1


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return re.findall(r"[a-z]+", text.lower())


def pairs(text: str) -> set[tuple[str, str]]:
    """(colour, shape) pairs that a text binds: "red star", "red stars", "the star is red", "is the star red",
    "the word star in red"."""
    tokens = [_SINGULAR.get(word, word) for word in words(text)]
    pairs_found = set()
    for here, token in enumerate(tokens):
        if token not in SHAPES:
            continue
        if here and tokens[here - 1] in COLOURS:
            pairs_found.add((tokens[here - 1], token))
        after = tokens[here + 1 : here + 3]
        if after and after[0] in COLOURS and "is" in tokens[max(0, here - 2) : here]:
            pairs_found.add((after[0], token))
        if len(after) == 2 and after[0] in ("is", "are", "in") and after[1] in COLOURS:
            pairs_found.add((after[1], token))
    return pairs_found


@lru_cache(maxsize=2**18)  # a world asks it of the same short sentences millions of times
def is_held_out(text: str) -> bool:
    """Whether a sentence may never be seen in training, in any modality: it binds a held-out pair, or its
    hash says so.

    Only sentences of four words or more with two content words can be held out by hash: new combinations of
    known words. The hash knows no seed, so the held-out sentences of every world are the same.
    """
    if pairs(text) & HELD_OUT_PAIRS:
        return True
    tokens = words(text)
    if len(tokens) < 4 or sum(token in CONTENT for token in tokens) < 2:
        return False
    digest = hashlib.sha256(" ".join(tokens).encode()).digest()
    return int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32
