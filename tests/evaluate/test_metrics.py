"""Metrics, by hand and against outside references."""

import math
from collections.abc import Sequence

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import ShapeError
from muomni.evaluate import metrics

WORDS = st.lists(st.sampled_from(["red", "blue", "a"]), max_size=6)


@given(st.text("abc", max_size=7), st.text("abc", max_size=7), st.text("abc", max_size=7))
@settings(max_examples=100)
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert metrics.levenshtein(a, b) == metrics.levenshtein(b, a) <= max(len(a), len(b))
    assert (metrics.levenshtein(a, b) == 0) == (a == b)
    assert metrics.levenshtein(a, c) <= metrics.levenshtein(a, b) + metrics.levenshtein(b, c)


def levenshtein_by_rows(reference: Sequence[str], guess: Sequence[str]) -> int:
    """The edit distance as the definition has it: one row of the table at a time."""
    row = list(range(len(guess) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, got in enumerate(guess, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != got))
    return row[-1]


TEXTS = st.text(max_size=90) | st.text(
    "ab \ud800", max_size=90
)  # more than 64 symbols leave the library's one-word path


@given(
    (st.tuples(TEXTS, TEXTS))
    | st.tuples(*2 * [st.lists(st.sampled_from(["", "a", "b", "ab", "ö"]), max_size=80)])
)
@settings(max_examples=200, deadline=None)
def test_edit_distance_equals_the_one_by_rows(pair: tuple[Sequence[str], Sequence[str]]) -> None:
    assert metrics.levenshtein(*pair) == levenshtein_by_rows(*pair)


@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=4))
@settings(max_examples=50)
def test_error_rates_equal_jiwers(pairs: list[tuple[list[str], list[str]]]) -> None:
    references, guesses = [" ".join(a) for a, _ in pairs], [" ".join(b) for _, b in pairs]
    assert metrics.wer(references, guesses) == pytest.approx(jiwer.wer(references, guesses))
    assert metrics.cer(references, guesses) == pytest.approx(jiwer.cer(references, guesses))


@given(st.integers(1, 60), st.data())
@settings(max_examples=60)
def test_exact_intervals_are_what_they_say(n: int, data: st.DataObject) -> None:
    """At either end of the interval, as extreme a count or more has a probability of 2.5 %."""
    hits = data.draw(st.integers(0, n))
    low, high = metrics.clopper_pearson(hits, n)
    assert 0.0 <= low <= hits / n <= high <= 1.0

    def at_least(least: int, p: float) -> float:
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least, n + 1))

    assert at_least(hits, low) == pytest.approx(0.025, rel=1e-6) if hits else low == 0.0
    assert 1 - at_least(hits + 1, high) == pytest.approx(0.025, rel=1e-6) if hits < n else high == 1.0


def test_sign_tests_known_by_heart() -> None:
    assert metrics.sign_test(0, 0) == 1.0
    assert metrics.sign_test(4, 0) == metrics.sign_test(0, 4) == pytest.approx(0.125)
    assert metrics.sign_test(6, 0) == pytest.approx(0.03125)
    assert metrics.sign_test(5, 5) == 1.0
    assert metrics.sign_test(60, 40) == pytest.approx(0.0568879, rel=1e-5)
    assert metrics.sign_test(60_000, 40_000) == pytest.approx(0.0, abs=1e-300)
    assert metrics.clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("gains", "is_sure"),
    [
        ([0.0] * 200, False),  # a tie in all
        ([1.0] * 4 + [0.0] * 196, False),  # resampled, the mean lies above 0
        ([1.0] * 5 + [0.0] * 195, False),
        ([1.0] * 6 + [0.0] * 194, True),
        ([1.0], False),  # one item has no spread to resample
        ([1.0] * 60 + [-1.0] * 40 + [0.0] * 100, False),
        ([1.0] * 65 + [-1.0] * 35, True),
        ([-1.0] * 6, False),
    ],
)
def test_few_wins_are_not_sure(gains: list[float], is_sure: bool) -> None:
    for interval in (metrics.paired, metrics.paired_outcomes):
        low, high = interval(gains)
        assert (low > 0) is is_sure
        assert low <= sum(gains) / len(gains) <= high
    assert metrics.bootstrap([1.0] * 4 + [0.0] * 196)[0] > 0, "too kind: the reason for the exact test"
    with pytest.raises(ShapeError):
        metrics.paired([])
    with pytest.raises(ShapeError):
        metrics.paired_outcomes([])


