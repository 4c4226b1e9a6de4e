"""Checkpoints: whole or absent, complete, and only ever believed after they were verified."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy_training import CPU, Toy, fit

from muomni import files
from muomni.errors import CheckpointError
from muomni.train import checkpoint
from muomni.train.checkpoint import State
from power_cut import every_moment


def state(step: int = 3, **ema: torch.Tensor) -> State:
    return State({"step": step, "best": 0.5}, {"state": {}, "param_groups": [{"lr": 0.1}]}, {}, ema)


def saved(run: Path, step: int = 3) -> Path:
    folder = run / checkpoint.name(step)
    checkpoint.save(folder, Toy(), state(step, w=torch.ones(2)))
    return folder


def test_everything_comes_back(tmp_path: Path) -> None:
    model, other = Toy(), Toy()
    for parameter in model.parameters():
        parameter.data.normal_()
    model.seen += 4
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    np.random.standard_normal()  # half of a pair is kept inside
    checkpoint.save(tmp_path / "step_000003", model, state(3, w=torch.arange(3.0)))
    drawn = torch.rand(3), random.random(), random.gauss(0, 1), np.random.standard_normal(3)
    loaded = checkpoint.load(tmp_path / "step_000003", other, CPU.device)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert loaded.progress == {"step": 3, "best": 0.5}
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1}]
    assert torch.equal(loaded.ema["w"], torch.arange(3.0))
    again = torch.rand(3), random.random(), random.gauss(0, 1), np.random.standard_normal(3)
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:3] == again[1:3]
    assert (drawn[3] == again[3]).all()


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    model, other = Tied(), Tied()
    checkpoint.save(tmp_path / "step_000001", model, state(1))
    checkpoint.load(tmp_path / "step_000001", other, CPU.device)
    assert torch.equal(other.b.weight, model.a.weight)
    assert other.b.weight is other.a.weight
    stored = files.read_json(tmp_path / "step_000001" / "progress.json")
    assert stored["aliases"] == {"b.weight": "a.weight"}


NAMES = ("weights.safetensors", "ema.safetensors", "train_state.pt", "progress.json", "manifest.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["cut", "empty", "gone", "flipped"])
def test_a_torn_file_is_named_and_the_one_before_is_taken(
    tmp_path: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = saved(tmp_path, 3), saved(tmp_path, 6)
    assert checkpoint.newest(tmp_path) == newer
    content = (newer / name).read_bytes()
    spoiled = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "flipped": bytes([content[0] ^ 1]) + content[1:],
    }
    if how == "gone":
        (newer / name).unlink()
    else:
        (newer / name).write_bytes(spoiled[how])
    capsys.readouterr()
    assert checkpoint.newest(tmp_path) == older
    said = capsys.readouterr().err
    assert newer.name in said
    assert "torn" in said
    with pytest.raises(CheckpointError, match="torn"):
        checkpoint.load(newer, Toy(), CPU.device)


def test_a_manifest_that_is_none_is_torn(tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"files": 3}', "nonsense", '{"files": {"../x": "0"}}'):
        folder = saved(tmp_path, 3)
        (folder / "manifest.json").write_text(content)
        with pytest.raises(CheckpointError):
            checkpoint.verify(folder)
        shutil.rmtree(folder)
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.load(folder, nn.Linear(2, 2), CPU.device)


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    other = Toy()
    other.head = nn.Linear(8, 4)
    with pytest.raises(CheckpointError):
        checkpoint.load(folder, other, CPU.device)


def test_loading_runs_no_code_of_the_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    folder = saved(tmp_path)
    torch.save(
        {"optimizer": Evil(), "scaler": {}, "rng": {"cpu": torch.get_rng_state()}}, folder / "train_state.pt"
    )
    manifest = files.read_json(folder / "manifest.json")
    manifest["files"]["train_state.pt"] = files.sha256_file(folder / "train_state.pt")
    files.write_json(folder / "manifest.json", manifest)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(folder, Toy(), CPU.device)
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_is_told_and_older_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = saved(tmp_path, 3)
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"disk full.*intact"):
        checkpoint.save(tmp_path / checkpoint.name(6), Toy(), state(6))
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [older.name], "nothing half-written is left"
    checkpoint.load(older, Toy(), CPU.device)


def test_a_real_limit_on_file_size_is_told_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """The limit strikes inside of the libraries that write the tensors, wherever they are."""
    run = tmp_path / "run"
    fit(run, max_steps=3)
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for limit in (200, 2000, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(CheckpointError):
                checkpoint.save(run / checkpoint.name(6), Toy(), state(6, big=torch.zeros(500)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.newest(run) == run / checkpoint.name(3)
    assert not list(run.glob(".step*"))


def test_other_faults_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: int) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(OSError, match="denied"):
        checkpoint.save(tmp_path / checkpoint.name(6), Toy(), state(6))


def test_a_crash_before_the_name_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: Any) -> None:
        raise Crash

    older = saved(tmp_path, 3)
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(Crash):
        checkpoint.save(tmp_path / checkpoint.name(6), Toy(), state(6))
    assert checkpoint.newest(tmp_path) == older


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        saved(tmp_path, step)
    (tmp_path / ".step_000015.abc").mkdir()
    (tmp_path / "best").mkdir()
    checkpoint.retain(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step_000009", "step_000012"]


def test_a_run_keeps_what_it_was_told(tmp_path: Path) -> None:
    fit(tmp_path / "run", max_steps=12, keep_checkpoints=3)
    assert sorted(path.name for path in (tmp_path / "run").glob("step_*")) == [
        "step_000006",
        "step_000009",
        "step_000012",
    ]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    model = Toy()
    model.head.bias.data.fill_(9.0)
    checkpoint.save(folder, model, state(3))
    other = Toy()
    checkpoint.load(folder, other, CPU.device)
    assert bool((other.head.bias == 9).all())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_whenever_a_save_is_cut_off_a_whole_checkpoint_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed anywhere between the first call of a save and the last of what it retains: the newest whole one
    is the old or the new."""
    run, model, before = tmp_path / "run", Toy(), tmp_path / "before"
    for step in (2, 4):
        saved(before, step)

    def prepare() -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(before, run)

    def work() -> None:
        checkpoint.save(run / checkpoint.name(6), model, state(6))
        checkpoint.retain(run, 2)

    prepare(), work()  # what is imported on first use is no part of it
    newest = []
    for moment in every_moment(prepare, work, stride=11):
        found = checkpoint.newest(run)
        assert found is not None, moment
        newest.append(found.name)
        assert (run / checkpoint.name(4)).is_dir(), moment
        checkpoint.load(found, Toy(), CPU.device)
        files.clear_leftovers(run)
        checkpoint.retain(run, 2)
        assert all(not path.name.startswith(".") for path in run.iterdir()), moment
    assert set(newest) == {checkpoint.name(4), checkpoint.name(6)}
    assert newest == sorted(newest)
    assert "torn" not in capsys.readouterr().err, "a checkpoint is whole as soon as it has its name"
