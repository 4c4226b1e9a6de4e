"""Hostile input to the readers: whatever stands in a row or a file, it is read or refused, in time, and never
falls."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import readers
from muomni.data.check.checker import check
from muomni.data.formats import READERS
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Source, parse
from muomni.errors import UserError

ROOT = Path(__file__).parents[2]
SEEDS = 15  # of each kind; python -m benchmarks.fuzz runs as many as you like


def load_fuzz():
    spec = importlib.util.spec_from_file_location("benchmarks.fuzz", ROOT / "benchmarks" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = load_fuzz()


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutated_input_is_read_or_refused(tmp_path, kind):
    outcomes = [fuzz.once(kind, seed, tmp_path) for seed in range(SEEDS)]
    assert [trace for _, trace in outcomes if trace] == []


def test_a_crash_and_a_hang_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz.KINDS, "wav", lambda rng, folder: 1 / 0)
    assert fuzz.once("wav", 0, tmp_path)[0] == "crash"
    monkeypatch.setattr(fuzz, "HANG_S", 0.05)

    def endless(rng, folder):
        while True:
            try:
                rng.random()
            except Exception:
                continue

    monkeypatch.setitem(fuzz.KINDS, "wav", endless)
    assert fuzz.once("wav", 0, tmp_path)[0] == "hang"


def test_an_input_is_the_same_for_the_same_seed():
    first, second = (fuzz.mutate(random.Random(7), fuzz.sound("wav")) for _ in range(2))
    assert first == second != fuzz.sound("wav")


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(
        [
            "a.wav",
            "a.png",
            "<image> what?",
            "human",
            "gpt",
            "train",
            "valid",
            "user",
            "assistant",
            "image",
            "audio",
            "\ud800",
            "data:,",
            "{x}",
        ]
    )
)
KEYS = "id group task split messages text role content type path start end extra negatives kind image audio wav caption captions question"
KEYS += " conversations from value answer file_name label image_url audio_url url offset duration"
keys = st.sampled_from(KEYS.split()) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=15,
)
rows = st.lists(st.dictionaries(keys, values, max_size=6) | values, min_size=1, max_size=4)
TEMPLATE = [{"user": [{"audio": "{path}", "start": "{start}"}, "{question}"]}, {"assistant": "{text}"}]


@given(values)
@settings(max_examples=300)
def test_any_json_value_is_a_sample_or_refused(value):
    try:
        parse(value)
    except UserError:
        return


@given(rows, st.sampled_from(list(READERS)), st.booleans())
@settings(max_examples=50)
def test_any_rows_in_any_format(tmp_path_factory, found, form, is_array):
    folder = tmp_path_factory.getbasetemp() / "rows"
    folder.mkdir(exist_ok=True)
    (folder / "a.wav").write_bytes(fuzz.sound("wav"))
    (folder / "a.png").write_bytes(fuzz.picture("png", "RGB"))
    name = "m.json" if is_array else "m.jsonl"
    (folder / name).write_text(json.dumps(found) if is_array else "\n".join(map(json.dumps, found)))
    for source in (
        Source(path=name),
        Source(path=name, format=form),
        Source(path=name, messages=TEMPLATE, group="{group}"),
    ):
        report = check(source, folder)
        json.dumps(report.to_json(), ensure_ascii=False).encode()
        try:
            list(readers.read(source, folder, Quarantine()))
        except UserError:
            continue


@given(
    st.lists(st.lists(st.text(st.characters(), max_size=12), max_size=4), max_size=5),
    st.sampled_from([",", "\t", ";"]),
)
@settings(max_examples=50)
def test_any_cells(tmp_path_factory, cells, comma):
    folder = tmp_path_factory.getbasetemp() / "cells"
    folder.mkdir(exist_ok=True)
    lines = [comma.join(["wav", "text"]), *(comma.join(row) for row in cells)]
    for name in ("m.csv", "m.tsv", "m.txt"):
        (folder / name).write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        json.dumps(check(Source(path=name), folder).to_json(), ensure_ascii=False).encode()


@pytest.mark.parametrize("depth", [100, 300, 900, 950, 990, 5000])
@pytest.mark.parametrize(
    "row",
    [
        '{"text": "x", "extra": {"a": %s}}',
        '{"text": "x", "odd": %s}',
        '{"messages": %s}',
        '{"id": %s, "text": "x"}',
    ],
)
def test_depth(tmp_path, depth, row):
    (tmp_path / "m.jsonl").write_text(row % ("[" * depth + "]" * depth))
    report = check(Source(path="m.jsonl"), tmp_path)
    assert report.rows == 1
