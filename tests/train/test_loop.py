"""The loop: a broken run goes on as if nothing had happened, stops when asked, and tells each step once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_training
from safetensors.torch import load_file
from toy_training import CPU, RowBatch, Rows, Toy, collate, die_at, fit, losses, settings

from muomni import files
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.errors import CheckpointError, DataError, UserError
from muomni.evaluate import run_record_checks
from muomni.train import checkpoint, loop, validation
from muomni.train.run_record import Rates


class Crash(Exception):
    """Not one of ours: the power went."""


def crash_at(step: int) -> Any:
    def dies(number: int) -> None:
        if number == step:
            raise Crash

    return dies


def same_state(a: Path, b: Path, step: int) -> None:
    """Two runs' last checkpoints hold the same bits, and their metrics the same numbers."""
    one, two = a / checkpoint.name(step), b / checkpoint.name(step)
    for name in ("weights.safetensors", "ema.safetensors"):
        if (one / name).exists() or (two / name).exists():
            x, y = load_file(one / name), load_file(two / name)
            assert list(x) == list(y)
            assert all(torch.equal(x[key], y[key]) for key in x), name
    x, y = (torch.load(folder / "train_state.pt", weights_only=True) for folder in (one, two))
    assert torch.equal(x["rng"]["cpu"], y["rng"]["cpu"])
    for key, moments in x["optimizer"]["state"].items():
        assert all(torch.equal(value, y["optimizer"]["state"][key][name]) for name, value in moments.items())
    p, q = (files.read_json(folder / "progress.json") for folder in (one, two))
    assert p == q
    assert losses(a) == losses(b)


@pytest.mark.parametrize(
    "values", [{}, {"ema_decay": 0.5}, {"gradient_accumulation_steps": 2}, {"final": "best"}, {"workers": 2}]
)
def test_broken_and_resumed_equals_uninterrupted(tmp_path: Path, values: dict[str, Any]) -> None:
    whole = fit(tmp_path / "whole", **values)
    broken = Toy(dies=crash_at(5))
    with pytest.raises(Crash):
        fit(tmp_path / "broken", broken, **values)
    again = Toy()
    resumed = fit(tmp_path / "broken", again, **values)
    same_state(tmp_path / "whole", tmp_path / "broken", 8)
    assert whole.validation == resumed.validation
    assert (
        again.seen == 5 + 3 if values.get("final") != "best" else True
    )  # from step 3 on, counted by the buffer: 8 updates in all


def test_the_final_weights_are_the_same_after_a_break(tmp_path: Path) -> None:
    whole, broken = Toy(), Toy()
    fit(tmp_path / "whole", whole, ema_decay=0.9)
    with pytest.raises(Crash):
        fit(tmp_path / "broken", Toy(dies=crash_at(7)), ema_decay=0.9)
    fit(tmp_path / "broken", broken, ema_decay=0.9)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), broken.state_dict().values(), strict=True)
    )


def test_speed_is_told_by_what_the_batches_of_the_window_held(tmp_path: Path) -> None:
    """Two of four rows of some batches are bad: each row of metrics tells those that were left, by a clock
    that cancels out."""
    bad = (3, 7, 8, 15, 20)
    done = fit(tmp_path, rows=Rows(bad=bad), quarantine_limit=1.0)
    order = Order([24], batch_size=4, seed=settings().seed)
    left = [sum(draw.index not in bad for draw in order.batch(number)) for number in range(8)]
    assert len(set(left)) > 1
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    timed = {row["step"]: row["samples_per_s"] / row["steps_per_s"] for row in told if "steps_per_s" in row}
    assert {2, 4} <= set(timed), "at most every other update is counted"
    assert timed == {step: pytest.approx(left[step - 1]) for step in timed}
    assert done.progress.samples == sum(left)
    labels = sum(
        3 - index % 3
        for number in range(8)
        for index in (d.index for d in order.batch(number))
        if index not in bad
    )
    assert done.progress.targets == {"nats": labels}


