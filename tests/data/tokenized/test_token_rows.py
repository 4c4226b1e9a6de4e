"""Rows of tasks from shards: every task has the rows that it can have, of the length that the index tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import standins
import torch
from tokenized_corpus import ALL, corpus_of, sets

from muomni.data import readers
from muomni.data.corpus import Rows, TokenCorpus
from muomni.data.sample import parse
from muomni.data.token_rows import TEXT, TokenRows, shares
from muomni.data.tokenized import encode
from muomni.data.tokenized.index import ShardSet
from muomni.errors import DataError
from muomni.tokens import sequences
from muomni.tokens.chat import IGNORE
from muomni.tokens.sequences import TASKS

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> readers.Corpus:
    """40 samples of the four tasks in turn, a fifth of them held out."""
    return corpus_of(tmp_path_factory.mktemp("data"), 40)


@pytest.mark.parametrize("layout", ["interleaved", "delay", "parallel"])
def test_the_index_tells_the_length_of_each_row(corpus: readers.Corpus, tmp_path: Path, layout: str) -> None:
    opened, folder = sets(corpus, tmp_path / "set", layout=layout)
    rows = TokenRows(ShardSet(folder, "train"), opened.space, ALL, 1000)
    assert rows.lengths().tolist() == [rows.item(place, RNG).ids.shape[-1] for place in range(len(rows))]


def test_a_caption_serves_to_read_and_to_write(corpus: readers.Corpus, tmp_path: Path) -> None:
    opened, folder = sets(corpus, tmp_path / "set")
    rows = TokenRows(ShardSet(folder, "train"), opened.space, ALL, 1000)
    kinds = [sample.media[0].type for sample in corpus.train]
    images, sounds = kinds.count("image"), kinds.count("audio")
    assert rows.blocks == {"i2t": images, "t2i": images, "a2t": sounds, "t2a": sounds}
    assert len({rows.name(place) for place in range(len(rows))}) == len(rows)
    for place in range(len(rows)):
        task, sample = rows.places[place][0], corpus.train[rows.sample(place)]
        row, kind = rows.row(place), sample.media[0].type
        assert kind[0] in (task[0], task[-1])
        span = next(span for span in row.spans if span.kind == "text")
        words = row.ids[span.start : span.start + span.length].tolist()
        assert opened.decode_text(words) == (sample.answer or sample.question)
        medium = next(span for span in row.spans if span.kind == kind)
        own = encode.read(sample.media[0], opened.codecs[kind]).values
        (codes_KF,) = opened.codecs[kind].encode_many([own])
        assert torch.equal(
            row.ids[medium.start : medium.start + medium.length], opened.space.ids_of(kind, codes_KF)
        )
        assert (row.labels != IGNORE).tolist() == [t >= row.spans[1].start - 1 for t in range(len(row))]


def test_a_task_alone_has_its_rows_only(corpus: readers.Corpus, tmp_path: Path) -> None:
    opened, folder = sets(corpus, tmp_path / "set")
    rows = TokenRows(ShardSet(folder, "valid"), opened.space, ("t2a",), 1000)
    assert {rows.item(place, RNG).task for place in range(len(rows))} == {"t2a"}
    assert len(rows) == sum(sample.media[0].type == "audio" for sample in corpus.valid)


def test_a_row_that_is_too_long_is_named_and_nothing_is_cut(corpus: readers.Corpus, tmp_path: Path) -> None:
    opened, folder = sets(corpus, tmp_path / "set")
    rows = TokenRows(ShardSet(folder, "train"), opened.space, ALL, 30)
    lengths = rows.lengths()
    assert (lengths > 30).any()
    assert (lengths <= 30).any()
    for place, length in enumerate(lengths.tolist()):
        if length <= 30:
            assert rows.item(place, RNG).ids.shape[-1] == length
            continue
        with pytest.raises(DataError, match=r"train/shard-000000.tar.* at most 30 positions") as caught:
            rows.item(place, RNG)
        assert caught.value.reason in ("too_long", "target_too_long")


def test_replayed_texts_come_last_and_are_learned_whole(corpus: readers.Corpus, tmp_path: Path) -> None:
    opened, folder = sets(corpus, tmp_path / "set")
    samples = [
        parse({"id": f"t{n}", "group": f"g{n}", "text": words}) for n, words in enumerate(standins.WORDS)
    ]
    tokens = TokenCorpus.build(tmp_path / "tokens", samples, opened.text)
    rows = TokenRows(
        ShardSet(folder, "train"), opened.space, ("i2t",), 1000, Rows(tokens.pack(64, single=True))
    )
    assert list(rows.blocks) == ["i2t", TEXT]
    assert rows.blocks[TEXT] == len(standins.WORDS)
    said = []
    for place in range(rows.blocks["i2t"], len(rows)):
        item = rows.item(place, RNG)
        assert item.task == TEXT
        assert item.sample_id == f"{TEXT}-{place - rows.blocks['i2t']}"
        assert len(item.ids) == rows.lengths()[place]
        said.append(opened.text.decode(item.ids.tolist()))
        assert torch.equal(item.labels[1:], item.ids[1:])
    assert sorted(said) == sorted(standins.WORDS)


def test_tasks_are_drawn_by_their_weights_whatever_their_sizes() -> None:
    found = shares({"i2t": 10, "t2i": 30, "a2t": 0}, {"i2t": 1.0, "t2i": 0.5, "a2t": 9.0})
    drawn = [weight * size for weight, size in found]
    assert len(found) == 2
    assert drawn[0] / drawn[1] == pytest.approx(2.0)


def test_a_share_of_what_is_written_comes_without_words(corpus: readers.Corpus, tmp_path: Path) -> None:
    opened, folder = sets(corpus, tmp_path / "set")
    shards = ShardSet(folder, "train")
    whole = TokenRows(shards, opened.space, ALL, 1000)
    rows = TokenRows(shards, opened.space, ALL, 1000, drop_prompts=0.4)
    rng, dropped, written = np.random.default_rng(1), 0, 0
    for place in list(range(len(rows))) * 20:
        item, own = rows.item(place, rng), whole.item(place, rng)
        targets = [each.labels[each.labels != IGNORE].tolist() for each in (item, own)]
        assert targets[0] == targets[1]
        is_whole = torch.equal(item.ids, own.ids)
        if item.task in ("i2t", "a2t"):
            assert is_whole, "what is read keeps its text"
            continue
        written, dropped = written + 1, dropped + (not is_whole)
        if not is_whole:
            blank = sequences.prompt(opened.space, TASKS[item.task].writes, [])
            assert torch.equal(item.ids[: len(blank)], blank)
            assert torch.equal(item.ids[len(blank) :], own.ids[-len(targets[0]) :])
    assert 0.3 < dropped / written < 0.5
