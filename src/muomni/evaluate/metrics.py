"""Numbers measured on held-out data: error rates, retrieval, probes, entropies, and how sure they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from muomni.errors import ShapeError

Array = NDArray[Any]


def levenshtein(reference: Sequence[str], guess: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that turn one text or list of words into another."""
    return Levenshtein.distance(reference, guess)


def error_rate(references: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> float:
    """All edits by all reference symbols: long references weigh more, and empty ones still count what is
    invented for them.

    Raises  ShapeError if the lists differ in length or no reference holds a symbol.
    """
    if len(references) != len(guesses):
        raise ShapeError(f"error rate: {len(references)} references for {len(guesses)} guesses")
    total = sum(map(len, references))
    if total == 0:
        raise ShapeError(f"error rate: {len(references)} references hold no symbol")
    return sum(levenshtein(reference, guess) for reference, guess in zip(references, guesses)) / total


def cer(references: Sequence[str], guesses: Sequence[str]) -> float:
    """Character error rate; 0.02 is two characters in a hundred."""
    return error_rate(references, guesses)


def wer(references: Sequence[str], guesses: Sequence[str]) -> float:
    """Word error rate; words are what whitespace separates."""
    return error_rate([text.split() for text in references], [text.split() for text in guesses])


def exact(references: Sequence[Any], guesses: Sequence[Any]) -> float:
    """The share of guesses that are right in whole."""
    if len(references) != len(guesses) or not references:
        raise ShapeError(f"exact match: {len(references)} references for {len(guesses)} guesses")
    return sum(bool(reference == got) for reference, got in zip(references, guesses)) / len(references)


class Retrieval(NamedTuple):
    """R@k of both directions by k, and what guessing would give."""

    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    chance: dict[int, float]

    def mean(self, k: int) -> float:
        """The two directions averaged."""
        return (self.image_to_text[k] + self.text_to_image[k]) / 2


def retrieval(
    images_NE: Array,
    texts_NE: Array,
    keys: Sequence[Hashable],
    *,
    ks: Sequence[int] = (1, 5),
    batch: int = 64,
) -> Retrieval:
    """How often the true partner is among the k nearest, within consecutive batches.

    Takes   unit vectors, row i of one belongs to row i of the other; keys, equal for equal captions: every
            one with the right key is right. `batch` rows compete with each other; a rest smaller than that is
            left out, unless it is all there is.
    Gives   Retrieval; a tie counts as wrong, and so does NaN (a collapsed encoder must not score).
    """
    if not len(images_NE) == len(texts_NE) == len(keys) or not len(keys):
        raise ShapeError(f"retrieval: {len(images_NE)} images, {len(texts_NE)} texts, {len(keys)} keys")
    batch = min(batch, len(keys))
    codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    labels = np.array([codes[key] for key in keys])
    ranks: tuple[list[int], list[int]] = ([], [])
    chances: list[float] = []
    for start in range(0, len(keys) - batch + 1, batch):
        rows = slice(start, start + batch)
        similar = (
            np.asarray(images_NE[rows], dtype=np.float64) @ np.asarray(texts_NE[rows], dtype=np.float64).T
        )
        right = labels[rows, None] == labels[None, rows]
        chances.extend(right.mean(1))
        for rank_lists, matrix in zip(ranks, (similar, similar.T)):
            best = np.where(right, matrix, -np.inf).max(1, keepdims=True)
            rank_lists.extend((~(matrix < best) & ~right).sum(1).tolist())
    forth, back = ({k: float(np.mean(np.array(rank_lists) < k)) for k in ks} for rank_lists in ranks)
    return Retrieval(forth, back, {k: min(1.0, k * float(np.mean(chances))) for k in ks})


def linear_probe(
    train_ND: Array,
    train_labels: Sequence[Hashable],
    test_ND: Array,
    test_labels: Sequence[Hashable],
    *,
    ridge: float = 1e-2,
) -> float:
    """The accuracy of a ridge regression onto one-hot labels: is the attribute there for a linear reader?

    Takes   features (N, D); `ridge` relative to the mean variance of the features, which are standardised by
            the training rows.
    Gives   the share of test rows whose label scores highest.
    """
    labels = sorted(set(train_labels), key=repr)
    mean, deviation = train_ND.mean(0, dtype=np.float64), train_ND.std(0, dtype=np.float64) + 1e-6
    x = np.c_[(train_ND - mean) / deviation, np.ones(len(train_ND))]
    one_hot = np.array([[label == other for other in labels] for label in train_labels], dtype=np.float64)
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ one_hot)
    scores = np.c_[(test_ND - mean) / deviation, np.ones(len(test_ND))] @ weights
    return exact(list(test_labels), [labels[best] for best in scores.argmax(1)])