def test_a_window_is_summed_and_not_its_last_update_taken_for_all(tmp_path: Path) -> None:
    """One row of metrics for eight updates, of which the first ones are counted and left out."""
    bad = (3, 7, 8, 15, 20)
    held: list[float] = []

    class Noting(Toy):
        def contents(self, batch: RowBatch) -> dict[str, float]:
            held.append(super().contents(batch)["samples"])  # asked of the updates that are timed
            return super().contents(batch)

    fit(tmp_path, Noting(), rows=Rows(bad=bad), quarantine_limit=1.0, print_freq=8)
    row = next(
        row
        for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if "steps_per_s" in row
    )
    assert len(held) >= 4
    assert len(set(held)) > 1
    assert row["samples_per_s"] / row["steps_per_s"] == pytest.approx(sum(held) / len(held))


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    fit(tmp_path / "none", rows=Rows(bad=(7,)), quarantine_limit=1.0)
    fit(tmp_path / "two", rows=Rows(bad=(7,)), quarantine_limit=1.0, workers=2)
    same_state(tmp_path / "none", tmp_path / "two", 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_by_sigkill_at_a_random_step(tmp_path: Path, workers: int) -> None:
    values = {"workers": workers, "ema_decay": 0.8, "quarantine_limit": 1.0}
    fit(tmp_path / "whole", **values)
    step = random.randint(1, 7)
    script = [
        sys.executable,
        toy_training.__file__,
        str(tmp_path / "killed"),
        json.dumps(values),
        "--die-at",
        str(step),
    ]
    killed = subprocess.run(script, capture_output=True, text=True, timeout=900, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / checkpoint.name(8)).exists()
    fit(tmp_path / "killed", **values)
    same_state(tmp_path / "whole", tmp_path / "killed", 8)


def test_a_torn_newest_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "whole")
    with pytest.raises(Crash):
        fit(tmp_path / "torn", Toy(dies=crash_at(8)))
    weights = tmp_path / "torn" / checkpoint.name(6) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    fit(tmp_path / "torn")
    said = capsys.readouterr().err
    assert "torn" in said
    assert f"resumed from {tmp_path / 'torn' / checkpoint.name(3)}" in said
    same_state(tmp_path / "whole", tmp_path / "torn", 8)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(tmp_path / "run")
    again = Toy(dies=crash_at(1))
    assert fit(tmp_path / "run", again).validation == first.validation
    steps = [step for step, row in losses(tmp_path / "run") if "lr" in row]
    assert steps == list(range(1, 9))


