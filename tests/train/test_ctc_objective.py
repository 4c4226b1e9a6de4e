"""Hearing's objective: sums of nats that a reference agrees with, and nothing infeasible let through."""

import itertools
import math

import numpy as np
import pytest
import torch

from muomni.errors import DataError, TokenRangeError
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.stages.hearing import mistakes
from muomni.tokens.alphabet import Alphabet, min_frames
from muomni.train.objectives import ctc


@pytest.fixture
def hearing() -> ctc.Hearing:
    torch.manual_seed(0)
    return ctc.Hearing(
        AudioEncoder(AudioEncoderConfig(width=32, layers=1, heads=2, ffn_width=64, channels=8, symbols=5))
    )


def mels(*frames: int) -> list[torch.Tensor]:
    return [torch.randn(count, 128) - 6 for count in frames]


def brute_force(log_probs_TC: torch.Tensor, ids: list[int]) -> float:
    """-log of the summed probability of every path that spells ids."""
    total = 0.0
    for path in itertools.product(range(log_probs_TC.shape[1]), repeat=len(log_probs_TC)):
        spelt = [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]
        if spelt == ids:
            total += math.exp(sum(float(log_probs_TC[t, symbol]) for t, symbol in enumerate(path)))
    return -math.log(total)


def test_the_sum_is_that_of_every_path(hearing: ctc.Hearing) -> None:
    batch = ctc.collate(["a", "b"], mels(20, 14), [[1, 2], [3, 3]])
    term = hearing(batch)["ctc"]
    heard = hearing.encoder(batch.mel_BFM, batch.frames_B)
    log_probs = hearing.encoder.symbols(heard.states_BTD).detach()
    wanted = sum(
        brute_force(log_probs[row, : int(heard.lengths_B[row])], ids)
        for row, ids in enumerate([[1, 2], [3, 3]])
    )
    assert float(term.total) == pytest.approx(wanted, rel=1e-4)
    assert term.count == hearing.counts(batch)["ctc"] == 4


def test_rows_add_up(hearing: ctc.Hearing) -> None:
    clips, labels = mels(40, 24, 33), [[1, 2, 3], [4], [2, 2]]
    whole = hearing(ctc.collate(["a", "b", "c"], clips, labels))["ctc"]
    single = [
        hearing(ctc.collate([name], [clip], [ids]))["ctc"] for name, clip, ids in zip("abc", clips, labels)
    ]
    torch.testing.assert_close(
        whole.total, torch.stack([term.total for term in single]).sum(), atol=1e-4, rtol=1e-5
    )
    assert whole.count == sum(term.count for term in single)


def test_half_precision_mels_are_as_good(hearing: ctc.Hearing) -> None:
    clips = mels(40, 24)
    full = hearing(ctc.collate(["a", "b"], clips, [[1], [2]]))["ctc"].total
    half = hearing(ctc.collate(["a", "b"], [clip.half() for clip in clips], [[1], [2]]))["ctc"].total
    torch.testing.assert_close(full, half, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("states", "ids", "fits"),
    [(3, [1, 2, 3], True), (3, [1, 1], True), (2, [1, 1], False), (4, [], False), (2, [1, 2, 3], False)],
)
def test_feasible_counts_symbols_and_repeats(states: int, ids: list[int], fits: bool) -> None:
    assert (0 < min_frames(ids) <= states) is fits


def test_feasible_is_exactly_what_torch_can_spell() -> None:
    """At the limit the loss is finite, one state under it is infinite."""
    log_probs = torch.randn(3, 1, 5).log_softmax(-1)
    for states in (3, 2):
        nats = torch.nn.functional.ctc_loss(
            log_probs[:states], torch.tensor([[2, 2]]), torch.tensor([states]), torch.tensor([2])
        )
        assert bool(nats.isfinite()) is (min_frames([2, 2]) <= states)


def test_what_cannot_be_spelt_is_refused_by_name(hearing: ctc.Hearing) -> None:
    batch = ctc.collate(["good", "fast", "twin"], mels(40, 8, 8), [[1, 2], [1, 2, 3], [1, 1]])
    with pytest.raises(DataError, match=r"fast \(3 symbols, 2 states\), twin") as told:
        hearing(batch)
    assert told.value.reason == "infeasible"
    assert "good" not in str(told.value)
    with pytest.raises(DataError):
        hearing(ctc.collate(["empty", "b"], mels(40, 40), [[], [1]]))


@pytest.mark.parametrize("symbol", [5, 98, -1, 0])
def test_symbols_outside_of_the_head_are_refused(hearing: ctc.Hearing, symbol: int) -> None:
    """The original's 98-way head took target 98 and read undefined memory (reference/muomni.md B12)."""
    with pytest.raises(TokenRangeError, match="wild"):
        hearing(ctc.collate(["good", "wild"], mels(40, 40), [[1, 2], [1, symbol]]))


def test_it_learns_two_clips(hearing: ctc.Hearing) -> None:
    batch = ctc.collate(["a", "b"], mels(40, 36), [[1, 2], [3, 4, 1]])
    optimizer = torch.optim.AdamW(hearing.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        term = hearing(batch)["ctc"]
        losses.append(float(term.total.detach()) / term.count)
        optimizer.zero_grad()
        term.total.backward()
        optimizer.step()
    assert losses[0] > 0.5
    assert losses[-1] < 0.1 * losses[0]


def test_a_batch_moves_whole() -> None:
    batch = ctc.collate(["a"], mels(9), [[1]]).to("meta")
    assert {
        batch.mel_BFM.device.type,
        batch.frames_B.device.type,
        batch.labels_BU.device.type,
        batch.symbols_B.device.type,
    } == {"meta"}


def test_a_validation_tells_how_many_characters_and_words_are_wrong(hearing: ctc.Hearing) -> None:
    """Each row is judged on its own states, against its own symbols; nothing of it is learned, and training
    does not pay for it."""
    seen = []

    def counted(log_probs_TC: ctc.FloatArray, symbols: list[int]) -> tuple[int, int, int, int]:
        seen.append((log_probs_TC.shape, symbols))
        return len(seen), 2, 1, 1

    clips, labels = mels(40, 24), [[1, 2, 3], [4]]
    batch = ctc.collate(["a", "b"], clips, labels)
    hearing.mistakes = counted
    terms = hearing.validated(batch)
    assert seen == [((10, 5), [1, 2, 3]), ((6, 5), [4])]
    assert {
        name: (float(term.total), term.count, term.weight) for name, term in terms.items() if name != "ctc"
    } == {
        "cer": (3.0, 4, 0.0),
        "wer": (2.0, 2, 0.0),
    }
    assert torch.equal(terms["ctc"].total, hearing(batch)["ctc"].total)
    assert set(hearing(batch)) == {"ctc"}


def test_the_mistakes_of_a_transcript_are_counted_in_characters_and_words() -> None:
    alphabet = Alphabet()
    guess = alphabet.encode("the cat ran")
    log_probs_TC = np.full((len(guess), len(alphabet)), -9.0)
    log_probs_TC[range(len(guess)), guess] = 0.0
    assert mistakes(log_probs_TC, alphabet.encode("the rat ran up")) == (4, 14, 2, 4)
