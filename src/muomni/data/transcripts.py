"""One sound with several different transcripts and no times: whichever is right, the others teach a lie."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator

import numpy as np

from muomni.data.sample import Sample
from muomni.data.uses import transcript

SPELLING = re.compile(r"[\W_]+")  # blanks and punctuation make no other words
TASKS = (
    "transcribe",
    "speak",
)  # several captions of a picture, or questions about a sound, are no contradiction


class Transcripts:
    """Takes samples one after another and holds 24 bytes of each that has a sound and its words."""

    def __init__(self) -> None:
        self._sounds, self._words, self._numbers = array("Q"), array("Q"), array("q")

    def add(self, number: int, sample: Sample) -> None:
        """One more sample, by a number that tells it from the others."""
        if sample.task not in TASKS:
            return
        sounds = sample.audios or sample.speech
        if len(sounds) != 1:
            return
        part = sounds[0]
        question = sample.question if sample.audios else ""
        self._sounds.append(
            _digest(f"{sample.task}\0{part.path}\0{part.start}\0{part.end}\0{part.channel}\0{question}")
        )
        self._words.append(_digest(SPELLING.sub("", transcript(sample)).casefold()))
        self._numbers.append(number)

    def clashes(self) -> Iterator[list[int]]:
        """The numbers of samples that share a sound and differ in its words, a list a sound, in their
        order."""
        sounds, words = np.frombuffer(self._sounds, np.uint64), np.frombuffer(self._words, np.uint64)
        if not len(sounds):
            return
        order = np.lexsort((words, sounds))
        sounds, words = sounds[order], words[order]
        keys = np.unique(sounds[1:][(sounds[1:] == sounds[:-1]) & (words[1:] != words[:-1])])
        for start, stop in zip(
            np.searchsorted(sounds, keys), np.searchsorted(sounds, keys, "right"), strict=True
        ):
            yield sorted(self._numbers[place] for place in order[start:stop].tolist())


def clash_message(path: str, count: int) -> str:
    """What is wrong, in a line."""
    return f"{path}: expected one transcript of a sound, or the times of each, got {count} rows that differ"


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
