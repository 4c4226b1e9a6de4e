"""The pace finds what each token takes to say, and puts tokens in the middle of their time."""

from __future__ import annotations

import pytest
import torch

from muomni.errors import ShapeError, TokenRangeError
from muomni.models.duration import DurationModel

TRUE = torch.tensor([0.0, 3.0, 5.0, 8.0, 2.0])


def fitted() -> DurationModel:
    generator = torch.Generator().manual_seed(0)
    texts = [
        torch.randint(1, 5, (int(length),), generator=generator).tolist()
        for length in torch.randint(1, 8, (300,), generator=generator)
    ]
    pace = DurationModel(8)
    assert pace.fit(texts, [round(float(TRUE[text].sum()) + 1.5) for text in texts]) < 0.6
    return pace


def test_durations_are_found() -> None:
    pace = fitted()
    torch.testing.assert_close(pace.durations_V[1:5], TRUE[1:], atol=0.25, rtol=0)
    assert float(pace.edge_frames) == pytest.approx(1.5, abs=0.4)


def test_a_token_never_seen_takes_the_mean() -> None:
    pace = fitted()
    assert 3 < float(pace.durations_V[7]) < 6
    assert pace.durations_V[7] == pace.durations_V[0]


def test_positions_are_middles_and_padding_takes_no_time() -> None:
    pace = fitted()
    text, keep = (
        torch.tensor([[1, 3, 2, 0], [0, 1, 3, 2]]),
        torch.tensor([[True, True, True, False], [False, True, True, True]]),
    )
    at = pace.positions(text, keep)
    torch.testing.assert_close(at[0, :3], at[1, 1:])
    d, edge = pace.durations_V, pace.edge_frames
    torch.testing.assert_close(
        at[0, :3], edge / 2 + torch.stack((d[1] / 2, d[1] + d[3] / 2, d[1] + d[3] + d[2] / 2))
    )
    torch.testing.assert_close(pace.frames(text, keep)[0], edge + d[1] + d[3] + d[2])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ShapeError):
        DurationModel(4).fit([], [])
    with pytest.raises(ShapeError):
        DurationModel(4).fit([[1]], [1, 2])
    with pytest.raises(TokenRangeError, match="0 to 3"):
        DurationModel(4).fit([[4]], [1])


def test_texts_of_one_length_and_one_text_do_not_break_it() -> None:
    pace = DurationModel(4)
    pace.fit([[1, 2]], [10])
    assert pace.durations_V.isfinite().all()
    assert float(pace.frames(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))) == pytest.approx(
        10, abs=1
    )