def test_a_sure_mean_of_few_differences_is_not_sure() -> None:
    """4 of 64 gaps are large and the others exactly 0, as where a medium hardly reaches the answers."""
    assert metrics.bootstrap([3.0] * 4 + [0.0] * 60)[0] > 0
    assert metrics.paired([3.0] * 4 + [0.0] * 60)[0] == 0.0
    assert metrics.paired([3.0] * 40 + [0.0] * 24)[0] > 0
    assert metrics.paired([0.0] * 64) == (0.0, 0.0)


def test_known_distances() -> None:
    assert metrics.levenshtein("kitten", "sitting") == 3
    assert metrics.levenshtein("", "abc") == 3
    assert metrics.cer(["four", ""], ["for", "x"]) == 2 / 4


def test_error_rates_refuse_nothing_and_mismatches() -> None:
    with pytest.raises(ShapeError):
        metrics.cer(["", ""], ["a", ""])
    with pytest.raises(ShapeError):
        metrics.cer(["a"], ["a", "b"])
    with pytest.raises(ShapeError):
        metrics.exact([], [])


def test_retrieval_by_hand() -> None:
    images = np.eye(4)
    texts = np.eye(4)[[0, 1, 3, 2]]
    found = metrics.retrieval(images, texts, list("abcd"), ks=(1, 2), batch=4)
    assert found.image_to_text[1] == found.text_to_image[1] == 0.5
    assert found.chance == {1: 0.25, 2: 0.5}
    asymmetric = metrics.retrieval(np.array([[1.0, 0], [0.9, 0.1]]), np.array([[1.0, 0], [0, 1.0]]), [0, 1])
    assert (asymmetric.image_to_text[1], asymmetric.text_to_image[1], asymmetric.mean(1)) == (0.5, 1.0, 0.75)


def test_retrieval_takes_any_right_caption_and_ranks_within_batches() -> None:
    images = np.eye(4)
    twins = np.eye(4)[[1, 0, 2, 3]]
    assert metrics.retrieval(images, twins, ["a", "a", "b", "c"], batch=4).mean(1) == 1.0
    crossed = np.eye(4)[[2, 3, 0, 1]]
    assert metrics.retrieval(images, crossed, list("abcd"), batch=4).mean(1) == 0.0
    assert metrics.retrieval(np.eye(5), np.eye(5), list("abcde"), batch=2).chance[1] == 0.5


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan])
def test_a_collapsed_encoder_scores_nothing(value: float) -> None:
    flat = np.full((8, 3), value)
    assert metrics.retrieval(flat, flat, list(range(8))).mean(1) == 0.0


def test_random_embeddings_score_about_chance() -> None:
    rng = np.random.default_rng(0)
    found = metrics.retrieval(rng.normal(size=(1280, 16)), rng.normal(size=(1280, 16)), list(range(1280)))
    assert found.mean(1) == pytest.approx(1 / 64, abs=0.01)
    assert found.mean(5) == pytest.approx(5 / 64, abs=0.02)


def test_the_probe_finds_what_is_linear_and_only_that() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 12)) * 30 + 5
    linear = np.where(features @ rng.normal(size=12) > np.median(features @ np.ones(12)), "yes", "no")
    three = features[:, 3:6].argmax(1)
    hidden = np.sign(features[:, 0] - 5) * np.sign(features[:, 1] - 5)
    scores = {
        name: metrics.linear_probe(features[:400], list(y[:400]), features[400:], list(y[400:]))
        for name, y in {"linear": linear, "three": three, "hidden": hidden}.items()
    }
    assert scores["linear"] > 0.9
    assert scores["three"] > 0.85
    assert scores["hidden"] < 0.65


def test_the_probe_survives_dead_features() -> None:
    features = np.c_[np.zeros(20), np.repeat([0.0, 1.0], 10)]
    labels = ["a"] * 10 + ["b"] * 10
    assert metrics.linear_probe(features, labels, features, labels) == 1.0


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        low, high = metrics.bootstrap(list(rng.random(100) < 0.7), rounds=300, seed=seed)
        hits += low <= 0.7 <= high
    assert hits >= 50
    assert metrics.bootstrap([1.0, 0.0, 1.0]) == metrics.bootstrap([1.0, 0.0, 1.0])
    assert metrics.bootstrap([0.5]) == (0.5, 0.5)
    with pytest.raises(ShapeError):
        metrics.bootstrap([])


def test_entropies() -> None:
    assert metrics.bits_per_byte(math.log(2) * 24, 3) == pytest.approx(8.0)
    assert metrics.unigram_entropy([1, 1, 2, 2]) == pytest.approx(math.log(2))
    assert metrics.unigram_entropy("aaa") == 0.0
    with pytest.raises(ShapeError):
        metrics.bits_per_byte(1.0, 0)
