"""Random data in the largest shapes that a stage's settings allow, for a plan without the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.media import audio
from muomni.stages.stage import Stage

KINDS = 8  # lengths of the sounds and of the texts: from SHORTEST of the longest allowed up to it, evenly
SHORTEST = 0.3
WORDS_PER_S, CHARACTERS_PER_S = 2.5, 13.0  # of read speech
TOKENS_PER_WORD = 1.3
WORDS_OF_CAPTION, WORDS_OF_ANSWER = 12, 24
# A letter alone is one token, or two, in any vocabulary; words that are made up may be many in one that
# others have learned.
LETTERS, TOKENS_PER_LETTER = list("abcdefghijklmnopqrstuvwxyz"), 1.1
TURNS = 3
SEEN = 384  # pixels of a side, of pictures that eyes bring to their own size
RATE_HZ = 16_000
BATCHES = 8  # samples, in batches

Row = dict[str, Any]


def make(stage: Stage, settings: Any, context: int, vocabulary: int, folder: Path) -> list[Source]:
    """The sources that stand in for the stage's own, written into a folder.

    Takes   settings: the stage's, or what has all of theirs; context, vocabulary: of the Thinker that the
            stage builds on, or is.
    Raises  ConfigError for a stage that doesn't say what to assume.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = _words(vocabulary)
    if stage.assume is None:
        raise ConfigError(
            f"{stage.name}: its data are not there, and the stage does not say what to assume",
            hint="give it data",
        )
    rows = stage.assume(settings, context, words, folder)
    held_out = max(2, min(settings.batch_size, len(rows) // 4))
    for number, row in enumerate(rows):
        name = f"{'valid' if number < held_out else 'train'}-{number}"
        row.update(id=name, group=name, split=name.split("-")[0], task=row.get("task", stage.name))
    path = folder / "assumed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [Source(path=str(path), format="samples")]


def _words(count: int) -> list[str]:
    """So many different words of 4 to 9 letters, each twice, in random order: enough to learn a vocabulary of
    that size from."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(4, 10))) for _ in range(count)]
    return [words[i] for i in rng.permutation(np.arange(2 * count) % count)]


class Text:
    """An endless stream of words."""

    def __init__(self, words: list[str]) -> None:
        self.words, self.at = words, 0

    def take(self, count: int) -> str:
        """The next words."""
        taken = [self.words[(self.at + n) % len(self.words)] for n in range(max(1, count))]
        self.at += len(taken)
        return " ".join(taken)


def _share(number: int) -> float:
    """The length of sample `number`, as a share of the longest."""
    return SHORTEST + (1 - SHORTEST) * (number % KINDS) / (KINDS - 1)


def sounds(folder: Path, longest_s: float) -> list[tuple[str, float]]:
    """Noise of KINDS lengths: names of files and their seconds."""
    rng = np.random.default_rng(1)
    sounds_made = []
    for kind in range(KINDS):
        length_s = longest_s * _share(kind)
        audio.write(
            folder / f"{kind}.wav",
            (0.1 * rng.standard_normal(int(length_s * RATE_HZ))).astype(np.float32),
            RATE_HZ,
        )
        sounds_made.append((f"{kind}.wav", length_s))
    return sounds_made


def pictures(folder: Path, size: int) -> list[str]:
    rng = np.random.default_rng(2)
    for kind in range(KINDS):
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{kind}.png")
    return [f"{kind}.png" for kind in range(KINDS)]


def turns(question: list[Row] | str, answer: str | list[Row]) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def part(kind: str, value: str) -> Row:
    return {"type": kind, "text" if kind == "text" else "path": value}


def speech(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    noises, text = sounds(folder, settings.max_s), Text(words)
    rows = []
    for number in range(2 * settings.batch_size):  # few: all of them are encoded before a stage begins
        name, length_s = noises[number % KINDS]
        words_said = text.take(int(length_s * WORDS_PER_S))
        rows.append(turns(words_said, [part("text", words_said), part("audio", name)]))
    return rows


def room(context: int, image_tokens: int = 64) -> int:
    """Letters that fill the rest of a row beside its picture; what is too much is cut off."""
    return max(WORDS_OF_CAPTION, int((context - image_tokens) / TOKENS_PER_LETTER))
