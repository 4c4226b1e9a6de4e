"""Baseline from the question alone, without media: the floor that a model with vision must beat."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from muomni.data.conversation import questions
from muomni.data.sample import Sample
from muomni.errors import DataError
from muomni.evaluate.facts import Fact
from muomni.evaluate.metrics import paired_outcomes

WORD = re.compile(r"\w+")


class QuestionOnly:
    """Training questions and answers, and three guesses at the answer of another question: by its task, its
    text, its words."""

    def __init__(self, pairs: Sequence[tuple[str, list[str], str]]) -> None:
        self._by_task: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_text: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._answers = sorted({answer for _, _, answer in pairs})
        place = {answer: number for number, answer in enumerate(self._answers)}
        word_counts: dict[str, Counter[int]] = defaultdict(Counter)
        asked, words_A = np.zeros(len(place)), np.zeros(len(place))
        for task, words, answer in pairs:
            self._by_task[task][answer] += 1
            self._by_text[task, *words][answer] += 1
            asked[place[answer]] += 1
            for word in _features(task, words):
                word_counts[word][place[answer]] += 1
                words_A[place[answer]] += 1
        self._prior_A: NDArray[np.float64] = np.log(asked / len(pairs))
        self._unseen_A: NDArray[np.float64] = -np.log(words_A + len(word_counts))
        self._seen = {
            word: (np.array(list(counts)), np.log1p(list(counts.values())))
            for word, counts in word_counts.items()
        }

    @classmethod
    def fit(cls, samples: Iterable[Sample]) -> QuestionOnly:
        """Of every single question of the training samples.

        Raises  DataError (empty) if there is none.
        """
        pairs = [(one.task, _words(one), one.answer) for sample in samples for one in questions(sample)]
        if not pairs:
            raise DataError("empty", "question only: expected training questions, got none")
        return cls(pairs)

    def by_task(self, sample: Sample) -> str:
        """The task's commonest answer, "" of an unknown task."""
        return _commonest(self._by_task.get(sample.task, Counter()))

    def by_text(self, sample: Sample) -> str:
        """The commonest answer to the same words; of words that were never asked, the task's."""
        return _commonest(self._by_text.get((sample.task, *_words(sample)), Counter())) or self.by_task(
            sample
        )

    def by_words(self, sample: Sample) -> str:
        """The likeliest answer by multinomial naive Bayes with Laplace smoothing; words that no training
        question has say nothing."""
        known_words = [word for word in _features(sample.task, _words(sample)) if word in self._seen]
        score_A = self._prior_A + len(known_words) * self._unseen_A
        for word in known_words:
            places, logs = self._seen[word]
            score_A[places] += logs
        return self._answers[int(score_A.argmax())]

    def answer(self, sample: Sample) -> str:
        """The commonest answer to the same words, else the likeliest by each word."""
        return _commonest(self._by_text.get((sample.task, *_words(sample)), Counter())) or self.by_words(
            sample
        )

    def strongest(self, samples: Sequence[Sample]) -> tuple[str, list[str]]:
        """The way that guesses most of these answers right, and its guesses: held-out answers serve for
        nothing but to be compared with."""
        ways = {"task": self.by_task, "text": self.by_text, "words": self.by_words}
        guesses = {name: [way(one) for one in samples] for name, way in ways.items()}
        best = max(
            guesses, key=lambda name: sum(guess == one.answer for guess, one in zip(guesses[name], samples))
        )
        return best, guesses[best]


def gains(answers: Sequence[str], guessed: Sequence[str], truths: Sequence[str]) -> list[float]:
    """What looking gained in each question: 1 where the answer alone is right, -1 where the guess alone
    is."""
    return [
        float(answer == truth) - float(guess == truth)
        for answer, guess, truth in zip(answers, guessed, truths, strict=True)
    ]


def above(gained: Sequence[float]) -> Fact:
    """By which share answers are right more often than the guess, with an exact interval: above 0 where a
    sign test says so."""
    return Fact(float(np.mean(gained)), len(gained), paired_outcomes(gained))


def _words(sample: Sample) -> list[str]:
    """The words of a question, whatever their case and what stands between them."""
    return WORD.findall(sample.question.casefold())


def _features(task: str, words: Sequence[str]) -> list[str]:
    return [*words, f"task {task}"]  # a blank, so that it is none of the words


def _commonest(counts: Counter[str]) -> str:
    """The most frequent, among equals the first of the alphabet; "" of none."""
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")
