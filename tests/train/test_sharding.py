"""Two ranks that share weights, gradients and moments out end where one process with all of them ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from safetensors.torch import load_file

from muomni.errors import ConfigError
from muomni.models.decoder import Decoder, ExpertsConfig
from muomni.runtime import Runtime
from muomni.train import checkpoint, optim, sharding
from muomni.train.objectives.language import NextToken
from muomni.train.settings import TrainSettings

LIMIT_S = 300
STEP = checkpoint.name(sharded.STEPS)
CLOSE = 1e-6
TWO = Runtime(torch.device("cpu"), torch.float32, rank=0, world=2)


def run(folder: Path, *flags: str, processes: int = 1, must_pass: bool = True) -> str:
    """The script on so many processes; what it said."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
        sharded.__file__, str(folder), *flags,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUOMNI_COLLECTIVE_TIMEOUT_S": "60"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) is must_pass, said[-4000:]
    return said


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, whole."""
    folder = tmp_path_factory.mktemp("one")
    run(folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with a half each."""
    folder = tmp_path_factory.mktemp("two")
    said = run(folder, "--shard", processes=2)
    assert "shared out: " in said
    return folder


def numbers(folder: Path) -> list[dict[str, float]]:
    """Losses, rates and gradient norms by line of metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "text", "val_loss", "grad_norm", "lr")
    return [{name: row[name] for name in names if name in row} for row in rows]


def weights(folder: Path, step: str = STEP) -> dict[str, torch.Tensor]:
    return load_file(folder / step / "weights.safetensors")


def moments(folder: Path, step: str = STEP) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(folder / step / "train_state.pt", weights_only=True)["optimizer"]
    return stored


def assert_equal_runs(a: Path, b: Path) -> None:
    first, second = numbers(a), numbers(b)
    assert len(first) == len(second) > sharded.STEPS
    for one, other in zip(first, second, strict=True):
        assert other == pytest.approx(one, abs=CLOSE), (one, other)
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0)


def test_losses_and_gradient_norms_are_those_of_one_process(one: Path, two: Path) -> None:
    """With dropout, accumulation, clipping (every norm is above the bound) and tied tables."""
    assert_equal_runs(one, two)
    start = dict(sharded.objective().named_parameters())
    moved = max(float((weights(one)[name] - start[name].detach()).abs().max()) for name in weights(one))
    assert moved > 1e-3


def test_the_checkpoint_is_the_file_that_one_process_writes(one: Path, two: Path) -> None:
    """The same files, names, shapes, formats and aliases; the moments too."""
    assert sorted(p.name for p in (one / STEP).iterdir()) == sorted(p.name for p in (two / STEP).iterdir())
    a, b = weights(one), weights(two)
    assert {n: (t.shape, t.dtype) for n, t in a.items()} == {n: (t.shape, t.dtype) for n, t in b.items()}
    aliases = [json.loads((run / STEP / "progress.json").read_text())["aliases"] for run in (one, two)]
    assert aliases[0] == aliases[1]
    stored, shared = moments(one), moments(two)
    assert stored["param_groups"] == shared["param_groups"]
    assert stored["state"].keys() == shared["state"].keys()
    for number, state in stored["state"].items():
        for name, value in state.items():
            assert type(shared["state"][number][name]) is type(value) is torch.Tensor
            torch.testing.assert_close(shared["state"][number][name], value, atol=1e-6, rtol=1e-4)


def test_a_rank_holds_half_of_weights_and_moments(one: Path, two: Path) -> None:
    whole = json.loads((one / "sizes-0.json").read_text())
    halves = [json.loads((two / f"sizes-{rank}.json").read_text()) for rank in range(2)]
    for kind, count in whole.items():
        assert sum(half[kind] for half in halves) == count
        for half in halves:
            assert half[kind] == pytest.approx(count / 2, rel=0.02)


def test_both_ranks_end_with_the_whole_plain_model(two: Path) -> None:
    """What a stage measures and saves afterwards knows of no shards."""
    a, b = (torch.load(two / f"after-{rank}.pt", weights_only=True) for rank in range(2))
    stored = weights(two)
    for name, tensor in a.items():
        assert type(tensor) is torch.Tensor
        assert torch.equal(tensor, b[name])
        assert torch.equal(tensor, stored[name])


def test_a_killed_run_goes_on_bit_for_bit(two: Path, tmp_path: Path) -> None:
    run(tmp_path, "--shard", "--dies-at", "5", processes=2, must_pass=False)
    assert checkpoint.newest(tmp_path) == tmp_path / checkpoint.name(4)
    assert "resumed from" in run(tmp_path, "--shard", processes=2)
    for name, tensor in weights(two).items():
        assert torch.equal(weights(tmp_path)[name], tensor), name
    for number, state in moments(two)["state"].items():
        for name, value in state.items():
            assert torch.equal(moments(tmp_path)["state"][number][name], value)


def test_what_was_shared_out_goes_on_whole_and_the_other_way_round(one: Path, tmp_path: Path) -> None:
    """One process goes on from two ranks' checkpoint, and two from one's."""
    for first, second in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}"
        shard = {count: ["--shard"] if count == 2 else [] for count in (1, 2)}
        run(folder, "--dies-at", "3", *shard[first], processes=first, must_pass=False)
        assert "resumed from" in run(folder, *shard[second], processes=second)
        for name, tensor in weights(one).items():
            torch.testing.assert_close(weights(folder)[name], tensor, atol=1e-5, rtol=0)


def test_a_rank_with_fewer_micro_batches_waits_for_nobody(tmp_path: Path) -> None:
    """Rows that can't be read leave a rank one micro-batch less: every forward is made by all ranks all the same."""
    bad = ["--bad", "0", "1", "2", "5", "6", "9", "12", "13", "17"]
    run(tmp_path / "one", *bad)
    run(tmp_path / "two", "--shard", *bad, processes=2)
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_the_best_weights_are_kept_and_handed_on(tmp_path: Path) -> None:
    run(tmp_path / "one", "--final", "best")
    run(tmp_path / "two", "--shard", "--final", "best", processes=2)
    one, two = (load_file(tmp_path / name / "best" / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
    after = torch.load(tmp_path / "two" / "after-1.pt", weights_only=True)
    assert all(torch.equal(after[name], tensor) for name, tensor in two.items() if name in after)


@pytest.mark.parametrize(
    ("run", "values", "why"),
    [
        (Runtime(torch.device("cpu"), torch.float32), {}, "one process"),
        (TWO, {"optimizer": "muon"}, "whole matrices"),
        (TWO, {"ema_decay": 0.9}, "moving average"),
        (TWO, {"train": ["*", "!*norm*"]}, "parameters rest"),
        (TWO, {"param_groups": [{"pattern": "*norm*", "from_step": 2}]}, "parameters rest"),
        (Runtime(torch.device("cpu"), torch.float16, rank=0, world=2), {}, "fp16"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(run: Runtime, values: dict[str, Any], why: str) -> None:
    settings = TrainSettings.model_validate({"shard": True, "max_steps": 5, **values})
    made = sharded.objective()
    rows: Sequence[optim.Row] = optim.select(made, settings)
    with pytest.raises(ConfigError, match=why):
        sharding.refuse(made, rows, settings, run)
    sharding.refuse(made, rows, settings.model_copy(update={"shard": False}), run)


def test_experts_are_refused() -> None:
    """A rank may use others than the rest, and their balance is asked in a forward of its own."""
    experts = ExpertsConfig(num_experts=4, experts_per_token=2, ffn_width=8)
    made = NextToken(Decoder(sharded.SIZES.model_copy(update={"experts": experts})))
    settings = TrainSettings(shard=True)
    with pytest.raises(ConfigError, match="no blocks"):
        sharding.refuse(made, optim.select(made, settings), settings, TWO)
