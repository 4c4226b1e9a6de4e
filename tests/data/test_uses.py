"""What a sample is good for: whose words a sound holds, and which stages can learn from a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from muomni import cli
from muomni.data import readers, uses
from muomni.data.check.checker import check
from muomni.data.check.report import lines, summary
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample, parse
from muomni.data.source import Source
from muomni.data.tokenized import encode
from muomni.errors import ConfigError, DataError
from muomni.media import audio

SOUND = {"type": "audio", "path": "a.wav"}
PICTURE = {"type": "image", "path": "a.png"}


def row(*turns: tuple[str, Any], **more: Any) -> Sample:
    return parse(
        {
            "id": "r",
            "group": "g",
            "messages": [{"role": role, "content": content} for role, content in turns],
            **more,
        }
    )


def tones(folder: Path, count: int = 6, seconds: float = 1.0) -> None:
    times = np.arange(int(16000 * seconds)) / 16000
    for number in range(count):
        audio.write(
            folder / f"{number}.wav",
            (0.4 * np.sin(2 * np.pi * (200 + 90 * number) * times)).astype(np.float32),
            16000,
        )


# --- whose words --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (row(("user", "hello there"), ("assistant", [SOUND])), "hello there"),
        (row(("user", "say it"), ("assistant", [{"type": "text", "text": "hello"}, SOUND])), "hello"),
        (row(("user", [SOUND]), ("assistant", "hello")), "hello"),
        (row(("user", "hm"), ("assistant", [SOUND]), extra={"text": "hello"}), "hello"),
        (row(("system", "speak slowly"), ("user", "hello"), ("assistant", [SOUND])), "hello"),
        (row(("user", "hello"), ("assistant", [SOUND]), ("user", "and now?"), ("assistant", "bye")), "hello"),
        (row(("user", "hi"), ("assistant", "what?"), ("user", "hello"), ("assistant", [SOUND])), "hello"),
    ],
)
def test_the_words_of_a_sound(sample: Sample, words: str) -> None:
    assert uses.spoken(sample)[1] == words
    assert uses.refusal("codec", sample) is None


@pytest.mark.parametrize(
    "turns",
    [
        (
            ("user", [PICTURE, {"type": "text", "text": "what colour is it?"}]),
            ("assistant", [SOUND]),
        ),  # the question is not what is said
        (
            ("user", [{**SOUND, "path": "b.wav"}, {"type": "text", "text": "what was that?"}]),
            ("assistant", [SOUND]),
        ),
        (("assistant", [SOUND]),),
    ],
)
def test_a_question_about_media_is_not_what_the_answer_says(turns: Any) -> None:
    sample = row(*turns)
    with pytest.raises(DataError, match="its words"):
        uses.spoken(sample)
    assert uses.refusal("talker", sample) == "no words for its sound"


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (row(("user", [PICTURE]), ("assistant", "a dog")), None),
        (row(("system", "be kind"), ("user", [SOUND]), ("assistant", "hello")), None),
        (row(("user", "a dog"), ("assistant", [PICTURE])), None),
        (row(("user", "say it"), ("assistant", [{"type": "text", "text": "hello"}, SOUND])), None),
        (row(("user", "a dog"), ("assistant", "woof")), "no medium"),
        (row(("user", [PICTURE]), ("assistant", [SOUND])), "more than one medium"),
        (
            row(("user", [PICTURE]), ("assistant", "a dog"), ("user", "sure?"), ("assistant", "yes")),
            "not one question and one answer",
        ),
        (
            row(("user", "a dog"), ("assistant", [{"type": "text", "text": "here"}, PICTURE])),
            "words beside the picture that it draws",
        ),
        (parse({"id": "r", "group": "g", "text": "a document"}), "no medium"),
    ],
)
def test_a_task_over_tokens_has_one_medium_and_one_text(sample: Sample, reason: str | None) -> None:
    """The rule of stages rows and mmpt is the one by which shards are made."""
    assert uses.refusal("rows", sample) == uses.refusal("mmpt", sample) == reason
    found = encode.wanted(sample)
    assert (found if isinstance(found, str) else None) == reason


# --- a csv of one's own -------------------------------------------------------------------------------------------------------------------


def test_rows_of_tts_csv_have_their_words(tmp_path: Path) -> None:
    tones(tmp_path, 2)
    (tmp_path / "tts.csv").write_text("text,wav\none two,0.wav\nthree,1.wav\n")
    samples = list(readers.read(Source(path="tts.csv"), tmp_path, Quarantine()))
    assert [uses.spoken(sample)[1] for sample in samples] == ["one two", "three"]


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("wav,text", "asr_csv"),
        ("text,wav", "tts_csv"),
        ("wav,text", None),
        ("image,text", None),
        ("image,caption", None),
    ],
)
def test_swapped_columns_are_one_line(tmp_path: Path, header: str, form: Any) -> None:
    tones(tmp_path, 2)
    file, words = ("a.png", "a dog") if "image" in header else ("0.wav", "one two")
    cells = [words, file] if header.startswith(("wav", "image")) else [file, words]
    (tmp_path / "m.csv").write_text(f"{header}\n{','.join(cells)}\n{','.join(cells)}\n")
    with pytest.raises(ConfigError, match="swapped") as caught:
        list(readers.read(Source(path="m.csv", format=form), tmp_path, Quarantine()))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in (file, words, "m.csv"))


def test_columns_that_are_not_swapped_are_read(tmp_path: Path) -> None:
    tones(tmp_path, 2)
    (tmp_path / "m.csv").write_text("wav,text\n0.wav,the file is called 1.wav\n1.wav,two\n")
    assert len(list(readers.read(Source(path="m.csv"), tmp_path, Quarantine()))) == 2


# --- what data check says -----------------------------------------------------------------------------------------------------------------


def manifest(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def turns(user: Any, assistant: Any, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
        **more,
    }


def sound(number: int) -> list[dict[str, str]]:
    return [{"type": "audio", "path": f"{number}.wav"}]


def pictures(folder: Path, number: int) -> list[dict[str, str]]:
    """Two of them, which no stage draws."""
    paths = [folder / f"{number}{name}.png" for name in "ab"]
    for place, path in enumerate(paths):
        noise = np.random.default_rng([number, place]).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return [{"type": "image", "path": path.name} for path in paths]


def test_each_row_says_which_stages_can_use_it(tmp_path: Path) -> None:
    tones(tmp_path)
    audio.write(
        tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * 21).astype(np.float32), 16000
    )
    rows = [
        turns(sound(0), "hello", group="a"),
        turns("hello", sound(1), group="b"),
        turns([{"type": "audio", "path": "long.wav"}], "a long one", group="c"),
        turns("hi", "ho", group="d"),
        {"text": "a document", "group": "e"},
        turns("short" * 12, sound(2), group="f"),  # 60 letters in 30 frames
    ]
    found = check(Source(path=str(manifest(tmp_path, rows))), Path())
    speech, tokens = ["codec", "talker"], ["rows", "mmpt"]
    said = [*tokens, "voice"]
    assert [one["stages"] for one in found.to_json()["usable"]] == [
        ["hearing", *speech, "omni", *tokens],
        ["hearing", *speech, *said],
        ["omni", *tokens],
        ["thinker", "omni", "instruct"],
        ["thinker", "omni", "instruct"],
        [*speech, *said],
    ]
    assert [one["where"].rpartition(":")[2] for one in found.to_json()["usable"]] == list("123456")
    (only,) = found.manifests
    assert only.stages == {
        "hearing": 2,
        "codec": 3,
        "talker": 3,
        "omni": 4,
        "thinker": 2,
        "instruct": 2,
        "rows": 4,
        "mmpt": 4,
        "voice": 2,
    }
    assert only.refused["hearing"]["a sound of over 20 s (max_s)"] == 1
    assert only.refused["hearing"]["more symbols than CTC can write in its frames"] == 1
    told = dict(summary(found))["m.jsonl: for stages"]
    assert "codec 3 (not 1 a sound of over 20 s (max_s), 2 no sound)" in told
    assert not found.total("error")


def test_a_file_that_no_stage_can_learn_from_is_red(tmp_path: Path) -> None:
    tones(tmp_path)
    ask = [{"type": "text", "text": "what was it?"}]
    rows = [
        turns([*sound(number), *ask], pictures(tmp_path, number), group=f"g{number}") for number in range(3)
    ]
    found = check(Source(path=str(manifest(tmp_path, rows))), Path())
    assert found.counts["no_stage"] == 1
    assert found.counts["useless_row"] == 3
    assert found.total("error") == 1
    told = [line for line in lines(found) if "m.jsonl: no stage" in line]
    assert len(told) == 1
    assert "talker: no words for its sound" in told[0]
    ended = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path / "m.jsonl")])
    assert ended.exit_code == 1


def test_a_row_without_use_beside_useful_ones_is_a_warning(tmp_path: Path) -> None:
    tones(tmp_path)
    rows = [turns(sound(0), "hello", group="a"), turns(sound(1), pictures(tmp_path, 1), group="b")]
    found = check(Source(path=str(manifest(tmp_path, rows))), Path())
    assert {"useless_row"} == {finding.reason for finding in found.findings if finding.severity != "note"}
    assert next(finding.where for finding in found.findings if finding.reason == "useless_row").endswith(
        "m.jsonl:2"
    )


def test_swapped_columns_make_data_check_red(tmp_path: Path) -> None:
    tones(tmp_path, 2)
    (tmp_path / "asr.csv").write_text("wav,text\none,0.wav\ntwo,1.wav\n")
    found = check(Source(path=str(tmp_path / "asr.csv")), Path())
    assert any("swapped" in line for line in found.errors)


# --- what a stage demands -----------------------------------------------------------------------------------------------------------------


def test_a_stage_stops_where_it_could_learn_from_nothing() -> None:
    heard = [row(("user", [SOUND]), ("assistant", "hello"))] * 3
    with pytest.raises(DataError, match=r"vision: .* none in 3: 3 no picture"):
        uses.demand("vision", heard, lambda sample: uses.refusal("vision", sample))
    uses.demand("hearing", heard, lambda sample: uses.refusal("hearing", sample))
    one_among_many = [*[row(("user", "hi"), ("assistant", "ho"))] * 1000, *heard[:1]]
    uses.demand("hearing", one_among_many, lambda sample: uses.refusal("hearing", sample))
    uses.demand("hearing", one_among_many[::-1][:500], lambda sample: uses.refusal("hearing", sample))
