"""Decoding: the beam sums over paths, the language model tips the scale, and nothing costs more than it
should."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.errors import ConfigError, ShapeError
from muomni.infer import ctc
from muomni.infer.ctc import CharLM, beam, greedy


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def spelt(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def every_text(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """The log-probability of every text, by walking every path."""
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = float(sum(log_probs[t, symbol] for t, symbol in enumerate(path)))
        sums[spelt(path)] = float(np.logaddexp(sums.get(spelt(path), -math.inf), score))
    return sums


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_likeliest_text_with_its_exact_score(seed: int) -> None:
    log_probs = log_softmax(np.random.default_rng(seed).normal(size=(6, 4)))
    truth = every_text(log_probs)
    best = max(truth, key=truth.__getitem__)
    guesses = beam(log_probs, width=5000)
    assert tuple(guesses[0].ids) == best
    assert guesses[0].score == pytest.approx(truth[best], abs=1e-9)
    assert [guess.score for guess in guesses] == sorted((guess.score for guess in guesses), reverse=True)


def test_the_beam_beats_the_best_path_where_mass_is_spread() -> None:
    """Each frame prefers the blank, yet "1" gathers more mass over its paths."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert greedy(log_probs) == []
    assert beam(log_probs, width=8)[0].ids == [1]


@pytest.mark.parametrize("seed", range(5))
def test_the_beam_is_never_less_likely_than_greedy(seed: int) -> None:
    log_probs = log_softmax(2 * np.random.default_rng(seed).normal(size=(6, 4)))
    truth = every_text(log_probs)
    assert truth[tuple(beam(log_probs, width=8)[0].ids)] >= truth[tuple(greedy(log_probs))] - 1e-9


def test_a_sure_model_reads_alike_with_any_width() -> None:
    path = [0, 3, 3, 0, 3, 1, 0, 2, 2]
    log_probs = log_softmax(9.0 * np.eye(4)[path])
    assert (
        greedy(log_probs)
        == [3, 3, 1, 2]
        == beam(log_probs, width=1)[0].ids
        == beam(log_probs, width=8)[0].ids
    )


def test_silence_spells_nothing() -> None:
    log_probs = log_softmax(np.tile([9.0, 0, 0, 0], (5, 1)))
    assert greedy(log_probs) == [] == beam(log_probs)[0].ids
    assert greedy(np.zeros((0, 4))) == [] == beam(np.zeros((0, 4)))[0].ids


def test_the_language_model_settles_what_the_ear_leaves_open() -> None:
    lm = CharLM.train([[1, 2, 3]] * 5 + [[4, 4]], size=5, order=3)
    frames = np.full((3, 5), 1e-3)
    frames[0, 1] = frames[2, 3] = 1
    frames[1, 2], frames[1, 4] = 0.45, 0.55  # the ear leans to 4 in the middle
    log_probs = log_softmax(np.log(frames))
    assert greedy(log_probs) == [1, 4, 3] == beam(log_probs)[0].ids
    assert beam(log_probs, lm=lm, lm_weight=0.5)[0].ids == [1, 2, 3]


def test_the_bonus_pays_for_length() -> None:
    lm = CharLM.train([[1], [1, 1]], size=2, order=2)
    log_probs = np.log(np.array([[0.3, 0.7], [0.7, 0.3], [0.4, 0.6]]))
    lengths = [
        len(beam(log_probs, lm=lm, lm_weight=1.0, length_bonus=bonus)[0].ids) for bonus in (-20.0, 20.0)
    ]
    assert lengths == [0, 2]


@pytest.mark.parametrize("prefix", [(), (1,), (1, 2), (3, 3, 3), (4, 1, 2, 3)])
def test_the_language_model_is_a_distribution(prefix: tuple[int, ...]) -> None:
    lm = CharLM.train([[1, 2, 3], [1, 2, 2], [4]], size=5, order=3)
    assert sum(math.exp(lm.log_prob(prefix, symbol)) for symbol in [*range(5), CharLM.END]) == pytest.approx(
        1.0
    )


