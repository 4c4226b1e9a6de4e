"""Codes on the disk: what was made comes back, it is made once, and no more of it is in memory than is asked for."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from muomni.data.sample import Sample, parse
from muomni.errors import CheckpointError, DataError
from muomni.stages import coded
from muomni.train.objectives.talker import TalkerBatch, TalkerItem

BOOKS, WIDTH = 4, 24


def samples(count: int) -> list[Sample]:
    content = [{"type": "audio", "path": "nowhere.wav"}]
    return [
        parse({"id": f"é{n}", "messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": content}]})
        for n in range(count)
    ]


def items(count: int, *, hidden: bool = True) -> Iterator[tuple[int, TalkerItem | DataError]]:
    own = torch.Generator().manual_seed(0)
    for number in range(count):
        if number % 5 == 3:
            yield number, DataError("undecodable", f"torn {number}")
            continue
        ids = list(range(1, 3 + number % 7))
        codes = torch.randint(0, 512, (BOOKS, 1 + number % 11), generator=own)
        yield number, TalkerItem(f"é{number}", ids, codes, torch.randn(len(ids), WIDTH, generator=own) if hidden else None)


def never() -> Iterator[tuple[int, TalkerItem | DataError]]:
    raise AssertionError("made twice")
    yield


@pytest.mark.parametrize("hidden", [True, False])
def test_items_come_back_as_they_were_made(tmp_path: Path, hidden: bool) -> None:
    found = coded.build(tmp_path, samples(60), "key", items(60, hidden=hidden))
    assert len(found) == 60
    assert len(found.items) == 48
    made = dict(items(60, hidden=hidden))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, item in made.items():
            assert found.name(index) == f"é{index}"
            if isinstance(item, DataError):
                assert index not in found.items
                with pytest.raises(DataError, match=f"torn {index}") as caught:
                    found.item(index, np.random.default_rng(0))
                assert caught.value.reason == "undecodable"
                assert found.lengths()[index] == 0
                continue
            back = found.item(index, np.random.default_rng(0))
            assert (back.sample_id, back.text_ids) == (item.sample_id, item.text_ids)
            assert torch.equal(back.codes_KF, item.codes_KF)
            assert back.codes_KF.dtype == torch.int64
            assert found.lengths()[index] == item.codes_KF.shape[1]
            assert (back.hidden_TD is None) == (item.hidden_TD is None)
            if back.hidden_TD is not None:
                assert item.hidden_TD is not None
                assert torch.equal(back.hidden_TD, item.hidden_TD)
                back.hidden_TD.zero_()  # a writer spoils nothing for the next reader of the file
    assert list(found.items) == [n for n, item in made.items() if isinstance(item, TalkerItem)]
    again = coded.build(tmp_path, samples(60), "key", never())
    TalkerBatch.of(list(again.items.values()))
    for index, item in made.items():
        if isinstance(item, TalkerItem) and item.hidden_TD is not None:
            assert torch.equal(again.items[index].hidden_TD, item.hidden_TD)  # type: ignore[arg-type]
    worker = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again.items)) < 40_000, "the files' contents are not pickled"
    assert torch.equal(worker.items[0].codes_KF, again.items[0].codes_KF)


def test_what_they_are_made_from_names_them(tmp_path: Path) -> None:
    coded.build(tmp_path, samples(10), "key", items(10))
    with pytest.raises(AssertionError):
        coded.build(tmp_path, samples(10), "another codec", never())
    with pytest.raises(AssertionError):
        coded.build(tmp_path, samples(9), "key", never())
    changed = samples(10)
    changed[4] = changed[4].model_copy(update={"messages": samples(11)[10].messages})
    with pytest.raises(AssertionError):
        coded.build(tmp_path, changed, "key", never())
    assert len(list(tmp_path.iterdir())) == 1, "a build that dies leaves nothing"


def test_a_torn_set_is_refused(tmp_path: Path) -> None:
    coded.build(tmp_path, samples(10), "key", items(10))
    (folder,) = tmp_path.iterdir()
    (folder / "codes.bin").write_bytes((folder / "codes.bin").read_bytes()[:-2])
    with pytest.raises(CheckpointError, match="not a whole set"):
        coded.build(tmp_path, samples(10), "key", never())


def test_none_is_none(tmp_path: Path) -> None:
    found = coded.build(tmp_path, samples(1), "key", iter([(0, DataError("silent", "nothing"))]))
    assert list(found.items.values()) == []
    assert found.lengths().tolist() == [0]


def test_memory_does_not_grow_with_the_utterances(tmp_path: Path) -> None:
    few = samples(1)
    sizes = {}
    for count in (500, 3000):
        tracemalloc.start()
        found = coded.build(tmp_path / str(count), few * count, "key", items(count))
        for index in found.items:
            found.item(index, np.random.default_rng(0))
        sizes[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # Refused ones are kept with their words; of the others a few numbers each.
    assert (sizes[3000] - sizes[500]) / 2500 < 400
