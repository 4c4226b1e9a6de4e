"""What is said and written in the world: sentences with balanced words, and text documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from muomni.data.world.lexicon import grammatical, is_held_out, words
from muomni.data.world.vocabulary import WHOLE, Vocabulary


def spoken(text: str) -> str:
    """A text as it is said: lower case, no punctuation."""
    return re.sub(r"[^a-z ]", "", text.lower())


class Sentences:
    """A source of sentences in which the words of each slot come equally often.

    A slot takes the filler that was used least so far (ties by chance). Templates come in turn, so that
    function words stay balanced too.
    """

    def __init__(self, rng: np.random.Generator, vocabulary: Vocabulary = WHOLE) -> None:
        self._rng = rng
        self._vocabulary = vocabulary
        self._used: Counter[str] = Counter()
        self._turn: list[str] = []

    def _fill(self, template: str, must: str = "") -> str:
        """The template with its slots filled; the first slot that has the word `must` takes it."""
        filled: list[str] = []
        for token in template.split(" "):
            choices = self._vocabulary.fillers.get(token)
            if choices is None:
                filled.append(token)
                continue
            fitting = [choice for choice in choices if must in choice.split(" ")]
            free = [choice for choice in choices if choice not in filled] or list(choices)
            filled.append(
                fitting[0]
                if fitting
                else min(free, key=lambda choice: self._used[choice] + 2 * self._rng.random())
            )
            must = "" if fitting else must
        return grammatical(" ".join(filled))

    def _accept(self, text: str) -> str:
        self._used.update(
            part
            for choices in self._vocabulary.fillers.values()
            for part in choices
            if f" {part} " in f" {text} "
        )
        return text

    def draw(self, fits: Callable[[str], bool]) -> str:
        """The next sentence that `fits`; a template that gives none in three tries is passed over.

        Raises ValueError if 2000 templates in a row give none.
        """
        for _ in range(2000):
            if not self._turn:
                self._turn = [str(template) for template in self._rng.permutation(self._vocabulary.templates)]
            template = self._turn.pop()
            for _ in range(3):
                text = self._fill(template)
                if fits(text):
                    return self._accept(text)
        raise ValueError("no sentence fits: the templates are used up")

    def many(self, count: int, *, held_out: bool, distinct: bool = True) -> list[str]:
        """`count` sentences, all in training or all held out, without repeats if `distinct`."""
        sentences: dict[str, None] = {}
        drawn: list[str] = []
        while len(drawn) < count:
            text = self.draw(
                lambda text: is_held_out(text) == held_out and not (distinct and text in sentences)
            )
            sentences[text] = None
            drawn.append(text)
        return drawn

    def cover(self, sentences: list[str], least: int) -> list[str]:
        """More sentences, so that every word of the vocabulary comes at least `least` times; words alone
        where no template has them."""
        counts = Counter(word for text in sentences for word in words(text))
        more: list[str] = []
        for word in self._vocabulary.words:
            templates = [
                one
                for one in self._vocabulary.templates
                if any(word in words(part) for part in self._vocabulary.alternatives(one))
            ]
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
