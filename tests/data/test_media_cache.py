"""The cache of decoded media: one budget, shared by processes, and nothing that anyone could tell from
reading anew."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muomni.data import cache as caches
from muomni.data.cache import Cache
from muomni.data.conversation import Conversations, MediaSpec
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.data.pictures import PictureAugment, Pictures
from muomni.data.sample import Sample, parse
from muomni.data.utterances import SpeechAugment, Utterances
from muomni.errors import DataError
from muomni.media import audio
from muomni.media.mel import MelSpec
from muomni.tokens.bpe import Tokenizer

KINDS = [
    np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    np.linspace(-1, 1, 35, dtype=np.float32).reshape(7, 5).T,
    np.array([1, -7], np.int64),
    np.array([], np.float16),
    np.array(3.5, np.float64),
]


def never() -> list[np.ndarray[Any, Any]]:
    raise AssertionError("it was made twice")


def test_what_comes_back_is_what_was_made() -> None:
    kept = Cache(1 << 20)
    assert kept.get("a", lambda: KINDS) == KINDS
    for _ in range(2):
        for was, now in zip(KINDS, kept.get("a", never), strict=True):
            assert (was.dtype, was.shape) == (now.dtype, now.shape)
            assert np.array_equal(was, now)
            assert now.flags.aligned
            assert now.flags.writeable, "torch warns of arrays that can't be written to"
            now[...] = 0  # its own copy: the next reader sees nothing of it


def test_parts_do_not_share_keys() -> None:
    kept = Cache(1 << 20)
    parts = [kept.part() for _ in range(3)]
    for number, part in enumerate(parts):
        assert part.get("key", lambda number=number: [np.array([number])])[0][0] == number
    assert [int(part.get("key", never)[0][0]) for part in parts] == [0, 1, 2]


def test_an_error_keeps_nothing() -> None:
    kept = Cache(1 << 20)

    def torn() -> list[np.ndarray[Any, Any]]:
        raise DataError("undecodable", "torn")

    for _ in range(2):
        with pytest.raises(DataError):
            kept.get("a", torn)
    assert kept.records == 0


def test_the_budget_holds_under_random_access() -> None:
    rng = np.random.default_rng(0)
    kept = Cache(300_000)
    sizes = rng.integers(1, 20_000, 400)
    for index in rng.integers(0, 400, 5000).tolist():
        (found,) = kept.get(str(index), lambda index=index: [np.full(sizes[index], index % 251, np.uint8)])
        assert len(found) == sizes[index]
        assert (found == index % 251).all()
        assert kept.used_bytes <= kept.budget_bytes
    assert kept.used_bytes > 250_000
    assert os.fstat(kept._handle).st_size <= kept.budget_bytes + 64 * 1024, (
        "the file holds the records and a small table, no more"
    )


def test_no_budget_keeps_nothing() -> None:
    kept = Cache(0)
    for _ in range(2):
        assert kept.get("a", lambda: [np.arange(3)])[0].tolist() == [0, 1, 2]
    assert kept.records == 0


def test_a_full_disk_is_a_smaller_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Cache(1 << 20)
    kept.get("a", lambda: [np.arange(3)])

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert kept.get("b", lambda: [np.arange(4)])[0].tolist() == [0, 1, 2, 3]
    monkeypatch.undo()
    assert kept.get("a", never)[0].tolist() == [0, 1, 2]
    assert kept.get("c", lambda: [np.arange(5)])[0].tolist() == [0, 1, 2, 3, 4]
    assert kept.records == 1


def _fill(kept: Cache, seed: int) -> None:
    for key in np.random.default_rng(seed).permutation(200).tolist():
        (found,) = kept.get(str(key), lambda key=key: [np.full(1000 + key, key, np.int32)])
        assert len(found) == 1000 + key
        assert (found == key).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_write_and_read_one_cache(method: str) -> None:
    """What one keeps the others find, at once and all the time; no record is torn, none stands twice."""
    kept = Cache(8 << 20)
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_fill, args=(kept, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
        assert worker.exitcode == 0
    assert kept.records == 200
    for key in range(200):
        assert (kept.get(str(key), never)[0] == key).all()


def test_two_that_make_the_same_keep_it_once() -> None:
    kept = Cache(1 << 20)

    def slow() -> list[np.ndarray[Any, Any]]:
        kept.get("a", lambda: [np.arange(3)])  # another worker was faster
        return [np.arange(3)]

    kept.get("a", slow)
    assert kept.records == 1


def test_each_stage_begins_with_an_empty_cache() -> None:
    first = caches.begin(1)
    assert (first.budget_bytes, caches.shared()) == (2**20, first)
    first.get("a", lambda: KINDS)
    again = caches.begin(None)
    assert again.records == 0
    assert 0 < again.budget_bytes <= caches.DEFAULT_BYTES
    assert (
        again.budget_bytes <= caches.runtime.free_memory_bytes()
        or caches.runtime.free_memory_bytes() < again.budget_bytes * 2
    )


def test_ranks_of_a_machine_share_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches.runtime, "free_memory_bytes", lambda: 8 << 30)
    alone = caches.default_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert caches.default_bytes() == alone // 4


# --- the data sets ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(folder / f"{number}.png")
        audio.write(
            folder / f"{number}.wav", rng.normal(0, 0.1, 8000 + 700 * number).astype(np.float32), 16000
        )
    (folder / "5.png").write_bytes(b"torn")
    return folder


def samples(folder: Path) -> list[Sample]:
    media = ({"type": "image", "path": "{}.png"}, {"type": "audio", "path": "{}.wav"})
    rows = []
    for number in range(6):
        parts = [{**part, "path": str(folder / part["path"].format(number))} for part in media]
        rows.append(
            {
                "id": f"s{number}",
                "messages": [
                    {"role": "user", "content": parts},
                    {"role": "assistant", "content": f"the {number}"},
                ],
                "negatives": [{"kind": "number", "text": "no"}, {"kind": "number", "text": "not this"}],
            }
        )
    return [parse(row) for row in rows]


def conversations(folder: Path, cache: Cache) -> Any:
    spec = MediaSpec(image_size=16, image_tokens=2, mel=MelSpec(), pad_s=0.05)
    return Conversations(samples(folder), TOKENIZER, spec, 200, changes=PictureAugment(shift=2), cache=cache)


def pictures(folder: Path, cache: Cache) -> Any:
    return Pictures(
        samples(folder), TOKENIZER, 16, negatives=1, changes=PictureAugment(shift=2, jitter=True), cache=cache
    )


def heard(folder: Path, cache: Cache) -> Any:
    return Utterances(
        samples(folder), MelSpec(), changes=SpeechAugment(formant_scale=(0.9, 1.1)), cache=cache
    )


def slowed(folder: Path, cache: Cache) -> Any:
    return Utterances(samples(folder), MelSpec(), changes=SpeechAugment(speed=(0.9, 1.1)), cache=cache)


TOKENIZER = Tokenizer.train(["the red star is big"] * 3, 300)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return {key: _plain(each) for key, each in vars(value).items()} if hasattr(value, "__dict__") else value


def _stream(dataset: Any, workers: int) -> list[Any]:
    loader = Loader(
        dataset,
        Order([len(dataset)], batch_size=2, seed=1),
        lambda items: [_plain(item) for item in items],
        workers=workers,
    )
    return [(loaded.batch, [bad.sample_id for bad in loaded.bad]) for loaded in loader.numbers(range(12))]


@pytest.mark.parametrize("make", [conversations, pictures, heard, slowed])
def test_batches_are_the_same_with_and_without_a_cache_and_with_any_workers(
    folder: Path, make: Callable[[Path, Cache], Any]
) -> None:
    bare = _stream(make(folder, Cache(0)), 0)
    for budget in (3000, 1 << 20):
        for workers in (0, 1, 2):
            kept = Cache(budget)
            assert _stream(make(folder, kept), workers) == bare
            assert kept.used_bytes <= budget
            assert kept.records or budget == 3000, "what the workers keep stands in the one cache"


def test_a_worker_finds_what_another_process_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Cache(1 << 20)
    dataset = pictures(folder, kept)
    first = _stream(dataset, 0)

    def unread(*_: Any) -> Any:
        raise DataError("missing", "read again")

    monkeypatch.setattr("muomni.data.pictures.read_picture", unread)
    assert _stream(dataset, 2) == first
