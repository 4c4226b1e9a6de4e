"""Which questions to ask about a scene, so that guessing without looking gains little."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from muomni.data.world.lexicon import CONTENT, is_held_out, words
from muomni.data.world.scene import Scene, questions

Asked = tuple[str, str, str]  # kind, question, answer


class Asker:
    """Asks about scenes; keeps kinds, forms and answers in balance over all that it asked.

    The kind used least comes first, within it the form of question used least, within that the answer given least: yes and no come
    equally often for "is the star red?" and for "is there a red star?", each colour equally often for "what colour is the star?".
    """

    def __init__(self, rng: np.random.Generator, *, training: bool) -> None:
        self._rng = rng
        self._training = training
        self._used: Counter[tuple[str, ...]] = Counter()

    def _least(self, keys: list[tuple[str, ...]]) -> tuple[str, ...]:
        return min(keys, key=lambda key: self._used[key] + self._rng.random())

    def ask(self, scene: Scene, count: int) -> list[Asked]:
        """`count` different questions about the scene, fewer if it has no more; in training none that is held out."""
        tree: dict[tuple[str, ...], dict[tuple[str, ...], dict[tuple[str, ...], list[Asked]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for kind, question, answer in questions(scene):
            if not (self._training and (is_held_out(question) or is_held_out(answer))):
                form = " ".join("_" if word in CONTENT else word for word in words(question) if word not in ("a", "an"))
                tree[(kind,)][(kind, form)][(kind, form, answer.split()[-1])].append((kind, question, answer))
        asked: list[Asked] = []
        while len(asked) < count and tree:
            kind = self._least(list(tree))
            form = self._least(list(tree[kind]))
            bucket = self._least(list(tree[kind][form]))
            choices = tree[kind][form].pop(bucket)
            asked.append(choices[self._rng.integers(len(choices))])
            self._used.update([kind, form, bucket])
            if not tree[kind][form]:
                del tree[kind][form]
            if not tree[kind]:
                del tree[kind]
        return asked
