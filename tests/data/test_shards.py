"""Tars of WebDataset and parquet of Hugging Face: read where they lie, in any order, whole or refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import webdataset
from PIL import Image

from muomni.data import copies, formats, parquet, readers, schema_inference, shards
from muomni.data.check.checker import check
from muomni.data.conversation import read_picture, read_wave
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, ImagePart, Sample
from muomni.data.source import Source
from muomni.data.utterances import duration_s, voice_of
from muomni.errors import DataError, UserError
from muomni.media import stored

MEDIA = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


def sound(seed: int, seconds: float = 0.5) -> bytes:
    rng, times = np.random.default_rng(seed), np.arange(int(16_000 * seconds)) / 16_000
    stream = io.BytesIO()
    soundfile.write(
        stream,
        0.2 * sum(np.sin(2 * np.pi * hz * times) for hz in rng.uniform(200, 3000, 4)),
        16_000,
        format="FLAC",
    )
    return stream.getvalue()


def tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as stream:
        for name, held in members:
            content = held if isinstance(held, bytes) else held.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            stream.addfile(info, io.BytesIO(content))
    return path


def read(path: Path | str, folder: Path = Path(), **more: Any) -> tuple[list[Sample], Quarantine]:
    quarantine = Quarantine(limit=1.0)
    return list(readers.read(Source(path=str(path), **more), folder, quarantine)), quarantine


# 1. WebDataset


def written(path: Path, count: int = 5, first: int = 0) -> list[dict[str, Any]]:
    """A shard as webdataset's own writer makes it."""
    samples = [
        {
            "__key__": f"{n:06d}",
            "png": picture(n),
            "txt": f"a thing {n}",
            "json": {"speaker": f"p{n % 3}", "width": 32},
        }
        for n in range(first, first + count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for sample in samples:
            sink.write(sample)
    return samples


def test_samples_are_those_that_webdataset_reads(tmp_path: Path) -> None:
    written(tmp_path / "a.tar")
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    samples, quarantine = read(tmp_path / "a.tar")
    assert not quarantine.total
    assert [sample.id for sample in samples] == [each["__key__"] for each in theirs]
    assert [sample.answer for sample in samples] == [each["txt"].decode() for each in theirs]
    assert [stored.content(sample.images[0].path) for sample in samples] == [each["png"] for each in theirs]
    assert {sample.group for sample in samples} == {"p0", "p1", "p2"}


@pytest.mark.parametrize(
    "named", ["w", "w/shard-{000..002}.tar", "w/shard-*.tar", "w/{shard-000,shard-001,shard-002}.tar"]
)
def test_a_set_of_shards_by_folder_braces_or_stars(tmp_path: Path, named: str) -> None:
    for n in range(3):
        written(tmp_path / "w" / f"shard-{n:03d}.tar", 4, 10 * n)
    samples, quarantine = read(named, tmp_path)
    assert len(samples) == 12
    assert not quarantine.total
    assert len({sample.id for sample in samples}) == 12
    assert samples[4].id == "shard-001/000010"
    corpus = readers.load([Source(path=named)], base=tmp_path, val_split=0.3, seed=0, quarantine=Quarantine())
    assert len(corpus.train) + len(corpus.valid) == 12
    report = check(Source(path=named), tmp_path)
    assert (report.samples, report.errors) == (12, [])


def test_a_shard_that_a_list_names_must_be_there(tmp_path: Path) -> None:
    written(tmp_path / "s-0.tar")
    with pytest.raises(DataError, match=r"s-1\.tar: expected a file, found nothing there"):
        read("s-{0..1}.tar", tmp_path)
    with pytest.raises(DataError, match="expected files of this pattern, found none"):
        read("t-*.tar", tmp_path)


def test_kinds_of_members(tmp_path: Path) -> None:
    talk = {
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a thing"}]
    }
    members: dict[str, list[tuple[str, bytes | str]]] = {
        "cls": [("a/0.jpg", picture(0)), ("a/0.cls", "cat")],
        "llava": [("0.png", picture(0)), ("0.json", json.dumps(talk))],
        "sound": [("0.flac", sound(0)), ("0.txt", "hello there\n")],
        "json": [("0.flac", sound(0)), ("0.json", json.dumps({"text": "hello there", "speaker": "ann"}))],
    }
    found = {}
    for name, held in members.items():
        (sample,), quarantine = read(tar(tmp_path / f"{name}.tar", held))
        assert not quarantine.total
        found[name] = sample
    assert (found["cls"].answer, found["cls"].id, found["cls"].group) == ("cat", "a/0", "cls.tar!a/0.jpg")
    assert (found["llava"].question, found["llava"].answer, len(found["llava"].images)) == (
        "what?",
        "a thing",
        1,
    )
    assert (found["sound"].task, found["sound"].answer) == ("transcribe", "hello there")
    assert (found["json"].group, found["json"].answer) == ("ann", "hello there")


def test_a_member_is_read_in_any_order_and_process(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        [item for n in range(4) for item in ((f"{n}.flac", sound(n)), (f"{n}.txt", "words"))],
    )
    samples, _ = read(tmp_path / "a.tar")
    for n in (2, 0, 3):
        part = pickle.loads(pickle.dumps(samples[n].audios[0]))
        wave_S = read_wave(part, 16_000)
        assert np.array_equal(wave_S, soundfile.read(io.BytesIO(sound(n)), dtype="float32")[0])
        assert duration_s(part) == 0.5
        assert voice_of(samples[n]) is None  # its group is itself
    window = AudioPart(path=samples[1].audios[0].path, start=0.1, end=0.2)
    assert len(read_wave(window, 16_000)) == 1600


def test_members_that_are_no_sample_of_one_piece_are_told(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        [
            ("0.png", picture(0)),
            ("0.txt", "one"),
            ("1.png", picture(1)),
            ("0.json", "{}"),
            ("1.txt", "lies apart"),
            ("README", "x"),
        ],
    )
    samples, quarantine = read(tmp_path / "a.tar")
    assert [sample.id for sample in samples] == ["0"]
    assert quarantine.counts == {"bad_row": 3}
    assert any(
        "a.tar: members of '1' lie apart" in line and "tar --sort=name" in line
        for line in quarantine.examples["bad_row"]
    )
    assert any("1 members without a suffix" in line for line in quarantine.notes)
    _, quarantine = read(
        tar(tmp_path / "b.tar", [("0.png", picture(0)), ("0.png", picture(1)), ("0.txt", "x")])
    )
    assert "'0.png' stands twice" in quarantine.examples["bad_row"][0]
    _, quarantine = read(
        tar(tmp_path / "c.tar", [("0.png", picture(0)), ("0.txt", "x"), ("0.json", '{"text": "y"}')])
    )
    assert "'text' stands in two members, and they differ" in quarantine.examples["bad_row"][0]
    _, quarantine = read(tar(tmp_path / "d.tar", [("0.png", picture(0)), ("0.json", "{torn")]))
    assert "0.json: row: expected a JSON object" in quarantine.examples["bad_row"][0]


def test_what_macos_puts_into_a_tar_is_no_data(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        [
            ("._0.png", "x"),
            ("0.png", picture(0)),
            ("0.txt", "a thing"),
            ("__MACOSX/._0.png", "x"),
            (".DS_Store", "x"),
        ],
    )
    samples, quarantine = read(tmp_path / "a.tar")
    assert len(samples) == 1
    assert not quarantine.total


def test_a_torn_or_damaged_tar_is_never_a_short_one(tmp_path: Path) -> None:
    """tarfile ends without a word at a header that it can't read, and at the end mark of the first of two
    tars."""
    whole = tar(
        tmp_path / "a.tar",
        [item for n in range(6) for item in ((f"{n}.png", picture(n)), (f"{n}.txt", "words"))],
    ).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as stream:
        offsets = [member.offset for member in stream]
        last = stream.getmembers()[-1]
    end = last.offset_data + 512
    for size in (offsets[4], offsets[4] + 100, offsets[5] + 700, end - 300):
        path = tmp_path / "torn.tar"
        path.write_bytes(whole[:size])
        if size == offsets[4]:  # between two members nothing tells a torn tar from one without an end mark
            assert len(read(path)[0]) == 2
            continue
        with pytest.raises(DataError, match=r"torn\.tar: (torn|expected a whole tar)"):
            read(path)
    damaged = bytearray(whole)
    damaged[offsets[6] : offsets[6] + 200] = b"\xff" * 200
    (tmp_path / "damaged.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"damaged\.tar: torn or damaged at byte {offsets[6]} of"):
        read(tmp_path / "damaged.tar")
    (tmp_path / "two.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="more stands behind the tar's end"):
        read(tmp_path / "two.tar")
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"none\.tar: expected a whole tar"):
        read(tmp_path / "none.tar")


def test_copies_across_shards_are_found_by_stretches(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("0.png", picture(7)), ("0.json", '{"split": "train", "text": "x"}')])
    tar(tmp_path / "b.tar", [("9.png", picture(7)), ("9.json", '{"split": "valid", "text": "y"}')])
    corpus = readers.load(
        [Source(path="{a,b}.tar")], base=tmp_path, val_split=0.3, seed=0, quarantine=Quarantine()
    )
    assert corpus.leaks.contents == [f"{tmp_path}/b.tar!9.png holds the bytes of {tmp_path}/a.tar!0.png"]
    assert copies._size(corpus.train[0].media[0].path) == len(picture(7))


def test_the_digest_of_a_tar_sees_words_and_sizes(tmp_path: Path) -> None:
    def digest(*members: tuple[str, bytes | str]) -> str:
        return readers.fingerprint([Source(path=str(tar(tmp_path / "a.tar", list(members))))], Path())

    assert digest(("0.png", picture(0)), ("0.txt", "one")) == digest(("0.png", picture(0)), ("0.txt", "one"))
    assert digest(("0.png", picture(0)), ("0.txt", "one")) != digest(("0.png", picture(0)), ("0.txt", "two"))
    assert digest(("0.png", picture(0)), ("0.txt", "one")) != digest(
        ("0.png", picture(0) + b"x"), ("0.txt", "one")
    )


# 2. Parquet


def as_parquet(path: Path, rows: list[dict[str, Any]], **more: Any) -> Path:
    """A file as `datasets` writes it: media as {bytes, path}, names of classes in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    types = {"image": MEDIA, "audio": MEDIA, "images": pyarrow.list_(MEDIA)}
    made = {key: pyarrow.array([row[key] for row in rows], types.get(key)) for key in rows[0]}
    table = pyarrow.table(made)
    if "label" in made:
        about = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, path, **more)
    return path


def held(content: bytes, name: str | None = None) -> dict[str, Any]:
    return {"bytes": content, "path": name}


@pytest.mark.parametrize("row_group_size", [2, 100])
def test_media_of_parquet_stay_where_they_are(tmp_path: Path, row_group_size: int) -> None:
    rows = [
        {"audio": held(sound(n), f"{n}.flac"), "transcription": f"word {n}", "speaker_id": f"p{n % 2}"}
        for n in range(5)
    ]
    samples, quarantine = read(as_parquet(tmp_path / "a.parquet", rows, row_group_size=row_group_size))
    assert not quarantine.total
    assert [(sample.task, sample.answer, sample.group) for sample in samples] == [
        ("transcribe", f"word {n}", f"p{n % 2}") for n in range(5)
    ]
    for n in (3, 0, 4):
        assert stored.content(samples[n].audios[0].path) == sound(n)
        assert stored.container(samples[n].audios[0].path) == str(tmp_path / "a.parquet")
        assert duration_s(samples[n].audios[0]) == 0.5


def test_large_row_groups_are_copied_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 100)
    samples, quarantine = read(
        as_parquet(tmp_path / "a.parquet", [{"image": held(picture(n)), "text": f"t {n}"} for n in range(3)])
    )
    assert [stored.content(sample.images[0].path) for sample in samples] == [picture(n) for n in range(3)]
    assert all(sample.images[0].path.startswith("data:image/png;base64,") for sample in samples)
    assert "row_group_size=100" in quarantine.notes[0]


def test_the_same_picture_in_several_rows_is_one_group(tmp_path: Path) -> None:
    rows = [{"image": held(picture(n // 3)), "question": f"what {n}?", "answer": f"a {n}"} for n in range(12)]
    path = as_parquet(tmp_path / "a.parquet", rows, row_group_size=5)
    samples, _ = read(path)
    assert len({sample.group for sample in samples}) == 4
    assert not readers.load(
        [Source(path=str(path))], base=Path(), val_split=0.3, seed=0, quarantine=Quarantine()
    ).leaks


def test_a_folder_of_shards_says_its_splits(tmp_path: Path) -> None:
    for name, numbers in (
        ("train-00000-of-00002", range(4)),
        ("train-00001-of-00002", range(4, 8)),
        ("validation-00000-of-00001", range(8, 10)),
    ):
        as_parquet(
            tmp_path / "data" / f"{name}.parquet",
            [{"image": held(picture(n)), "caption": f"c {n}"} for n in numbers],
        )
    for named in (".", "data", "data/*.parquet", "data/{train-*,validation-*}.parquet"):
        samples, quarantine = read(named, tmp_path)
        assert [sample.split for sample in samples] == ["train"] * 8 + ["valid"] * 2
        assert not quarantine.total
    samples, _ = read("data/train-*.parquet", tmp_path)
    assert {sample.split for sample in samples} == {None}
    report = check(Source(path="."), tmp_path)
    assert (report.sides, report.errors) == ({"train": 8, "valid": 2}, [])
    before = readers.fingerprint([Source(path=".")], tmp_path)
    as_parquet(
        tmp_path / "data" / "validation-00000-of-00001.parquet",
        [{"image": held(picture(n)), "caption": f"d {n}"} for n in (8, 9)],
    )
    assert readers.fingerprint([Source(path=".")], tmp_path) != before


def test_classes_lists_and_turns_of_parquet(tmp_path: Path) -> None:
    samples, _ = read(
        as_parquet(tmp_path / "a.parquet", [{"image": held(picture(n)), "label": n} for n in range(2)])
    )
    assert [sample.answer for sample in samples] == ["cat", "dog"]
    talk = [{"from": "human", "value": "<image> and <image>?"}, {"from": "gpt", "value": "two"}]
    rows = [{"images": [held(picture(1)), held(picture(2))], "conversations": talk}]
    (sample,), quarantine = read(as_parquet(tmp_path / "b.parquet", rows))
    assert not quarantine.total
    assert [stored.content(part.path) for part in sample.images] == [picture(1), picture(2)]
    assert read_picture(sample.images[1], 24).shape == (24, 24, 3)
    rows = [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    ]
    (sample,), _ = read(as_parquet(tmp_path / "c.parquet", rows))
    assert sample.answer == "good day"


def test_a_path_without_bytes_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = [
        {"image": {"bytes": None, "path": "a.png"}, "text": "x"},
        {"image": {"bytes": None, "path": "no.png"}, "text": "x"},
    ]
    samples, quarantine = read(as_parquet(tmp_path / "a.parquet", rows))
    assert [sample.images[0].path for sample in samples] == [str(tmp_path / "a.png")]
    assert quarantine.counts == {"missing": 1}


def test_a_torn_parquet_is_named(tmp_path: Path) -> None:
    whole = as_parquet(tmp_path / "a.parquet", [{"image": held(picture(0)), "text": "x"}]).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"a\.parquet: expected a whole parquet file"):
        read(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"b\.parquet: "):
        read(tmp_path / "b.parquet")


def test_without_pyarrow_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'muomni\[parquet\]'"):
        stored.parquet_file(tmp_path / "a.parquet")


# 3. Names


def test_names_of_members_are_told_from_paths() -> None:
    path = stored.in_tar("/d/s-0.tar", 512, 30, "a/b!c.png")
    assert stored.container(path) == "/d/s-0.tar"
    assert stored.shown(path) == stored.identity(path) == "/d/s-0.tar!a/b!c.png"
    assert Path(path).suffix == ".png"
    for plain in ("a.png", "wow!.png", "a.tar!b.png", "data:image/png;base64,AAAA"):
        assert stored.container(plain) is None
    assert ImagePart(path=path).path == path


def test_names_that_say_a_side() -> None:
    said = {
        "train-00000-of-00002.parquet": "train",
        "validation.tar": "valid",
        "shard-000.tar": None,
        "contest-1.tar": None,
        "val2017": "valid",
    }
    assert {name: shards.side(name) for name in said} == said
    assert schema_inference.recognise(Path("x.bin"), Source(path="x.bin")).format is None
    assert formats.kind(Path("shard-{000..009}.tar")) == ".tar"


# 4. Hugging Face's own reader and writer


def test_datasets_writes_what_is_read_here(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [held(picture(n)) for n in range(5)], "label": [n % 2 for n in range(5)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
    samples, quarantine = read(tmp_path / "a.parquet")
    assert not quarantine.total
    assert [sample.answer for sample in samples] == ["cat", "dog", "cat", "dog", "cat"]
    assert [stored.content(sample.images[0].path) for sample in samples] == [picture(n) for n in range(5)]


def test_imagefolder_of_datasets_sees_the_same_classes_and_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    names = ("train/cat/1.png", "train/dog/2.png", "validation/cat/3.png", "test/dog/4.png")
    for n, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(picture(n))
    theirs = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache")
    )
    told = {
        (
            row["image"]["path"],
            part.features["label"].int2str(row["label"]),
            "train" if split == "train" else "valid",
        )
        for split, part in theirs.items()
        for row in part.cast_column("image", datasets.Image(decode=False))
    }
    samples, quarantine = read(tmp_path / "set")
    assert not quarantine.total
    assert {(sample.images[0].path, sample.answer, sample.split) for sample in samples} == told
