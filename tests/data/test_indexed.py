"""Samples in a file: the same corpus as of old, sample by sample, and none of them held."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tracemalloc
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import indexed, readers, split
from muomni.data.indexed import Samples, Writer
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample, parse
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.stages import vision

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def stored(samples: list[Sample]) -> Samples:
    writer = Writer()
    for sample in samples:
        writer.add(sample)
    return writer.close()


def numbered(count: int) -> list[Sample]:
    return [
        parse({"id": f"s{number}", "group": f"g{number % 7}", "text": f"words {number} " * (1 + number % 5)})
        for number in range(count)
    ]


@given(
    st.text(min_size=1),
    st.text(min_size=1).filter(str.strip),
    st.dictionaries(st.text(max_size=9), json_values, max_size=4),
)
@settings(max_examples=200)
def test_a_sample_comes_back_as_it_was(name: str, words: str, extra: dict[str, Any]) -> None:
    content = [
        {"type": "image", "path": "/a/é\n.png"},
        {"type": "audio", "path": "x", "start": 0.1, "end": 1 / 3},
        {"type": "text", "text": words},
    ]
    row = {
        "id": name,
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": words}],
        "extra": extra,
    }
    row["negatives"] = [{"kind": "k", "text": words}]
    try:
        sample = parse(row)
    except DataError:
        return
    (found,) = stored([sample])
    assert found == sample
    assert repr(found) == repr(sample)


def test_numbers_that_json_does_not_know_come_back() -> None:
    extra = {"a": float("nan"), "b": [float("inf"), -float("inf")], "c": 10**400, "d": 1.0, "e": 1}
    (found,) = stored([parse({"id": "s", "text": "x", "extra": extra})])
    assert repr(found.extra) == repr(extra)
    assert type(found.extra["d"]) is float


def test_a_sequence_as_any_other() -> None:
    plain = numbered(1000)
    samples = stored(plain)
    assert len(samples) == 1000
    assert list(samples) == plain
    assert [samples[i] for i in (0, 999, -1, -1000, np.int64(5))] == [
        plain[i] for i in (0, 999, -1, -1000, 5)
    ]
    assert list(samples[3:700:9]) == plain[3:700:9]
    assert list(samples[::-1]) == plain[::-1]
    assert list(reversed(samples)) == plain[::-1]
    some = samples.pick([5, 900, 5, 3])
    assert list(some) == [plain[i] for i in (5, 900, 5, 3)]
    assert list(some.pick([3, 1])[:1]) == [plain[3]]
    assert list(samples.pick([])) == []
    assert not samples.pick([])
    for wrong in (1000, -1001):
        with pytest.raises(IndexError):
            samples[wrong]
    assert list(indexed.where(samples, lambda sample: sample.group == "g3")) == [
        s for s in plain if s.group == "g3"
    ]
    assert indexed.where(plain, lambda sample: sample.group == "g3") == [s for s in plain if s.group == "g3"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_file(method: str) -> None:
    plain = numbered(300)
    samples = stored(plain)
    with multiprocessing.get_context(method).Pool(2, _open, (samples,)) as pool:
        assert pool.map(_id_of, range(300)) == [sample.id for sample in plain]
    assert samples[7].id == "s7"


def _open(samples: Samples) -> None:
    global _samples
    _samples = samples


def _id_of(number: int) -> str:
    return _samples[number].id


def test_captions_are_read_from_the_lines_as_from_the_samples() -> None:
    """Its twin makes a sample of each line."""
    picture = {"type": "image", "path": "a.png"}
    shown, false = (
        {"role": "user", "content": [picture]},
        [{"kind": "word", "text": "a hat"}, {"kind": "word", "text": "é"}],
    )
    parts = [{"type": "text", "text": "two "}, picture, {"type": "text", "text": "parts"}]
    answers: list[Any] = ["a cat", 'a "dog"\n', parts, [{"type": "text", "text": "alone"}]]
    rows = [
        {"id": str(n), "messages": [shown, {"role": "assistant", "content": said}]}
        for n, said in enumerate(answers)
    ]
    rows[1]["negatives"] = false
    rows.append(
        {
            "id": "more",
            "messages": [*rows[0]["messages"], {"role": "user", "content": "and?"}, *rows[2]["messages"][1:]],
        }
    )  # type: ignore[index, misc]
    rows.append({"id": "none", "messages": [shown, {"role": "user", "content": "nobody answers"}]})
    samples = stored([parse(row) for row in rows])
    corpus = readers.Corpus(samples, samples, "", [1.0], split.Leaks(), set())
    expected = [
        caption for sample in samples for caption in (sample.answer, *(n.text for n in sample.negatives))
    ]
    assert list(vision._texts(corpus)) == expected
    assert expected == ["a cat", 'a "dog"\n', "a hat", "é", "two parts", "alone", "two parts", ""]


def test_a_full_folder_is_told(tmp_path: Path) -> None:
    code = """
