"""Data for a stage whose own are not there: noise in the shapes that its settings allow, so that a plan can be made before they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muomni.data.source import Source
from muomni.media import audio
from muomni.media.frames import STATES_HZ
from muomni.stages.stage import StageSettings

KINDS = 8  # lengths of the sounds and of the texts: from SHORTEST of the longest allowed up to it, evenly
SHORTEST = 0.3
WORDS_PER_S, CHARACTERS_PER_S = 2.5, 13.0  # of read speech
TOKENS_PER_WORD = 1.3
WORDS_OF_CAPTION, WORDS_OF_ANSWER = 12, 24
# A letter alone is one token, or two, in any vocabulary; words that are made up may be many in one that others have learned.
LETTERS, TOKENS_PER_LETTER = list("abcdefghijklmnopqrstuvwxyz"), 1.1
TURNS = 3
SEEN = 384  # pixels of a side, of pictures that eyes bring to their own size
RATE_HZ = 16_000
BATCHES = 8  # samples, in batches

Row = dict[str, Any]


def make(stage: str, settings: StageSettings, context: int, vocabulary: int, folder: Path) -> list[Source]:
    """The sources that stand in for the stage's own, written into a folder.

    Takes   context, vocabulary: of the Thinker that the stage builds upon, or is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = _words(vocabulary)
    rows = ROWS[stage](settings, context, words, folder)
    held_out = max(2, min(settings.batch_size, len(rows) // 4))
    for number, row in enumerate(rows):
        name = f"{'valid' if number < held_out else 'train'}-{number}"
        row.update(id=name, group=name, split=name.split("-")[0], task=row.get("task", stage))
    path = folder / "assumed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [Source(path=str(path), format="samples")]


def _words(count: int) -> list[str]:
    """So many different words of 4 to 9 letters, each twice, in random order: enough to learn a vocabulary of that size from."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(4, 10))) for _ in range(count)]
    return [words[i] for i in rng.permutation(np.arange(2 * count) % count)]


class _Text:
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


def _sounds(folder: Path, longest_s: float) -> list[tuple[str, float]]:
    """Noise of KINDS lengths: names of files and their seconds."""
    rng = np.random.default_rng(1)
    found = []
    for kind in range(KINDS):
        length_s = longest_s * _share(kind)
        audio.write(folder / f"{kind}.wav", (0.1 * rng.standard_normal(int(length_s * RATE_HZ))).astype(np.float32), RATE_HZ)
        found.append((f"{kind}.wav", length_s))
    return found


def _pictures(folder: Path, size: int) -> list[str]:
    rng = np.random.default_rng(2)
    for kind in range(KINDS):
        Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{kind}.png")
    return [f"{kind}.png" for kind in range(KINDS)]


def _turns(question: list[Row] | str, answer: str | list[Row]) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _part(kind: str, value: str) -> Row:
    return {"type": kind, "text" if kind == "text" else "path": value}


def _thinker(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    text, row_len = _Text(words), settings.row_len or context
    count = max(BATCHES * settings.batch_size, len(words) // row_len + 1)
    return [{"text": text.take(row_len)} for _ in range(count)]


def _hearing(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    sounds, text = _sounds(folder, settings.max_s - 2 * settings.pad_s), _Text(words)
    rows = []
    for number in range(BATCHES * settings.batch_size):
        name, length_s = sounds[number % KINDS]
        said = text.take(int(length_s * WORDS_PER_S))[: min(settings.max_text_len, max(1, int(length_s * CHARACTERS_PER_S)))]
        rows.append(_turns([_part("audio", name)], said.strip()))
    return rows


def _vision(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    pictures, text = _pictures(folder, settings.model.image_size), _Text(words)
    count = max(2 * settings.batch_size * settings.gradient_accumulation_steps, len(words) // WORDS_OF_CAPTION + 1)
    rows = []
    for number in range(count):
        row = _turns([_part("image", pictures[number % KINDS])], text.take(WORDS_OF_CAPTION))
        rows.append({**row, "negatives": [{"kind": "word", "text": text.take(WORDS_OF_CAPTION)} for _ in range(settings.negatives)]})
    return rows


def _speech(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    sounds, text = _sounds(folder, settings.max_s), _Text(words)
    rows = []
    for number in range(2 * settings.batch_size):  # few: all of them are encoded before a stage begins
        name, length_s = sounds[number % KINDS]
        said = text.take(int(length_s * WORDS_PER_S))
        rows.append(_turns(said, [_part("text", said), _part("audio", name)]))
    return rows


def _omni(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    """Pictures, sounds, both, and text, in turn; every KINDS-th sample is as long as the context allows."""
    room = settings.max_audio_tokens or context // 4
    sounds = _sounds(folder, (room - 4) * settings.audio_pool / STATES_HZ)
    pictures, text = _pictures(folder, 224), _Text(words)
    rows: list[Row] = []
    for number in range(BATCHES * settings.batch_size):
        picture, (sound, _) = _part("image", pictures[number % KINDS]), sounds[number % KINDS]
        media = [[picture], [_part("audio", sound)], [picture, _part("audio", sound)], []][number % 4]
        used = len(media) * 4 + (1 + settings.grid**2) * (picture in media) + room * (len(media) > (picture in media))
        if number % KINDS == KINDS - 2:
            long = text.take(max(8, int((context - used - 16) / TOKENS_PER_WORD)))  # what is too much is cut off
            rows.append(_turns([*media, _part("text", text.take(6))], long))
        elif media:
            rows.append(_turns([*media, _part("text", text.take(6))], text.take(WORDS_OF_ANSWER)))
        else:
            rows.append({"text": text.take(context // 8), "task": "text"})
    return rows


def _align(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    """Captions; every KINDS-th is as long as a row may be."""
    pictures, text = _pictures(folder, SEEN), _Text(LETTERS)
    rows = []
    for number in range(BATCHES * settings.batch_size):
        count = _room(settings, context) if number % KINDS == KINDS - 1 else WORDS_OF_CAPTION
        rows.append(_turns([_part("image", pictures[number % KINDS]), _part("text", "what is this?")], text.take(count)))
    return rows


def _instruct(settings: Any, context: int, words: list[str], folder: Path) -> list[Row]:
    """Conversations of TURNS turns about a picture; every KINDS-th is as long as a row may be, by its last answer."""
    pictures, text = _pictures(folder, SEEN), _Text(LETTERS)
    room = _room(settings, context)
    short = min(WORDS_OF_ANSWER, room // (3 * TURNS))
    rows = []
    for number in range(BATCHES * settings.batch_size):
        turns = [_turns(text.take(6), text.take(short)) for _ in range(TURNS - 1)]
        first = turns[0]["messages"][0]
        first["content"] = [_part("image", pictures[number % KINDS]), _part("text", first["content"])]
        used = (TURNS - 1) * (6 + short)
        last = room - used if number % KINDS == KINDS - 1 else short
        rows.append({"messages": [m for turn in [*turns, _turns(text.take(6), text.take(last))] for m in turn["messages"]]})
    return rows


def _room(settings: Any, context: int) -> int:
    """Letters that fill the rest of a row beside its picture; what is too much is cut off."""
    return max(WORDS_OF_CAPTION, int((context - getattr(settings, "num_image_tokens", 64)) / TOKENS_PER_LETTER))


ROWS: dict[str, Callable[[Any, int, list[str], Path], list[Row]]] = {
    "thinker": _thinker,
    "hearing": _hearing,
    "vision": _vision,
    "codec": _speech,
    "talker": _speech,
    "omni": _omni,
    "align": _align,
    "instruct": _instruct,
}
