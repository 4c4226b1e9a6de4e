"""LJSpeech and LibriSpeech as they are unpacked: told by themselves from the folder, strict about every line, speakers as groups."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from muomni.data import formats, readers, uses
from muomni.data.check import check
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.media import audio

LJ = (
    "LJ001-0001|Printing, in 1450|Printing, in fourteen fifty\n"
    'LJ001-0002|"quoted", it\'s raw|"quoted", it\'s raw\n'
    "LJ002-0001|only two cells\n"
)


def tone(path: Path, hz: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(24000) / 16000
    audio.write(path.with_suffix(".wav"), (0.3 * np.sin(2 * np.pi * hz * times) * np.hanning(24000)).astype(np.float32), 16000)
    path.with_suffix(".wav").rename(path)  # sounds are read by their bytes, whatever their names


def ljspeech(folder: Path, table: str = LJ) -> Path:
    folder.mkdir(parents=True)
    (folder / "README").write_text("about")
    (folder / "metadata.csv").write_text(table)
    for number, name in enumerate(("LJ001-0001", "LJ001-0002", "LJ002-0001")):
        tone(folder / "wavs" / f"{name}.wav", 200 + 150 * number)
    return folder


def librispeech(folder: Path) -> Path:
    """Two speakers of a training part and one of dev-clean, two lines a chapter."""
    (folder).mkdir(parents=True)
    (folder / "SPEAKERS.TXT").write_text("; about\n")
    hz = 150
    for part, speaker, chapter in (("train-clean-100", 103, 1240), ("train-clean-100", 1034, 121119), ("dev-clean", 84, 121123)):
        inside = folder / part / str(speaker) / str(chapter)
        lines = []
        for number in range(2):
            name = f"{speaker}-{chapter}-{number:04d}"
            tone(inside / f"{name}.flac", hz := hz + 130)
            lines.append(f"{name} IT'S LINE NUMBER {('ONE', 'TWO')[number]}\n")
        (inside / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return folder


def read(path: Path, **more: object) -> tuple[list[Sample], Quarantine]:
    quarantine = Quarantine(limit=1.0)
    return list(readers.read(Source.model_validate({"path": str(path), **more}), Path(), quarantine)), quarantine


@pytest.mark.parametrize("name", ["", "metadata.csv"])
def test_ljspeech_is_told_from_its_folder_or_its_table(tmp_path: Path, name: str) -> None:
    path = ljspeech(tmp_path / "LJSpeech-1.1") / name
    assert formats.sniff(path, Source(path=str(path))) == "ljspeech"
    samples, quarantine = read(path)
    assert [sample.id for sample in samples] == ["LJ001-0001", "LJ001-0002", "LJ002-0001"]
    assert [uses.spoken(sample)[1] for sample in samples] == [
        "Printing, in fourteen fifty",
        '"quoted", it\'s raw',
        "only two cells",
    ]
    assert [sample.group for sample in samples] == ["LJ001", "LJ001", "LJ002"]
    assert all(Path(uses.spoken(sample)[0].path).is_file() for sample in samples)
    assert not quarantine.total


def test_every_bad_line_of_ljspeech_is_named(tmp_path: Path) -> None:
    table = LJ + "LJ003-0001|a|b|c\nno pipes at all\nLJ003-0002| |\nLJ003-0003|no such sound|no such sound\n../LJ001-0001|up|up\n"
    samples, quarantine = read(ljspeech(tmp_path / "lj", table))
    assert len(samples) == 3
    assert quarantine.counts == {"bad_row": 3, "empty": 1, "missing": 1}
    assert any("metadata.csv:4: " in line and "4 cells" in line for line in quarantine.examples["bad_row"])
    assert "wavs/LJ003-0003.wav" in quarantine.examples["missing"][0]


def test_librispeech_is_told_from_any_of_its_folders(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "LibriSpeech")
    for path, count in ((root, 6), (root / "train-clean-100", 4), (root / "train-clean-100" / "103", 2), (root / "dev-clean/84/121123", 2)):
        assert formats.sniff(path, Source(path=str(path))) == "librispeech"
        samples, quarantine = read(path)
        assert len(samples) == count
        assert not quarantine.total
    samples, _ = read(root)
    assert {sample.group for sample in samples} == {"84", "103", "1034"}
    assert samples[0].answer == "it's line number one"
    assert {sample.group: sample.split for sample in samples} == {"84": "valid", "103": None, "1034": None}
    assert {sample.split for sample in read(root / "dev-clean")[0]} == {"valid"}


def test_held_out_parts_and_speakers_never_straddle(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "LibriSpeech")
    corpus = readers.load([Source(path=str(root))], base=Path(), val_split=0.0, seed=0, quarantine=Quarantine())
    assert {sample.group for sample in corpus.valid} == {"84"}
    assert not corpus.leaks


def test_every_bad_line_of_librispeech_is_named(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "LibriSpeech")
    table = root / "train-clean-100" / "103" / "1240" / "103-1240.trans.txt"
    table.write_text(table.read_text() + "103-1240-0002\n104-1240-0003 ANOTHER SPEAKER\nwords alone\n103-1240-0009 NO SOUND\n")
    samples, quarantine = read(root)
    assert len(samples) == 6
    assert quarantine.counts == {"bad_row": 3, "missing": 1}
    assert any("103-1240.trans.txt:4: " in line for line in quarantine.examples["bad_row"])
    assert "103-1240-0009.flac" in quarantine.examples["missing"][0]


def test_a_file_is_no_librispeech(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(DataError, match="expected a folder"):
        read(tmp_path / "a.txt", format="librispeech")


def test_a_changed_word_is_other_data_though_no_size_changed(tmp_path: Path) -> None:
    for path, table in (
        (ljspeech(tmp_path / "lj"), "metadata.csv"),
        (librispeech(tmp_path / "ls"), "dev-clean/84/121123/84-121123.trans.txt"),
    ):
        before = readers.fingerprint([Source(path=str(path))], Path())
        content = (path / table).read_text()
        (path / table).write_text(content.replace("NUMBER", "NUMBAR").replace("raw", "row"))
        assert (path / table).stat().st_size == len(content)
        assert readers.fingerprint([Source(path=str(path))], Path()) != before


def test_other_folders_are_no_trees(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").write_text("file_name,text\na|b.png,x\n")
    assert formats.sniff(tmp_path, Source(path=str(tmp_path))) == "images"
    (tmp_path / "corpus.txt").write_text("a|b\n")
    assert formats.sniff(tmp_path / "corpus.txt", Source(path="x")) == "text"


def test_data_check_reads_a_tree_whole(tmp_path: Path) -> None:
    lj, libri = ljspeech(tmp_path / "LJSpeech-1.1"), librispeech(tmp_path / "LibriSpeech")
    shutil.copy(lj / "wavs" / "LJ001-0001.wav", lj / "wavs" / "LJ009-0001.wav")
    found = check(Source(path=str(lj)), Path())
    assert (found.manifests[0].format, found.samples) == ("ljspeech", 3)
    assert found.manifests[0].stages == {"hearing": 3, "codec": 3, "talker": 3}
    assert found.counts["orphan"] == 1
    assert not found.total("error")
    found = check(Source(path=str(libri)), Path())
    assert (found.manifests[0].format, found.samples, found.groups) == ("librispeech", 6, 3)
    assert found.manifests[0].stages == {"hearing": 6, "codec": 6, "talker": 6, "omni": 6}
    assert not found.total("error")
    together = check(Source(path=str(tmp_path / "LJSpeech-1.1" / "..")), Path())  # a folder of corpora
    assert "ljspeech" in {manifest.format for manifest in together.manifests}
