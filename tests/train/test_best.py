"""`best/`: kept at every better validation, whatever is handed on; whole at any moment; what early stopping
leaves with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from safetensors.torch import load_file
from torch import nn
from toy_training import CPU, RowBatch, Toy, fit, losses, settings

from muomni import files
from muomni.errors import CheckpointError
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.runtime import Runtime
from muomni.train import best, checkpoint, loop
from muomni.train.objective import Objective, Term

WANDERING: dict[str, Any] = {
    "max_steps": 12,
    "val_freq": 2,
    "lr": 0.3,
    "schedule": "constant",
    "warmup_steps": 0,
}


def note(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = files.read_json(folder / "best" / "best.json")
    return found


class Worsening(Toy):
    """Its held-out loss falls to update 6 and rises from there on, whatever it learns."""

    def validated(self, batch: RowBatch) -> dict[str, Term]:
        count = self.counts(batch)["nats"]
        return {"nats": Term((self.seen[0] - 6).abs() * count, count)}


def validated(folder: Path) -> dict[int, float]:
    return {step: row["val_loss"] for step, row in losses(folder) if "val_loss" in row}


@pytest.mark.parametrize("values", [{}, {"ema_decay": 0.7}, {"final": "best"}])
def test_the_best_is_kept_whatever_is_handed_on(tmp_path: Path, values: dict[str, Any]) -> None:
    model = Worsening()
    fitted = fit(tmp_path, model, **{**WANDERING, "checkpoint_freq": 1, "keep_checkpoints": 99, **values})
    told = validated(tmp_path)
    step = min(told, key=lambda at: told[at])
    assert step == 6
    assert (note(tmp_path)["step"], note(tmp_path)["loss"]) == (step, told[step])
    assert (fitted.progress.best, fitted.progress.last) == (told[step], told[12])
    name = "ema.safetensors" if "ema_decay" in values else "weights.safetensors"
    wanted, kept = (
        load_file(tmp_path / checkpoint.name(step) / name),
        load_file(tmp_path / "best" / "weights.safetensors"),
    )
    assert all(torch.equal(kept[key], tensor) for key, tensor in wanted.items())
    is_best = all(torch.equal(kept[key], tensor) for key, tensor in model.state_dict().items())
    assert is_best == (values.get("final") == "best")


def test_keeping_it_changes_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path / "with", **WANDERING)
    monkeypatch.setattr(best, "keep", lambda *_: None)
    fit(tmp_path / "without", **WANDERING)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_early_stopping_hands_on_the_best_unless_asked_otherwise(tmp_path: Path) -> None:
    assert settings(patience=2).final == "best"
    assert settings(patience=2, final="last").final == "last"
    assert settings().final == "last"
    values = {**WANDERING, "max_steps": 60, "patience": 2}
    fitted = fit(tmp_path / "best", Worsening(), **values)
    assert (fitted.progress.stopped_early, fitted.progress.step, fitted.validation["loss"]) == (True, 10, 0.0)
    last = fit(tmp_path / "last", Worsening(), **values, final="last")
    assert (last.progress.step, last.validation["loss"], last.progress.last, last.progress.best) == (
        10,
        4.0,
        4.0,
        0.0,
    )


def test_killed_while_the_best_is_written_it_is_the_one_before(tmp_path: Path) -> None:
    """Between the files of a new best and its name: the folder holds the old one, and the run goes on to the
    same end."""
    fit(tmp_path / "whole", **WANDERING)
    script = f"""
import os, signal, sys, json
sys.path.insert(0, {str(Path(toy_training.__file__).parent)!r})
import torch, toy_training
from pathlib import Path
from muomni import files
torch.set_num_threads(1)
write, count = files.write_json, 0
def dies(path, value):
    global count
    write(path, value)
    if path.name == "best.json":
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGKILL)
files.write_json = dies
toy_training.fit(Path({str(tmp_path / "killed")!r}), **{{**json.loads({json.dumps(json.dumps(WANDERING))}), "checkpoint_freq": 1}})
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=environment,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first = note(tmp_path / "killed")
    assert first["step"] == 2
    fit(tmp_path / "killed", **{**WANDERING, "checkpoint_freq": 1})
    assert note(tmp_path / "killed") == note(tmp_path / "whole")
    one, two = (load_file(tmp_path / name / "best" / "weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (
        not list((tmp_path / "killed").glob(".best*.part"))
        or files.clear_leftovers(tmp_path / "killed") is None
    )


def test_a_best_that_is_gone_is_not_replaced_by_the_last(tmp_path: Path) -> None:
    fit(tmp_path, **WANDERING, final="best")
    (tmp_path / "best" / "best.json").unlink()
    with pytest.raises(CheckpointError, match="best is not there"):
        loop.restore(Toy(), None, settings(**WANDERING, final="best"), CPU, tmp_path)


class Starting(Worsening):
    """A part of it starts to work after eight updates, and costs: losses before can't be compared with those
    after."""

    @property
    def is_settled(self) -> bool:
        return float(self.seen) > 8


def test_a_validation_before_all_parts_work_does_not_compete(tmp_path: Path) -> None:
    fitted = fit(tmp_path, Starting(), **WANDERING, patience=1, final="last")
    assert validated(tmp_path)[6] == 0.0
    assert (fitted.progress.best_step, note(tmp_path)["step"]) == (10, 10)


class Two(Objective):
    """A network that is saved, one that rests beside it, and numbers that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.decoder = Decoder(
            DecoderConfig(vocab_size=300, width=16, layers=1, heads=2, ffn_width=16, ctx_len=8)
        )
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("empty", torch.zeros(0))


def test_one_copy_of_the_weights_in_the_files_of_the_engine(tmp_path: Path) -> None:
    made, found = Two(), Two()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(1.0)

    def export(objective: Two) -> best.Export:
        return best.Export(lambda folder: store.save(objective.decoder, folder), {".": objective.decoder})

    best.keep(tmp_path, made, export(made), {"step": 7, "loss": 1.5, "average": {}})
    assert set(load_file(tmp_path / "best" / "weights.safetensors")) == {"scale", "empty"}
    assert not store.changed(made.decoder, tmp_path / "best")
    assert best.put_back(tmp_path, found, export(found))["step"] == 7
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.state_dict().values(), found.state_dict().values(), strict=True)
    )


def test_overflows_of_fp16_are_told_and_not_counted_as_unsafe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler starts at 65536: the first updates of a sound network overflow, and a run must not go red for
    it."""

    class Large(Toy):
        def forward(self, batch: toy_training.RowBatch) -> dict[str, Any]:
            terms = super().forward(batch)
            scaled = terms["nats"].total
            if not scaled.requires_grad:
                return terms
            scaled.register_hook(
                lambda grad: grad * (float("inf") if float(grad.abs().max()) > 2000.0 else 1.0)
            )
            return terms

    half = Runtime(torch.device("cpu"), torch.float16)
    monkeypatch.setattr(Runtime, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    model = Large(dropout=0.0)
    fitted = fit(tmp_path, model, run=half, max_steps=12, max_skips=0)
    progress = fitted.progress
    assert progress.overflows >= 2
    assert progress.skipped == 0
    assert progress.step == 12
    assert float(model.seen) == 12 - progress.overflows
    assert not (tmp_path / "skipped.jsonl").exists()
