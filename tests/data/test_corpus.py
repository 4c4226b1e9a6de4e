"""The token file: every token once, whole documents, the same rows always, nothing half built."""

import os
import pickle
import signal
from bisect import bisect_left, insort
from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import corpus as module
from muomni.data.corpus import NO_DOCUMENT, TokenCorpus
from muomni.data.sample import parse
from muomni.errors import CheckpointError, DataError
from muomni.tokens import chat
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.tokens.special_tokens import SPECIAL


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a cat sat on the mat and saw the other cat"] * 30, 280)


def texts(*documents):
    return [parse({"id": str(i), "text": words}) for i, words in enumerate(documents)]


DOCUMENTS = ["a cat", "the mat and the other cat " * 6, "saw", "on the mat", "é", "sat " * 30]


def laid_in_lists(offsets, ctx_len):
    """The packing as it was first written (c8b428a), a Python object for each piece: the slow twin."""
    pieces = [
        (at, min(at + ctx_len, stop))
        for start, stop in pairwise(offsets)
        for at in range(start, stop, ctx_len)
    ]
    rows, by_room, rooms = [], {}, []
    for piece in sorted(pieces, key=lambda piece: (piece[0] - piece[1], piece[0])):
        length = piece[1] - piece[0]
        found = bisect_left(rooms, length)
        if found < len(rooms):
            room = rooms[found]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[found]
        else:
            room, row = ctx_len, len(rows)
            rows.append([])
        rows[row].append(piece)
        if left := room - length:
            if left not in by_room:
                insort(rooms, left)
            by_room.setdefault(left, []).append(row)
    return rows


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(2, 16))
@settings(max_examples=200)
def test_packing_lays_every_piece_once_and_fits(lengths, ctx_len):
    offsets = np.cumsum([0, *lengths])
    laid, bounds = module._best_fit(module._pieces(offsets, ctx_len), ctx_len)
    rows = [[(start, stop) for start, stop in laid[low:high].tolist()] for low, high in pairwise(bounds)]
    assert rows == laid_in_lists(offsets.tolist(), ctx_len)
    assert all(sum(stop - start for start, stop in row) <= ctx_len for row in rows)
    used = sorted(at for row in rows for start, stop in row for at in range(start, stop))
    assert used == list(range(sum(lengths)))
    for row in rows:
        for start, stop in row:  # a piece lies within one document, and is whole if the document fits
            document = int(np.searchsorted(offsets, start, side="right")) - 1
            assert stop <= offsets[document + 1]
            assert stop - start == ctx_len or stop == offsets[document + 1]
    half_full = [row for row in rows if sum(stop - start for start, stop in row) * 2 <= ctx_len]
    assert len(half_full) <= 1


def test_rows_hold_the_documents(tokenizer, tmp_path):
    corpus = TokenCorpus.build(tmp_path, texts(*DOCUMENTS), tokenizer)
    expected = [chat.document(tokenizer, words) for words in DOCUMENTS]
    assert len(corpus) == len(DOCUMENTS)
    assert corpus.num_bytes == sum(len(words.encode()) for words in DOCUMENTS)
    packed = corpus.pack(512)
    found = []
    for i in range(len(packed)):
        row = packed[i]
        real = row.documents_T != NO_DOCUMENT
        assert np.array_equal(row.labels_T, np.where(real, row.ids_T, IGNORE))
        assert (row.ids_T[~real] == SPECIAL.pad).all()
        for number in range(row.documents_T.max() + 1):
            found.append(row.ids_T[row.documents_T == number].tolist())
    assert sorted(found) == sorted(expected)


def test_every_token_once_per_epoch_when_documents_are_cut(tokenizer, tmp_path):
    corpus = TokenCorpus.build(tmp_path, texts(*DOCUMENTS), tokenizer)
    packed = corpus.pack(7)
    used = Counter(
        int(i) for n in range(len(packed)) for i in packed[n].ids_T[packed[n].documents_T != NO_DOCUMENT]
    )
    assert used == Counter(i for words in DOCUMENTS for i in chat.document(tokenizer, words))
    again = corpus.pack(7)
    assert [packed.pieces(n) for n in range(len(packed))] == [again.pieces(n) for n in range(len(again))]


def test_conversations_keep_their_labels(tokenizer, tmp_path):
    turns = [{"role": "user", "content": "the mat?"}, {"role": "assistant", "content": "a cat sat"}]
    talk = parse({"messages": turns})
    corpus = TokenCorpus.build(tmp_path, [talk, *texts("saw the cat")], tokenizer)
    packed = corpus.pack(64)
    (row,) = (packed[i] for i in range(len(packed)))
    rendered = chat.render(tokenizer, talk.messages)
    here = row.documents_T == row.documents_T[np.flatnonzero(row.ids_T == SPECIAL.bos)[0]]
    assert row.ids_T[here].tolist() == rendered.ids
    assert row.labels_T[here].tolist() == rendered.labels
    other = (row.documents_T != NO_DOCUMENT) & ~here
    assert row.labels_T[other].tolist() == chat.document(tokenizer, "saw the cat")
    assert corpus.num_bytes == len("a cat sat") + len("saw the cat")


