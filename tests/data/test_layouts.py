"""Data as the tools of others write them: a tiny example of each layout, and the samples it is; each fault
named by file and line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni.data import formats, readers
from muomni.data.check.checker import check
from muomni.data.check.report import Report
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, ImagePart, Sample
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.execution import introduction

RATE_HZ = 16_000
SECONDS = 2.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures and three sounds of two seconds."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for number, name in enumerate("abc"):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
        wave_S = rng.normal(0, 0.1, int(SECONDS * RATE_HZ)).astype(np.float32) * (number + 1) / 3
        soundfile.write(tmp_path / f"{name}.wav", wave_S, RATE_HZ)
        soundfile.write(tmp_path / "clips" / f"{name}.flac", wave_S, RATE_HZ)
    return tmp_path


Read = Callable[..., list[Sample]]


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    if name.endswith((".tsv", ".csv")):
        mark = "\t" if name.endswith(".tsv") else ","
        path.write_text(
            "".join(
                mark.join("" if v is None else str(v) for v in line) + "\n"
                for line in [rows[0].keys(), *(r.values() for r in rows)]
            )
        )
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=2))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, rows: list[Any], name: str = "m.jsonl", **source: Any) -> list[Sample]:
    """The samples of a file of these rows, none of which may be bad."""
    write(folder, name, rows)
    quarantine = Quarantine()
    found = list(readers.read(Source(path=name, **source), folder, quarantine))
    assert not quarantine.total, quarantine.summary()
    return found


def refused(folder: Path, row: Any, name: str = "m.jsonl", **source: Any) -> str:
    """Why a row is bad: the first and the last of the file are good ones, and it stands in line 2."""
    filler = source.pop(
        "filler", {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    )
    path = write(folder, name, [filler, row, filler])
    quarantine = Quarantine()
    found = list(readers.read(Source(path=name, **source), folder, quarantine))
    assert quarantine.total == 1, (quarantine.summary(), [said(one) for one in found])
    ((told,),) = quarantine.examples.values()
    line = 3 if name.endswith((".csv", ".tsv")) else 2
    assert told.startswith(f"{path}:{line}: ")
    assert "\n" not in told
    report = check(Source(path=str(path), **source), Path())
    assert any(
        finding.where == f"{path}:{line}" and finding.severity == "error" for finding in report.findings
    )
    return told


def said(sample: Sample) -> list[Any]:
    """A conversation as [role, words or names of files, ...] a turn."""
    return [
        [m.role, *(p.text if p.type == "text" else Path(p.path).name for p in m.parts)]
        for m in sample.messages
    ]


def examined(folder: Path, name: str = "m.jsonl", **source: Any) -> Report:
    return check(Source(path=str(folder / name), **source), Path())


ASKED = [["user", "a.png", "What is it?"], ["assistant", "a chair"]]
HEARD = [["user", "a.wav", "What is said?"], ["assistant", "hello"]]


def turns(
    *words: Any, names: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> list[dict[str, Any]]:
    return [{names[0]: roles[number % 2], names[1]: said} for number, said in enumerate(words)]


def shared(*words: Any) -> list[dict[str, Any]]:
    return turns(*words, names=("from", "value"), roles=("human", "gpt"))


# Conversations
# ----------------------------------------------------------------------------------------------------------------------------

CHATS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "LLaMA-Factory sharegpt": (
        {"conversations": shared("<image>What is it?", "a chair"), "images": ["a.png"]},
        ASKED,
    ),
    "LLaMA-Factory sharegpt, system": (
        {"conversations": shared("hi", "ho"), "system": "Be brief.", "tools": ""},
        [["system", "Be brief."], ["user", "hi"], ["assistant", "ho"]],
    ),
    "LLaMA-Factory openai": (
        {"messages": turns("<image>What is it?", "a chair"), "images": ["a.png"]},
        ASKED,
    ),
    "LLaMA-Factory audio": ({"messages": turns("<audio>What is said?", "hello"), "audios": ["a.wav"]}, HEARD),
    "LLaMA-Factory, both": (
        {
            "messages": turns("<image><audio>Is it that?", "yes"),
            "images": ["b.png"],
            "audios": ["a.wav"],
            "videos": [],
        },
        [["user", "b.png", "a.wav", "Is it that?"], ["assistant", "yes"]],
    ),
    "LLaMA-Factory alpaca": (
        {"instruction": "<image>What is it?", "input": "", "output": "a chair", "images": ["a.png"]},
        ASKED,
    ),
    "Alpaca": (
        {"instruction": "Turn it around.", "input": "abc", "output": "cba"},
        [["user", "Turn it around.\nabc"], ["assistant", "cba"]],
    ),
    "LLaMA-Factory alpaca, history": (
        {"instruction": "and?", "input": "", "output": "c", "system": "Be brief.", "history": [["a?", "b"]]},
        [["system", "Be brief."], ["user", "a?"], ["assistant", "b"], ["user", "and?"], ["assistant", "c"]],
    ),
    "Dolly": (
        {"instruction": "Who?", "context": "Ann sings.", "response": "Ann", "category": "closed_qa"},
        [["user", "Who?\nAnn sings."], ["assistant", "Ann"]],
    ),
    "OpenOrca": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "Who?", "response": "Ann"},
        [["system", "Be brief."], ["user", "Who?"], ["assistant", "Ann"]],
    ),
    "ms-swift messages": (
        {"messages": turns("<image>What is it?", "a chair"), "images": [{"path": "a.png"}]},
        ASKED,
    ),
    "ms-swift query": (
        {"query": "<audio>What is said?", "response": "hello", "audios": ["a.wav"], "history": []},
        HEARD,
    ),
    "ms-swift, no place": ({"messages": turns("What is it?", "a chair"), "images": ["a.png"]}, ASKED),
    "ms-swift 2, path in the words": ({"query": "<img>a.png</img>What is it?", "response": "a chair"}, ASKED),
    "ms-swift, image a string": (
        {"messages": turns("<image>What is it?", "a chair"), "image": "a.png"},
        ASKED,
    ),
    "Qwen": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}],
                },
                *turns("a chair")[:0],
                {"role": "assistant", "content": "a chair"},
            ]
        },
        ASKED,
    ),
    "Qwen, marks of its template": (
        {
            "messages": turns("<|vision_start|><|image_pad|><|vision_end|>What is it?", "a chair"),
            "images": ["a.png"],
        },
        ASKED,
    ),
    "TRL": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a chair"}]},
            ],
            "images": ["a.png"],
        },
        ASKED,
    ),
    "TRL as parquet has it": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "a chair"}]},
            ],
            "images": [{"bytes": None, "path": "a.png"}],
        },
        ASKED,
    ),
    "Ollama": (
        {
            "messages": [
                {"role": "user", "content": "What is it?", "images": ["a.png"]},
                {"role": "assistant", "content": "a chair"},
            ]
        },
        ASKED,
    ),
    "LLaVA": (
        {"id": "1", "image": "a.png", "conversations": shared("<image>\nWhat is it?", "a chair")},
        ASKED,
    ),
    "LLaVA, at the end": (
        {"id": "1", "image": "a.png", "conversations": shared("What is it?\n<image>", "a chair")},
        [["user", "What is it?", "a.png"], ["assistant", "a chair"]],
    ),
    "LLaVA, text only": (
        {"id": "x_0", "conversations": shared("hi", "ho")},
        [["user", "hi"], ["assistant", "ho"]],
    ),
    "ShareGPT": (
        {"id": "Qx_1", "conversations": [{"from": "system", "value": "Be brief."}, *shared("hi", "ho")]},
        [["system", "Be brief."], ["user", "hi"], ["assistant", "ho"]],
    ),
    "OpenAI": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *turns("hi", "ho")]},
        [["system", "Be brief."], ["user", "hi"], ["assistant", "ho"]],
    ),
    "OpenAI, weights of one": (
        {
            "messages": [
                *turns("hi"),
                {"role": "assistant", "content": "ho", "weight": 1, "refusal": None, "tool_calls": None},
            ]
        },
        [["user", "hi"], ["assistant", "ho"]],
    ),
    "TRL, prompt and completion": (
        {
            "prompt": [{"role": "system", "content": "Be brief."}, *turns("hi")],
            "completion": turns("hi", "ho")[1:],
        },
        [["system", "Be brief."], ["user", "hi"], ["assistant", "ho"]],
    ),
    "another name for the turns": (
        {"conversation": turns("hi", "ho")},
        [["user", "hi"], ["assistant", "ho"]],
    ),
}


@pytest.mark.parametrize("layout", CHATS)
@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
def test_a_conversation_is_read_as_its_tool_reads_it(folder: Path, layout: str, name: str) -> None:
    row, wanted = CHATS[layout]
    (sample,) = read(folder, [row], name)
    assert said(sample) == wanted
    report = examined(folder, name)
    assert report.samples == 1
    assert not report.errors


def test_what_a_turn_has_besides_is_told(folder: Path) -> None:
    read(
        folder,
        [
            {
                "messages": [
                    {"role": "user", "content": "hi", "name": "ann"},
                    {"role": "assistant", "content": "ho"},
                ],
                "license": "x",
            }
        ],
    )
    (manifest,) = examined(folder).manifests
    assert manifest.left == {"license": 1, "messages.name": 1}
    assert manifest.columns == "1 column read, 2 left: license, messages.name"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fewer pictures than places": (
        {"messages": turns("<image><image>Same?", "no"), "images": ["a.png"]},
        "2 for 1",
    ),
    "more pictures than places": (
        {"messages": turns("<image>Same?", "no"), "images": ["a.png", "b.png"]},
        "1 for 2",
    ),
    "a place and no picture": ({"messages": turns("<image>What is it?", "a chair")}, "<image>"),
    "a place and an empty list": (
        {"messages": turns("<image>What is it?", "a chair"), "images": []},
        "<image>",
    ),
    "a place for a sound and a picture": (
        {"messages": turns("<audio>What is it?", "a chair"), "images": ["a.png"]},
        "<audio>",
    ),
    "another spelling of a place": (
        {"messages": turns("<|image_1|>\nWhat is it?", "a chair")},
        "<|image_1|>",
    ),
    "marks of a template": ({"messages": turns("<|audio_bos|><|AUDIO|><|audio_eos|>What?", "it")}, "AUDIO"),
    "square marks": ({"messages": turns("[IMG]What?", "it")}, "[IMG]"),
    "a place in an answer": ({"conversations": shared("hi", "<image>"), "image": "a.png"}, "user's turn"),
    "marks of MiniCPM-V": ({"messages": turns("(<image>./</image>)\nWhat?", "it")}, "<image>"),
    "marks of SALMONN": ({"messages": turns("<Speech><SpeechHere></Speech> What?", "it")}, "SpeechHere"),
    "a name between tags": ({"messages": turns("<img>000123</img> What?", "it")}, "<img>"),
    "a file in extra": ({"messages": turns("What?", "it"), "extra": {"shown": "b.png"}}, "extra"),
    "a video": ({"messages": turns("<video>What?", "it"), "videos": ["a.mp4"]}, "videos"),
    "a video's place": ({"messages": turns("<video>What?", "it")}, "<video>"),
    "a file under an unknown key": ({"messages": turns("What?", "it"), "attachment": "a.png"}, "attachment"),
    "a file that lies there": ({"messages": turns("What?", "it"), "evidence": ["clips/a.flac"]}, "evidence"),
    "a file in an object": ({"messages": turns("What?", "it"), "meta": {"shown": [{"at": "b.png"}]}}, "meta"),
    "a file that is gone": ({"messages": turns("What?", "it"), "picture_path": "gone.png"}, "gone.png"),
    "two lists of pictures": (
        {"messages": turns("<image>What?", "it"), "images": ["a.png"], "image": "b.png"},
        "images and image",
    ),
    "samples in the row": (
        {"messages": turns("<audio>?", "it"), "audio": {"array": [0.0, 0.1], "sampling_rate": 16000}},
        "array",
    ),
    "samples in a flat row": (
        {"audio": {"array": [0.0, 0.1], "sampling_rate": 16000}, "text": "x"},
        "array, sampling_rate",
    ),
    "bytes as text": (
        {"messages": turns("<image>What?", "it"), "images": ["iVBORw0KGgo" * 800]},
        "expected a file",
    ),
    "DPO": ({"messages": turns("hi", "ho"), "rejected_response": "no"}, "rejected_response"),
    "DPO of LLaMA-Factory": (
        {
            "conversations": shared("hi"),
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        "chosen",
    ),
    "DPO of TRL": ({"prompt": "hi", "chosen": "a", "rejected": "b"}, "chosen"),
    "KTO": ({"messages": turns("hi", "ho"), "kto_tag": True}, "kto_tag"),
    "KTO of ms-swift": ({"messages": turns("hi", "ho"), "label": False}, "label"),
    "grounding": (
        {
            "messages": turns("<image>Where?", "there"),
            "images": ["a.png"],
            "objects": {"ref": ["x"], "bbox": [[1, 2, 3, 4]]},
        },
        "objects",
    ),
    "tools": ({"messages": turns("hi", "ho"), "tools": '[{"name": "f"}]'}, "tools"),
    "a tool's turn": (
        {"messages": [*turns("hi"), {"role": "tool", "content": "3"}, {"role": "assistant", "content": "3"}]},
        "tool",
    ),
    "a call": (
        {"messages": [*turns("hi"), {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "tool_calls",
    ),
    "a turn that does not count": (
        {"messages": [*turns("hi"), {"role": "assistant", "content": "ho", "weight": 0}]},
        "weight",
    ),
    "a role nobody knows": (
        {"conversations": [{"from": "moderator", "value": "hi"}, *shared("hi", "ho")]},
        "moderator",
    ),
    "two system prompts": (
        {"messages": [{"role": "system", "content": "a"}, *turns("hi", "ho")], "system": "b"},
        "system",
    ),
    "a part of a video": ({"messages": turns([{"type": "video", "video": "a.mp4"}], "it")}, "video"),
    "two lists of turns": ({"dialog": turns("hi", "ho"), "other": turns("a", "b")}, "dialog and other"),
    "two speakers of one sound": (
        {"messages": turns("<audio>?", "it"), "audios": ["a.wav"], "speakers": ["ann", "ben"]},
        "ann",
    ),
    "context of an answer that is no text": ({"instruction": "Who?", "input": ["x"], "output": "y"}, "input"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_read_is_refused_by_name(folder: Path, fault: str) -> None:
    row, named = REFUSED[fault]
    assert named in refused(folder, row)


def test_a_template_puts_media_where_the_words_of_a_column_say(folder: Path) -> None:
    row = {"image": "a.png", "question": "Look:\n<image>\nWhat is it?", "answer": "a chair"}
    for chosen in (
        {},
        {"messages": [{"user": [{"image": "{image}"}, "{question}"]}, {"assistant": "{answer}"}]},
    ):
        (sample,) = read(folder, [row], **chosen)
        assert said(sample) == [["user", "Look:", "a.png", "What is it?"], ["assistant", "a chair"]]
    filler = {**row, "question": "What?"}
    assert "<image>" in refused(folder, {**row, "question": "<image> and <image>?"}, filler=filler)
    assert "<audio>" in refused(folder, {**row, "question": "<audio> What?"}, filler=filler)


def test_a_person_that_is_left_is_told(folder: Path) -> None:
    rows = [
        {"messages": turns("<audio>", n), "audios": [f"{n}.wav"], "group": n, "meta": {"speaker_id": n}}
        for n in "abc"
    ]
    read(folder, rows)
    report = examined(folder)
    assert report.manifests[0].columns == "3 columns read, 1 left: meta (names a person)"
    assert report.counts["left_column"] == 1


def test_what_is_refused_can_be_left_out_on_purpose(folder: Path) -> None:
    row = {
        "messages": turns("What is <image> in HTML?", "a tag"),
        "attachment": "a.png",
        "rejected_response": "no",
    }
    (sample,) = read(folder, [row], ignore=["<image>", "attachment", "rejected_response"])
    assert said(sample) == [["user", "What is <image> in HTML?"], ["assistant", "a tag"]]
    weighed = {"messages": [*turns("hi"), {"role": "assistant", "content": "ho", "weight": 0}]}
    assert len(read(folder, [weighed], ignore=["weight"])) == 1


@pytest.mark.parametrize("name", ["d.txt", "d.jsonl"])
def test_a_document_with_a_place_for_a_picture_is_told(folder: Path, name: str) -> None:
    lines = ["one", "<image> a cat sits", "three"]
    (folder / name).write_text(
        "\n".join(lines)
        if name.endswith("txt")
        else "".join(json.dumps({"text": line}) + "\n" for line in lines)
    )
    quarantine = Quarantine()
    assert len(list(readers.read(Source(path=name), folder, quarantine))) == 2
    assert f"{name}:2" in quarantine.examples["bad_row"][0]
    quarantine = Quarantine()
    assert len(list(readers.read(Source(path=name, ignore=["<image>"]), folder, quarantine))) == 3


@pytest.mark.parametrize(
    "words",
    [
        "a <b> c",
        "x[1]",
        "1 < 2",
        "<img src='a.png'>",
        "<video controls>",
        "[img]",
        "a <imagery> b",
        "[AUD]",
        "<p>picture</p>",
    ],
)
def test_words_that_are_no_places_stay(folder: Path, words: str) -> None:
    (sample,) = read(folder, [{"messages": turns(words, "it")}])
    assert sample.question == words


# Manifests
# --------------------------------------------------------------------------------------------------------------------------------

SPOKEN = [["user", "a.wav"], ["assistant", "hello you"]]
MANIFESTS: dict[str, dict[str, Any]] = {
    "NeMo": {"audio_filepath": "a.wav", "duration": 2.0, "text": "hello you"},
    "NeMo with languages": {
        "audio_filepath": "a.wav",
        "duration": 2.0,
        "text": "hello you",
        "lang": "en",
        "pnc": "no",
    },
    "audio_path": {"audio_path": "a.wav", "transcript": "hello you"},
    "wav_path": {"wav_path": "a.wav", "transcription": "hello you"},
    "file_path": {"file_path": "a.wav", "sentence": "hello you"},
    "wav": {"wav": "a.wav", "text": "hello you", "id": "u1"},
    "audio": {"audio": "a.wav", "text": "hello you"},
    "path": {"path": "a.wav", "text": "hello you"},
    "audios": {"audios": ["a.wav"], "text": "hello you"},
    "AudioPath": {"AudioPath": "a.wav", "Text": "hello you"},
    "datasets": {"audio": {"path": "a.wav", "bytes": None}, "transcription": "hello you"},
    "datasets, twice": {"file": "a.wav", "audio": {"path": "a.wav", "bytes": None}, "text": "hello you"},
}


@pytest.mark.parametrize("layout", MANIFESTS)
def test_a_manifest_of_speech_is_read(folder: Path, layout: str) -> None:
    (sample,) = read(folder, [MANIFESTS[layout]])
    assert said(sample) == SPOKEN
    assert (sample.task, sample.audios[0].start, sample.audios[0].end) == ("transcribe", None, None)
    report = examined(folder)
    assert (report.samples, report.errors) == (1, [])


def test_common_voice(folder: Path) -> None:
    row = {
        "client_id": "f00",
        "path": "a.flac",
        "sentence_id": "1",
        "sentence": "hello you",
        "sentence_domain": "",
        "up_votes": 2,
        "down_votes": 0,
    }
    row |= {"age": "", "gender": "", "accents": "", "variant": "", "locale": "en", "segment": ""}
    rows = [
        row,
        {**row, "path": "b.flac", "sentence": 'say "hi"'},
        {**row, "path": "c.flac", "client_id": "f01"},
    ]
    samples = read(folder, rows[:1] + rows[2:], "validated.tsv")
    assert [(said(s)[0][1], s.answer, s.group, s.audios[0].speaker) for s in samples] == [
        ("a.flac", "hello you", "f00", "f00"),
        ("c.flac", "hello you", "f01", "f01"),
    ]
    left = examined(folder, "validated.tsv").manifests[0].left
    assert {"age", "gender", "accents", "locale", "segment", "up_votes"} <= left.keys()
    assert not {"client_id", "path", "sentence"} & left.keys()


def cut(*supervisions: dict[str, Any], **more: Any) -> dict[str, Any]:
    recording = {
        "id": "a",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": RATE_HZ,
        "num_samples": int(SECONDS * RATE_HZ),
        "duration": SECONDS,
        "channel_ids": [0],
    }
    return {
        "id": "cut-1",
        "start": 0.0,
        "duration": SECONDS,
        "channel": 0,
        "supervisions": list(supervisions),
        "recording": recording,
        "type": "MonoCut",
        **more,
    }


def supervision(number: int = 0, text: str = "hello you", **more: Any) -> dict[str, Any]:
    known = {
        "id": f"a-{number}",
        "recording_id": "a",
        "start": 0.0,
        "duration": SECONDS,
        "channel": 0,
        "text": text,
    }
    return {**known, "language": "English", "speaker": "ann", **more}


def test_a_recording_of_lhotse_that_is_too_long_to_count_with(folder: Path) -> None:
    row = cut(supervision())
    row["recording"]["duration"] = 10**400
    (sample,) = read(folder, [row], "cuts.jsonl")
    assert sample.audios[0].end == SECONDS


def test_lhotse_cuts(folder: Path) -> None:
    (sample,) = read(folder, [cut(supervision())], "cuts.jsonl")
    assert said(sample) == SPOKEN
    assert (sample.id, sample.group, sample.task, sample.audios[0].speaker, sample.audios[0].end) == (
        "cut-1",
        "ann",
        "transcribe",
        "ann",
        None,
    )
    two = cut(
        supervision(0, "hello", start=0.25, duration=0.5),
        supervision(1, "you", start=0.75, duration=0.5, speaker="ben"),
        start=0.5,
        duration=1.5,
    )
    samples = read(folder, [two], "cuts.jsonl", prompt="Write it down.")
    assert [(s.id, s.group, s.answer, s.audios[0].start, s.audios[0].end) for s in samples] == [
        ("a-0", "ann", "hello", 0.75, 1.25),
        ("a-1", "ben", "you", 1.25, 1.75),
    ]
    assert samples[0].question == "Write it down."
    assert examined(folder, "cuts.jsonl").manifests[0].left == {"supervisions.language": 2}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (cut(supervision(), type="MultiCut", channel=[0, 1]), "MultiCut"),
        ({"id": "m", "tracks": [], "type": "MixedCut", "supervisions": []}, "MixedCut"),
        (cut(supervision(), recording={"sources": [{"type": "command", "source": "sph2pipe a"}]}), "command"),
        (
            cut(supervision(), recording={**cut()["recording"], "transforms": [{"name": "Speed"}]}),
            "transforms",
        ),
        (cut(), "supervisions"),
        (cut(supervision(text="")), "text"),
        (cut(supervision(), custom={"target": "b.wav"}), "custom"),
        ({"id": "a", "recording_id": "a", "start": 0.0, "duration": 1.0, "text": "x"}, "supervision"),
        ({**cut()["recording"]}, "recording"),
    ],
)
def test_what_is_no_cut_is_refused(folder: Path, row: Any, named: str) -> None:
    assert named in refused(folder, row, "cuts.jsonl", filler=cut(supervision()))


def test_metadata_of_folders_of_pictures_and_sounds(folder: Path) -> None:
    rows = [
        {"file_name": "a.png", "text": "a cat", "split": "train"},
        {"file_name": "b.png", "text": "a dog", "split": "validation"},
    ]
    write(folder, "metadata.jsonl", rows)
    samples = list(
        readers.read(Source(path=str(folder), prompt="What is it?"), Path(), Quarantine(limit=0.0))
    )
    assert [(said(s), s.split, s.task) for s in samples] == [
        ([["user", "a.png", "What is it?"], ["assistant", "a cat"]], "train", "question"),
        ([["user", "b.png", "What is it?"], ["assistant", "a dog"]], "valid", "question"),
    ]
    write(folder, "metadata.jsonl", [{"file_name": "a.wav", "transcription": "hello you", "speaker_id": 7}])
    (sample,) = readers.read(Source(path=str(folder)), Path(), Quarantine(limit=0.0))
    assert (said(sample), sample.group, sample.task) == (SPOKEN, "7", "transcribe")
    write(folder, "metadata.jsonl", [{"file_names": ["a.png", "b.png"], "caption": "two"}])
    (sample,) = readers.read(Source(path=str(folder)), Path(), Quarantine(limit=0.0))
    assert said(sample) == [["user", "a.png", "b.png"], ["assistant", "two"]]


def test_metadata_of_folders_goes_through_a_run_with_what_the_recipe_says(folder: Path) -> None:
    write(folder, "metadata.jsonl", [{"file_name": f"{n}.png", "text": f"a {n}", "who": n} for n in "abc"])
    one = Source(path=str(folder), prompt="What?")
    corpus = readers.load([one], base=Path(), val_split=0.0, seed=0, quarantine=Quarantine(limit=0.0))
    assert {sample.question for sample in corpus.train} == {"What?"}
    write(
        folder, "m.jsonl", [{"audio": f"{n}.wav", "text": f"a {n}", "who": n, "speaker": "x"} for n in "abc"]
    )
    one = Source(path="m.jsonl", prompt="Write it.", group="{who}", task="said")
    corpus = readers.load([one], base=folder, val_split=0.0, seed=0, quarantine=Quarantine(limit=0.0))
    assert [(s.question, s.group, s.task) for s in corpus.train] == [("Write it.", n, "said") for n in "abc"]


def test_words_under_names_of_media_are_words(folder: Path) -> None:
    row = {
        "audio": "a.wav",
        "text": "x",
        "voice": "amy",
        "speech": "read",
        "picture": "none",
        "image_name": "dog",
    }
    (sample,) = read(folder, [row])
    assert said(sample)[0] == ["user", "a.wav"]
    (sample,) = read(folder, [{"messages": turns("hi", "ho"), "voice": "amy"}])
    assert said(sample) == [["user", "hi"], ["assistant", "ho"]]
    assert "voice" in refused(
        folder,
        {"audio": "a.wav", "text": "x", "voice": "b.wav", "label": "y"},
        filler={**row, "audio": "c.wav"},
    )


def test_a_document_may_say_which_file_it_was(folder: Path) -> None:
    (sample,) = read(folder, [{"text": "print(1)", "path": "src/a.py", "lang": "python"}])
    assert sample.text == "print(1)"
    assert "path" in refused(folder, {"text": "one", "path": "clip_001"}, filler={"text": "two"})


def test_a_column_of_files_is_not_left(folder: Path) -> None:
    rows = [{"audio": "a.wav", "text": "one", "enrolment": f"{name}.wav"} for name in "bc"]
    write(folder, "m.jsonl", rows)
    quarantine = Quarantine()
    assert list(readers.read(Source(path="m.jsonl"), folder, quarantine)) == []
    assert "enrolment" in quarantine.examples["bad_row"][0]
    assert "ignore: [enrolment]" in quarantine.examples["bad_row"][0]
    assert len(read(folder, rows, ignore=["enrolment"])) == 2
    chosen = [{"user": [{"audio": "{audio}"}]}, {"assistant": "{text}"}]
    assert len(read(folder, rows, messages=chosen)) == 2
    report = examined(folder, messages=chosen)
    assert report.counts["left_column"] == 1
    assert report.manifests[0].columns == "2 columns read, 1 left: enrolment (names files)"


# Persons, groups, sides
# -------------------------------------------------------------------------------------------------------------------

PERSONS = (
    *(
        "speaker",
        "speaker_id",
        "client_id",
        "spk_id",
        "spk",
        "speakerID",
        "reader_id",
        "Speaker ID",
        "SPEAKER",
        "user_id",
        "talker",
        "spkr",
    ),
    *("speaker-id", "speaker_name", "reader", "participant_id", "singer"),
)


@pytest.mark.parametrize("key", PERSONS)
@pytest.mark.parametrize("form", ["flat", "csv", "chat", "template"])
def test_who_speaks_is_a_group(folder: Path, key: str, form: str) -> None:
    flat = [
        {"audio": f"{name}.wav", "text": f"the {name}", key: who}
        for name, who in zip("abc", (3, 4, 3), strict=True)
    ]
    content = [[{"type": "audio", "path": row["audio"]}] for row in flat]
    chats = [
        {"messages": turns(sound, row["text"]), key: row[key]}
        for sound, row in zip(content, flat, strict=True)
    ]
    chosen = (
        {"messages": [{"user": [{"audio": "{audio}"}]}, {"assistant": "{text}"}]}
        if form == "template"
        else {}
    )
    samples = read(
        folder, chats if form == "chat" else flat, "m.csv" if form == "csv" else "m.jsonl", **chosen
    )
    assert [(s.group, s.audios[0].speaker) for s in samples] == [("3", "3"), ("4", "4"), ("3", "3")]


def test_a_group_goes_before_a_person_who_still_speaks(folder: Path) -> None:
    (sample,) = read(folder, [{"audio": "a.wav", "text": "x", "speaker": "ann", "group": "session 1"}])
    assert (sample.group, sample.audios[0].speaker) == ("session 1", "ann")


def test_a_sound_without_its_speaker_is_not_mixed_in(folder: Path) -> None:
    rows = [
        {"audio": f"{name}.wav", "text": f"the {name}", "speaker_id": who}
        for name, who in zip("abc", ("ann", "", "ben"), strict=True)
    ]
    path = write(folder, "m.jsonl", rows)
    with pytest.raises(DataError, match=rf"{path}:2: .*no name in 1.*ignore"):
        readers.load(
            [Source(path="m.jsonl")], base=folder, val_split=0.3, seed=0, quarantine=Quarantine(limit=1.0)
        )
    report = examined(folder)
    assert [(f.reason, f.where) for f in report.findings if f.severity == "error"] == [
        ("unnamed_speaker", f"{path}:2")
    ]
    assert len(read(folder, rows, ignore=["speaker_id"])) == 3


def test_two_persons_in_a_row_are_refused(folder: Path) -> None:
    row = {"audio": "a.wav", "text": "x", "speaker": "ann", "user_id": "u7"}
    told = refused(folder, row, filler={"audio": "b.wav", "text": "y", "speaker": "ann", "user_id": "ann"})
    assert "speaker 'ann', user_id 'u7'" in told


WORDS = [
    ("train", "train"),
    ("Training", "train"),
    ("train-clean-100", "train"),
    ("TRAIN", "train"),
    *((w, "valid") for w in ("valid", "val")),
]
WORDS += [
    (w, "valid")
    for w in ("validation", "dev", "eval", "test", "Test", "dev-clean", "test_other", "held-out", "mini_val")
]


@pytest.mark.parametrize(("word", "wanted"), WORDS)
@pytest.mark.parametrize("key", ["split", "Split", "subset", "partition", "set", "data_split"])
def test_a_side_is_honoured_as_people_spell_it(folder: Path, word: str, wanted: str, key: str) -> None:
    rows = [{"audio": "a.wav", "text": "x", key: word}, {"audio": "b.wav", "text": "y", key: "test"}]
    assert [sample.split for sample in read(folder, rows)] == [wanted, "valid"]
    rows = [
        {"messages": turns("hi", "ho"), "id": "1", key: word},
        {"messages": turns("hi", "he"), "id": "2", key: "test"},
    ]
    if key == "split":
        assert [sample.split for sample in read(folder, rows)] == [wanted, "valid"]


@pytest.mark.parametrize("word", ["extra7", "unlabelled", "train/test", "0", "other"])
def test_a_side_nobody_knows_is_never_trained_on(folder: Path, word: str) -> None:
    filler = {"audio": "a.wav", "text": "x", "split": "test"}
    assert "split" in refused(folder, {"audio": "b.wav", "text": "y", "split": word}, filler=filler)


def test_train_throughout_says_nothing_and_a_corpus_is_no_side(folder: Path) -> None:
    rows = [{"audio": f"{n}.wav", "text": n, "split": "train", "subset": "xl"} for n in "abc"]
    assert [s.split for s in read(folder, rows)] == [None] * 3
    corpus = readers.load(
        [Source(path="m.jsonl")], base=folder, val_split=0.2, seed=0, quarantine=Quarantine(limit=0.0)
    )
    assert len(corpus.valid) == 1


def test_sides_at_odds_are_refused(folder: Path) -> None:
    filler = {"audio": "a.wav", "text": "x", "split": "test", "partition": "test"}
    assert "split 'train', partition 'test'" in refused(
        folder, {**filler, "audio": "b.wav", "split": "train"}, filler=filler
    )


def test_a_fold_is_a_group(folder: Path) -> None:
    rows = [{"path": f"{n}.wav", "category": n, "fold": f} for n, f in zip("abc", (1, 2, 1), strict=True)]
    assert [s.group for s in read(folder, rows)] == ["fold 1", "fold 2", "fold 1"]


def test_one_line_says_which_of_two_splits_counts(folder: Path) -> None:
    rows = [
        {"audio": f"{n}.wav", "text": n, "split": s} for n, s in zip("abc", ("train", "dev", ""), strict=True)
    ]
    write(folder, "m.jsonl", rows)
    corpus = readers.load(
        [Source(path="m.jsonl")], base=folder, val_split=0.5, seed=0, quarantine=Quarantine(limit=0.0)
    )
    ((_, account),) = corpus.accounts
    told = account.describe_split(0.5)
    assert (
        told
        == "the data say the side of 2 of 3 rows (train 1, valid 1), and that counts; val_split 0.5 decides on the other 1"
    )
    from muomni.data.check import report

    assert any("counts before any val_split" in value for _, value in report.summary(examined(folder)))


@pytest.mark.parametrize("key", ["id", "utt_id", "uid", "key", "ID", "utterance_id"])
def test_ids_are_kept(folder: Path, key: str) -> None:
    (sample,) = read(folder, [{"audio": "a.wav", "text": "x", key: "u-1"}])
    assert sample.id == "u-1"


# Segments
# ---------------------------------------------------------------------------------------------------------------------------------

CUTS: dict[str, dict[str, Any]] = {
    "NeMo": {"offset": 0.5, "duration": 1.0},
    "start and end": {"start": 0.5, "end": 1.5},
    "begin and end": {"begin": 0.5, "end": 1.5},
    "times": {"start_time": 0.5, "end_time": 1.5},
    "MLS": {"begin_time": "0.5", "end_time": "1.5"},
    "milliseconds": {"start_ms": 500, "end_ms": 1500},
    "milliseconds and duration": {"offset_ms": 500, "duration_ms": "1000"},
    "seconds by name": {"start_sec": 0.5, "end_sec": 1.5},
    "start and duration": {"start": 0.5, "dur": 1.0},
    "onset and offset": {"onset": 0.5, "offset": 1.5},
    "samples": {"start_frame": 8000, "num_frames": 16000},
    "samples by their ends": {"start_sample": 8000, "end_sample": 24000},
    "torchaudio": {"frame_offset": 8000, "num_frames": 16000},
    "a clock": {"start": "00:00:00.5", "end": "0:01,5"},
    "of a segment": {"segment_start": 0.5, "segment_end": 1.5},
    "of a clip, in milliseconds": {"clip_start_time_ms": 500, "clip_end_time_ms": 1500},
    "a pair": {"timestamp": [0.5, 1.5]},
    "twice": {"start": 0.5, "start_ms": 500, "end": 1.5, "end_frame": 24000},
    "samples of the file": {"start": 0.5, "end": 1.5, "num_samples": 32000},
    "all three": {"start": 0.5, "end": 1.5, "duration": 1.0},
}


@pytest.mark.parametrize("layout", CUTS)
@pytest.mark.parametrize("form", ["flat", "csv", "chat", "pairs"])
def test_segments_are_segments(folder: Path, layout: str, form: str) -> None:
    row: dict[str, Any] = {"wav": "a.wav", "text": "hello you", **CUTS[layout]}
    if form == "chat":
        row = {"messages": turns("<audio>", "hello you"), "audios": ["a.wav"], **CUTS[layout]}
    name = (
        "m.csv"
        if form in ("csv", "pairs") and not any("," in str(value) for value in row.values())
        else "m.jsonl"
    )
    (sample,) = read(folder, [row], name)
    assert (sample.audios[0].start, sample.audios[0].end) == (0.5, 1.5)
    report = examined(folder, name)
    assert (report.samples, report.errors, report.durations_s["max"]) == (1, [], 1.0)


def test_rows_without_times_are_whole(folder: Path) -> None:
    rows = [
        {"audio": "a.wav", "text": "x", "offset": 0.5, "duration": 1.0},
        {"audio": "b.wav", "text": "y", "offset": None, "duration": 2.0},
    ]
    assert [(s.audios[0].start, s.audios[0].end) for s in read(folder, rows)] == [(0.5, 1.5), (None, None)]


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"start": "{o}", "duration": "{d}"}, (0.5, 1.5)),
        ({"start_ms": "{m}", "duration": "{d}"}, (0.5, 1.5)),
        ({"start_frame": "{f}", "num_frames": "{n}"}, (0.5, 1.5)),
        ({"end": "{d}"}, (None, 1.0)),
        ({"offset": "{o}"}, (0.5, None)),
        ({"start": "{o}", "end": 1.5, "channel": "{c}"}, (0.5, 1.5)),
    ],
)
def test_templates_can_say_segments(folder: Path, part: dict[str, Any], wanted: Any) -> None:
    row = {"f": "a.wav", "t": "hello", "o": 0.5, "d": 1.0, "m": 500, "c": 0, "n": 16000}
    row["f2"] = 8000
    part = {
        key: value.replace("{f}", "{f2}") if isinstance(value, str) else value for key, value in part.items()
    }
    (sample,) = read(folder, [row], messages=[{"user": [{"audio": "{f}", **part}]}, {"assistant": "{t}"}])
    assert (sample.audios[0].start, sample.audios[0].end) == wanted
    assert sample.audios[0].channel == (0 if "channel" in part else None)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"start": 1.0, "end": 0.5}, "end"),
        ({"start": 0.5, "end": 1.5, "duration": 0.3}, "one end"),
        ({"offset": -1, "duration": 1.0}, "offset"),
        ({"offset": 0.5, "duration": 0}, "duration"),
        ({"start": 0.0, "offset": 0.5, "end": 1.0}, "start 0.0 and offset 0.5"),
        ({"start": "soon", "end": 1.5}, "start"),
        ({"start_frame": 0.5, "num_frames": 10}, "whole frames"),
        ({"start_frame": 5, "end": 1.0}, "one unit"),
        ({"start": 0.0, "end": 1.0, "channel": "C"}, "channel"),
        ({"start": 0.0, "end": 1.0, "channel": -1}, "channel"),
    ],
)
def test_times_that_cannot_be_are_refused(folder: Path, more: dict[str, Any], named: str) -> None:
    assert named in refused(
        folder, {"audio": "a.wav", "text": "x", **more}, filler={"audio": "b.wav", "text": "y"}
    )


def test_times_and_two_sounds_are_refused(folder: Path) -> None:
    row = {
        "messages": turns("<audio><audio>Same?", "no"),
        "audios": ["a.wav", "b.wav"],
        "start": 0.0,
        "end": 1.0,
    }
    assert "one sound" in refused(folder, row)


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), ("1", 1), ("A", 0), ("right", 1), (1.0, 1)])
def test_a_channel_is_passed_on(folder: Path, value: Any, wanted: int) -> None:
    (sample,) = read(folder, [{"audio": "a.wav", "text": "x", "channel": value}])
    assert sample.audios[0].channel == wanted


def test_a_length_that_is_not_the_files_is_told(folder: Path) -> None:
    rows = [
        {"audio_filepath": f"{n}.wav", "duration": d, "text": f"it is {n}"}
        for n, d in zip("abc", (2.0, 0.5, 1.97), strict=True)
    ]
    path = write(folder, "m.jsonl", rows)
    report = examined(folder)
    assert [(f.reason, f.where) for f in report.findings if f.severity == "error"] == [
        ("other_length", f"{path}:2")
    ]
    assert "offset" in str(report.findings[0])


def test_one_sound_with_two_transcripts_is_refused_at_its_lines(folder: Path) -> None:
    rows = [{"audio": "a.wav", "text": text} for text in ("one", "two")] + [
        {"audio": f"{n}.wav", "text": n} for n in "bbc"
    ]
    path = write(folder, "m.jsonl", rows)
    quarantine = Quarantine(limit=1.0)
    corpus = readers.load([Source(path="m.jsonl")], base=folder, val_split=0.0, seed=0, quarantine=quarantine)
    assert [Path(s.audios[0].path).name for s in corpus.train] == ["b.wav", "b.wav", "c.wav"]
    assert len(corpus.weights) == 3
    assert [e.split(": ")[0] for e in quarantine.examples["two_transcripts"]] == [f"{path}:1", f"{path}:2"]
    found = [f for f in examined(folder).findings if f.reason == "two_transcripts"]
    assert [(f.where, f.other) for f in found] == [(f"{path}:2", f"{path}:1")]


def test_several_captions_questions_and_stretches_are_no_contradiction(folder: Path) -> None:
    cuts = [
        {"audio": "a.wav", "text": text, "start": start, "end": start + 1}
        for text, start in (("one", 0.0), ("two", 1.0))
    ]
    assert len(read(folder, cuts)) == 2
    assert "two_transcripts" not in examined(folder).counts
    read(folder, [{"image": "a.png", "caption": text} for text in ("one", "two")])
    assert "two_transcripts" not in examined(folder).counts
    read(
        folder,
        [{"messages": turns(f"<audio>{asked}?", asked), "audios": ["a.wav"]} for asked in ("one", "two")],
    )
    assert "two_transcripts" not in examined(folder).counts


# The account
# ------------------------------------------------------------------------------------------------------------------------------


def test_columns_are_counted(folder: Path) -> None:
    rows = [{"audio": f"{n}.wav", "text": n, "speaker": n, "license": "x", "locale": "en"} for n in "abc"]
    del rows[2]["locale"]
    write(folder, "m.jsonl", rows)
    report = examined(folder)
    (manifest,) = report.manifests
    assert manifest.columns == "3 columns read, 2 left: license, locale"
    assert (manifest.read, manifest.left) == (
        {"audio": 3, "text": 3, "speaker": 3},
        {"license": 3, "locale": 2},
    )
    assert report.to_json()["manifests"][0]["left"] == {"license": 3, "locale": 2}
    corpus = readers.load(
        [Source(path="m.jsonl")], base=folder, val_split=0.0, seed=0, quarantine=Quarantine(limit=0.0)
    )
    assert [(path, account.describe()) for path, account in corpus.accounts] == [
        ("m.jsonl", manifest.columns)
    ]


def test_a_run_tells_it_first(folder: Path) -> None:
    rows = [
        {"audio": f"{n}.wav", "text": n, "speaker": n, "license": "x", "split": s}
        for n, s in zip("abc", ("train", "train", "dev"), strict=True)
    ]
    write(folder, "m.jsonl", rows)
    corpus = readers.load(
        [Source(path="m.jsonl")], base=folder, val_split=0.1, seed=0, quarantine=Quarantine(limit=0.0)
    )
    built: Any = SimpleNamespace(corpus=corpus)
    settings: Any = SimpleNamespace(val_split=0.1)
    (line,) = introduction.columns(built, settings)
    sides = "the data say the side of 3 of 3 rows (train 2, valid 1), and that counts; val_split 0.1 decides on none"
    assert line == f"m.jsonl: 4 columns read, 1 left: license; {sides}"


def test_provenance_may_name_files_of_others(folder: Path) -> None:
    row = {
        "image": "a.png",
        "caption": "a cat",
        "source": "somebody/photos@12ab:png/1.png",
        "url": "https://x.org/a.jpg",
        "original_path": "x/1.jpg",
    }
    assert len(read(folder, [row])) == 1


ODD: list[Any] = [
    None,
    "",
    0,
    -1,
    1.5,
    float("nan"),
    True,
    [],
    {},
    [[]],
    [None],
    {"a": None},
    "x",
    "<image>",
    "a.png",
    ["a.png", 3],
    {"path": 3},
    "\u2028",
    10**400,
]


def mutated(rng: random.Random, value: Any) -> Any:
    """The value with one of its parts made another."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return (
            {**value, key: mutated(rng, value[key])}
            if rng.random() < 0.8
            else {k: v for k, v in value.items() if k != key}
        )
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(rng, value[place]), *value[place + 1 :]]
    return rng.choice(ODD)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_rows_are_read_or_refused(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = [
        *(row for row, _ in CHATS.values()),
        *MANIFESTS.values(),
        cut(supervision()),
        *({"audio": "a.wav", "text": "x", **c} for c in CUTS.values()),
    ]
    for number in range(150):
        row = rng.choice(whole)
        for _ in range(rng.randrange(1, 4)):
            row = mutated(rng, row)
        if isinstance(row, dict) and rng.random() < 0.5:
            row = {
                **row,
                rng.choice([*PERSONS, "split", "id", "channel", "offset", "system"]): rng.choice(ODD),
            }
        first = rng.choice(whole)
        write(folder, "f.jsonl", [first, row])
        quarantine = Quarantine()
        found = list(readers.read(Source(path="f.jsonl"), folder, quarantine))
        assert len(found) + quarantine.total >= 2, (number, row)


def test_every_layout_is_in_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    for name in (
        "LLaMA-Factory",
        "ms-swift",
        "LLaVA",
        "ShareGPT",
        "Alpaca",
        "OpenAI",
        "NeMo",
        "Lhotse",
        "Common Voice",
        "LJSpeech",
        "imagefolder",
    ):
        assert name in docs
    assert set(formats.READERS) >= {"alpaca", "lhotse", "llava"}
    assert {ImagePart, AudioPart}


@pytest.mark.parametrize("name", ["a.voc", "a.sph", "a.tta", "a.webm", "a.bin", "a"])
def test_a_sound_of_a_rare_suffix_or_none_is_known_by_its_column(tmp_path: Path, name: str) -> None:
    soundfile.write(
        tmp_path / name, 0.1 * np.random.default_rng(0).standard_normal(8000), 16000, format="AIFF"
    )
    write(tmp_path, "f.jsonl", [{"audio": name, "text": "some words"}])
    report = check(Source(path=str(tmp_path / "f.jsonl")), Path())
    assert '{"audio": "{audio}"}' in report.manifests[0].read_as
    assert report.samples == 1
