"""Rows of text alone: descriptions with questions, as conversations and as documents, and plain sentences of
the world."""

from __future__ import annotations

from typing import Any

import numpy as np

from muomni.data.world.asking import Asker
from muomni.data.world.language import Sentences
from muomni.data.world.lexicon import NUMBERS, is_held_out
from muomni.data.world.picture_rows import message
from muomni.data.world.scene import Caption, Scene, claim, sample
from muomni.data.world.vocabulary import WHOLE, Vocabulary

Row = dict[str, Any]


def _facts(vocabulary: Vocabulary) -> list[str]:
    """What is always so, in words of the vocabulary."""
    facts = [
        *(f"{colour} is a colour" for colour in vocabulary.colours),
        *(f"a {shape} is a shape" for shape in vocabulary.shapes),
        *(f"{number} is a number" for number in NUMBERS),
        *(" ".join(NUMBERS[first : first + 4]) for first in range(len(NUMBERS) - 3)),
    ]
    return facts


def text_rows(seed: int, counts: dict[str, int], vocabulary: Vocabulary = WHOLE, most: int = 3) -> list[Row]:
    """Half conversations about a described scene, a quarter the same as documents, a quarter plain sentences.

    Takes   most: objects of a scene.
    """
    rows = []
    for split, count in counts.items():
        training = split == "train"
        rng = np.random.default_rng((seed, 30, split == "valid"))
        asker, sentences = Asker(rng, training=training, vocabulary=vocabulary), Sentences(rng, vocabulary)
        facts = [fact for fact in _facts(vocabulary) if is_held_out(fact) != training]
        for index in range(count):
            name: Row = {"id": f"text-{split}-{index:05d}", "split": split}
            if index % 4 == 3:
                sentences_told = sentences.many(int(rng.integers(3, 7)), held_out=not training)
                if facts and rng.random() < 0.3:
                    sentences_told.append(facts[rng.integers(len(facts))])
                rows.append({**name, "task": "text", "text": ". ".join(sentences_told) + "."})
                continue
            scene = sample(rng, int(rng.integers(1, most + 1)), held_out=not training, vocabulary=vocabulary)
            description = claims(scene, vocabulary).text()
            while is_held_out(description) == training:
                scene = sample(rng, len(scene), held_out=not training, vocabulary=vocabulary)
                description = claims(scene, vocabulary).text()
            questions = asker.ask(scene, int(rng.integers(6, 10)))
            extra = {
                "scene": [list(vars(thing).values()) for thing in scene],
                "kinds": [kind for kind, _, _ in questions],
            }
            if index % 4 == 2:
                turns = " ".join(f"{question} {answer}." for _, question, answer in questions)
                rows.append({**name, "task": "text", "text": f"{description}. {turns}", "extra": extra})
                continue
            messages = []
            for turn, (_, question, answer) in enumerate(questions):
                messages += [
                    message("user", question if turn else f"{description}. {question}"),
                    message("assistant", answer),
                ]
            rows.append({**name, "task": "chat", "messages": messages, "extra": extra})
    return rows


def claims(scene: Scene, vocabulary: Vocabulary) -> Caption:
    """All there is to say about a scene, in its order."""
    return Caption(tuple(claim(thing, vocabulary) for thing in scene))
