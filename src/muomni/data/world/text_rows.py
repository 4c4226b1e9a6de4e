"""Rows of text alone: descriptions with questions, as conversations and as documents, and plain sentences of the world."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np

from muomni.data.world.asking import Asker
from muomni.data.world.language import Sentences
from muomni.data.world.lexicon import COLOURS, NUMBERS, SHAPES, is_held_out
from muomni.data.world.picture_rows import message
from muomni.data.world.scene import Caption, Claim, Scene, sample

Row = dict[str, Any]
_FACTS = (
    *(f"{colour} is a colour" for colour in COLOURS),
    *(f"a {shape} is a shape" for shape in SHAPES),
    *(f"{number} is a number" for number in NUMBERS),
    *(" ".join(NUMBERS[first : first + 4]) for first in range(len(NUMBERS) - 3)),
)


def text_rows(seed: int, counts: dict[str, int]) -> list[Row]:
    """Half conversations about a described scene, a quarter the same as documents, a quarter plain sentences."""
    rows = []
    for split, count in counts.items():
        training = split == "train"
        rng = np.random.default_rng((seed, 30, split == "valid"))
        asker, sentences = Asker(rng, training=training), Sentences(rng)
        facts = [fact for fact in _FACTS if is_held_out(fact) != training]
        for index in range(count):
            name: Row = {"id": f"text-{split}-{index:05d}", "split": split}
            if index % 4 == 3:
                told = sentences.many(int(rng.integers(3, 7)), held_out=not training)
                if facts and rng.random() < 0.3:
                    told.append(facts[rng.integers(len(facts))])
                rows.append({**name, "task": "text", "text": ". ".join(told) + "."})
                continue
            scene = sample(rng, int(rng.integers(1, 4)), held_out=not training)
            description = claims(scene).text()
            while is_held_out(description) == training:
                scene = sample(rng, len(scene), held_out=not training)
                description = claims(scene).text()
            asked = asker.ask(scene, int(rng.integers(6, 10)))
            extra = {"scene": [list(vars(thing).values()) for thing in scene], "kinds": [kind for kind, _, _ in asked]}
            if index % 4 == 2:
                turns = " ".join(f"{question} {answer}." for _, question, answer in asked)
                rows.append({**name, "task": "text", "text": f"{description}. {turns}", "extra": extra})
                continue
            messages = []
            for turn, (_, question, answer) in enumerate(asked):
                messages += [message("user", question if turn else f"{description}. {question}"), message("assistant", answer)]
            rows.append({**name, "task": "chat", "messages": messages, "extra": extra})
    return rows


def claims(scene: Scene) -> Caption:
    """All there is to say about a scene, in its order."""
    return Caption(tuple(Claim(*astuple(thing)) for thing in scene))
