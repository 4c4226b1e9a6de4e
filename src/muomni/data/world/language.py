"""What is said and written in the world: sentences with balanced words, and text documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from muomni.data.world import lexicon
from muomni.data.world.lexicon import COLOURS, NUMBERS, PLACES, RELATIONS, SHAPES, SIZES, grammatical, is_held_out, plural, words

# Slots: S size, C colour, H shape, P plural, N number, M number from two to ten, L place, R relation, A answer yes or no.
TEMPLATES = (
    "the S C H is R the C H",
    "the S C H is R the S C H",
    "the C H is R the S H",
    "the H is R the H",
    "the H is C",
    "the H is S",
    "the H is at the L",
    "the C H is at the L",
    "a S C H is at the L",
    "a S C H",
    "a C H",
    "a S H at the L",
    "a C H and a S H",
    "there are M C shapes",
    "there are M S P",
    "there are M P",
    "there are M C P",
    "there is one C H",
    "there is a S H at the L",
    "there is nothing at the L",
    "it is N",
    "it is C",
    "it is S",
    "it is at the L",
    "it is R the C H",
    "it is a C H",
    "A it is C",
    "A it is S",
    "A there is a C H",
    "the number is N",
    "the number N in C",
    "the word is H",
    "i see M P",
    "i see M C P",
    "i see a S C H",
    "at the L",
    "what colour is the H",
    "what colour is the shape at the L",
    "what shape is at the L",
    "what shape is C",
    "what size is the H",
    "what is at the L",
    "how many C shapes are there",
    "how many P are there",
    "how many S shapes are there",
    "how many shapes are there",
    "where is the H",
    "where is the C H",
    "is the H C",
    "is the H S",
    "is the H at the L",
    "is the H R the H",
    "is there a C H",
    "what number is it",
    "what does it say",
    "what number did you hear",
)
_FILLERS: dict[str, tuple[str, ...]] = {
    "S": SIZES,
    "C": COLOURS,
    "H": SHAPES,
    "P": tuple(plural(shape) for shape in SHAPES),
    "N": NUMBERS,
    "M": NUMBERS[2:],
    "L": PLACES,
    "R": RELATIONS,
    "A": ("yes", "no"),
}


def spoken(text: str) -> str:
    """A text as it is said: lower case, no punctuation."""
    return re.sub(r"[^a-z ]", "", text.lower())


class Sentences:
    """A source of sentences in which the words of each slot come equally often.

    A slot takes the filler that was used least so far (ties by chance). Templates come in turn, so that function words stay balanced too.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._used: Counter[str] = Counter()
        self._turn: list[str] = []

    def _fill(self, template: str, must: str = "") -> str:
        """The template with its slots filled; the first slot that has the word `must` takes it."""
        filled: list[str] = []
        for token in template.split(" "):
            choices = _FILLERS.get(token)
            if choices is None:
                filled.append(token)
                continue
            wanted = [choice for choice in choices if must in choice.split(" ")]
            free = [choice for choice in choices if choice not in filled] or list(choices)
            filled.append(wanted[0] if wanted else min(free, key=lambda choice: self._used[choice] + 2 * self._rng.random()))
            must = "" if wanted else must
        return grammatical(" ".join(filled))

    def _accept(self, text: str) -> str:
        self._used.update(part for choices in _FILLERS.values() for part in choices if f" {part} " in f" {text} ")
        return text

    def draw(self, fits: Callable[[str], bool]) -> str:
        """The next sentence that `fits`; a template that gives none in three tries is passed over.

        Raises ValueError if 2000 templates in a row give none.
        """
        for _ in range(2000):
            if not self._turn:
                self._turn = [str(template) for template in self._rng.permutation(TEMPLATES)]
            template = self._turn.pop()
            for _ in range(3):
                text = self._fill(template)
                if fits(text):
                    return self._accept(text)
        raise ValueError("no sentence fits: the templates are used up")

    def many(self, count: int, *, held_out: bool, distinct: bool = True) -> list[str]:
        """`count` sentences, all in training or all held out, without repeats if `distinct`."""
        found: dict[str, None] = {}
        drawn: list[str] = []
        while len(drawn) < count:
            text = self.draw(lambda text: is_held_out(text) == held_out and not (distinct and text in found))
            found[text] = None
            drawn.append(text)
        return drawn

    def cover(self, sentences: list[str], least: int) -> list[str]:
        """More sentences, so that every word of the lexicon comes at least `least` times; single words where no template has the word."""
        counts = Counter(word for text in sentences for word in words(text))
        more: list[str] = []
        for word in lexicon.WORDS:
            templates = [template for template in TEMPLATES if any(word in words(part) for part in _alternatives(template))]
            while counts[word] < least:
                text = self._with(word, templates) if templates else word
                counts.update(words(text))
                more.append(text)
        return more

    def _with(self, word: str, templates: list[str]) -> str:
        """A training sentence that holds the word; the word alone if 50 tries find none."""
        for _ in range(50):
            text = self._fill(templates[self._rng.integers(len(templates))], must=word)
            if word in words(text) and not is_held_out(text):
                return self._accept(text)
        return word


def _alternatives(template: str) -> list[str]:
    """The fixed words of a template and all fillers of its slots, each lower case."""
    return [choice for token in template.split(" ") for choice in _FILLERS.get(token, (token,))]
