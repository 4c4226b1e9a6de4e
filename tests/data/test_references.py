"""Recordings as conversations with a reference: of the same speaker, never the target itself, the same for a seed,
and what `muomni speak` asks with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_higgs
from muomni import cli
from muomni.data import readers, references, uses
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, Sample, parse
from muomni.data.source import Source
from muomni.data.voice_rows import VoiceTokens, prompt, render
from muomni.errors import ConfigError, DataError
from muomni.infer.voice import conversation
from muomni.media import audio
from muomni.tokens.bpe import Tokenizer


def tone(path: Path, hz: float, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(16_000 * seconds)) / 16_000
    audio.write(path.with_suffix(".wav"), (0.3 * np.sin(2 * np.pi * hz * times)).astype(np.float32), 16_000)
    path.with_suffix(".wav").rename(path)


def table(folder: Path, speakers: dict[str, int], rows: str = "") -> Path:
    """A csv of `wav,text,speaker`: a tone of its own for each clip."""
    lines = ["wav,text,speaker"]
    for place, (name, count) in enumerate(speakers.items()):
        for n in range(count):
            tone(folder / f"{name}_{n}.wav", 200 + 400 * place + 40 * n)
            lines.append(f"{name}_{n}.wav,words {n} of {name},{name}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n" + rows)
    return folder / "table.csv"


def convert(*paths: Path, **how: Any) -> references.Conversion:
    return references.convert([Source(path=str(path)) for path in paths], Quarantine(), **how)


def sounds(row: dict[str, Any]) -> list[str]:
    """The names of the sounds of a row, in their order; the last one is the target."""
    parts = [
        part for turn in row["messages"] if isinstance(turn["content"], list) for part in turn["content"]
    ]
    return [Path(part.get("audio_url", part.get("path"))).name for part in parts if part["type"] == "audio"]


@pytest.mark.parametrize("style", ["turn", "user"])
def test_a_reference_is_another_clip_of_the_same_speaker(tmp_path: Path, style: str) -> None:
    path = table(tmp_path, {"a": 6, "b": 3, "lone": 1})
    made = convert(path, style=style, home=tmp_path)
    assert len(made.rows) == 9
    assert made.speakers == {"a", "b"}
    assert made.alone == {"lone": 1}
    assert "lone" in made.lines()[0]
    for row in made.rows:
        heard, said = sounds(row)
        assert heard != said
        assert heard[0] == said[0] == row["speaker"]
        assert row["start_index"] == len(row["messages"]) - 1
    assert len({sounds(row)[0] for row in made.rows}) > 4, "not always the same one"
    assert made.rows == convert(path, style=style, home=tmp_path).rows
    assert made.rows != convert(path, style=style, home=tmp_path, seed=1).rows


def test_several_references_and_no_more_than_there_are(tmp_path: Path) -> None:
    made = convert(table(tmp_path, {"a": 5, "b": 3}), references=3)
    for row in made.rows:
        *heard, said = sounds(row)
        assert len(heard) == len(set(heard)) == (3 if row["speaker"] == "a" else 2)
        assert said not in heard
    assert [message["role"] for message in made.rows[0]["messages"]] == ["user", "assistant"] * 4


def test_the_order_of_rows_and_the_place_of_files_change_no_reference(tmp_path: Path) -> None:
    path = table(tmp_path / "one", {"a": 6, "b": 4})
    head, *lines = path.read_text().splitlines()
    # Ids that rows do not give are of the row itself, so they must not depend on its line.
    other = Path(shutil.copytree(tmp_path / "one", tmp_path / "two")) / "table.csv"
    other.write_text("\n".join([head, *reversed(lines)]) + "\n")
    pairs = [
        {sounds(row)[1]: sounds(row)[0] for row in convert(each, home=each.parent).rows}
        for each in (path, other)
    ]
    assert pairs[0] == pairs[1]


def test_a_copy_of_the_target_is_never_its_reference(tmp_path: Path) -> None:
    path = table(tmp_path, {"a": 2}, "copy.wav,words 0 of a once more,a\n")
    shutil.copy(tmp_path / "a_0.wav", tmp_path / "copy.wav")
    for seed in range(6):
        pairs = [sounds(row) for row in convert(path, seed=seed).rows]
        assert ["a_1.wav", "copy.wav"] in pairs
        assert ["a_1.wav", "a_0.wav"] in pairs
        assert len(pairs) == 3
    only = table(tmp_path / "twice", {"a": 1}, "copy.wav,words once more,a\n")
    shutil.copy(tmp_path / "twice" / "a_0.wav", tmp_path / "twice" / "copy.wav")
    with pytest.raises(DataError, match="2 clips are left out, since no other clip of their speaker"):
        convert(only)


def test_trees_and_sets_are_read_by_their_readers(tmp_path: Path) -> None:
    """LibriSpeech by its speakers; LJSpeech's chapters are one voice and never reach over a split; metadata.json by
    its speakers, and rows with a reference as they are."""
    for speaker, chapter, n in [(19, 198, 0), (19, 198, 1), (19, 227, 0), (26, 495, 0), (26, 495, 1)]:
        tone(
            tmp_path / "libri" / f"{speaker}/{chapter}/{speaker}-{chapter}-{n:04d}.flac",
            speaker * 10 + chapter + n,
        )
    for name in ("19/198/19-198", "19/227/19-227", "26/495/26-495"):
        count = 1 if "227" in name else 2
        lines = [f"{Path(name).name}-{n:04d} HELLO {n}" for n in range(count)]
        (tmp_path / "libri" / f"{name}.trans.txt").write_text("\n".join(lines) + "\n")
    made = convert(tmp_path / "libri")
    assert [row["speaker"] for row in made.rows] == ["19"] * 3 + ["26"] * 2
    assert made.rows[0]["messages"][-2]["content"] == "hello 0"
    assert "group" not in made.rows[0]
    names = ["LJ001-0001", "LJ001-0002", "LJ002-0001", "LJ002-0002", "LJ003-0001"]
    for place, name in enumerate(names):
        tone(tmp_path / "LJ" / "wavs" / f"{name}.wav", 300 + 30 * place)
    (tmp_path / "LJ" / "metadata.csv").write_text("".join(f"{name}|a {name}|b {name}\n" for name in names))
    made = convert(tmp_path / "LJ")
    assert {(row["speaker"], row["group"]) for row in made.rows} == {("LJ", "LJ001"), ("LJ", "LJ002")}
    assert all(heard[:5] == said[:5] for heard, said in map(sounds, made.rows))
    assert made.alone == {"LJ": 1}
    rows = []
    for place in range(3):
        tone(tmp_path / "set" / f"{place}.wav", 500 + 40 * place)
        rows.append(
            {"id": str(place), "audio_file": f"{place}.wav", "transcript": f"w{place}", "speaker_id": "s"}
        )
    rows[0] |= {"ref_audio_file": "2.wav", "ref_transcript": "w2"}
    (tmp_path / "set" / "metadata.json").write_text(json.dumps({"samples": rows}))
    made = convert(tmp_path / "set", references=2)
    assert made.as_they_were == 1
    assert sounds(made.rows[0]) == ["2.wav", "0.wav"]
    assert [len(sounds(row)) for row in made.rows[1:]] == [2, 2]


def test_the_same_schema_is_read_with_its_windows(tmp_path: Path) -> None:
    tone(tmp_path / "long.wav", 300, 9.0)
    rows = [
        {
            "id": f"r{n}",
            "messages": [
                {"role": "user", "content": [{"type": "audio", "path": "long.wav", "start": 3.0 * n, "end": 3.0 * n + 2}]},
                {"role": "assistant", "content": f"words {n}"},
            ],
            "speaker": "x",
            "split": "valid" if n == 2 else "train",
        }
        for n in range(3)
    ]  # fmt: skip
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = convert(tmp_path / "s.jsonl", home=tmp_path)
    (first, second) = made.rows
    said = first["messages"][-1]["content"][0]
    assert said == {"type": "audio", "audio_url": "long.wav", "duration": 2.0}
    assert second["messages"][-1]["content"][0] == {**said, "offset": 3.0}
    assert (first["split"], made.alone) == ("train", {"x": 1}), "the held-out one has no company on its side"


@pytest.mark.parametrize(("style", "transcript"), [("turn", "words 1 of a"), ("user", None)])
def test_a_row_up_to_its_codes_is_what_speak_asks_with(
    tmp_path: Path, style: str, transcript: str | None
) -> None:
    tiny_higgs.tokenizer(tmp_path / "words")
    tokenizer = Tokenizer.load(tmp_path / "words")
    tokens = VoiceTokens.of(tokenizer, 32, 33, tiny_higgs.BOOKS)
    path = table(tmp_path, {"a": 2})
    out = tmp_path / "m.jsonl"
    assert cli._exit_code(["data", "chatml", str(path), "--out", str(out), "--style", style]) == 0
    sample = next(iter(readers.read(Source(path=str(out)), Path(), Quarantine())))
    assert uses.refusal("voice", sample) is None

    def codes_of(part: AudioPart) -> torch.Tensor:
        return torch.full((tiny_higgs.BOOKS, 4), int(Path(part.path).stem[-1]))

    row = render(sample, tokenizer, tokens, codes_of)
    asked: Sample = conversation("words 0 of a", tmp_path / "a_1.wav", transcript)
    wanted = prompt(asked, tokenizer, tokens, codes_of)
    length = len(wanted.ids)
    assert row.ids[:length] == wanted.ids
    assert torch.equal(row.codes_KT[:, :length], wanted.codes_KT)
    assert row.sounds[-1].is_taught
    assert not row.sounds[0].is_taught
    assert set(row.labels[: length - 1]) == {-100}


def test_the_command_says_what_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "short.wav,hm,a\nlost.wav,never,a\nlong.wav,much,a\n"
    path = table(tmp_path, {"a": 3, "lone": 1}, rows)
    tone(tmp_path / "short.wav", 900, 0.2)
    tone(tmp_path / "long.wav", 950, 31)
    out = tmp_path / "m.json"
    assert cli._exit_code(["data", "chatml", str(path), "--out", str(out)]) == 0
    told = capsys.readouterr().err
    for line in (
        "1 bad rows",
        "lost.wav",
        "1 clips are left out, since",
        "lone",
        "shorter than 0.5 s or longer",
    ):
        assert line in told
    assert "3 rows of 1 speakers" in told
    assert len(json.loads(out.read_text())) == 3
    assert json.loads(out.read_text())[0]["messages"][1]["content"][0]["audio_url"] in {"a_1.wav", "a_2.wav"}


FAULTS: dict[str, tuple[list[str], str]] = {
    "another style": (["--style", "system"], "--style: expected turn or user"),
    "another suffix": (["--out", "m.csv"], "ends in .json or .jsonl"),
    "no reference": (["--references", "0"], "--references"),
    "nothing short enough": (
        ["--max-s", "0.6"],
        "expected clips with another one of their speaker, got none",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_not_be_asked_for_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    more, message = FAULTS[name]
    path = table(tmp_path, {"a": 2})
    made = ["data", "chatml", str(path), "--out", str(tmp_path / "m.json"), *more]
    assert cli._exit_code(made) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "m.json").exists()


def test_clips_of_nobody_are_told(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 300)
    (tmp_path / "t.csv").write_text("wav,text\na.wav,hello\n")
    with pytest.raises(DataError, match="nobody says who speaks"):
        convert(tmp_path / "t.csv")
    tone(tmp_path / "b.wav", 350)
    (tmp_path / "t.csv").write_text("wav,text\na.wav,hello\nb.wav,there\n")
    assert [row["speaker"] for row in convert(tmp_path / "t.csv", speaker="me").rows] == ["me", "me"]
    with pytest.raises(ConfigError, match="at least 1"):
        convert(tmp_path / "t.csv", references=0)
    picture = parse({"id": "p", "messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, "x"]},
                                             {"role": "assistant", "content": "y"}]})  # fmt: skip
    assert references._clip(picture, "p", "me", 0, 9) == "not one sound with its words"
