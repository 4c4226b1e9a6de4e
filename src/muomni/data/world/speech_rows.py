"""Rows that hold speech: transcripts, spoken digits, spoken questions, and the voice that answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from muomni.data.world import voices
from muomni.data.world.asking import Asker
from muomni.data.world.language import Sentences, spoken
from muomni.data.world.lexicon import NUMBERS, grammatical, is_held_out
from muomni.data.world.picture_rows import Shown, message
from muomni.data.world.utterance import Job
from muomni.data.world.vocabulary import WHOLE, Vocabulary

Row = dict[str, Any]
_SPOKEN_TURNS = 4  # questions about a picture in training
_TIMES_SAID = 12
_SHORT_SHARE = 0.2  # of the valid transcripts are single words, which can't be held out; marked in extra


class Speakers:
    """Voices in turn, each utterance with a rate and pitch of its own; collects the jobs."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._turns: dict[str, list[str]] = {"train": [], "valid": []}
        self.jobs: list[Job] = []

    def say(self, text: str, split: str, path: str) -> tuple[str, Row]:
        """Order an utterance by the next voice of the split; gives (voice, audio part)."""
        turns = self._turns[split]
        if not turns:
            turns.extend(
                str(voice)
                for voice in self._rng.permutation(voices.TRAIN if split == "train" else voices.HELD_OUT)
            )
        voice = turns.pop()
        rate, pitch = (
            int(self._rng.integers(low, high + 1)) for low, high in (voices.RATES_WPM, voices.PITCHES)
        )
        self.jobs.append(Job(path, text, voice, rate, pitch, int(self._rng.integers(1, 2**31))))
        return voice, {"type": "audio", "path": path, "speaker": voice}

    def answer(self, text: str, path: str) -> Row:
        """Order an utterance by the voice that answers; gives the audio part."""
        seed = int(self._rng.integers(1, 2**31))
        self.jobs.append(
            Job(path, text, voices.ANSWER_VOICE, voices.ANSWER_RATE_WPM, voices.ANSWER_PITCH, seed)
        )
        return {"type": "audio", "path": path, "speaker": voices.ANSWER_VOICE}


def _short_answers(vocabulary: Vocabulary) -> list[str]:
    places = [f"at the {place}" for place in vocabulary.places]
    return places + [grammatical(f"a {colour} {shape}") for colour, shape in vocabulary.seen_pairs]


def _training_texts(
    rng: np.random.Generator, count: int, vocabulary: Vocabulary, *, repeats: int, least: int, distinct: bool
) -> list[str]:
    """`count` training sentences, every word alone `repeats` times, every short answer, and more until every
    word came `least` times."""
    source = Sentences(rng, vocabulary)
    texts = (
        source.many(count, held_out=False, distinct=distinct)
        + list(vocabulary.words) * repeats
        + _short_answers(vocabulary)
    )
    return texts + source.cover(texts, least)


def transcript_rows(
    rng: np.random.Generator,
    speakers: Speakers,
    counts: dict[str, int],
    vocabulary: Vocabulary = WHOLE,
    *,
    repeats: int,
    least: int,
) -> list[Row]:
    """Many voices say sentences and words; the assistant writes the exact words."""
    short = int(counts["valid"] * _SHORT_SHARE)
    texts = {
        "train": _training_texts(
            rng, counts["train"], vocabulary, repeats=repeats, least=least, distinct=False
        ),
        "valid": Sentences(rng, vocabulary).many(counts["valid"] - short, held_out=True)
        + [
            str(word)
            for word in rng.choice(vocabulary.words, size=short, replace=short > len(vocabulary.words))
        ],
    }
    return [
        _heard(speakers, "transcribe", "transcript", split, index, text, text)
        for split in ("train", "valid")
        for index, text in enumerate(texts[split])
    ]


def digit_rows(speakers: Speakers, counts: dict[str, int]) -> list[Row]:
    """Many voices say a number; which one was it?"""
    return [
        _heard(
            speakers,
            "digit",
            "digit",
            split,
            index,
            NUMBERS[index % len(NUMBERS)],
            NUMBERS[index % len(NUMBERS)],
            "what number did you hear?",
        )
        for split in ("train", "valid")
        for index in range(counts[split])
    ]