def test_built_once_keyed_by_content_and_tokenizer(tokenizer, tmp_path, monkeypatch):
    first = TokenCorpus.build(tmp_path, texts("a cat", "saw"), tokenizer)
    assert TokenCorpus.build(tmp_path, texts("a cat", "sat"), tokenizer).digest != first.digest
    other = Tokenizer.train(["a cat sat on the mat and saw the other cat"] * 30, 275)
    assert TokenCorpus.build(tmp_path, texts("a cat", "saw"), other).digest != first.digest
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("built again"))
    assert TokenCorpus.build(tmp_path, texts("a cat", "saw"), tokenizer).digest == first.digest
    again = pickle.loads(pickle.dumps(first))
    assert np.array_equal(again.ids, first.ids)


def test_a_build_that_dies_leaves_nothing(tokenizer, tmp_path):
    turns = [
        {"role": "user", "content": [{"type": "image", "path": "a.png"}]},
        {"role": "assistant", "content": "x"},
    ]
    with pytest.raises(DataError, match="media"):
        TokenCorpus.build(tmp_path, [*texts("a cat"), parse({"messages": turns})], tokenizer)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError):
        TokenCorpus.build(tmp_path, [], tokenizer)


def test_a_torn_file_is_refused(tokenizer, tmp_path):
    corpus = TokenCorpus.build(tmp_path, texts("a cat"), tokenizer)
    (corpus.folder / "ids.bin").write_bytes(b"\1\0")
    with pytest.raises(CheckpointError, match="tokens"):
        TokenCorpus(corpus.folder)
    with pytest.raises(CheckpointError):
        TokenCorpus(tmp_path / "none")


def test_a_large_vocabulary_takes_four_bytes(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "vocab_size", 2**16 + 1)
    corpus = TokenCorpus.build(tmp_path, texts("a cat"), tokenizer)
    assert corpus.ids.dtype == np.uint32
    assert corpus.ids.tolist() == chat.document(tokenizer, "a cat")


def written_one_by_one(samples, tokenizer):
    """The files as they were first written, a document at a time and in one process: the slow twin."""
    ids, learned, offsets = [], [], [0]
    for one in samples:
        if one.text is not None:
            tokens = [tokenizer.special_tokens.bos, *tokenizer.encode(one.text), tokenizer.special_tokens.eos]
            labels = tokens
        else:
            rendered = chat.render(tokenizer, one.messages)
            tokens, labels = rendered.ids, rendered.labels
        ids += tokens
        learned += [label != IGNORE for label in labels]
        offsets.append(len(ids))
    return ids, learned, offsets


TALK = {
    "id": "talk",
    "messages": [{"role": "user", "content": "the mat"}, {"role": "assistant", "content": "a cat"}],
}


def mixed():
    return [*texts(*DOCUMENTS * 3), parse(TALK), *texts(*DOCUMENTS)]


@pytest.fixture
def in_pieces(monkeypatch):
    """Pieces of four, by two processes on any machine."""
    monkeypatch.setattr(module, "ENCODED_AT_ONCE", 4)
    monkeypatch.setattr(module, "MANY", 5)
    monkeypatch.setattr(module, "cores", lambda: 2)


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "span", [(0, 25), (0, 6), (0, 18), (18, 25)], ids=["mixed", "few", "texts", "talk first"]
)
def test_two_processes_write_what_one_does(span, tokenizer, tmp_path, in_pieces, monkeypatch):
    samples = mixed()[slice(*span)]
    by_two = TokenCorpus.build(tmp_path / "two", samples, tokenizer)
    monkeypatch.setattr(module, "cores", lambda: 1)
    by_one = TokenCorpus.build(tmp_path / "one", samples, tokenizer)
    assert files_of(by_two.folder) == files_of(by_one.folder)
    ids, learned, offsets = written_one_by_one(samples, tokenizer)
    assert by_two.ids.tolist() == ids
    assert by_two.offsets.tolist() == offsets
    assert (by_two.learned is None) == all(learned)
    assert by_two.learned is None or by_two.learned.tolist() == learned


@pytest.mark.parametrize("fatal", [0, 8, 24])
def test_what_a_worker_that_dies_leaves_is_encoded_here(fatal, tokenizer, tmp_path, in_pieces, monkeypatch):
    whole = TokenCorpus.build(tmp_path / "whole", mixed(), tokenizer)
    monkeypatch.setattr(module, "_held", partial(_die_at, fatal))
    assert files_of(TokenCorpus.build(tmp_path / "broken", mixed(), tokenizer).folder) == files_of(
        whole.folder
    )


def _die_at(fatal, start):
    if start == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    samples, tokenizer = module._HELD
    return module._encoded(samples[start : start + module.ENCODED_AT_ONCE], tokenizer)


def test_what_can_not_be_encoded_is_named_by_a_worker_too(tokenizer, tmp_path, in_pieces):
    shown = [
        {"role": "user", "content": [{"type": "image", "path": "a.png"}]},
        {"role": "assistant", "content": "cat"},
    ]
    with pytest.raises(DataError, match="sample shown: has media"):
        TokenCorpus.build(
            tmp_path, [*mixed(), parse({"id": "shown", "messages": shown}), *mixed()], tokenizer
        )
    assert not list(tmp_path.glob("*/corpus.json"))
