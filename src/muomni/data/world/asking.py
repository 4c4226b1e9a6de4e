"""Which questions to ask about a scene, so that guessing without looking gains little."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from muomni.data.world.lexicon import CONTENT, is_held_out, words
from muomni.data.world.scene import Scene, questions
from muomni.data.world.vocabulary import WHOLE, Vocabulary

Asked = tuple[str, str, str]  # kind, question, answer


@lru_cache(maxsize=2**16)
def form(question: str) -> str:
    """A question without its content words and articles: "is the _ _" of "is the star red?"."""
    return " ".join("_" if word in CONTENT else word for word in words(question) if word not in ("a", "an"))


class Asker:
    """Asks about scenes; keeps kinds, forms and answers in balance over all that it asked.

    The kind used least comes first, within it the form of question used least, within that the answer given
    least: yes and no come equally often for "is the star red?" and for "is there a red star?", each colour
    equally often for "what colour is the star?".
    """

    def __init__(self, rng: np.random.Generator, *, training: bool, vocabulary: Vocabulary = WHOLE) -> None:
        self._rng = rng
        self._vocabulary = vocabulary
        self._training = training
        self._used: Counter[tuple[str, ...]] = Counter()

    def ask(self, scene: Scene, count: int) -> list[Asked]:
        """`count` different questions about the scene, fewer if it has no more; in training none that is held
        out, else such first."""
        open_: list[tuple[tuple[str, str, str], Asked]] = []
        for candidate in questions(scene, self._vocabulary):
            kind, question, answer = candidate
            if not (self._training and (is_held_out(question) or is_held_out(answer))):
                open_.append(((kind, form(question), answer.split()[-1]), candidate))
        chosen: list[Asked] = []
        while len(chosen) < count and open_:
            left = open_
            for depth in (1, 2, 3):
                keys = dict.fromkeys(key[:depth] for key, _ in left)
                best = min(keys, key=lambda key: self._used[key] + self._rng.random())
                self._used[best] += 1
                left = [entry for entry in left if entry[0][:depth] == best]
            unheard = (
                [] if self._training else [candidate for _, candidate in left if is_held_out(candidate[1])]
            )
            choices = unheard or [candidate for _, candidate in left]
            chosen.append(choices[self._rng.integers(len(choices))])
            open_ = [entry for entry in open_ if entry[0] != best]
        # The rarest kind was chosen first; asked in that order, the first question of every long conversation
        # would be of one kind.
        return [chosen[index] for index in self._rng.permutation(len(chosen))]
