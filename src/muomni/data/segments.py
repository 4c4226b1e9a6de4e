"""Transcripts that are too long for their reader, cut between words whose times the row tells; what can't be
cut is counted, not bad.

Cuts are made by word times alone. Without these a pause of the sound would have to be laid to the right gap
between two words, and where words stand is known from their share of the letters only: of 0.25 s pauses in
read speech the nearest gap was the wrong one in 35 of 100 within 3 s of speech, in 52 within 7 s and in 69
within 17 s (docs/log.md). A piece with a word too many teaches CTC a lie, so such rows are left out and told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from muomni.data.sample import AudioPart, Message, Sample, TextPart
from muomni.data.uses import format_reasons, spoken
from muomni.errors import DataError

PAUSE_S = 0.3  # a gap of so much is as good a place to cut as any longer one
WITHIN = 2.0  # cuts in pauses that are worth to be spared one where words run into each other
MARGIN_S = 0.25  # silence that a piece keeps before its first and behind its last word, at most
NO_TIMES = "without word times"


@dataclass(frozen=True)
class Word:
    """A word as the transcript writes it, and when it is said, in seconds of its file."""

    text: str
    start: float
    end: float


@dataclass
class Segments:
    """Makes short samples of long ones and counts what became of these.

    max_text_len   characters of a transcript that its reader takes
    """

    max_text_len: int
    long: int = 0  # samples with more
    cut: int = 0
    pieces: int = 0
    longest: int = 0  # characters
    left_out: Counter[str] = field(default_factory=Counter)  # by reason

    def of(self, sample: Sample) -> Iterator[Sample]:
        """The sample where it is short enough or no speech at all, else its pieces, in their order; none
        where it can't be cut."""
        try:
            part, text = spoken(sample)
        except DataError:
            yield sample  # whoever reads it says what it lacks
            return
        if len(text) <= self.max_text_len:
            yield sample
            return
        self.long += 1
        self.longest = max(self.longest, len(text))
        try:
            timed = words(sample, part, text)
            bounds = cuts(timed, self.max_text_len)
        except DataError as error:
            self.left_out[error.message] += 1
            return
        self.cut += 1
        self.pieces += len(bounds) - 1
        yield from (
            _piece(sample, part, text, timed, *pair, number) for number, pair in enumerate(pairwise(bounds))
        )

    def describe(self) -> str:
        """What became of the long ones, in a line; "" where there are none."""
        if not self.long:
            return ""
        cut = f"{self.cut} cut between words into {self.pieces} pieces; " if self.cut else ""
        left = (
            f"{self.left_out.total()} left out ({format_reasons(self.left_out)}); " if self.left_out else ""
        )
        return f"{self.long} transcripts of more than {self.max_text_len} characters: {cut}{left}the longest has {self.longest} (max_text_len)"


def words(sample: Sample, part: AudioPart, text: str) -> list[Word]:
    """The words of a transcript with the times that `extra.words` gives: [word, start, end] or {"word",
    "start", "end"}, in seconds.

    Raises  DataError without times, or with such as can't be those of these words: others, in another order,
            outside of the sound.
    """
    timed_words = sample.extra.get("words")
    if not isinstance(timed_words, list) or not timed_words:
        raise DataError("no_times", NO_TIMES)
    spelt = text.split()
    times = [_times(one) for one in timed_words]
    if [_bare(word) for word in spelt] != [_bare(word) for word, _, _ in times]:
        raise DataError("no_times", "whose timed words are not those of the transcript")
    words_timed = [Word(word, start, end) for word, (_, start, end) in zip(spelt, times, strict=True)]
    low, high = part.start or 0.0, part.end if part.end is not None else float("inf")
    is_ordered = all(word.start < word.end for word in words_timed) and all(
        a.end <= b.start + 1e-6 for a, b in pairwise(words_timed)
    )
    if not is_ordered or words_timed[0].start < low - 1e-6 or words_timed[-1].end > high + 1e-6:
        raise DataError("no_times", "whose word times overlap or lie outside of the sound")
    return words_timed


def _times(one: Any) -> tuple[str, float, float]:
    """Word, start and end of one entry."""
    if isinstance(one, dict):
        one = [one.get("word", one.get("text")), one.get("start"), one.get("end")]
    if not (
        isinstance(one, list)
        and len(one) == 3
        and isinstance(one[0], str)
        and all(_is_time(value) for value in one[1:])
    ):
        raise DataError("no_times", "whose word times can't be read")
    return one[0], float(one[1]), float(one[2])


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _bare(word: str) -> str:
    """A word without case and punctuation, by which transcript and times are laid side by side."""
    return re.sub(r"[^\w]", "", word).casefold()


def cuts(timed: list[Word], most: int) -> list[int]:
    """Where pieces of at most so many characters begin, by the number of their first word, and last the count
    of all words.

    A cut costs 1, and up to WITHIN more where the pause is shorter than PAUSE_S; the cheapest cuts are found
    by dynamic programming.
    Raises  DataError where a word alone is longer.
    """
    if max(len(word.text) for word in timed) > most:
        raise DataError("no_times", "with a word that is longer")
    best: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # of the first n words: the least cost, and where their last piece begins
    for stop in range(1, len(timed) + 1):
        options, characters = [], -1
        for start in range(stop - 1, -1, -1):
            characters += len(timed[start].text) + 1
            if characters > most:
                break
            pause_s = timed[start].start - timed[start - 1].end if start else PAUSE_S
            options.append((best[start][0] + 1.0 + WITHIN * (1.0 - min(1.0, pause_s / PAUSE_S)), start))
        best.append(min(options))
    bounds = [len(timed)]
    while bounds[-1]:
        bounds.append(best[bounds[-1]][1])
    return bounds[::-1]


def _piece(
    sample: Sample, part: AudioPart, text: str, timed: list[Word], first: int, stop: int, number: int
) -> Sample:
    """A sample of some of the words. Its sound ends half way to the words beside them, and at most MARGIN_S
    from its own."""
    text_said = " ".join(word.text for word in timed[first:stop])
    start, end = part.start, part.end
    if first:
        start = max((timed[first - 1].end + timed[first].start) / 2, timed[first].start - MARGIN_S)
    if stop < len(timed):
        end = min((timed[stop - 1].end + timed[stop].start) / 2, timed[stop - 1].end + MARGIN_S)
    sound = part.model_copy(update={"start": start, "end": end})
    messages = [_with(message, part, sound, text, text_said) for message in sample.messages]
    extra = {key: value for key, value in sample.extra.items() if key != "words"} | {"text": text_said}
    return sample.model_copy(update={"id": f"{sample.id}#{number}", "messages": messages, "extra": extra})


def _with(message: Message, part: AudioPart, sound: AudioPart, text: str, said: str) -> Message:
    """The message with another sound in the place of one, and where it says the whole transcript, with other
    words."""
    if isinstance(message.content, str):
        return message.model_copy(update={"content": said}) if message.content == text else message
    content: list[TextPart | Any] = []
    for one in message.content:
        is_transcript = isinstance(one, TextPart) and one.text == text
        content.append(sound if one is part else TextPart(text=said) if is_transcript else one)
    return message.model_copy(update={"content": content})