import resource, signal
from muomni.data.indexed import Writer
from muomni.data.sample import parse
from muomni.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
writer, sample = Writer(), parse({"id": "s", "text": "x" * 10_000})
try:
    for _ in range(1000):
        writer.add(sample)
    writer.close()
except UserError as error:
    print("told:", error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert "expected room for the samples" in found.stdout, found.stderr
    assert str(tmp_path) in found.stdout


# --- a corpus, against the way it was first read ------------------------------------------------------------------------------------------


def load_in_lists(
    sources: list[Source], base: Path, val_split: float, seed: int, quarantine: Quarantine
) -> tuple[Any, ...]:
    """The corpus as it was first read (c8b428a), every sample an object: the slow twin."""
    samples: list[tuple[Sample, Source]] = []
    owner: dict[str, int] = {}
    for number, source in enumerate(sources):
        for sample in readers.read(source, base, quarantine):
            if owner.setdefault(sample.id, number) != number:
                sample = sample.model_copy(update={"id": f"{Path(source.path).stem}:{sample.id}"})
            samples.append((sample, source))
    quarantine.check(len(samples) + quarantine.total)
    placed = sides_in_lists(samples, val_split, seed)
    train = [
        (sample, source.weight)
        for (sample, source), side in zip(samples, placed, strict=True)
        if side == "train"
    ]
    valid = [sample for (sample, _), side in zip(samples, placed, strict=True) if side == "valid"]
    kept = [sample for sample, _ in train]
    return kept, valid, [weight for _, weight in train], split.leaks(kept, valid)


def sides_in_lists(samples: list[tuple[Sample, Source]], val_split: float, seed: int) -> list[str]:
    placed: list[str] = []
    free: list[int] = []
    for index, (sample, source) in enumerate(samples):
        if sample.split is not None:
            placed.append(sample.split)
        elif any(fnmatchcase(sample.group, pattern) for pattern in source.held_out_groups):
            placed.append("valid")
        else:
            share = val_split if source.val_split is None else source.val_split
            placed.append(split.assign(sample.group, share, seed))
            if share > 0:
                free.append(index)
    if "valid" not in placed and len({samples[i][0].group for i in free}) > 1:
        first = min({samples[i][0].group for i in free}, key=lambda group: split.place(group, seed))
        for i in free:
            if samples[i][0].group == first:
                placed[i] = "valid"
    return placed


def mixed(folder: Path, seed: int) -> list[Source]:
    """Some sources with clashing ids, leaks, given splits, held-out groups, weights and bad rows."""
    rng = random.Random(seed)
    for name in ("a.png", "b.png", "c.wav", "d.wav"):
        (folder / name).write_bytes(name.encode())
    sources = []
    groups = rng.choice([1, 2, 3, 40])
    for number in range(rng.randint(1, 4)):
        rows = []
        for index in range(rng.randint(1, 60)):
            row: dict[str, Any] = {
                "id": f"{rng.choice('xy')}{rng.randint(0, 90)}",
                "group": f"g{rng.randrange(groups)}",
            }
            if rng.random() < 0.5:
                row["text"] = f"words {index}"
            else:
                media = [
                    {"type": "image" if m.endswith("png") else "audio", "path": m}
                    for m in rng.sample(["a.png", "b.png", "c.wav", "d.wav"], 2)
                ]
                row["messages"] = [
                    {"role": "user", "content": media},
                    {"role": "assistant", "content": "yes"},
                ]
            if rng.random() < 0.05:
                del row["group"]
            if rng.random() < 0.04 * (seed % 3):
                row["split"] = rng.choice(["train", "valid"])
            if rng.random() < 0.02:
                row["text"] = ""
            rows.append(json.dumps(row))
        (folder / f"m{number}.jsonl").write_text("\n".join(rows) + "\n")
        more: dict[str, Any] = {"weight": rng.choice([1.0, 1.0, 0.3, 2.5])}
        if rng.random() < 0.3:
            more["val_split"] = rng.choice([0.0, 0.5])
        if rng.random() < 0.2:
            more["held_out_groups"] = ["g1*"]
        sources.append(Source(path=f"m{number}.jsonl", **more))
    return sources


@pytest.mark.parametrize("seed", range(60))
def test_a_corpus_is_read_as_before(tmp_path: Path, seed: int) -> None:
    sources, share = mixed(tmp_path, seed), (0.0, 0.01, 0.1, 0.5)[seed % 4]
    one, other = Quarantine(limit=1.0), Quarantine(limit=1.0)
    train, valid, weights, leaks = load_in_lists(sources, tmp_path, share, seed, one)
    found = readers.load(sources, base=tmp_path, val_split=share, seed=seed, quarantine=other)
    assert list(found.train) == train
    assert list(found.valid) == valid
    assert list(found.weights) == weights
    assert [found.weights[i] for i in range(len(weights))] == weights
    assert found.leaks == leaks
    assert one.counts == other.counts
    assert one.examples == other.examples
    pairs = [
        (sample, source)
        for source in sources
        for sample in readers.read(source, tmp_path, Quarantine(limit=1.0))
    ]
    sides = readers.Sides(share, seed)
    for pair in pairs:
        sides.add(*pair)
    assert ["valid" if is_valid else "train" for is_valid in sides.is_valid().tolist()] == sides_in_lists(
        pairs, share, seed
    )


def test_the_mixes_hold_all_that_can_happen(tmp_path: Path) -> None:
    """Else the test above would prove little."""
    seen: set[str] = set()
    for seed in range(60):
        folder = tmp_path / str(seed)
        folder.mkdir()
        quarantine = Quarantine(limit=1.0)
        train, valid, weights, leaks = load_in_lists(
            mixed(folder, seed), folder, (0.0, 0.01, 0.1, 0.5)[seed % 4], seed, quarantine
        )
        seen |= {name for name in ("ids", "groups", "paths") if getattr(leaks, name)}
        seen |= {"renamed"} if any(":" in sample.id for sample in train) else set()
        seen |= {"none held out"} if not valid else set()
        seen |= {"weights"} if len(set(weights)) > 1 else set()
        seen |= {"bad"} if quarantine.total else set()
    assert seen == {"ids", "groups", "paths", "renamed", "none held out", "weights", "bad"}


def many(path: Path, count: int) -> None:
    with path.open("w") as stream:
        for number in range(count):
            turns = [
                {"role": "user", "content": f"what is {number}?"},
                {"role": "assistant", "content": f"it is {number} and no other"},
            ]
            stream.write(
                json.dumps({"id": f"s{number}", "group": f"g{number // 3}", "messages": turns}) + "\n"
            )


def test_no_sample_lives_on_when_all_were_seen(tmp_path: Path) -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Sample for thing in gc.get_objects())

    before = alive()  # other tests may hold some
    many(tmp_path / "a.jsonl", 20_000)
    corpus = readers.load(
        [Source(path="a.jsonl")], base=tmp_path, val_split=0.1, seed=0, quarantine=Quarantine()
    )
    assert sum(len(sample.messages) for side in (corpus.train, corpus.valid) for sample in side) == 40_000
    assert alive() - before < 10


def test_a_sample_costs_a_few_bytes(tmp_path: Path) -> None:
    """What a corpus holds, and the most while it is read; as objects a sample of these took 3 kB."""
    held, peaks = {}, {}
    for count in (5_000, 25_000):
        many(tmp_path / "a.jsonl", count)
        gc.collect()
        tracemalloc.start()
        corpus = readers.load(
            [Source(path="a.jsonl")], base=tmp_path, val_split=0.1, seed=0, quarantine=Quarantine()
        )
        gc.collect()
        held[count], peaks[count] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(corpus.train) + len(corpus.valid) == count
    assert (held[25_000] - held[5_000]) / 20_000 < 20
    assert (peaks[25_000] - peaks[5_000]) / 20_000 < 130