def test_the_language_model_by_hand() -> None:
    lm = CharLM.train([[1], [1], [2]], size=3, order=2)
    uniform = 1 / 4
    one = (2 + 3 * uniform) / (6 + 3)  # unigram: two 1s among six events of three kinds
    assert math.exp(lm.log_prob((), 1)) == pytest.approx((2 + 2 * one) / (3 + 2))
    assert lm.log_prob((1,), CharLM.END) > lm.log_prob((1,), 1)


def test_the_language_model_is_kept(tmp_path: Path) -> None:
    lm = CharLM.train([[1, 2, 3], [4, 2]], size=5)
    lm.save(tmp_path / "lm.json")
    again = CharLM.load(tmp_path / "lm.json")
    for prefix in [(), (1,), (1, 2), (2, 2, 2)]:
        assert all(
            again.log_prob(prefix, symbol) == lm.log_prob(prefix, symbol) for symbol in [-1, *range(5)]
        )


def test_wrong_takings_are_refused() -> None:
    with pytest.raises(ShapeError):
        greedy(np.zeros((1, 5, 4)))
    with pytest.raises(ConfigError):
        beam(np.zeros((3, 4)), width=0)
    with pytest.raises(ConfigError):
        CharLM.train([[1]], size=2, order=0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (-3.0, -700.0),
        (-1e3, -1e3),
        (-math.inf, -2.0),
        (-2.0, -math.inf),
        (-math.inf, -math.inf),
        (0.0, -1e-9),
    ],
)
def test_a_sum_of_two_is_numpys(one: float, other: float) -> None:
    assert ctc.log_sum(one, other) == pytest.approx(float(np.logaddexp(one, other)), rel=1e-15)


def test_a_sure_minute_costs_a_few_sums_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    path = np.where(rng.random(1500) < 0.5, 0, rng.integers(1, 99, 1500))
    log_probs = log_softmax(12.0 * np.eye(99)[path] + rng.normal(size=(1500, 99)))
    sums, add = [0], ctc.log_sum

    def counted(*args: Any) -> Any:
        sums[0] += 1
        return add(*args)

    monkeypatch.setattr(ctc, "log_sum", counted)
    assert beam(log_probs, width=8)[0].ids == greedy(log_probs)
    assert sums[0] / 1500 < 8 * 16  # 99 seen: prefixes x (stay, end, rank, a symbol or two), not x 98 symbols


# --- times ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 2, 1], [1, 2, 1, 2]])
def test_times_are_those_of_the_likeliest_path_that_spells_the_text(seed: int, ids: list[int]) -> None:
    frames = 6
    scores = log_softmax(np.random.default_rng(seed).normal(size=(frames, 3)) * 2)
    paths = [each for each in itertools.product(range(3), repeat=frames) if spelt(each) == tuple(ids)]
    best = max(paths, key=lambda path: sum(scores[frame, symbol] for frame, symbol in enumerate(path)))
    expected, frame = [], 0
    for symbol, run in itertools.groupby(best):
        length = len(list(run))
        expected += [(frame, frame + length)] if symbol else []
        frame += length
    assert ctc.align(scores, ids) == expected


def test_a_text_longer_than_its_frames_has_no_times() -> None:
    scores = log_softmax(np.zeros((3, 4)))
    assert ctc.align(scores, [1, 2, 3]) == [(0, 1), (1, 2), (2, 3)]
    assert ctc.align(scores, []) == []
    with pytest.raises(ShapeError, match="do not fit"):
        ctc.align(scores, [1, 1, 2])


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_that_grows_ends_as_the_whole_and_never_takes_back(seed: int) -> None:
    scores = log_softmax(np.random.default_rng(seed).normal(size=(40, 5)) * 3)
    search, shown = ctc.Beam(width=6), []
    for first in range(0, 40, 7):
        search.push(scores[first : first + 7])
        certain = search.certain()
        assert certain[: len(shown)] == shown
        shown = certain
    assert search.hypotheses() == beam(scores, width=6)
    assert all(each.ids[: len(shown)] == shown for each in search.hypotheses())
    assert shown
