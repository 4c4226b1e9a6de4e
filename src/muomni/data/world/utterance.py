"""Utterances to be said, and the one process that says them all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muomni.errors import InternalError
from muomni.files import write_jsonl


@dataclass(frozen=True)
class Job:
    """One utterance: where it goes (relative to the out folder) and how it is said; rate in words a minute,
    pitch 0..99."""

    path: str
    text: str
    voice: str
    rate_wpm: int
    pitch: int
    seed: int


def speak(jobs: Sequence[Job], out: Path) -> dict[str, Any]:
    """Say all jobs in one fresh process, in an order that depends on the jobs alone; gives {"voice",
    "utterances", "seconds"}.

    Raises InternalError if the process fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    order = sorted(
        jobs, key=lambda job: (job.voice, job.path)
    )  # changing a voice costs more than saying a word
    listed, report = out / ".jobs.jsonl", out / ".speech.json"
    write_jsonl(listed, [asdict(job) for job in order])
    done = subprocess.run(
        [sys.executable, "-m", "muomni.data.world.speech", str(listed), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InternalError(f"speech process left with {done.returncode}: {done.stderr.strip()[-500:]}")
    spoken_report: dict[str, Any] = json.loads(report.read_text())
    listed.unlink()
    report.unlink()
    return spoken_report
