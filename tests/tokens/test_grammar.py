"""The grammar of written spans: whatever it allows can be decoded, and every row of a task is allowed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.errors import ConfigError, TokenRangeError
from muomni.tokens import grammar, sequences
from muomni.tokens.chat import IGNORE
from muomni.tokens.sequences import TASKS
from spaces import codes, small, spaces


def _grammar(space, kind, most=6):
    return grammar.of_text(space, most) if kind == "text" else grammar.of_medium(space, kind, most=most)


def _written(rules, seed):
    """A span drawn at random among what is legal: (S, T)."""
    generator = torch.Generator().manual_seed(seed)
    columns, end = [], None
    for step in range(rules.steps):
        column = []
        for stream in range(rules.streams):
            legal = rules.legal(step, stream, end)
            if not legal:
                return torch.tensor(columns).T
            sizes = torch.tensor([len(ids) for ids in legal])
            place = int(
                torch.randint(len(legal), (), generator=generator)
            )  # a range first, so that spans do end
            column.append(legal[place][int(torch.randint(int(sizes[place]), (), generator=generator))])
            if stream == 0 and column[0] == rules.end and end is None:
                end = (step - 1) // len(rules.books) if rules.lags is None else step - 1
        columns.append(column)
    return torch.tensor(columns).T


@given(spaces(), st.sampled_from(["image", "audio"]), st.integers(1, 5), st.integers(0, 999))
def test_whatever_is_legal_decodes(space, kind, most, seed):
    rules = _grammar(space, kind, most)
    written = _written(rules, seed)
    assert rules.first_illegal(written if rules.streams > 1 else written[0]) is None
    assert written.shape[1] <= rules.steps
    if rules.streams == 1:
        content = written[0, 1:-1]
    else:
        frames = int((written[0] == rules.end).nonzero()[0]) - 1
        content = torch.where(written == rules.end, space.pad, written)[:, 1:][:, : frames + max(rules.lags)]
    found = space.codes_of(kind, content)
    assert rules.least <= found.shape[1] <= rules.most


@given(spaces(), st.sampled_from(sorted(TASKS)), st.integers(1, 5), st.integers(0, 99))
def test_every_row_of_a_task_is_legal_and_its_labels_are_among_the_legal_sets(space, task, frames, seed):
    kind = TASKS[task]
    medium = space.ids_of(kind.medium, codes(space, kind.medium, frames, seed))
    row = sequences.build(space, task, [seed % space.text_size] * frames, medium)
    rules = _grammar(space, kind.writes, 5)
    target = (row.target if row.target.ndim == 2 else row.target[None])[: rules.streams]
    assert rules.first_illegal(target if rules.streams > 1 else target[0]) is None
    units = space.codes_of(kind.writes, medium).shape[1] if kind.writes != "text" else frames
    sets = rules.targets(units)
    assert [len(stream) for stream in sets] == [target.shape[1]] * rules.streams
    labels = row.labels if row.labels.ndim == 2 else row.labels[None]
    labels = labels[: rules.streams, -target.shape[1] :]
    for stream, step in (labels != IGNORE).nonzero().tolist():
        assert grammar.contains(sets[stream][step], int(labels[stream, step]))


def test_the_end_competes_where_a_frame_may_begin_and_nowhere_else():
    space = small()
    rules = grammar.of_medium(space, "audio", least=2, most=4)
    end = range(space.special("aud_end"), space.special("aud_end") + 1)
    books = [book.ids for book in space.books("audio")]
    steps = [rules.legal(step) for step in range(rules.steps)]
    assert steps[0] == (range(space.special("aud_start"), space.special("aud_start") + 1),)
    assert [end in legal for legal in steps[1:]] == [
        *[False] * 6,
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert steps[1:4] == [(books[0],), (books[1],), (books[2],)]
    assert steps[-1] == (end,)
    assert rules.legal(8, end=2) == ()
    assert [end in legal for legal in rules.targets(2)[0]] == [*[False] * 7, True], (
        "the sets that a writer of 2 frames meets"
    )


def test_an_image_has_exactly_its_tokens():
    space = small()
    rules = grammar.of_medium(space, "image")
    assert rules.steps == 8
    assert [len(legal) for legal in rules.targets(6)[0]] == [1] * 8
    ids = sequences.build(space, "t2i", [1], space.ids_of("image", codes(space, "image", 6))).target
    assert rules.first_illegal(ids) is None
    assert rules.first_illegal(ids[:-1]) == 7, "without its end"
    assert rules.first_illegal(torch.cat((ids[:6], ids[-1:]))) == 6, "one token short"
    assert rules.first_illegal(torch.cat((ids, ids[-1:]))) == 8, "something behind the end"


def test_what_is_illegal_is_named():
    space = small()
    rules = grammar.of_medium(space, "audio", most=4)
    ids = sequences.build(space, "t2a", [1], space.ids_of("audio", codes(space, "audio", 3))).target
    rules.require(ids, space)
    swapped = ids.clone()
    swapped[[4, 5]] = swapped[[5, 4]]
    with pytest.raises(
        TokenRangeError, match=r"step 4: expected 380\.\.387 or 305\.\.305, got \d+, which is of audio_1"
    ):
        rules.require(swapped, space)
    with pytest.raises(TokenRangeError, match=r"step 10: .*got the end of the ids"):
        rules.require(ids[:-1], space)
    assert rules.first_illegal(ids[None].expand(2, -1)) == 0, "another number of streams"


def test_words_leave_out_the_special_ids_of_a_vocabulary():
    space = small()
    rules = grammar.of_text(space, 4, words=(range(15, 200), range(210, 211)))
    assert rules.legal(1) == (range(15, 200), range(210, 211))
    assert rules.legal(2) == (range(15, 200), range(210, 211), range(301, 302))
    assert rules.legal(5) == (range(301, 302),)


def test_unions():
    legal = (range(1, 3), range(5, 6))
    assert grammar.union([legal, (range(3, 4),), (range(2, 6),)]) == (range(1, 6),)
    assert grammar.union([(range(4, 5),), (range(1, 2),), ()]) == (range(1, 2), range(4, 5))


def test_impossible_grammars_are_refused():
    with pytest.raises(ConfigError, match="most frames"):
        grammar.of_medium(small(), "audio")
    with pytest.raises(ConfigError, match="least"):
        grammar.of_text(small(), 2, least=3)