def bootstrap(
    values: Sequence[float], *, rounds: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The interval that holds the mean of `values` with probability `level`, by resampling items.

    Raises  ShapeError without values.
    """
    if not len(values):
        raise ShapeError("bootstrap: no values")
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), (rounds, len(data)))
    low, high = np.quantile(data[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired(gains: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean difference between pairs: `bootstrap`, widened to 0 where a sign test does
    not tell them apart.

    Resampling is too kind to few pairs, and to many of which few differ: of 4 wins and 196 ties its interval
    lies above 0, though 4 coins fall alike once in 8 times.
    """
    low, high = bootstrap(gains)
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return (low, high) if sign_test(wins, losses) < 0.05 else (min(low, 0.0), max(high, 0.0))


def paired_outcomes(gains: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean difference between pairs that is 1 (won), 0 (a tie) or -1 (lost) in each:
    exact, given how many differ.

    It lies above 0 where a two-sided sign test finds more wins than losses.
    Raises  ShapeError without values.
    """
    if not len(gains):
        raise ShapeError("paired outcomes: no values")
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    low, high = clopper_pearson(wins, wins + losses)
    share = (wins + losses) / len(gains)
    return (2 * low - 1) * share, (2 * high - 1) * share


def sign_test(wins: int, losses: int) -> float:
    """The probability that a fair coin falls at least as unevenly, to either side; 1 where nothing was
    tossed."""
    return min(1.0, 2 * _at_least(max(wins, losses), wins + losses, 0.5))


def clopper_pearson(hits: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share of n items (Clopper, Pearson 1934); all from 0 to 1 where n is 0."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _where(lambda p: _at_least(hits, n, p) > tail)
    high = 1.0 if hits == n else 1 - _where(lambda q: _at_least(n - hits, n, q) > tail)
    return low, high


def _where(holds: Callable[[float], bool]) -> float:
    """The least share for which a rising condition holds, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return (low + high) / 2


def _at_least(hits: int, n: int, p: float) -> float:
    """The probability of at least so many hits of n, each with probability p."""
    if hits <= 0:
        return 1.0
    if not 0.0 < p < 1.0:
        return p
    counts = np.arange(hits, n + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logs = (
        factorials[n]
        - factorials[counts]
        - factorials[n - counts]
        + counts * math.log(p)
        + (n - counts) * math.log1p(-p)
    )
    return min(1.0, float(np.exp(logs).sum()))


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """A language model's loss by bytes of text, so that tokenizers can be compared."""
    if total_bytes < 1:
        raise ShapeError(f"bits per byte: {total_bytes} bytes")
    return total_nats / math.log(2) / total_bytes


def unigram_entropy(ids: Iterable[Hashable]) -> float:
    """Nats a token of a model that knows only how frequent each token is: what any language model must
    beat."""
    counts = Counter(ids)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def snr_db(true_S: Array, guess_S: Array) -> float:
    """Signal-to-noise ratio of a wave against the true one, of equal length: 0 dB is what silence gets.

    Gives   inf where they are equal; nan where the true wave is silent and the guess is not.
    Raises  ShapeError if the shapes differ.
    """
    if true_S.shape != guess_S.shape:
        raise ShapeError(f"snr: {true_S.shape} against {guess_S.shape}")
    true, guess = true_S.astype(np.float64), guess_S.astype(np.float64)
    return _ratio_db(float(np.square(true).sum()), float(np.square(true - guess).sum()))


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else math.nan