def _heard(
    speakers: Speakers, task: str, name: str, split: str, index: int, text: str, answer: str, *after: str
) -> Row:
    voice, part = speakers.say(text, split, f"audio/{name}-{split}-{index:05d}.wav")
    return {
        "id": f"{name}-{split}-{index:05d}",
        "group": voice,
        "task": task,
        "split": split,
        "messages": [message("user", part, *after), message("assistant", answer)],
        "extra": {"text": text, "sentence": "held_out" if is_held_out(text) else "seen"},
    }


def spoken_question_rows(
    rng: np.random.Generator,
    speakers: Speakers,
    shown: list[Shown],
    counts: dict[str, int],
    vocabulary: Vocabulary = WHOLE,
) -> list[Row]:
    """A picture and spoken questions about it, several voices' in training, one in the valid split; the
    assistant answers in words.

    A question that training voices have said _TIMES_SAID times is heard again rather than said anew.
    """
    rows = []
    rows_by_split: dict[str, list[Row]] = {}
    for split in ("train", "valid"):
        training = split == "train"
        asker = Asker(rng, training=training, vocabulary=vocabulary)
        pool = [one for one in shown if one.split == split]
        order = rng.permutation(len(pool))
        for index in range(counts[split]):
            one = pool[order[index % len(pool)]]
            questions = asker.ask(one.scene, _SPOKEN_TURNS if training else 1)
            messages: list[Row] = []
            for turn, (_, question, answer) in enumerate(questions):
                text = spoken(question)
                heard = rows_by_split.setdefault(text, []) if training else []
                if len(heard) < _TIMES_SAID:
                    heard.append(speakers.say(text, split, f"audio/spoken-{split}-{index:05d}-{turn}.wav")[1])
                    part = heard[-1]
                else:
                    part = heard[rng.integers(len(heard))]
                picture: list[Row] = [{"type": "image", "path": one.picture.path}] if turn == 0 else []
                messages += [message("user", *picture, part), message("assistant", answer)]
            rows.append(
                {
                    "id": f"spoken-{split}-{index:05d}",
                    "group": one.picture.path,
                    "task": "spoken_question",
                    "split": split,
                    "messages": messages,
                    "extra": {
                        **one.extra(),
                        "kinds": [kind for kind, _, _ in questions],
                        "texts": [spoken(question) for _, question, _ in questions],
                    },
                }
            )
    return rows


def speak_rows(
    rng: np.random.Generator,
    speakers: Speakers,
    counts: dict[str, int],
    vocabulary: Vocabulary = WHOLE,
    *,
    repeats: int,
    least: int,
) -> list[Row]:
    """The voice that answers says the words that the user gives."""
    texts = {
        "train": _training_texts(
            rng, counts["train"], vocabulary, repeats=repeats, least=least, distinct=True
        ),
        "valid": Sentences(rng, vocabulary).many(counts["valid"], held_out=True),
    }
    return _answered(speakers, "speak", texts)


def number_rows(rng: np.random.Generator, speakers: Speakers, counts: dict[str, int]) -> list[Row]:
    """The voice that answers says one to four digits, one after the other: "seven two nine".

    Training has each digit alone four times. Longer strings are of each length in turn, and in one split alone;
    training says those of a length again when it has said all: who hears few of two digits says three (docs/log.md).
    """
    digits = NUMBERS[:10]
    strings = [[" ".join(each) for each in itertools.product(digits, repeat=length)] for length in (2, 3, 4)]
    orders = [[each[place] for place in rng.permutation(len(each))] for each in strings]
    in_turn = [text for texts in itertools.zip_longest(*orders) for text in texts if text is not None]
    valid = in_turn[: counts["valid"]]
    left = [[text for text in order if text not in valid] for order in orders]
    again = (next(texts) for texts in itertools.cycle([itertools.cycle(each) for each in left if each]))
    train = [*itertools.islice(itertools.chain([*digits] * 4, again), counts["train"])]
    return _answered(speakers, "number", {"train": train, "valid": valid})


def _answered(speakers: Speakers, task: str, texts: Mapping[str, Sequence[str]]) -> list[Row]:
    """The voice that answers says texts, which the user gives."""
    rows = []
    for split in ("train", "valid"):
        for index, text in enumerate(texts[split]):
            part = speakers.answer(text, f"audio/{task}-{split}-{index:05d}.wav")
            messages = [
                message("user", text),
                {"role": "assistant", "content": [{"type": "text", "text": text}, part]},
            ]
            rows.append(
                {
                    "id": f"{task}-{split}-{index:05d}",
                    "group": text,
                    "task": task,
                    "split": split,
                    "messages": messages,
                    "extra": {"text": text},
                }
            )
    return rows