def test_restore_gives_what_fit_left(tmp_path: Path) -> None:
    for values in ({"ema_decay": 0.5}, {"final": "best", "max_steps": 12, "lr": 0.3, "val_freq": 2}):
        folder = tmp_path / "-".join(values)
        made, found = Toy(), Toy()
        fitted = fit(folder, made, **values)
        chosen = settings(**values)
        valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
        restored = loop.restore(found, valid, chosen, CPU, folder)
        assert restored.validation == fitted.validation
        assert all(
            torch.equal(a, b)
            for a, b in zip(made.state_dict().values(), found.state_dict().values(), strict=True)
        )
        assert not found.training


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves_with_its_code(tmp_path: Path, number: int, code: int) -> None:
    def asked(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(loop.Interrupted) as caught:
        fit(tmp_path / "asked", Toy(dies=asked))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert checkpoint.newest(tmp_path / "asked") == tmp_path / "asked" / checkpoint.name(4)
    fit(tmp_path / "asked")
    fit(tmp_path / "whole")
    same_state(tmp_path / "whole", tmp_path / "asked", 8)


def test_every_step_stands_once_in_the_metrics(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        fit(tmp_path / "run", Toy(dies=crash_at(6)))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "los')  # torn by the crash
    fit(tmp_path / "run")
    rows = losses(tmp_path / "run")
    assert [step for step, row in rows if "lr" in row] == list(range(1, 9))
    assert [step for step, row in rows if "val_loss" in row] == [4, 8]
    assert len(files.read_json(tmp_path / "run" / "training_log.json")) == len(rows)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    model = Toy()
    values = {
        "max_steps": 60,
        "val_freq": 2,
        "patience": 2,
        "lr": 0.5,
        "schedule": "constant",
        "final": "best",
        "warmup_steps": 0,
    }
    fitted = fit(tmp_path / "run", model, **values)
    progress = fitted.progress
    assert progress.stopped_early
    assert progress.step < 60
    assert progress.step > progress.best_step
    rows = {step: row["val_loss"] for step, row in losses(tmp_path / "run") if "val_loss" in row}
    assert fitted.validation["loss"] == pytest.approx(min(rows.values()), abs=1e-6)
    again = fit(tmp_path / "run", Toy(dies=crash_at(1)), **values)  # a stopped run is done
    assert again.validation == fitted.validation


def test_final_weights_are_the_moving_average(tmp_path: Path) -> None:
    average, last = Toy(), Toy()
    fit(tmp_path / "ema", average, ema_decay=0.999)
    fit(tmp_path / "last", last)
    start = Toy()
    moved = [
        (a - s).norm() / (p - s).norm()
        for a, p, s in zip(average.parameters(), last.parameters(), start.parameters(), strict=True)
    ]
    assert max(moved) < 0.02


def raw_and_average(folder: Path, step: int) -> list[dict[str, torch.Tensor]]:
    kept = folder / checkpoint.name(step)
    raw = load_file(kept / "weights.safetensors")
    return [raw, {**raw, **load_file(kept / "ema.safetensors")}]


def test_the_best_is_the_best_average_not_the_best_raw_weights(tmp_path: Path) -> None:
    """With `ema_decay` what is validated, kept, handed on and put in place again is the average of that
    step."""
    values = {
        "ema_decay": 0.7,
        "final": "best",
        "max_steps": 12,
        "val_freq": 1,
        "checkpoint_freq": 1,
        "keep_checkpoints": 99,
        "lr": 0.3,
    }
    made, found = Toy(), Toy()
    fitted = fit(tmp_path, made, **values)
    valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
    seen: list[list[float]] = [[], []]
    for step in range(1, 13):
        for losses_of, state in zip(seen, raw_and_average(tmp_path, step), strict=True):
            model = Toy()
            model.load_state_dict(state)
            losses_of.append(validation.validate(model, valid, settings(**values), CPU)["loss"])
    raw, average = seen
    told = [row["val_loss"] for _, row in losses(tmp_path) if "val_loss" in row]
    assert told == pytest.approx(average, abs=1e-6)
    assert raw.index(min(raw)) != average.index(min(average)), "or this test would show nothing"
    best = average.index(min(average)) + 1
    assert fitted.progress.best_step == best
    wanted = raw_and_average(tmp_path, best)[1]
    assert all(torch.equal(made.state_dict()[key], value) for key, value in wanted.items())
    assert all(
        torch.equal(load_file(tmp_path / "best" / "weights.safetensors")[key], value)
        for key, value in wanted.items()
    )
    loop.restore(found, valid, settings(**values), CPU, tmp_path)
    assert all(torch.equal(found.state_dict()[key], value) for key, value in wanted.items())
    for fit_again in (fitted, loop.restore(Toy(), valid, settings(**values), CPU, tmp_path)):
        trained = [p for p in made.parameters() if p.requires_grad]
        assert run_record_checks.average(trained, 0.7, fit_again.average)["ema_error"].value < 0.01


def test_one_held_out_set_decides_the_last_time_too(tmp_path: Path) -> None:
    """Of three held-out batches one decides: the harder ones of the end, asked of the last weights only, must
    not."""
    values = {
        "final": "best",
        "val_batches": 1,
        "val_freq": 2,
        "max_steps": 10,
        "lr": 0.02,
        "keep_checkpoints": 99,
        "checkpoint_freq": 2,
    }
    model = Toy()
    fitted = fit(tmp_path, model, **values)
    valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
    few, many = [], []
    for step in range(2, 11, 2):
        kept = Toy()
        kept.load_state_dict(load_file(tmp_path / checkpoint.name(step) / "weights.safetensors"))
        few.append(validation.validate(kept, valid, settings(**values), CPU)["loss"])
        many.append(validation.validate(kept, valid, settings(**values), CPU, full=True)["loss"])
    assert [row["val_loss"] for _, row in losses(tmp_path) if "val_loss" in row] == pytest.approx(
        few, abs=1e-6
    )
    assert fitted.progress.best == pytest.approx(min(few), abs=1e-6)
    assert fitted.progress.best_step == 2 * few.index(min(few)) + 2
    assert fitted.validation["loss"] == pytest.approx(many[few.index(min(few))], abs=1e-6)
    assert abs(many[-1] - few[-1]) > 0.01, "or this test would show nothing"


def test_a_run_notes_what_it_did_over_a_break_too(tmp_path: Path) -> None:
    """The notes that the gates read, from settings that a fit has, and as they stand after a kill and a
    resume."""
    with pytest.raises(Crash):
        fit(tmp_path, Toy(dies=crash_at(8)), max_steps=9)
    fitted = fit(tmp_path, max_steps=9)
    order = Order([24], batch_size=4, seed=42)
    assert run_record_checks.order(fitted.drawn, order, fitted.progress.samples)["order_error"].value == 0
    rates = Rates(**fitted.progress.rates)
    assert (
        run_record_checks.schedule(rates, settings(max_steps=9), 0.02, is_whole=True)["rate_errors"].value
        == 0
    )
    logged = [row["lr"] for _, row in losses(tmp_path) if "lr" in row]
    assert (rates.updates, rates.first, rates.last, rates.peak) == (9, logged[0], logged[-1], max(logged))


def test_a_checkpoint_of_another_version_says_so(tmp_path: Path) -> None:
    fit(tmp_path)
    stored = {**files.read_json(tmp_path / checkpoint.name(8) / "progress.json"), "order": "digest"}
    for name in ("aliases", "python_rng"):
        stored.pop(name)
    with pytest.raises(CheckpointError, match=r"another version of muomni \(order\).*--fresh"):
        loop.Progress.of(stored, tmp_path)


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="undecodable"):
        fit(tmp_path / "run", rows=Rows(bad=(1, 2, 3, 4, 5, 6)), quarantine_limit=0.1)
    named = {
        json.loads(line)["path"] for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    }
    assert named
    assert named <= {f"row {i}" for i in range(1, 7)}


def test_bad_samples_within_the_limit_are_counted_and_left_out(tmp_path: Path) -> None:
    fitted = fit(
        tmp_path / "run", rows=Rows(bad=(1, 2)), quarantine_limit=0.2, max_steps=6
    )  # one epoch of 24 rows
    assert fitted.progress.quarantined == 2
    assert fitted.progress.samples == 22


def test_a_batch_of_bad_samples_only_is_passed_over(tmp_path: Path) -> None:
    fitted = fit(
        tmp_path / "run",
        rows=Rows(8, bad=tuple(range(7))),
        quarantine_limit=1.0,
        max_steps=4,
        batch_size=2,
        warmup_steps=0,
    )
    assert fitted.progress.step == 4
    assert fitted.progress.samples == 1


def test_validation_is_weighted_by_targets_not_by_batches(tmp_path: Path) -> None:
    model = Toy().eval()
    items = [Rows(10).item(i, np.random.default_rng([0, 0, i, i])) for i in range(10)]
    valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
    one = collate(items)
    whole = model(one)["nats"]
    means = validation.validate(model, valid, settings(), CPU, full=True)
    assert means["nats"] == pytest.approx(float(whole.total.detach()) / whole.count, rel=1e-5)
    assert means["loss"] == means["nats"]
    assert validation.validate(model, valid, settings(val_batches=1), CPU)["nats"] != means["nats"]


def test_validation_by_length_bucket() -> None:
    class Long(RowBatch):
        length = 70

    valid = Loader(
        Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), lambda items: Long(**vars(collate(items)))
    )
    for edges, name in (([64, 128], "nats@<=128"), ([64], "nats@>64"), ([70], "nats@<=70")):
        assert name in validation.validate(Toy(), valid, settings(len_buckets=edges), CPU)


