"""The command line: what goes to standard output, the exit codes, and how soon it answers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from muomni import cli
from muomni.errors import GateRed, InternalError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def muomni(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, standard output, standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(arg) for arg in args])
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return call


def process(*args: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muomni", *args],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        **how,
    )


# --- help -------------------------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom muomni import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as left:\n    assert not left.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tokenizers', 'soundfile', 'PIL', 'safetensors', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900, stdout=subprocess.DEVNULL)


def test_every_command_has_help() -> None:
    told = process("--help").stdout
    for command in (
        "quickstart",
        "run",
        "migrate",
        "gate",
        "chat",
        "transcribe",
        "speak",
        "draw",
        "trace",
        "data",
        "inspect",
        "doctor",
        "selftest",
        "plan",
        "report",
        "export",
    ):
        assert command in told
    assert all(name in process("data", "--help").stdout for name in ("world", "check", "explain", "formats"))


# --- chat -------------------------------------------------------------------------------------------------------------------------------


def test_chat_prints_one_object(muomni: Run, run: Path, media: Path, tmp_path: Path) -> None:
    asked = (
        "--text",
        "what",
        "--image",
        media / "red.png",
        "--image",
        media / "blue.png",
        "--audio",
        media / "low.wav",
        "--max-new",
        6,
    )
    code, out, _ = muomni("chat", run, *asked, "--json")
    assert code == 0
    told = json.loads(out)
    assert set(told) == {"text", "token_ids"}
    assert len(told["token_ids"]) == 6
    code, out, _ = muomni("chat", run, *asked, "--json", "--speak", tmp_path / "said.wav")
    aloud = json.loads(out)
    assert aloud == {**told, "audio": str(tmp_path / "said.wav")}
    assert soundfile.info(aloud["audio"]).samplerate == 16000


def test_chat_streams_what_it_would_print_as_json(muomni: Run, run: Path) -> None:
    how = (
        "--text",
        "the red",
        "--max-new",
        20,
        "--temperature",
        0.8,
        "--top-k",
        20,
        "--top-p",
        0.9,
        "--seed",
        3,
    )
    _, out, _ = muomni("chat", run, *how)
    _, as_json, _ = muomni("chat", run, *how, "--json")
    assert out == json.loads(as_json)["text"] + "\n"


def test_chat_stops_at_a_string(muomni: Run, run: Path) -> None:
    _, whole, _ = muomni("chat", run, "--text", "the red", "--max-new", 20)
    _, out, _ = muomni(
        "chat", run, "--text", "the red", "--max-new", 20, "--stop", whole[4:6], "--stop", "never"
    )
    assert out == whole[: whole.index(whole[4:6])] + "\n"


def test_interactive_chat_remembers(
    muomni: Run, run: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("the red\nis it\n/new\nis it\n/image nowhere.png\nwhat\n/quit\nnot read\n")
    )
    code, out, err = muomni("chat", run, "--json", "--max-new", 5)
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    first = engine.answer("the red", max_new=5).text
    turns = [
        {"role": "user", "content": "the red"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "is it"},
    ]
    assert code == 0
    assert texts == [first, engine.answer(turns, max_new=5).text, engine.answer("is it", max_new=5).text]
    assert "nowhere.png" in err


def test_chat_answers_a_file(muomni: Run, run: Path, media: Path, tmp_path: Path, engine: Any) -> None:
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "the red"}]},
        {
            "id": "b",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "path": "red.png"}, {"type": "text", "text": "what"}],
                }
            ],
        },
        {"id": "c", "messages": [{"role": "user", "content": "is"}, {"role": "assistant", "content": "old"}]},
    ]
    source = media / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    code, told, _ = muomni(
        "chat", run, "--batch", source, "--out", out, "--max-new", 5, "--speak", tmp_path / "said"
    )
    assert (code, told) == (0, "")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in found] == ["a", "b", "c"]
    assert found[2]["text"] == engine.answer("is", max_new=5).text
    assert found[0]["audio"] == str(tmp_path / "said" / "0000.wav")
    assert Path(found[0]["audio"]).is_file()


def test_bad_rows_of_a_file_are_told_and_the_others_answered(
    muomni: Run, run: Path, media: Path, tmp_path: Path
) -> None:
    broken = [{"type": "image", "path": "broken.png"}]
    rows = [
        {"id": "torn", "messages": [{"role": "user", "content": broken}]},
        {"id": "none", "messages": []},
        {"id": "long", "messages": [{"role": "user", "content": "a " * 200}]},
        {"id": "good", "messages": [{"role": "user", "content": "the"}]},
    ]
    source = media / "bad.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    code, _, err = muomni("chat", run, "--batch", source, "--out", tmp_path / "out.jsonl", "--max-new", 3)
    assert code == 2
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["good"]
    for name in ("broken.png", "long", "bad.jsonl:2", "bad.jsonl:5", "4 rows"):
        assert name in err


# --- transcribe, speak, trace, and what needs no weights --------------------------------------------------------------------------------


def test_transcribe_gives_a_row_a_file(muomni: Run, run: Path, media: Path, engine: Any) -> None:
    paths = [media / "high.wav", media / "low.wav"]
    code, out, _ = muomni("transcribe", run, *paths, "--json")
    assert code == 0
    assert json.loads(out) == [{"path": str(path), "text": engine.transcribe([path])[0]} for path in paths]


def test_one_bad_sound_does_not_keep_the_others_back(muomni: Run, run: Path, media: Path) -> None:
    code, out, err = muomni(
        "transcribe",
        run,
        media / "high.wav",
        media / "broken.wav",
        media / "none.wav",
        media / "low.wav",
        "--json",
    )
    assert code == 2
    assert [row["path"] for row in json.loads(out)] == [str(media / "high.wav"), str(media / "low.wav")]
    assert "broken.wav" in err
    assert "none.wav" in err


def test_speak_writes_a_file_or_one_a_line(muomni: Run, run: Path, tmp_path: Path) -> None:
    assert muomni("speak", run, "red", "--out", tmp_path / "one.wav")[:2] == (0, "")
    (tmp_path / "lines.txt").write_text("red\nthe circle\n\n")
    assert muomni("speak", run, "--batch", tmp_path / "lines.txt", "--out", tmp_path / "many")[0] == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["0000.wav", "0001.wav"]
    (alone, _), (among, _) = (soundfile.read(tmp_path / name) for name in ("one.wav", "many/0000.wav"))
    assert np.allclose(alone, among, atol=2e-3)


def test_trace_prints_hops(muomni: Run, run: Path, media: Path) -> None:
    code, out, _ = muomni("trace", run, "--text", "red", "--image", media / "red.png")
    assert code == 0
    assert "(1, 3, 32, 32)" in out
    code, out, _ = muomni("trace", run, "--text", "red", "--json")
    hops = json.loads(out)
    assert code == 0
    assert hops[0] == {"name": "ids", "shape": [1, hops[0]["shape"][1]], "meaning": hops[0]["meaning"]}
    for wrong in (
        ("thinker",),
        ("--out", "somewhere"),
        ("--training",),
        ("a", "b", "--training"),
        ("thinker", "--training", "--text", "red"),
    ):
        assert muomni("trace", run, *wrong)[0] == 2


def test_commands_without_weights(muomni: Run, run: Path, media: Path) -> None:
    assert all(
        words in muomni("data", "formats")[1] for words in ("samples", "the same of sounds", "wav48")
    )  # each with what it reads
    assert muomni("doctor")[0] == 0
    code, out, _ = muomni("inspect", run / "thinker" / "final", "--json")
    assert (code, json.loads(out)["kind"]) == (0, "network")
    (media / "one.jsonl").write_text(
        '{"id": "a", "messages": [{"role": "user", "content": [{"type": "image", "path": "none.png"}]}]}\n'
    )
    code, out, _ = muomni("data", "check", media / "one.jsonl", "--json")
    assert (code, json.loads(out)["counts"]) == (1, {"missing": 1, "no_samples": 1})


# --- exit codes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("chat", "{run}/none", "--text", "a"),
        ("chat", "{run}", "--text", "a", "--image", "{media}/broken.png"),
        ("chat", "{run}", "--audio", "{media}/broken.wav"),
        ("chat", "{run}", "--text", "a", "--top-p", "2"),
        ("chat", "{run}", "--text", "a", "--seed", "x"),
        ("chat", "{run}", "--text", "a", "--max-new", "0"),
        ("chat", "{run}", "--batch", "{media}/rows.jsonl"),
        ("chat", "{run}", "--batch", "{media}/absent.jsonl", "--out", "x.jsonl"),
        ("chat", "{run}/thinker", "--text", "a", "--speak", "x.wav"),
        ("transcribe", "{run}/vision", "{media}/low.wav"),
        ("speak", "{run}"),
        ("speak", "{run}", "red"),
        ("speak", "{run}", " ", "--out", "x.wav"),
        ("speak", "{run}", "--batch", "{media}/absent.txt", "--out", "x"),
        ("speak", "{run}", "red", "--out", "/proc/none/x.wav"),
        ("draw", "{run}", "red", "--out", "x.png"),
        ("data", "check", "{media}/rows.jsonl", "--format", "nonsense"),
        ("data", "world", "--out", "{media}", "--size", "tiny"),
        ("inspect", "{run}/none"),
        ("gate", "{media}"),
        ("run", "no-such-recipe"),
        ("nonsense",),
        ("data",),
        ("chat",),
    ],
)
def test_what_the_user_must_change_is_one_line_and_2(
    muomni: Run, run: Path, media: Path, args: tuple[str, ...]
) -> None:
    code, out, err = muomni(*(arg.format(run=run, media=media) for arg in args))
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    # The tiny run was never trained: that it has no certificate is said beside the error.
    assert [
        said
        for said in err.splitlines()
        if not said.endswith("it has no certificate: nothing says what it learned")
    ] == [line]
    assert len(line) > 20
    if "broken" in args[-1]:
        assert args[-1].format(media=media) in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateRed("gate is red"), 1),
        (InternalError("ours"), 3),
        (ZeroDivisionError("unforeseen"), 3),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (OSError(28, "No space left on device"), 2),
    ],
)
def test_exit_codes(muomni: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("muomni.doctor.examine", fail)
    if isinstance(error, BrokenPipeError):
        monkeypatch.setattr(cli, "_closed", lambda: 141)
    found, out, err = muomni("doctor")
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 1
    if isinstance(error, ZeroDivisionError):
        assert "MUOMNI_DEBUG=1" in err
        monkeypatch.setenv("MUOMNI_DEBUG", "1")
        assert "Traceback" in muomni("doctor")[2]


def test_run_sorts_stages_from_overrides_and_gate_reddens(
    muomni: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, Any] = {}

    def run(recipe: str, **how: Any) -> Path:
        told.update(how, recipe=recipe)
        return tmp_path

    row = {"name": "finite", "verdict": "red", "value": None, "threshold": "= 0", "why": "x"}
    monkeypatch.setattr("muomni.execution.runner.run", run)
    monkeypatch.setattr(
        "muomni.execution.runner.gate",
        lambda *_, **__: {"stage": "thinker", "verdict": "red", "facts": {}, "gates": [row]},
    )
    waived = ("--waive", "finite", "--reason", "a test")
    assert muomni("run", "quickstart", "thinker", "thinker.max_steps=2", "hearing", "--fresh", *waived)[
        :2
    ] == (0, f"{tmp_path}\n")
    assert told == {
        "recipe": "quickstart",
        "stages": ["thinker", "hearing"],
        "overrides": ["thinker.max_steps=2"],
        "out": None,
        "fresh": True,
        "waive": ["finite"],
        "reason": "a test",
        "alone": False,
    }
    code, out, _ = muomni("gate", tmp_path, "--json")
    assert (code, json.loads(out)["verdict"]) == (1, "red")
    assert muomni("gate", tmp_path)[0] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pipes as POSIX has them")
def test_a_reader_that_leaves_is_no_crash() -> None:
    command = f"{sys.executable} -m muomni data formats | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""
