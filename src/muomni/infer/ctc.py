"""CTC log-probabilities -> symbols: greedy, or a prefix beam that may listen to a language model of
characters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.errors import ConfigError, ShapeError
from muomni.files import read_json, write_json
from muomni.tokens.alphabet import BLANK, collapse, min_frames

FloatArray = NDArray[np.floating[Any]]
Prefix = tuple[int, ...]
NEVER = -math.inf
# Symbols less likely than this in a frame open no new prefix there.
LEAST_LOG_PROB = math.log(1e-4)


def greedy(log_probs_TC: FloatArray) -> list[int]:
    """The symbols of the likeliest path.

    Takes   log_probs_TC (T, C), the real frames only, blank at 0.
    """
    _check(log_probs_TC)
    return collapse(log_probs_TC.argmax(1).tolist())


class CharLM:
    """An n-gram model of symbol ids with interpolated back-off; it also knows where texts end.

    Source  Witten and Bell 1991: a context trusts its own counts as far as it has seen them repeat.
    """

    END = -1

    def __init__(self, order: int, size: int, counts: dict[Prefix, dict[int, int]]) -> None:
        self.order = order
        self.size = size
        self._counts = counts
        self._totals = {context: sum(follow.values()) for context, follow in counts.items()}

    @classmethod
    def train(cls, texts: Iterable[Sequence[int]], *, size: int, order: int = 6) -> CharLM:
        """Count the n-grams of texts, each a sequence of symbol ids below `size`."""
        if order < 1:
            raise ConfigError(f"character LM: order must be at least 1, got {order}")
        counts: dict[Prefix, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for text in texts:
            padded = (*[cls.END] * (order - 1), *text, cls.END)
            for at in range(order - 1, len(padded)):
                for width in range(order):
                    counts[padded[at - width : at]][padded[at]] += 1
        return cls(order, size, {context: dict(follow) for context, follow in counts.items()})

    def log_prob(self, prefix: Prefix, symbol: int) -> float:
        """log p(symbol | prefix), nats; symbol END asks whether the text is over. Sums to 1 over size symbols
        and END."""
        seen = prefix[max(0, len(prefix) - self.order + 1) :]
        history = (*[self.END] * (self.order - 1 - len(seen)), *seen)
        prob = 1.0 / (self.size + 1)
        for width in range(self.order):
            context = history[len(history) - width :]
            follow = self._counts.get(context)
            if follow is None:
                break
            prob = (follow.get(symbol, 0) + len(follow) * prob) / (self._totals[context] + len(follow))
        return math.log(prob)

    def save(self, path: Path) -> None:
        """Write one JSON file."""
        rows = [[list(context), sorted(follow.items())] for context, follow in sorted(self._counts.items())]
        write_json(path, {"order": self.order, "size": self.size, "counts": rows})

    @classmethod
    def load(cls, path: Path) -> CharLM:
        """Read what `save` wrote."""
        stored = read_json(path)
        counts = {tuple(context): dict(follow) for context, follow in stored["counts"]}
        return cls(stored["order"], stored["size"], counts)


@dataclass(frozen=True)
class Hypothesis:
    """A spelt text and its score: log p(ids | audio) + weight * log p_LM(ids) + bonus * length, nats."""

    ids: list[int]
    score: float


class Beam:
    """A prefix beam search over frames that come bit by bit.

    Takes   lm_weight and length_bonus (nats a symbol, to repay what the LM takes from long texts) count only
            with an lm.
    Source  Hannun et al. 2014, prefix beam search; the LM here weighs characters, not words.
    """

    def __init__(
        self,
        *,
        width: int = 8,
        lm: CharLM | None = None,
        lm_weight: float = 0.5,
        length_bonus: float = 0.5,
    ) -> None:
        if width < 1:
            raise ConfigError(f"beam: width must be at least 1, got {width}")
        self.width, self.lm, self.lm_weight, self.length_bonus = width, lm, lm_weight, length_bonus
        # A prefix keeps two masses: of the paths that end in a blank, and of those that end in its last symbol.
        self._masses: dict[Prefix, tuple[float, float]] = {(): (0.0, NEVER)}
        self._bonuses: dict[Prefix, float] = {(): 0.0}  # what LM and bonus add to a prefix

    def push(self, log_probs_TC: FloatArray) -> None:
        """More frames: log_probs_TC (T, C), the real ones only, blank at 0."""
        _check(log_probs_TC)
        for row in np.asarray(log_probs_TC, dtype=np.float64):
            likely = [symbol for symbol in np.flatnonzero(row > LEAST_LOG_PROB).tolist() if symbol != BLANK]
            frame: list[float] = row.tolist()
            grown: dict[Prefix, tuple[float, float]] = {}

            def add(
                prefix: Prefix, blank: float, symbol: float, grown: dict[Prefix, tuple[float, float]] = grown
            ) -> None:
                had = grown.get(prefix, (NEVER, NEVER))
                grown[prefix] = (log_sum(had[0], blank), log_sum(had[1], symbol))

            for prefix, (ends_blank, ends_symbol) in self._masses.items():
                either = log_sum(ends_blank, ends_symbol)
                add(prefix, either + frame[BLANK], ends_symbol + frame[prefix[-1]] if prefix else NEVER)
                for symbol in likely:
                    repeats = bool(prefix) and symbol == prefix[-1]
                    add((*prefix, symbol), NEVER, (ends_blank if repeats else either) + frame[symbol])
            told_of = self._told_of
            ranked = sorted(grown, key=lambda prefix: log_sum(*grown[prefix]) + told_of(prefix), reverse=True)
            self._masses = {prefix: grown[prefix] for prefix in ranked[: self.width]}

    def certain(self) -> list[int]:
        """What all texts that are still thought of begin with: whatever comes, it stays."""
        one, other = min(self._masses), max(self._masses)
        same = next((place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), None)
        return list(one if same is None else one[:same])

    def hypotheses(self) -> list[Hypothesis]:
        """The likeliest texts if no more frames come, best first, each summed over the paths that spell it; at most
        `width`."""
        lm, masses = self.lm, self._masses
        ends = {prefix: self.lm_weight * lm.log_prob(prefix, CharLM.END) if lm else 0.0 for prefix in masses}
        guesses = [Hypothesis(list(p), log_sum(*masses[p]) + self._told_of(p) + ends[p]) for p in masses]
        return sorted(guesses, key=lambda guess: guess.score, reverse=True)

    def _told_of(self, prefix: Prefix) -> float:
        if self.lm is None:
            return 0.0
        if prefix not in self._bonuses:
            self._bonuses[prefix] = (
                self._told_of(prefix[:-1])
                + self.lm_weight * self.lm.log_prob(prefix[:-1], prefix[-1])
                + self.length_bonus
            )
        return self._bonuses[prefix]


def beam(
    log_probs_TC: FloatArray,
    *,
    width: int = 8,
    lm: CharLM | None = None,
    lm_weight: float = 0.5,
    length_bonus: float = 0.5,
) -> list[Hypothesis]:
    """The likeliest texts of all frames, best first, as `Beam` finds them."""
    search = Beam(width=width, lm=lm, lm_weight=lm_weight, length_bonus=length_bonus)
    search.push(log_probs_TC)
    return search.hypotheses()


def align(log_probs_TC: FloatArray, ids: Sequence[int]) -> list[tuple[int, int]]:
    """[first frame, frame after the last) of each symbol, on the likeliest path that spells `ids`.

    Raises  ShapeError where there are too few frames for them.
    Source  Viterbi over symbols with blanks between them, as Graves et al. 2006 (section 4.1) sum over it.
    """
    _check(log_probs_TC)
    if not ids:
        return []
    if len(log_probs_TC) < min_frames(ids):
        raise ShapeError(f"ctc: {len(ids)} symbols do not fit {len(log_probs_TC)} frames")
    states = np.full(2 * len(ids) + 1, BLANK)
    states[1::2] = ids
    may_skip = np.zeros(len(states), dtype=bool)  # the blank before it, where its neighbour is another symbol
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    scores = np.full(len(states), NEVER)
    scores[:2] = log_probs_TC[0, states[:2]]
    steps_TS = np.zeros((len(log_probs_TC), len(states)), dtype=np.int8)
    for frame in range(1, len(log_probs_TC)):
        ways = np.full((3, len(states)), NEVER)
        ways[0] = scores
        ways[1, 1:] = scores[:-1]
        ways[2, 2:] = np.where(may_skip[2:], scores[:-2], NEVER)
        steps_TS[frame] = ways.argmax(0)
        scores = ways.max(0) + log_probs_TC[frame, states]
    state = len(states) - 1 if scores[-1] >= scores[-2] else len(states) - 2
    path = [state]
    for frame in range(len(log_probs_TC) - 1, 0, -1):
        state -= int(steps_TS[frame, state])
        path.append(state)
    places = np.array(path[::-1])
    at = [np.flatnonzero(places == 2 * number + 1) for number in range(len(ids))]
    return [(int(frames[0]), int(frames[-1]) + 1) for frames in at]


def log_sum(one: float, other: float) -> float:
    """log(exp(one) + exp(other)); a beam asks it of so many single numbers that numpy's own takes most of its
    time."""
    more, less = (one, other) if one >= other else (other, one)
    return more if less == NEVER else more + math.log1p(math.exp(less - more))


def _check(log_probs_TC: FloatArray) -> None:
    if log_probs_TC.ndim != 2 or log_probs_TC.shape[1] < 2:
        raise ShapeError(f"ctc: expected log-probabilities (T, C) of one utterance, got {log_probs_TC.shape}")
