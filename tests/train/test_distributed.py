"""Two processes with a share of the batch each are one process with all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from toy_training import CPU, losses

from muomni.runtime import Runtime
from muomni.train import checkpoint, distributed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind; a rank that hangs is ended by the clock."""
    out = tmp_path_factory.mktemp("ranks")
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, ranks.__file__, str(out)]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-4000:]
    return out


@pytest.mark.parametrize("name", ranks.CASES)
def test_two_ranks_equal_one_process(two: Path, name: str) -> None:
    """Unequal labels a rank, negatives across ranks, a modality a rank; accumulated and shared. Voices to 1e-6."""
    alone = ranks.updates(name, CPU)
    torch.manual_seed(1)
    start = dict(ranks.CASES[name]()[0].named_parameters())
    moved = max(float((alone[key] - value).detach().abs().max()) for key, value in start.items())
    assert moved > 1e-3
    close = 1e-6 if name == "voices" else 1e-5
    for rank in range(2):
        found = load_file(two / f"{name}-{rank}.safetensors")
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(
                found[key], value, atol=close, rtol=close, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_the_loop_of_two_ranks_equals_the_loop_of_one(two: Path, tmp_path: Path) -> None:
    """One global sequence of batches: 2 ranks x 2 micro-batches see what 1 x 4 sees, and tell the same
    losses."""
    ranks.whole_loop(tmp_path, CPU, 4)
    name = checkpoint.name(6)
    a, b = (
        load_file(tmp_path / name / "weights.safetensors"),
        load_file(two / "loop" / name / "weights.safetensors"),
    )
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, atol=1e-5, rtol=1e-5)
    for (step, one), (other, shared) in zip(losses(tmp_path), losses(two / "loop"), strict=True):
        assert step == other
        assert shared == pytest.approx(one, abs=1e-5)


def test_what_learns_from_a_later_step_is_shared_among_the_ranks(two: Path, tmp_path: Path) -> None:
    """What was frozen when the ranks were joined has its gradients added as soon as it learns."""
    ranks.whole_loop(tmp_path, CPU, 4, param_groups=ranks.LATER)
    name = checkpoint.name(6)
    alone, shared = (load_file(run / name / "weights.safetensors") for run in (tmp_path, two / "phases"))
    moved = torch.tensor(0.0)
    for key, value in ranks.Toy(dropout=0.0).state_dict().items():
        torch.testing.assert_close(shared[key], alone[key], atol=1e-5, rtol=1e-5)
        moved = torch.maximum(moved, (alone[key] - value).abs().max()) if key.startswith("body") else moved
    assert moved > 1e-3


def test_two_ranks_tell_the_speed_of_both(two: Path) -> None:
    """By the clock no number can be foretold, but an update of two ranks is two micro-batches of four rows on
    each."""
    rows = [json.loads(line) for line in (two / "loop" / "metrics.jsonl").read_text().splitlines()]
    timed = [row for row in rows if "steps_per_s" in row]
    assert len(timed) >= 3
    for row in timed:
        assert row["samples_per_s"] / row["steps_per_s"] == pytest.approx(2 * 2 * 4)
        assert 0 <= row["data_wait"] <= 1


def test_an_update_that_is_unsafe_on_one_rank_is_skipped_on_both(two: Path) -> None:
    assert (two / "skipped-0").read_text()
    assert (two / "skipped-1").read_text()


def test_a_stop_that_reaches_one_rank_saves_on_both(two: Path) -> None:
    """Asked on one rank between two steps: both leave after the same step, and its checkpoint is whole."""
    for rank in range(2):
        assert "after step 2" in (two / f"stopped-{rank}").read_text()
    assert checkpoint.newest(two / "stopped") == two / "stopped" / checkpoint.name(2)


def test_alone_nothing_is_exchanged() -> None:
    model = torch.nn.Linear(2, 2)
    assert distributed.wrap(model, CPU) is model
    assert distributed.sum_counts({"a": 1.0}, CPU) == {"a": 1.0}
    assert distributed.from_main("x", CPU) == "x"
    distributed.wait_for_main(Runtime(CPU.device, CPU.dtype))
