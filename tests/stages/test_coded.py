"""Codes on the disk: what was made comes back, it is made once, and no more of it is in memory than is asked
for."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import pickle
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muomni import files
from muomni.data.sample import Sample, parse
from muomni.errors import ConfigError, DataError
from muomni.models.talker import TalkerConfig
from muomni.stages import coded
from muomni.train.objectives.talker import TalkerItem, collate

BOOKS, WIDTH = 4, 24


def samples(count: int) -> list[Sample]:
    content = [{"type": "audio", "path": "nowhere.wav"}]
    return [
        parse(
            {
                "id": f"é{n}",
                "messages": [
                    {"role": "user", "content": f"say {n}"},
                    {"role": "assistant", "content": content},
                ],
            }
        )
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
        yield (
            number,
            TalkerItem(
                f"é{number}", ids, codes, torch.randn(len(ids), WIDTH, generator=own) if hidden else None
            ),
        )


def never() -> Iterator[tuple[int, TalkerItem | DataError]]:
    raise AssertionError("made twice")
    yield


@pytest.mark.parametrize("hidden", [True, False])
def test_items_come_back_as_they_were_made(tmp_path: Path, hidden: bool) -> None:
    found = coded.build(tmp_path, samples(60), "key", lambda _: items(60, hidden=hidden))
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
    again = coded.build(tmp_path, samples(60), "key", lambda _: never())
    collate(list(again.items.values()), TalkerConfig(text_vocab=100, codebooks=BOOKS, codebook_size=512))
    for index, item in made.items():
        if isinstance(item, TalkerItem) and item.hidden_TD is not None:
            assert torch.equal(again.items[index].hidden_TD, item.hidden_TD)  # type: ignore[arg-type]
    worker = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again.items)) < 40_000, "the files' contents are not pickled"
    assert torch.equal(worker.items[0].codes_KF, again.items[0].codes_KF)


def test_what_they_are_made_from_names_them(tmp_path: Path) -> None:
    coded.build(tmp_path, samples(10), "key", lambda _: items(10))
    with pytest.raises(AssertionError):
        coded.build(tmp_path, samples(10), "another codec", lambda _: never())
    changed = samples(10)
    changed[4] = changed[4].model_copy(update={"messages": samples(11)[10].messages})
    with pytest.raises(AssertionError):
        coded.build(tmp_path, changed, "key", lambda _: never())
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 1, (
        "a build that dies leaves nothing"
    )


def only_set(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


@pytest.mark.parametrize("torn", ["codes.bin", "hidden.bin", "frames.npy", "of_samples.npy", "coded.json"])
def test_a_torn_set_is_made_anew(tmp_path: Path, torn: str, capsys: pytest.CaptureFixture[str]) -> None:
    coded.build(tmp_path, samples(10), "key", lambda _: items(10))
    path = only_set(tmp_path) / torn
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    found = coded.build(tmp_path, samples(10), "key", lambda _: items(10))
    assert path.read_bytes() == good
    assert len(found.items) == 8
    told = capsys.readouterr().err.strip()
    assert ("it is made anew" in told, "\n" in told) == (True, False)
    coded.build(tmp_path, samples(10), "key", lambda _: never())


def test_a_set_that_was_never_finished_is_nothing(tmp_path: Path) -> None:
    def dies() -> Iterator[tuple[int, TalkerItem | DataError]]:
        yield from items(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coded.build(tmp_path, samples(10), "key", lambda _: dies())
    place = next(path for path in tmp_path.iterdir() if path.suffix == ".lock")
    left = tmp_path / f".{place.stem}.abc.part"  # what kill -9 leaves
    left.mkdir()
    (left / "codes.bin").write_bytes(b"half")
    assert len(coded.build(tmp_path, samples(10), "key", lambda _: items(10)).items) == 8
    assert not left.exists()


def test_only_what_no_other_set_holds_is_made(tmp_path: Path) -> None:
    """A row more or less, or in another order, makes nothing but what is new; what was refused is tried again."""
    first = coded.build(tmp_path, samples(10), "key", lambda _: items(10))
    asked: list[list[str]] = []

    def code(chosen: Sequence[Sample]) -> coded.Made:
        asked.append([sample.id for sample in chosen])
        for number, sample in enumerate(chosen):
            new = TalkerItem("", [7], torch.zeros(BOOKS, 2, dtype=torch.int64), torch.zeros(1, WIDTH))
            yield number, new if sample.id == "é10" else DataError("undecodable", "torn again")
        asked.append(["the end"])

    rows = [*reversed(samples(11)), samples(1)[0].model_copy(update={"id": "copy"})]
    found = coded.build(tmp_path, rows, "key", code)
    assert asked == [["é10", "é8", "é3"], ["the end"]]
    assert sorted(found.items.refused) == [2, 7]
    assert found.items[0].text_ids == [7]
    for number, item in first.items.items():
        assert torch.equal(found.items[10 - number].codes_KF, item.codes_KF)
        assert found.items[10 - number].sample_id == item.sample_id
    assert found.items[11].sample_id == "copy"
    assert torch.equal(found.items[11].codes_KF, first.items[0].codes_KF)
    assert found.items.num_frames().tolist() == [item.codes_KF.shape[1] for item in found.items.values()]
    lengths = found.lengths().tolist()
    assert [lengths[2], lengths[7], lengths[11]] == [0, 0, first.items[0].codes_KF.shape[1]]
    for other in (path for path in tmp_path.iterdir() if path.is_dir()):
        (other / "codes.bin").write_bytes(b"")
    with pytest.raises(AssertionError, match="made twice"):  # torn beside it: nothing is taken from there
        coded.build(tmp_path, samples(3), "key", lambda _: never())


def test_a_set_that_another_makes_is_not_waited_for(tmp_path: Path) -> None:
    first = coded.build(tmp_path, samples(10), "key", lambda _: items(10))
    lock = first.items.folder.with_name(f"{first.items.folder.name}.lock")
    del first
    gc.collect()
    other = files.Use(lock)
    assert other.alone()
    with pytest.raises(AssertionError, match="made twice"):
        coded.build(tmp_path, samples(2), "key", lambda _: never())
    other.close()
    assert len(coded.build(tmp_path, samples(2), "key", lambda _: never()).items) == 2


def test_a_renamed_sound_is_the_same_and_its_refusal_names_it(tmp_path: Path) -> None:
    def row(name: str) -> Sample:
        content = [{"type": "audio", "path": str(tmp_path / name)}]
        return parse({"id": name, "messages": [{"role": "assistant", "content": content}]})

    def code(chosen: Sequence[Sample]) -> coded.Made:
        yield 0, DataError("undecodable", f"{chosen[0].media[0].path}: torn")

    (tmp_path / "a.wav").write_bytes(b"one")
    coded.build(tmp_path / "c", [row("a.wav")], "key", code)
    (tmp_path / "a.wav").rename(tmp_path / "b.wav")
    found = coded.build(tmp_path / "c", [row("b.wav")], "key", lambda _: never())
    assert found.items.refused[0].message == f"{tmp_path / 'b.wav'}: torn"


def test_a_file_of_the_same_size_and_time_that_holds_something_else_is_another(tmp_path: Path) -> None:
    wave = tmp_path / "a.wav"
    wave.write_bytes(b"one")
    os.utime(wave, (1, 1))
    row = parse(
        {"id": "a", "messages": [{"role": "assistant", "content": [{"type": "audio", "path": str(wave)}]}]}
    )
    made = dict(items(1))
    coded.build(tmp_path / "c", [row], "key", lambda _: iter(made.items()))
    os.utime(wave, (2, 2))
    coded.build(tmp_path / "c", [row], "key", lambda _: never())
    wave.write_bytes(b"two")
    os.utime(wave, (1, 1))
    with pytest.raises(AssertionError, match="made twice"):
        coded.build(tmp_path / "c", [row], "key", lambda _: never())


def test_of_two_that_ask_at_once_one_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second comes while the first is at work, waits, says so once, and makes nothing."""
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[tuple[int, TalkerItem | DataError]]:
        inside.set()
        assert go_on.wait(30)
        yield from items(10)

    found: dict[str, coded.Coded] = {}

    def ask(name: str, made: Iterator[tuple[int, TalkerItem | DataError]]) -> None:
        found[name] = coded.build(tmp_path, samples(10), "key", lambda _: made)

    first = threading.Thread(target=ask, args=("first", slow()))
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=ask, args=("second", never()))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "it waits"
    go_on.set()
    first.join(30)
    second.join(30)
    assert len(found["first"].items) == len(found["second"].items) == 8
    assert "waiting for another process" not in capsys.readouterr().out


