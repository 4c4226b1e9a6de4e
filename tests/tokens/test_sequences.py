"""Rows of the four tasks: order, labels, spans; windows that are declared; and targets that are never cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.errors import ConfigError, DataError, TokenRangeError
from muomni.tokens import sequences
from muomni.tokens.chat import IGNORE
from muomni.tokens.sequences import TASKS, Window
from spaces import codes, small, spaces

TEXT = [7, 8, 9]


def _medium(space, task, frames=4, seed=0):
    medium = TASKS[task].medium
    return space.ids_of(medium, codes(space, medium, frames, seed))


def _names(space, ids):
    """A row for people: special tokens by name, runs of text and media by region."""
    named = {token: name for name, token in space.specials.items()}
    words = [named.get(token) or space.region_of(token).name.split("_")[0] for token in ids.tolist()]
    return [word for place, word in enumerate(words) if place == 0 or word != words[place - 1]]


@pytest.mark.parametrize(
    ("task", "order"),
    [
        ("i2t", "img_start image img_end gen_text text_start text text_end"),
        ("a2t", "aud_start audio aud_end gen_text text_start text text_end"),
        ("t2i", "text_start text text_end gen_img img_start image img_end"),
        ("t2a", "text_start text text_end gen_aud aud_start audio aud_end"),
    ],
)
def test_a_row_has_the_order_of_its_task(task, order):
    space = small()
    row = sequences.build(space, task, TEXT, _medium(space, task))
    assert _names(space, row.ids) == order.split()
    target = row.labels != IGNORE
    assert torch.equal(row.labels[target], row.target), "the target span with its start and end, nothing else"
    assert torch.equal(torch.cat((row.prompt, row.target)), row.ids)
    assert _names(space, row.prompt)[-1].startswith("gen_")
    for span, kind in zip(row.spans, (TASKS[task].reads, TASKS[task].writes)):
        inside = row.ids[span.start : span.start + span.length]
        assert span.kind == kind
        assert torch.equal(inside, torch.tensor(TEXT) if kind == "text" else _medium(space, task))


@given(spaces(), st.sampled_from(sorted(TASKS)), st.integers(1, 6), st.integers(0, 99))
def test_rows_of_any_space_hold_their_content(space, task, frames, seed):
    medium = _medium(space, task, frames, seed)
    text = [seed % space.text_size] * 3
    row = sequences.build(space, task, text, medium)
    assert (
        row.ids.shape == row.labels.shape == ((space.streams, len(row)) if space.streams > 1 else (len(row),))
    )
    for span in row.spans:
        inside = row.ids[..., span.start : span.start + span.length]
        if space.streams > 1:
            streams = (
                1
                if span.kind == "text" or space.lags(span.kind) is None
                else space.codec(span.kind).codebooks
            )
            content = (
                space.ids_of(span.kind, codes(space, span.kind, frames, seed))
                if span.kind != "text"
                else torch.tensor(text)
            )
            # The end token stands beside the tail of delayed streams; all else is as `ids_of` lays it out.
            end = inside == space.special(
                {"text": "text_end", "image": "img_end", "audio": "aud_end"}[span.kind]
            )
            laid = torch.where(end, space.pad, inside)[:streams]
            assert torch.equal(laid if content.ndim == 2 else laid[0], content)
            inside = laid if content.ndim == 2 else laid[0]
        if span.kind != "text":
            assert torch.equal(space.codes_of(span.kind, inside), codes(space, span.kind, frames, seed))
    labelled = row.labels != IGNORE
    assert torch.equal(row.labels[labelled], row.ids[labelled])
    assert not bool((row.labels == space.pad).any()), "a silent stream is no target"
    first = row.spans[1].start - 1
    assert not bool(labelled[..., :first].any())
    assert bool((labelled | (row.ids == space.pad))[..., first:].all())


@pytest.mark.parametrize("layout", ["delay", "parallel"])
def test_streams_side_by_side_end_beside_their_tail(layout):
    space = small(layout)
    row = sequences.build(space, "t2a", TEXT, _medium(space, "t2a", 4))
    end = space.special("aud_end")
    streams, columns = (row.target == end).nonzero(as_tuple=True)
    assert streams.tolist() == [0]
    assert columns.tolist() == [1 + 4]
    assert row.target.shape[1] == 1 + 4 + (2 if layout == "delay" else 1)


def test_a_long_sound_that_is_read_is_windowed_at_frames_and_says_so():
    space = small()
    whole = codes(space, "audio", 20)
    window = sequences.window_of(20, 6)
    assert window == Window(7, 6, 20)
    row = sequences.build(space, "a2t", TEXT, space.ids_of("audio", whole), window=window)
    assert row.window == window
    span = row.spans[0]
    assert torch.equal(
        space.codes_of("audio", row.ids[span.start : span.start + span.length]), whole[:, 7:13]
    )
    assert sequences.build(space, "a2t", TEXT, space.ids_of("audio", whole)).window is None
    assert sequences.window_of(6, 6) is None


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 99))
def test_drawn_windows_lie_within_the_sound(frames, most, seed):
    window = sequences.window_of(frames, most, torch.Generator().manual_seed(seed))
    if frames <= most:
        assert window is None
    else:
        assert window is not None
        assert 0 <= window.first_frame <= frames - most
        assert (window.frames, window.total_frames) == (most, frames)


def test_every_window_is_drawn_at_some_time():
    generator = torch.Generator().manual_seed(0)
    assert {sequences.window_of(5, 3, generator).first_frame for _ in range(64)} == {0, 1, 2}


def test_a_target_is_never_cut():
    space = small()
    medium = _medium(space, "t2a", 10)
    with pytest.raises(ConfigError, match="only a sound that is read"):
        sequences.build(space, "t2a", TEXT, medium, window=Window(0, 5, 10))
    with pytest.raises(ConfigError, match="only a sound that is read"):
        sequences.build(space, "i2t", TEXT, _medium(space, "i2t"), window=Window(0, 2, 6))
    with pytest.raises(DataError, match="at most 30 positions, got 38, 32 of them the target's") as caught:
        sequences.build(space, "t2a", TEXT, medium, max_len=30)
    assert caught.value.reason == "target_too_long"
    with pytest.raises(DataError) as caught:
        sequences.build(space, "t2a", TEXT, medium, max_len=37)
    assert caught.value.reason == "too_long"
    assert len(sequences.build(space, "t2a", TEXT, medium, max_len=38)) == 38


def test_wrong_windows_are_refused():
    space = small()
    medium = _medium(space, "a2t", 10)
    for wrong in (Window(0, 5, 9), Window(6, 5, 10), Window(-1, 5, 10), Window(0, 0, 10)):
        with pytest.raises(ConfigError):
            sequences.build(space, "a2t", TEXT, medium, window=wrong)
    with pytest.raises(ConfigError):
        sequences.window_of(5, 0)


def test_ids_of_another_region_are_refused():
    space = small()
    with pytest.raises(TokenRangeError, match="position 1: expected an id of text"):
        sequences.build(space, "i2t", [1, space.special("text_end")], _medium(space, "i2t"))
    with pytest.raises(TokenRangeError):
        sequences.build(space, "i2t", TEXT, _medium(space, "a2t", 2))
    with pytest.raises(TokenRangeError, match="got the end"):
        sequences.build(space, "a2t", TEXT, _medium(space, "a2t", 4)[:-1])
    with pytest.raises(DataError, match="at least one token"):
        sequences.build(space, "i2t", [], _medium(space, "i2t"))
    with pytest.raises(ConfigError, match="i2t, a2t, t2i, t2a"):
        sequences.build(space, "t2v", TEXT, _medium(space, "i2t"))


@pytest.mark.parametrize("layout", ["interleaved", "delay"])
def test_a_prompt_is_what_stands_before_the_target(layout):
    space = small(layout)
    for task in ("t2i", "t2a"):
        row = sequences.build(space, task, TEXT, _medium(space, task))
        assert torch.equal(sequences.prompt(space, TASKS[task].writes, TEXT), row.prompt)
