"""Folders as they are unpacked or sorted by hand: told by themselves, strict about every line, speakers as
groups, one file one name."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from muomni.data import formats, places, readers, uses, utterances
from muomni.data.check.checker import check
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
    audio.write(
        path.with_suffix(".wav"),
        (0.3 * np.sin(2 * np.pi * hz * times) * np.hanning(24000)).astype(np.float32),
        16000,
    )
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
    for part, speaker, chapter in (
        ("train-clean-100", 103, 1240),
        ("train-clean-100", 1034, 121119),
        ("dev-clean", 84, 121123),
    ):
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
    return list(
        readers.read(Source.model_validate({"path": str(path), **more}), Path(), quarantine)
    ), quarantine


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
    table = (
        LJ
        + "LJ003-0001|a|b|c\nno pipes at all\nLJ003-0002| |\nLJ003-0003|no such sound|no such sound\n../LJ001-0001|up|up\n"
    )
    samples, quarantine = read(ljspeech(tmp_path / "lj", table))
    assert len(samples) == 3
    assert quarantine.counts == {"bad_row": 3, "empty": 1, "missing": 1}
    assert any("metadata.csv:4: " in line and "4 cells" in line for line in quarantine.examples["bad_row"])
    assert "wavs/LJ003-0003.wav" in quarantine.examples["missing"][0]


def test_librispeech_is_told_from_any_of_its_folders(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "LibriSpeech")
    for path, count in (
        (root, 6),
        (root / "train-clean-100", 4),
        (root / "train-clean-100" / "103", 2),
        (root / "dev-clean/84/121123", 2),
    ):
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
    corpus = readers.load(
        [Source(path=str(root))], base=Path(), val_split=0.0, seed=0, quarantine=Quarantine()
    )
    assert {sample.group for sample in corpus.valid} == {"84"}
    assert not corpus.leaks


def test_every_bad_line_of_librispeech_is_named(tmp_path: Path) -> None:
    root = librispeech(tmp_path / "LibriSpeech")
    table = root / "train-clean-100" / "103" / "1240" / "103-1240.trans.txt"
    table.write_text(
        table.read_text()
        + "103-1240-0002\n104-1240-0003 ANOTHER SPEAKER\nwords alone\n103-1240-0009 NO SOUND\n"
    )
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
    assert found.manifests[0].stages == {
        "hearing": 3,
        "codec": 3,
        "rows": 3,
        "mmpt": 3,
        "talker": 3,
        "voice": 3,
    }
    assert found.counts["orphan"] == 1
    assert not found.total("error")
    found = check(Source(path=str(libri)), Path())
    assert (found.manifests[0].format, found.samples, found.groups) == ("librispeech", 6, 3)
    assert found.manifests[0].stages == {
        "hearing": 6,
        "codec": 6,
        "rows": 6,
        "mmpt": 6,
        "talker": 6,
        "omni": 6,
    }
    assert not found.total("error")
    together = check(Source(path=str(tmp_path / "LJSpeech-1.1" / "..")), Path())  # a folder of corpora
    assert "ljspeech" in {manifest.format for manifest in together.manifests}


# Folders of Common Voice, VCTK, pictures and sounds


def voices(folder: Path, *names: str) -> None:
    """A tone a name, each of its own height."""
    for name in names:
        tone(folder / name, 150 + zlib.crc32(f"{folder.name}/{name}".encode()) % 3000)


def common_voice(folder: Path) -> Path:
    head = "client_id\tpath\tsentence\tup_votes\n"
    clips = [f"cv_{n}.mp3" for n in range(8)]
    voices(folder / "clips", *clips)
    rows = [
        f"spk{n // 2}\t{clip}\t{'' if n % 3 else chr(34)}sentence number {n}\t2\n"
        for n, clip in enumerate(clips)
    ]
    for name, chosen in (
        ("train", rows[:4]),
        ("dev", rows[4:6]),
        ("test", rows[6:]),
        ("validated", rows),
        ("other", rows[:1]),
    ):
        (folder / f"{name}.tsv").write_text(head + "".join(chosen))
    return folder


def test_the_tables_of_common_voice_are_its_splits(tmp_path: Path) -> None:
    samples, quarantine = read(common_voice(tmp_path / "cv" / "en"))
    assert not quarantine.total
    assert [sample.split for sample in samples] == ["train"] * 4 + ["valid"] * 4
    assert [sample.group for sample in samples] == [f"spk{n // 2}" for n in range(8)]
    assert samples[3].answer == '"sentence number 3'
    assert any(
        "validated.tsv, which holds their rows and others, is left" in note for note in quarantine.notes
    )
    corpus = readers.load(
        [Source(path=str(tmp_path / "cv" / "en"))],
        base=Path(),
        val_split=0.5,
        seed=0,
        quarantine=Quarantine(),
    )
    assert (len(corpus.train), len(corpus.valid), bool(corpus.leaks)) == (4, 4, False)
    report = check(Source(path=str(tmp_path / "cv" / "en")), Path())
    assert (report.samples, report.total("error"), report.sides) == (8, 0, {"train": 4, "valid": 4})
    alone, _ = read(tmp_path / "cv" / "en" / "train.tsv")
    assert [sample.answer for sample in alone] == [sample.answer for sample in samples[:4]]
    for name in ("train", "dev", "test"):
        (tmp_path / "cv" / "en" / f"{name}.tsv").unlink()
    samples, quarantine = read(tmp_path / "cv" / "en")
    assert len(samples) == 8
    assert not quarantine.notes


@pytest.mark.parametrize("version", ["0.92", "0.80"])
def test_vctk_is_told_from_its_folder(tmp_path: Path, version: str) -> None:
    sounds = "wav48_silence_trimmed" if version == "0.92" else "wav48"
    ends = ("_mic1.flac", "_mic2.flac") if version == "0.92" else (".wav",)
    for speaker in ("p225", "p226"):
        for n in (1, 2):
            name = f"{speaker}_{n:03d}"
            voices(tmp_path / sounds / speaker, *(name + end for end in ends))
            (tmp_path / "txt" / speaker).mkdir(parents=True, exist_ok=True)
            (tmp_path / "txt" / speaker / f"{name}.txt").write_text(f"Please call {name}.\n")
    (tmp_path / "txt" / "p225" / "p225_003.txt").write_text("No sound of it.\n")
    (tmp_path / "txt" / "p225" / "._p225_001.txt").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "speaker-info.txt").write_text("ID  AGE  GENDER  ACCENTS\np225  23  F  English\n")
    voices(tmp_path / sounds / "p315", "p315_001" + ends[0])  # its texts were lost
    samples, quarantine = read(tmp_path)
    assert formats.sniff(tmp_path, Source(path=str(tmp_path))) == "vctk"
    assert [(sample.id, sample.group, sample.answer) for sample in samples[:1]] == [
        ("p225_001", "p225", "Please call p225_001.")
    ]
    assert len(samples) == 4
    assert samples[0].audios[0].speaker == "p225"
    assert samples[0].audios[0].path.endswith(f"{sounds}/p225/p225_001{ends[0]}")
    assert quarantine.counts == {"missing": 1}
    assert "txt/p225/p225_003.txt: expected its sound" in quarantine.examples["missing"][0]
    assert (len(quarantine.notes) == 1) == (version == "0.92")
    report = check(Source(path=str(tmp_path)), Path())
    assert (report.manifests[0].format, report.samples, report.counts["orphan"]) == ("vctk", 4, 1)
    before = readers.fingerprint([Source(path=str(tmp_path))], Path())
    (tmp_path / "txt" / "p225" / "p225_001.txt").write_text("Pleasy call p225_001.\n")
    assert readers.fingerprint([Source(path=str(tmp_path))], Path()) != before


def higgs(folder: Path, **changes: object) -> Path:
    """A set as the source of stage voice writes it: two speakers, one row with a reference."""
    voices(folder, "a_0.wav", "a_1.wav", "b_0.wav", "ref.wav")
    rows = []
    for name in ("a_0", "a_1", "b_0"):
        (folder / f"{name}.txt").write_text(f"words of {name}\n")
        rows.append(
            {
                "id": name,
                "audio_file": f"{name}.wav",
                "transcript_file": f"{name}.txt",
                "duration": 1.5,
                "speaker_id": name[0],
                "scene": "quiet_room",
                "original_audio_path": "/elsewhere/audio.wav",
                "user_instruction": "<audio> /translate",
                "task_type": "audio_generation",
            }
        )
    rows[1] |= {"ref_audio_file": "ref.wav", "ref_transcript": "heard before", **changes}
    content = {"dataset_info": {"total_samples": 3, "speakers": ["a", "b"]}, "samples": rows}
    (folder / "metadata.json").write_text(json.dumps(content, indent=2))
    return folder


def test_a_set_of_a_higgs_trainer_is_told_from_its_table(tmp_path: Path) -> None:
    folder = higgs(tmp_path)
    for place in (folder, folder / "metadata.json"):
        assert formats.sniff(place, Source(path=str(place))) == "higgs"
        samples, quarantine = read(place)
        assert not quarantine.total
        assert [(sample.id, sample.group, uses.spoken(sample)[1]) for sample in (samples[0], samples[2])] == [
            ("a_0", "a", "words of a_0"),
            ("b_0", "b", "words of b_0"),
        ]
        assert samples[0].speech[0].speaker == "a"
        assert [message.text for message in samples[1].messages] == ["heard before", "", "words of a_1", ""]
        assert [Path(part.path).name for part in samples[1].speech] == ["ref.wav", "a_1.wav"]
        assert [sample.extra["start_index"] for sample in samples] == [1, 3, 1]
    before = readers.fingerprint([Source(path=str(folder / "metadata.json"))], Path())
    (folder / "a_0.txt").write_text("other of a_0\n")
    assert readers.fingerprint([Source(path=str(folder / "metadata.json"))], Path()) != before
    report = check(Source(path=str(folder)), Path())
    assert (report.manifests[0].format, report.samples) == ("higgs", 3)
    assert "orphan" not in report.counts


def test_a_reference_without_words_stands_before_the_text(tmp_path: Path) -> None:
    samples, _ = read(higgs(tmp_path, ref_transcript=None))
    user, assistant = samples[1].messages
    assert [part.type for part in user.parts] == ["audio", "text"]
    assert (user.text, assistant.text, samples[1].extra["start_index"]) == ("words of a_1", "", 1)


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"transcript_file": "no.txt"}, "missing", "no.txt: expected a text"),
        ({"transcript_file": None}, "empty", "transcript: expected words"),
        ({"audio_file": "no.wav"}, "missing", "no.wav"),
        ({"ref_audio_file": "no.wav"}, "missing", "no.wav"),
        ({"speaker_id": 3}, "bad_row", "speaker_id: expected a text, got 3"),
    ],
)
def test_a_broken_row_of_such_a_set_is_named(
    tmp_path: Path, changes: dict[str, object], reason: str, message: str
) -> None:
    samples, quarantine = read(higgs(tmp_path, **changes))
    assert (len(samples), quarantine.counts) == (2, {reason: 1})
    assert quarantine.examples[reason][0].startswith(f"{tmp_path / 'metadata.json'}:2: ")
    assert message in quarantine.examples[reason][0]


def test_a_table_that_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text('{"samples": {}}')
    with pytest.raises(DataError, match="expected an object with a list of samples"):
        read(tmp_path)
    (tmp_path / "metadata.json").write_text('{"samples": [')
    with pytest.raises(DataError, match=r"metadata\.json"):
        read(tmp_path)


def test_folders_of_classes_with_splits(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "test/dog/4.png"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(name.encode())
    for name in (
        ".git/x/9.png",
        "__MACOSX/train/cat/._1.png",
        "train/.ipynb_checkpoints/1-checkpoint.png",
        "train/cat/._1.png",
    ):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(b"no picture")
    samples, quarantine = read(tmp_path / "a")
    found = {Path(sample.images[0].path).name: (sample.answer, sample.split) for sample in samples}
    assert found == {
        "1.png": ("cat", "train"),
        "2.png": ("dog", "train"),
        "3.png": ("cat", "valid"),
        "4.png": ("dog", "valid"),
    }
    assert not quarantine.total
    for name in ("cat/1.png", "dog/2.png", "test/3.png"):  # a class that is called test
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(name.encode())
    assert [(sample.answer, sample.split) for sample in read(tmp_path / "b")[0]] == [
        ("cat", None),
        ("dog", None),
        ("test", None),
    ]
    for name in ("train/cat/1.png", "train/dog/2.png"):  # one split alone says nothing
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_bytes(name.encode())
    assert [(sample.answer, sample.split) for sample in read(tmp_path / "c")[0]] == [
        ("cat", None),
        ("dog", None),
    ]
    (tmp_path / "d/animals/cat").mkdir(parents=True)
    (tmp_path / "d/animals/cat/1.png").write_bytes(b"x")
    (tmp_path / "d/2.png").write_bytes(b"y")
    samples, quarantine = read(tmp_path / "d")
    assert [sample.answer for sample in samples] == ["cat"]
    assert "its class is the folder in which it lies, 'cat', not 'animals'" in quarantine.notes[0]
    assert "2.png: expected it in a class folder" in quarantine.examples["bad_row"][0]


def test_sounds_in_folders_are_no_pictures(tmp_path: Path) -> None:
    voices(tmp_path / "a", "dog/1.wav", "dog/2.wav", "cat/3.wav")
    samples, quarantine = read(tmp_path / "a")
    assert formats.sniff(tmp_path / "a", Source(path="a")) == "sounds"
    assert [(sample.task, sample.answer) for sample in samples] == [
        ("label", "cat"),
        ("label", "dog"),
        ("label", "dog"),
    ]
    assert not quarantine.total
    report = check(Source(path=str(tmp_path / "a")), Path())
    assert (report.manifests[0].format, report.samples, report.sounds) == ("sounds", 3, 3)
    (tmp_path / "a" / "dog" / "1.txt").write_text("what it says")
    _, quarantine = read(tmp_path / "a")
    assert "got a text beside the sound: 1.txt" in quarantine.examples["bad_row"][0]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_each_split(tmp_path: Path, kind: str) -> None:
    for side, names in (("train", ("1.wav", "sub/2.wav")), ("test", ("1.wav",))):
        voices(tmp_path / "a" / side, *names)
        rows = [
            {"file_name": name, "transcription": f"{side} {name}", "speaker_id": f"{side}{n}"}
            for n, name in enumerate(names)
        ]
        lines = (
            [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
            if kind == "csv"
            else map(json.dumps, rows)
        )
        (tmp_path / "a" / side / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    samples, quarantine = read(tmp_path / "a")
    assert not quarantine.total
    found = [
        (Path(s.audios[0].path).relative_to(tmp_path / "a").as_posix(), s.answer, s.split, s.group, s.task)
        for s in samples
    ]
    assert found == [
        ("test/1.wav", "test 1.wav", "valid", "test0", "transcribe"),
        ("train/1.wav", "train 1.wav", "train", "train0", "transcribe"),
        ("train/sub/2.wav", "train sub/2.wav", "train", "train1", "transcribe"),
    ]
    report = check(Source(path=str(tmp_path / "a")), Path())
    assert (report.samples, report.total("error"), report.sides) == (3, 0, {"valid": 1, "train": 2})
    one, quarantine = read(tmp_path / "a" / "train")
    assert [(sample.answer, sample.split) for sample in one] == [
        ("train 1.wav", None),
        ("train sub/2.wav", None),
    ]
    assert not quarantine.total


def test_a_pointer_in_a_tables_place_is_named(tmp_path: Path) -> None:
    voices(tmp_path / "a", "1.wav")
    (tmp_path / "a" / "metadata.csv").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    )
    with pytest.raises(DataError, match="a pointer of git-lfs"):
        read(tmp_path / "a")
    report = check(Source(path=str(tmp_path / "a")), Path())
    assert any("git lfs pull" in error for error in report.errors)


# One file under one name


def spellings(folder: Path) -> list[str]:
    """Ways to name the file clips/a.wav."""
    voices(folder / "clips", "a.wav")
    (folder / "link.wav").symlink_to("clips/a.wav")
    (folder / "far.wav").symlink_to(folder / "link.wav")
    (folder / "again").symlink_to("clips")
    (folder / "hard.wav").hardlink_to(folder / "clips" / "a.wav")
    (folder.parent / "outside").symlink_to(folder)
    return [
        *(
            "clips/a.wav",
            "./clips//a.wav",
            "clips/../clips/a.wav",
            str(folder / "clips/a.wav"),
            "link.wav",
            "far.wav",
            "again/a.wav",
        ),
        *(
            "../outside/clips/a.wav",
            str(folder.parent / "outside" / "again" / "a.wav"),
            "hard.wav",
            f"file://{folder}/clips/a.wav",
        ),
    ]


def test_a_file_is_one_file_however_it_is_spelt(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = spellings(folder)
    turns = [{"role": "assistant", "content": "words"}]
    rows = [
        {
            "id": str(n),
            "messages": [
                {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": name}}]},
                *turns,
            ],
        }
        for n, name in enumerate(names)
    ]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples, quarantine = read(folder / "m.jsonl")
    assert not quarantine.total
    assert {sample.audios[0].path for sample in samples} == {str(folder / "clips" / "a.wav")}
    assert {sample.group for sample in samples} == {"clips/a.wav"}
    assert {utterances.voice_of(sample) for sample in samples} == {None}
    through, _ = read(tmp_path / "outside" / "m.jsonl")  # the manifest itself through a link
    assert {sample.group for sample in through} == {"clips/a.wav"}


def test_what_lies_outside_is_one_file_too(tmp_path: Path) -> None:
    """A folder that is a link out of the manifest's keeps its name; the split does not know where it
    leads."""
    voices(tmp_path / "disk", "a.wav", "b.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clips").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "in" / "m.csv").write_text(
        f"wav,text\nclips/a.wav,x\nmore/a.wav,x\n../disk/a.wav,x\n{tmp_path}/disk/b.wav,y\nclips/b.wav,y\n"
    )
    samples, _ = read(tmp_path / "in" / "m.csv")
    assert [sample.group for sample in samples] == ["clips/a.wav"] * 3 + ["clips/b.wav"] * 2
    assert {sample.audios[0].path for sample in samples} == {
        str(tmp_path / "in" / "clips" / name) for name in ("a.wav", "b.wav")
    }


def test_spellings_by_capitals_where_the_disk_knows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that finds A.wav as a.wav is imitated: whatever the system is asked of is told in small
    letters."""
    voices(tmp_path, "a.wav", "b.wav")
    real = {name: getattr(os, name) for name in ("stat", "lstat")}
    for name, ask in real.items():
        monkeypatch.setattr(
            os,
            name,
            lambda path, *more, ask=ask, **kw: ask(
                str(path).replace(".WAV", ".wav").replace("/A.", "/a."), *more, **kw
            ),
        )
    found = places.Places([str(tmp_path)])
    assert found.find("A.wav") == found.find("a.wav") == found.find("a.WAV")
    assert found.find("b.wav") != found.find("a.wav")


def test_a_thousand_rows_of_a_folder_ask_for_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    for n in range(1000):
        (tmp_path / "clips" / f"{n}.wav").write_bytes(b"x")
    asked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(
        os.path, "realpath", lambda path, **more: asked.append(str(path)) or real(path, **more)
    )
    found = places.Places([str(tmp_path)])
    for n in range(1000):
        assert found.find(f"clips/{n}.wav") == (str(tmp_path / "clips" / f"{n}.wav"), f"clips/{n}.wav")
    assert len(asked) == 2
