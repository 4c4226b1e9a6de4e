"""A corpus that a child reads: the same as without it, whatever becomes of the child, which outlives no
parent."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muomni.data import ahead, readers
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is read ahead")
ROWS = 60
HOW = {"val_split": 0.2, "seed": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two manifests with bad rows, notes of repairs, media, and a picture on both sides of the split under
    two names."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    lines = []
    for number in range(ROWS):
        shown = {"type": "image", "path": f"{'ab'[number % 2]}.png"}
        turns = [{"role": "user", "content": [shown]}, {"role": "assistant", "content": f"picture {number}"}]
        row = {"id": f"p{number}", "group": f"g{number}", "messages": turns}
        lines.append(json.dumps({**row, "split": "valid" if number % 2 else "train"}))
    lines[7], lines[11] = '{"id": "torn', lines[11].replace("b.png", "nowhere.png")
    (tmp_path / "pictures.jsonl").write_text("\n".join(lines))
    (tmp_path / "texts.jsonl").write_text(
        "\n".join(json.dumps({"id": f"p{n}", "text": f"text {n}"}) for n in range(ROWS)) + "\n{}\n"
    )
    return tmp_path


SOURCES = [Source(path="pictures.jsonl", weight=2.0), Source(path="texts.jsonl")]


def told(corpus: readers.Corpus, quarantine: Quarantine) -> dict[str, Any]:
    """All that a corpus says, and what was set aside."""
    sides = {
        name: [sample.model_dump_json() for sample in getattr(corpus, name)] for name in ("train", "valid")
    }
    rest = {
        name: getattr(corpus, name)
        for name in ("digest", "leaks", "modalities", "segments", "accounts", "notes")
    }
    aside = {"counts": quarantine.counts, "examples": quarantine.examples, "kept": quarantine.notes}
    assert quarantine.path is not None
    return {**sides, **rest, **aside, "weights": list(corpus.weights), "lines": quarantine.path.read_text()}


@pytest.fixture
def plain(folder: Path) -> dict[str, Any]:
    quarantine = Quarantine(folder / "plain.jsonl", 0.2)
    return told(readers.load(SOURCES, base=folder, quarantine=quarantine, **HOW), quarantine)


@pytest.fixture
def asked_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Processes in which `readers.load` was called, where that is this one."""
    here: list[int] = []
    own, load = os.getpid(), readers.load

    def noted(*args: Any, **how: Any) -> readers.Corpus:
        here.extend([own] if os.getpid() == own else [])
        return load(*args, **how)

    monkeypatch.setattr(readers, "load", noted)
    yield here
    assert ahead._reader is None


def read(folder: Path, **how: Any) -> dict[str, Any]:
    quarantine = Quarantine(folder / "ahead.jsonl", 0.2)
    return told(
        ahead.load(SOURCES, base=folder, quarantine=quarantine, segments=None, **{**HOW, **how}), quarantine
    )


def begin(folder: Path, **how: Any) -> int:
    ahead.begin(SOURCES, base=folder, **{**HOW, "limit": 0.2, **how})
    assert ahead._reader is not None
    assert ahead._reader._child.pid is not None
    return ahead._reader._child.pid


def test_the_child_reads_what_this_process_would(
    folder: Path, plain: dict[str, Any], asked_here: list[int]
) -> None:
    child = begin(folder)
    assert read(folder) == plain
    assert plain["counts"].total() == 3
    assert plain["leaks"].contents
    assert not asked_here
    assert not Path(f"/proc/{child}").exists()
    assert read(folder) == plain, "once, and no more"
    assert len(asked_here) == 1


def test_a_child_that_dies_changes_nothing(
    folder: Path, plain: dict[str, Any], asked_here: list[int]
) -> None:
    os.kill(begin(folder), signal.SIGKILL)
    assert read(folder) == plain
    assert len(asked_here) == 1


@pytest.mark.parametrize("other", [{"seed": 4}, {"val_split": 0.3}, {"limit": 0.5}, {"base": Path("/")}])
def test_what_was_read_otherwise_is_not_taken(
    other: dict[str, Any], folder: Path, plain: dict[str, Any], asked_here: list[int]
) -> None:
    child = begin(folder, **other) if "base" not in other else begin(Path("/"))
    assert read(folder) == plain
    assert len(asked_here) == 1
    assert not Path(f"/proc/{child}").exists()


def test_data_that_are_refused_are_refused_in_the_same_words(folder: Path) -> None:
    with pytest.raises(DataError) as plain:
        readers.load(SOURCES, base=folder, quarantine=Quarantine(None, 0.01), **HOW)
    begin(folder, limit=0.01)
    with pytest.raises(DataError) as found:
        ahead.load(SOURCES, base=folder, quarantine=Quarantine(None, 0.01), **HOW)
    assert (str(found.value), found.value.reason, found.value.hint) == (
        str(plain.value),
        plain.value.reason,
        plain.value.hint,
    )


RECIPE = "thinker:\n  data: [{path: texts.jsonl}]\n  val_split: 0.2\n  seed: 3\n  quarantine_limit: 0.2\n  max_steps: 2\n"
SCRIPT = """
import os, sys, time
from muomni import cli
from muomni.commands import early
from muomni.data import ahead, readers
early.ENOUGH_BYTES = 0
early.media_pool.cores = lambda: 2
own, load, corpus = os.getpid(), readers.load, ahead.Reader.corpus
def slow(*args, **how):
    print(os.getpid(), flush=True)
    time.sleep(600 if "wait" in sys.argv and os.getpid() != own else 0)
    return load(*args, **how)
def told(self, quarantine):
    found = corpus(self, quarantine)
    print("by the child" if found is not None else "not by the child", flush=True)
    os._exit(0)
readers.load, ahead.Reader.corpus = slow, told
cli.main(["run", sys.argv[1], "--out", "run", *sys.argv[3:]])
"""


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A run that an interrupt reaches, also where this process was started behind a shell's `&`, which lets its
    children ignore it."""
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-c", SCRIPT, "recipe.yaml", *words]
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeds
    )


@pytest.mark.parametrize(
    ("words", "said"), [((), "by the child"), (("thinker.seed=5", "thinker.val_split=0.4"), "by the child")]
)
def test_the_front_door_asks_for_what_the_stage_will(words: tuple[str, ...], said: str, folder: Path) -> None:
    with started(folder, "go", *words) as run:
        assert run.stdout is not None
        lines = run.stdout.read().splitlines()
    assert lines[1:] == [said]
    assert int(lines[0]) != run.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_outlives_a_run_that_is_ended(number: signal.Signals, folder: Path) -> None:
    with started(folder, "wait") as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        os.kill(run.pid, number) if number == signal.SIGKILL else os.killpg(run.pid, number)
    tries = iter(range(3000))
    while (status := Path(f"/proc/{child}/status")).exists() and "\nState:\tZ" not in status.read_text():
        assert next(tries, None) is not None, "it outlives its parent"
        time.sleep(0.2)