def test_validation_leaves_training_mode_and_generators_alone() -> None:
    model = Toy().train()
    valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
    before = torch.get_rng_state()
    validation.validate(model, valid, settings(), CPU)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_schedule_ends_with_the_epochs(tmp_path: Path) -> None:
    """max_epochs shortens the run: the rate must fall to its floor at that end, not at max_steps (B39)."""
    fit(tmp_path / "run", max_steps=1000, max_epochs=2, min_lr_ratio=0.1, lr=0.01)  # 6 batches an epoch
    rates = [row["lr"] for _, row in losses(tmp_path / "run") if "lr" in row]
    assert len(rates) == 12
    assert rates[-1] == pytest.approx(0.001)


def test_unsafe_updates_stop_the_run_with_an_error(tmp_path: Path) -> None:
    class Exploding(Toy):
        def forward(self, batch: RowBatch) -> dict[str, Any]:
            terms = super().forward(batch)
            terms["nats"].total = terms["nats"].total * float("nan")
            return terms

    with pytest.raises(UserError, match="updates were skipped"):
        fit(tmp_path / "run", Exploding(), max_steps=50, max_skips=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["samples"] and row["reason"] for row in rows)


def test_skipped_updates_change_nothing_and_are_counted(tmp_path: Path) -> None:
    class Hiccup(Toy):
        calls = 0

        def forward(self, batch: RowBatch) -> dict[str, Any]:
            terms = super().forward(batch)
            if self.training:
                type(self).calls += 1
                if type(self).calls == 3:
                    terms["nats"].total = terms["nats"].total * float("inf")
            return terms

    model = Hiccup()
    fitted = fit(tmp_path / "run", model, max_steps=6)
    assert fitted.progress.skipped == 1
    assert fitted.progress.step == 6
    assert model.seen == 5
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_die_at_is_what_it_says() -> None:
    die_at(3)(2)  # still alive
