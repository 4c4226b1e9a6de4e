"""The Talker: causal over frames, deaf to padding, each book with a voice of its own, and as fast as it is
right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from muomni.errors import ConfigError, DataError, ShapeError, TokenRangeError
from muomni.infer.codes import SpokenCodes, frames, gathered
from muomni.models import store
from muomni.models.talker import Talker, TalkerConfig

TEXT = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
KEEP = torch.tensor([[True] * 4, [True, True, False, False]])


def small(seed: int = 0, **changes: object) -> Talker:
    torch.manual_seed(seed)
    sizes = {
        "text_vocab": 12,
        "codebook_size": 10,
        "width": 24,
        "layers": 2,
        "heads": 3,
        "ffn_width": 32,
        "condition_width": 6,
        "num_speakers": 3,
    }
    talker = Talker(TalkerConfig.model_validate(sizes | changes))
    talker.pace.durations_V.uniform_(1, 4)
    return talker.eval()


def codes(books: int = 2, frames: int = 6) -> Tensor:
    return torch.randint(10, (2, books, frames), generator=torch.Generator().manual_seed(1))


def every_logit(
    talker: Talker, grid: Tensor, text: Tensor = TEXT, keep: Tensor = KEEP, **conditions: Tensor
) -> list[Tensor]:
    states = talker(text, keep, grid[..., :-1], **conditions)
    return [talker.logits(states, book) for book in range(talker.config.codebooks)]


@pytest.mark.parametrize("layout", ["delay", "parallel"])
def test_the_future_is_unseen(layout: str) -> None:
    talker = small(layout=layout)
    grid = talker.config.lay_out(codes(), torch.tensor([6, 6]))
    changed = grid.clone()
    changed[:, :, 3] = (changed[:, :, 3] + 1) % 10
    for before, after in zip(every_logit(talker, grid), every_logit(talker, changed)):
        assert torch.equal(before[:, :4], after[:, :4])
        assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_text_padding_is_unseen_wherever_it_stands() -> None:
    talker = small()
    grid = talker.config.lay_out(codes(), torch.tensor([6, 6]))
    plain = every_logit(talker, grid)[0][1]
    poisoned = every_logit(talker, grid, text=torch.where(KEEP, TEXT, 11))[0][1]
    left = every_logit(talker, grid, TEXT.roll(2, 1), KEEP.roll(2, 1))[0][1]
    alone = every_logit(talker, grid[1:], TEXT[1:, :2], KEEP[1:, :2])[0][0]
    torch.testing.assert_close(plain, poisoned)
    torch.testing.assert_close(plain, left)
    torch.testing.assert_close(plain, alone)


def test_swapped_codebooks_sound_different() -> None:
    talker = small(layout="parallel")
    grid = codes()
    assert not torch.allclose(every_logit(talker, grid)[0], every_logit(talker, grid.flip(1))[0])


def test_the_text_matters_and_its_order_too() -> None:
    talker = small()
    grid = talker.config.lay_out(codes(), torch.tensor([6, 6]))
    first = every_logit(talker, grid)[0][0]
    assert not torch.allclose(first, every_logit(talker, grid, TEXT.flip(1), KEEP)[0][0])


def test_delay_lays_book_k_k_steps_later_and_the_end_in_book_0() -> None:
    talker = small(codebooks=3)
    laid = talker.config.lay_out(codes(3, 4), torch.tensor([4, 2]))
    c, end, pad = codes(3, 4)[1], talker.config.end, talker.config.pad
    assert laid.shape == (2, 3, 6)
    assert laid[1, 0].tolist() == [c[0, 0], c[0, 1], end, pad, pad, pad]
    assert laid[1, 1].tolist() == [pad, c[1, 0], c[1, 1], pad, pad, pad]
    assert laid[1, 2].tolist() == [pad, pad, c[2, 0], c[2, 1], pad, pad]
    parallel = small(layout="parallel").config.lay_out(codes(2, 4), torch.tensor([4, 2]))
    assert parallel[1, 1].tolist() == [*codes(2, 4)[1, 1, :2].tolist(), pad, pad, pad]
    assert parallel[0, 0, 4] == small().config.end


def test_codes_behind_a_rows_end_may_be_anything() -> None:
    talker = small()
    junk = codes()
    junk[1, :, 3:] = -7
    assert torch.equal(
        talker.config.lay_out(junk, torch.tensor([6, 3])),
        talker.config.lay_out(codes(), torch.tensor([6, 3])),
    )
    with pytest.raises(TokenRangeError):
        talker.config.lay_out(junk, torch.tensor([6, 4]))
    with pytest.raises(ShapeError):
        talker.config.lay_out(codes(3), torch.tensor([6, 6]))


def speak_slowly(talker: Talker, limit: int, **conditions: Tensor) -> SpokenCodes:
    """Greedy speech that reads everything anew at every step."""
    books, lag = (
        talker.config.codebooks,
        (talker.config.codebooks - 1 if talker.config.layout == "delay" else 0),
    )
    grid = torch.full((2, books, limit + lag + 1), talker.config.pad)
    ends = torch.full((2,), limit)
    for step in range(limit + lag):
        for book, logits in enumerate(every_logit(talker, grid, **conditions)):
            first = book if talker.config.layout == "delay" else 0
            for row in range(2):
                here = logits[row, step].clone()
                if step == 0 and book == 0:
                    here[talker.config.end] = -torch.inf
                if book == 0 and step < ends[row] and here.argmax() == talker.config.end:
                    ends[row] = step
                if first <= step < ends[row] + first:
                    grid[row, book, step] = here.argmax()
                elif book == 0 and step == ends[row]:
                    grid[row, book, step] = talker.config.end
    out = torch.zeros(2, books, int(ends.max()), dtype=torch.int64)
    for row in range(2):
        for book in range(books):
            first = book if talker.config.layout == "delay" else 0
            out[row, book, : ends[row]] = grid[row, book, first : first + ends[row]]
    return SpokenCodes(out, ends, ends < limit)


@pytest.mark.parametrize(("layout", "books"), [("delay", 1), ("delay", 2), ("delay", 4), ("parallel", 2)])
def test_cached_speech_equals_slow_speech(layout: str, books: int) -> None:
    lengths = set()
    for seed in range(4):
        talker = small(seed, layout=layout, codebooks=books)
        talker.heads[0].bias.data[talker.config.end] = 1.5
        conditions = {"hidden_BTD": torch.randn(2, 4, 6), "speaker_B": torch.tensor([0, 2])}
        slow, fast = (
            speak_slowly(talker, 12, **conditions),
            gathered(frames(talker, TEXT, KEEP, max_frames=12, **conditions)),
        )
        assert torch.equal(fast.frames_B, slow.frames_B)
        assert torch.equal(fast.codes_BKF, slow.codes_BKF)
        assert torch.equal(fast.ended_B, slow.ended_B)
        lengths |= set(fast.frames_B.tolist())
    assert len(lengths) > 1


def test_the_guard_stops_who_never_ends() -> None:
    talker = small()
    talker.heads[0].bias.data[talker.config.end] = -1e4
    assert gathered(frames(talker, TEXT, KEEP, max_frames=7)).frames_B.tolist() == [7, 7]
    free = gathered(frames(talker, TEXT, KEEP))
    assert not free.ended_B.any()
    assert (free.frames_B <= 30 * KEEP.sum(1)).all()


def test_who_ends_at_once_still_says_one_frame() -> None:
    talker = small()
    talker.heads[0].bias.data[talker.config.end] = 1e4
    spoken = gathered(frames(talker, TEXT, KEEP))
    assert spoken.frames_B.tolist() == [1, 1]
    assert spoken.ended_B.all()


def test_hidden_states_and_speakers_are_heard() -> None:
    talker = small()
    grid = talker.config.lay_out(codes(), torch.tensor([6, 6]))
    without = every_logit(talker, grid)[0]
    assert not torch.allclose(without, every_logit(talker, grid, hidden_BTD=torch.randn(2, 4, 6))[0])
    speakers = [every_logit(talker, grid, speaker_B=torch.tensor([one, one]))[0] for one in (0, 1)]
    assert not torch.allclose(*speakers)


def test_hidden_states_are_dropped_for_a_share_of_training_rows() -> None:
    talker = small(condition_dropout=0.5, dropout=0.0).train()
    torch.manual_seed(0)
    text = torch.full((400, 2), 3)
    told = talker.read(text, torch.ones_like(text, dtype=torch.bool), torch.randn(400, 2, 6))
    deaf = (told[:, 0] == talker.text_table(text[:, 0])).all(-1).float().mean()
    assert 0.4 < float(deaf) < 0.6


@pytest.mark.parametrize("text", [torch.tensor([[12, 0]]), torch.tensor([[-1, 0]])])
def test_ids_outside_are_refused(text: Tensor) -> None:
    with pytest.raises(TokenRangeError, match="0 to 11"):
        gathered(frames(small(), text, torch.ones_like(text, dtype=torch.bool)))


def test_conditions_that_it_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match="condition_width"):
        small(condition_width=0).read(TEXT, KEEP, torch.zeros(2, 4, 6))
    with pytest.raises(ShapeError):
        small().read(TEXT, KEEP, torch.zeros(2, 4, 5))
    with pytest.raises(ConfigError, match="num_speakers"):
        small(num_speakers=0).read(TEXT, KEEP, None, torch.tensor([0, 0]))


def test_text_becomes_ids() -> None:
    assert len(small(text_units="char").text_ids("  it   is ", None)) == 5
    with pytest.raises(DataError, match="empty"):
        small().text_ids("  ", None)
    with pytest.raises(ConfigError, match="tokenizer"):
        small().text_ids("it is", None)


def test_a_talker_comes_back_from_disk(tmp_path: Path) -> None:
    talker = small()
    store.save(talker, tmp_path)
    again = store.load(tmp_path)
    assert again.config == talker.config
    assert torch.equal(
        gathered(frames(again, TEXT, KEEP, max_frames=9)).codes_BKF,
        gathered(frames(talker, TEXT, KEEP, max_frames=9)).codes_BKF,
    )


def test_the_source_preset_has_two_heads_of_128() -> None:
    talker = Talker(TalkerConfig(text_vocab=20, layout="parallel"))
    states = talker(TEXT, KEEP, talker.config.lay_out(codes(), torch.tensor([6, 6]))[..., :-1])
    assert talker.logits(states, 0).shape == (2, 7, 129)
    assert talker.logits(states, 1).shape == (2, 7, 128)