def test_who_keeps_what_it_made_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks hold their items from there on, as those do that train on them: each has them, and they are made once.

    All look before one makes anything. And a system may hand a lock on as late as it likes: one who waits to be alone
    looks here every hundredth of a second.
    """
    real, whole = fcntl.flock, coded._whole

    def late(stream: Any, kind: int) -> None:
        while kind == fcntl.LOCK_EX:
            with contextlib.suppress(BlockingIOError):
                return real(stream, kind | fcntl.LOCK_NB)
            time.sleep(0.01)
        return real(stream, kind)

    def together(*asked: Any) -> coded.Items | None:
        found = whole(*asked)
        if not looked.is_set():
            all_looked.wait(20)
            looked.set()
        return found

    monkeypatch.setattr(fcntl, "flock", late)
    monkeypatch.setattr(coded, "_whole", together)
    ranks, rounds = 3, 8
    looked, all_looked = threading.Event(), threading.Barrier(ranks)
    made: list[int] = []
    all_have_it = threading.Barrier(ranks)

    def code(which: int) -> Iterator[tuple[int, TalkerItem | DataError]]:
        made.append(which)
        time.sleep(0.02)
        yield from items(4)

    def ask() -> None:
        for which in range(rounds):
            held = coded.build(tmp_path, samples(4), which, lambda _, which=which: code(which))
            if all_have_it.wait(20) == 0:
                looked.clear()
            all_have_it.wait(20)
            del held

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(ranks)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert not any(thread.is_alive() for thread in asking)
    assert made == list(range(rounds))


def test_a_cache_that_is_too_large_loses_what_was_not_used_for_longest_and_nothing_in_use(
    tmp_path: Path,
) -> None:
    held = {name: coded.build(tmp_path, samples(10), name, lambda _: items(10)) for name in ("a", "b", "c")}
    names = {name: each.items.folder for name, each in held.items()}
    for age, name in enumerate(("b", "a", "c")):
        os.utime(names[name] / "coded.json", (1000 + age, 1000 + age))
    assert coded.thin_out(tmp_path, 0) == [], "all are in use"
    size = sum(file.stat().st_size for file in names["a"].iterdir())
    kept = held.pop("b")
    held.clear()
    gc.collect()
    assert coded.thin_out(tmp_path, 2 * size) == [names["a"].name], "b is older, and in use"
    assert names["b"].exists()
    assert names["c"].exists()
    assert len(list(kept.items.values())) == 8
    del kept
    gc.collect()
    assert set(coded.thin_out(tmp_path, 0)) == {names["b"].name, names["c"].name}
    assert len(coded.build(tmp_path, samples(10), "a", lambda _: items(10)).items) == 8


@pytest.mark.parametrize("told", ["much", "0", "-1", "nan", "inf"])
def test_a_bound_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("MUOMNI_CACHE_GB", told)
    with pytest.raises(ConfigError, match="MUOMNI_CACHE_GB"):
        coded.most_bytes()


def test_a_bound_is_in_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_CACHE_GB", "1.5")
    assert coded.most_bytes() == 1_500_000_000


def test_none_is_none(tmp_path: Path) -> None:
    found = coded.build(tmp_path, samples(1), "key", lambda _: iter([(0, DataError("silent", "nothing"))]))
    assert list(found.items.values()) == []
    assert found.lengths().tolist() == [0]


def test_memory_does_not_grow_with_the_utterances(tmp_path: Path) -> None:
    sizes = {}
    for count in (500, 3000):
        rows = samples(count)
        tracemalloc.start()
        found = coded.build(tmp_path / str(count), rows, "key", lambda chosen: items(len(chosen)))
        for index in found.items:
            found.item(index, np.random.default_rng(0))
        sizes[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # Refused ones are kept with their words; of the others a few numbers each.
    assert (sizes[3000] - sizes[500]) / 2500 < 400
