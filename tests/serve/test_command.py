"""`muomni serve` as a process: what it says, where it listens, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from served import http

from muomni import cli


class Process:
    """The command at work."""

    def __init__(self, *args: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "muomni", "serve", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MUOMNI_API_KEY": "sesame"},
        )
        assert self.child.stderr is not None
        self.lines: list[str] = []
        for line in self.child.stderr:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+)/v1", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.lines))

    def end(self, kind: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        self.child.send_signal(kind)
        out, err = self.child.communicate(timeout=600)
        return self.child.returncode, out, err


@pytest.fixture(scope="module")
def process(run: Path) -> Iterator[Process]:
    process = Process(str(run), "--port", "0")
    yield process
    if process.child.poll() is None:
        process.child.kill()


def test_it_answers_and_on_sigterm_lets_open_answers_end(process: Process, run: Path) -> None:
    assert run.name in process.lines[-1]
    assert "http://127.0.0.1:" in process.lines[-1]
    client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="sesame", max_retries=0)
    (model,) = client.models.list().data
    assert model.id == run.name
    for _ in range(200):
        if http.get(f"{process.url}/health").is_success:
            break
        time.sleep(0.05)
    pieces: list[str] = []
    begun = threading.Event()

    def read() -> None:
        asked = {
            "model": model.id,
            "messages": [{"role": "user", "content": "the red circle"}],
            "stream": True,
            "n": 4,
            "max_tokens": 60,
            "temperature": 1.0,
        }
        headers = {"authorization": "Bearer sesame"}
        with http.stream("POST", f"{process.url}/v1/chat/completions", json=asked, headers=headers) as reply:
            for line in reply.iter_lines():
                pieces.append(line)
                begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(20)
    code, out, err = process.end()
    thread.join(30)
    assert code == 0, err
    assert out == ""
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err
    assert pieces[-2] == "data: [DONE]", "the answer was cut off"
    finishes = [
        json.loads(each[6:])["choices"][0]["finish_reason"] for each in pieces if each.startswith("data: {")
    ]
    assert len([each for each in finishes if each]) == 4


def said(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", *args])
    return int(left.value.code or 0), capsys.readouterr().err


def test_what_can_not_be_served_is_told_in_a_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = said(capsys, str(tmp_path))
    assert code == 2
    assert "holds no finished stage" in err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, err = said(capsys, str(run), "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "--port" in err
    code, err = said(capsys, str(run), "--cors", "*")
    assert code == 2
    assert "--cors" in err
    code, err = said(capsys, str(run), "--api-key", "")
    assert code == 2
    assert "Traceback" not in err


def test_a_missing_extra_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from muomni.serve import opening

    monkeypatch.setattr(opening, "NEEDED", ("fastapi", "no_such_package"))
    code, err = said(capsys, str(run))
    assert code == 2
    assert "muomni[serve]" in err
