"""Bytes of any packing and size as rows: arrays element by element, in flat memory, and whatever is torn is
named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import formats, readers, streams
from muomni.data.check.checker import check
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.errors import DataError, DataNote

CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}


def values(folder: Path, content: str | bytes, name: str = "a.json") -> list[tuple[int, object]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(streams.values(path))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_arrays_are_read_element_by_element(tmp_path: Path, indent: int | None, encoding: str) -> None:
    rows = [{"n": n, "words": "é“ \\u \U0001f600" * n, "deep": [[{"a": None}]]} for n in range(300)]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    for ends in (text, text.replace("\n", "\r\n")):
        assert values(tmp_path, ends.encode(encoding)) == list(enumerate(rows, start=1))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=8), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
@settings(max_examples=200)
def test_any_array_in_chunks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], indent: int | None, ascii_: bool, chunk: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    before, streams.CHUNK_BYTES = streams.CHUNK_BYTES, chunk
    try:
        found = [value for _, value in values(folder, text)]
    finally:
        streams.CHUNK_BYTES = before
    assert repr(found) == repr(json.loads(text))  # NaN is not itself


@pytest.mark.parametrize("chunk", range(1, 12))
def test_numbers_are_never_cut_at_a_chunks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(streams, "CHUNK_BYTES", chunk)
    rows = [-2.5, 1e-07, 12345678901234567890, -0.125e300, 0, [1.5, {"a": -3.25}], True, None, "x"]
    for indent in (None, 0, 2):
        assert [value for _, value in values(tmp_path, json.dumps(rows, indent=indent))] == rows


@given(st.integers(0, 400))
@settings(max_examples=80)
def test_a_torn_array_is_never_a_short_one(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = json.dumps([{"n": n, "words": "some words"} for n in range(10)], indent=1)
    torn = text[: min(end, len(text) - 1)]
    if torn:
        with pytest.raises(DataError, match=r"torn|expected"):
            values(folder, torn)


@pytest.mark.parametrize(
    ("content", "good", "expected"),
    [
        ('[{"a": 1},\n{"a": 2},\n]', 2, r"a\.json:3: expected element 3 of an array, got '\]'"),
        ('[{"a": 1}\n{"a": 2}]', 1, r"a\.json:2: expected a comma or the end of the array behind element 1"),
        ('[,{"a": 1}]', 0, r"a\.json:1: expected element 1"),
        ('[{"a": 1}]\n[{"a": 2}]', 1, r"a\.json:2: expected the end of the file behind its array"),
        ('[{"a": 1},\n {"a": "x', 1, r"a\.json:2: .*torn"),
        ('[{"a": 1},\n {"a": x}]', 1, r"a\.json:2: expected JSON"),
        ('[{"a": 1}, ' + "[" * 100_000, 1, "nested too deeply"),
        (b'[{"a": 1},\n {"a": "caf\xe9"}]', 0, r"a\.json: expected UTF-8, got byte 0xe9 on line 2"),
        ('{"data": [{"a": 1},\n {"a": 2}', 2, "the file ends: is it torn"),
        ('{"images": [{"id": 1}], "annotations": [{"id": 1}]}', 0, "an object with rows under 'images'"),
        ('{"data": [{"a": 1}], "train": [{"a": 2}]}', 1, "rows under 'data' and 'train'"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 0, "a pointer of git-lfs"),
        ("/annex/objects/SHA256E-s3--0.json\n", 0, "a pointer of git-annex"),
    ],
)
def test_what_can_not_be_read_is_named_with_its_line(
    tmp_path: Path, content: str | bytes, good: int, expected: str
) -> None:
    (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    rows: list[object] = []
    with pytest.raises(DataError, match=expected):
        rows += (row for _, row in streams.values(tmp_path / "a.json"))  # a list takes them one by one
    assert len(rows) == good


def test_a_bad_element_costs_itself_alone(tmp_path: Path) -> None:
    found = values(tmp_path, '[{"a": 1, "a": 2},\n{"a": "\\ud800"},\n{"a": "\\ud83d\\ude00"}]')
    assert isinstance(found[0][1], DataError)
    assert "row that ends on line 1: key 'a' is given twice" in str(found[0][1])
    assert isinstance(found[1][1], DataError)
    assert found[2] == (3, {"a": "\U0001f600"})


def test_objects_around_rows_and_behind_each_other(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2}]
    for indent in (None, 2):
        found = values(tmp_path, json.dumps({"version": "1", "data": rows, "info": {}}, indent=indent))
        assert found[:2] == [(1, rows[0]), (2, rows[1])]
        assert isinstance(found[2][1], DataNote)
        assert "left: version, info" in str(found[2][1])
    assert values(tmp_path, "\n".join(json.dumps(row, indent=1) for row in rows)) == [
        (1, rows[0]),
        (4, rows[1]),
    ]
    assert values(tmp_path, "\n".join(map(json.dumps, rows))) == [(1, rows[0]), (2, rows[1])]
    talk = {"data": ["q", "a"]}  # a row that happens to have such a key
    assert values(tmp_path, json.dumps(talk)) == [(1, talk)]
    assert values(tmp_path, json.dumps({"text": "x", "data": rows})) == [(1, {"text": "x", "data": rows})]


def test_a_wrapped_list_is_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [CHAT, CHAT], "version": 1}))
    (tmp_path / "settings.json").write_text(json.dumps({"rate": 3}))
    report = check(Source(path="."), tmp_path)
    assert [(Path(each.path).name, each.samples) for each in report.manifests] == [("a.json", 2)]
    assert report.counts["skipped"] == 1
    assert report.counts["repaired"] == 1


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_packed_files_are_read_as_they_are(tmp_path: Path, packed: str, kind: str) -> None:
    lines = [json.dumps({**CHAT, "id": f"{n}"}) for n in range(200)]
    content = {
        "jsonl": "\n".join(lines),
        "json": f"[{', '.join(lines)}]",
        "csv": "question,answer\n" + "".join(f"q {n},a {n}\n" for n in range(200)),
        "txt": "\n".join(f"line {n}" for n in range(200)),
    }[kind].encode()
    for name, held in ((f"a.{kind}", content), (f"b.{kind}{packed}", PACKERS[packed](content))):
        (tmp_path / name).write_bytes(held)
    more = {"text": "{question}\n{answer}"} if kind == "csv" else {}
    plain, unpacked = (
        [sample.model_dump() for sample in readers.read(Source(path=name, **more), tmp_path, Quarantine())]
        for name in (f"a.{kind}", f"b.{kind}{packed}")
    )
    assert plain == unpacked
    assert len(plain) == 200
    whole = PACKERS[packed](content)
    (tmp_path / f"b.{kind}{packed}").write_bytes(whole[: len(whole) - 12])
    with pytest.raises(DataError, match=r"b\..*(torn|early|end)"):
        list(readers.read(Source(path=f"b.{kind}{packed}", **more), tmp_path, Quarantine(None, 1.0)))


def test_what_is_packed_by_name_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: expected a \.gz file"):
        list(streams.values(tmp_path / "a.jsonl.gz"))


def test_line_ends_of_every_kind(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.txt").write_bytes(
            end.join(["first line", "second line", "third\u2028line", ""]).encode()
        )
        assert [line for _, line in streams.lines(tmp_path / "a.txt")] == [
            "first line",
            "second line",
            "third\u2028line",
        ]


MEASURED = """
import sys
from pathlib import Path
from muomni.data import streams
path = Path(sys.argv[1])
count = sum(1 for _ in streams.values(path))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss holds the parent's too
print(count, int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_an_array(tmp_path: Path) -> None:
    """40 MB and 100 MB of one array take the same memory, to 4 MB."""
    element = json.dumps(
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "words " * 100}] * 4}
    )
    peaks = []
    for count in (16_000, 40_000):
        path = tmp_path / "a.json"
        with path.open("w") as stream:
            stream.write("[" + ",".join([element] * count) + "]")
        run = subprocess.run(
            [sys.executable, "-c", MEASURED, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ},
        )
        found, peak = map(int, run.stdout.split())
        assert found == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 4, peaks


def test_rows_of_an_array_reach_the_reader_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([CHAT, {"text": ""}, CHAT]))
    quarantine = Quarantine(None, 1.0)
    assert [line for line, _ in readers.numbered(Source(path="a.json"), tmp_path, quarantine)] == [1, 3]
    assert "a.json:2: " in quarantine.examples["empty"][0]
    assert formats.kind(tmp_path / "a.json") == ".json"
