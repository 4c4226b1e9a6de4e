"""The command that users of Higgs trainers know, word for word, by torchrun with one process and with two: they end with
the same weights and tell the same losses. And splits of few rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_higgs  # noqa: F401  # skipped without transformers
from muomni import cli
from muomni.errors import GateRed
from muomni.evaluate import certificate
from muomni.execution import recipe as recipes
from muomni.runtime import Runtime
from muomni.selftest import voices
from muomni.stages import stage

pytest.importorskip("peft")

UNTRAINED = "gates={text_wins: 0, reference_wins: 0, ends: 0}"  # what a random base can't meet
LIMIT_S = 900  # for what hangs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with its codec, and 64 rows to learn from."""
    folder = tmp_path_factory.mktemp("command")
    voices.saved(folder / "base")
    voices.codec(folder / "base" / "codec")
    voices.write(folder / "data", takes=range(8))
    return folder


def tuned(folder: Path, processes: int, grad_accum: int) -> Path:
    """The run of the documented command with so many processes, and another accumulation."""
    out = folder / f"run-{processes}"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "muomni",
        "voice-train", "--train_manifest", str(folder / "data" / "manifest.json"), "--output_dir", str(out),
        "--base_ckpt", str(folder / "base"), "--batch_size", "2", "--lr", "2e-4", "--epochs", "2",
        "--grad_accum", str(grad_accum), "--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0.05",
        "--log_steps", "10", "--val_steps", "100", "--save_steps", "1000", "--set", "threads=1", "--set", UNTRAINED,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUOMNI_COLLECTIVE_TIMEOUT_S": "300"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    return tuned(folder, 1, 8)


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    return tuned(folder, 2, 4)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "voice" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_exact_command_works_with_one_process(one: Path) -> None:
    made: Any = certificate.read(one / "voice")
    assert made["verdict"] == "green"
    facts = {name: fact["value"] for name, fact in made["facts"].items()}
    assert facts["steps"] == 8  # optimizer steps: 64 rows, 16 of them a step, 2 epochs
    assert facts["nats_gain"] > 0
    assert (one / "voice" / "final" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(one: Path, two: Path) -> None:
    """2 ranks x 4 micro-batches see what 1 x 8 sees, dropout of the adapter too."""
    a, b = (load_file(run / "voice" / "final" / "adapter_model.safetensors") for run in (one, two))
    assert max(float(value.abs().max()) for value in a.values()) > 1e-2
    for name, value in a.items():
        torch.testing.assert_close(
            b[name], value, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_two_processes_tell_the_losses_of_one(one: Path, two: Path) -> None:
    """Each codebook's and the words', of training and of the held-out rows, which are shared among the ranks."""
    compared = 0
    for alone, shared in zip(lines(one), lines(two), strict=True):
        assert alone["step"] == shared["step"]
        for name in ("loss", "text", *(f"book{book}" for book in range(voices.BOOKS))):
            for prefix in ("", "val_"):
                if prefix + name in alone:
                    assert shared[prefix + name] == pytest.approx(alone[prefix + name], abs=2e-6), (
                        prefix + name
                    )
                    compared += 1
    assert compared >= 3 * 10
    of_one, of_two = (certificate.read(run / "voice") for run in (one, two))
    assert of_one is not None
    assert of_two is not None
    for fact in ("held_out_loss", "training_loss", "nats", "nats_gain"):
        found = of_two["facts"][fact]
        assert found["value"] == pytest.approx(of_one["facts"][fact]["value"], abs=2e-6), fact
        assert found["n"] == of_one["facts"][fact]["n"]


# --- few rows -------------------------------------------------------------------------------------------------------------------


def manifest(folder: Path, count: int) -> Path:
    """A manifest of so many rows, whose sounds no other row has, and which says nothing of sides or groups."""
    rows = []
    for row in json.loads((folder / "data" / "manifest.json").read_text()):
        word = row["messages"][3]["content"][0]["text"]
        if word == voices.WORDS[0] and len(rows) < count:
            rows.append(
                {key: value for key, value in row.items() if key not in ("split", "group", "speaker")}
            )
    assert len(rows) == count
    path = folder / "data" / f"few-{count}.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(("count", "learned", "held_out"), [(1, 1, 0), (2, 1, 1), (19, 18, 1), (20, 19, 1)])
def test_splits_of_few_rows(folder: Path, tmp_path: Path, count: int, learned: int, held_out: int) -> None:
    """95/5, at least one on either side where there are two; nothing stands on both, and an epoch holds each row once."""
    recipe = tmp_path / "voice.yaml"
    recipe.write_text(
        f"voice: {{data: [{{path: {manifest(folder, count)}}}], base: {folder / 'base'}, codec: {folder / 'base/codec'}}}"
    )
    entry = recipes.read(str(recipe), out=tmp_path).stages["voice"]
    machine = Runtime(torch.device("cpu"), torch.float32)
    built = stage.build(entry.stage, entry.settings, tmp_path / "voice", {}, tmp_path, machine)
    sides = [{sample.id for sample in side} for side in (built.corpus.train, built.corpus.valid)]
    assert [len(side) for side in sides] == [learned, held_out]
    assert not sides[0] & sides[1]
    assert not built.corpus.leaks
    drawn = [
        name
        for batch in built.train.numbers(range(built.train.order.batches_per_epoch))
        for name in batch.batch.sample_ids
    ]
    assert sorted(drawn) == sorted(sides[0])
    assert (built.valid is None) == (held_out == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "unmeasured"), [(1, ["tuned", "text_wins", "ends", "held_out_gap"]), (2, ["text_wins"])]
)
def test_one_row_and_two_are_trained_on_and_what_they_can_not_prove_is_red(
    folder: Path, tmp_path: Path, count: int, unmeasured: list[str]
) -> None:
    """Nothing is held out of one row; of two one is, which no other can lend its words. The adapter is saved all the
    same, and the exit code is a red gate's."""
    out = tmp_path / "run"
    command = [
        "voice-train", "--train_manifest", str(manifest(folder, count)), "--output_dir", str(out),
        "--base_ckpt", str(folder / "base"), "--epochs", "4", "--grad_accum", "1", "--lora_r", "4", "--lr", "1e-2",
        "--set", "threads=1", "--set", "gates={text_wins: 0, ends: 0, held_out_gap: 9}",
    ]  # fmt: skip
    assert cli._exit_code(command) == GateRed.exit_code
    assert (out / "voice" / "final" / "adapter_model.safetensors").is_file()
    made = certificate.read(out / "voice")
    assert made is not None
    red = [gate for gate in made["gates"] if gate["verdict"] == "red"]
    assert [gate["name"] for gate in red] == unmeasured
    assert all(gate["value"] is None for gate in red)
