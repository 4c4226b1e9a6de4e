"""Each stage killed with -9 at a random update and run again ends with the very weights of a run that nothing
broke."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe
from safetensors.torch import load_file
from tiny_recipe import STAGES, STEPS

from muomni import cli
from muomni.evaluate import certificate
from muomni.execution import runner
from muomni.selftest import voices
from muomni.train import checkpoint
from shared import timeless


def killed_then_finished(
    loaded: Any,
    finished: Path,
    recipe_file: Path,
    folder: Path,
    stage: str,
    others: Sequence[str] = STAGES,
    steps: int = STEPS,
) -> None:
    """Takes   others: stages that it needs, and on which they stand; steps: its updates, of which every second is
    saved."""
    folder.mkdir()
    for other in others:
        if other != stage:
            os.symlink(finished / other, folder / other)
    at = random.randint(1, steps)
    died = loaded.Process(target=tiny_recipe.die, args=(str(recipe_file), folder, stage, at))
    died.start()
    died.join(timeout=600)
    assert died.exitcode == -signal.SIGKILL
    assert certificate.read(folder / stage) is None
    found = checkpoint.newest(folder / stage)
    assert (found.name if found else None) == (checkpoint.name((at - 1) // 2 * 2) if at > 2 else None)
    runner.run(str(recipe_file), stages=[stage], out=folder)
    for file in sorted((finished / stage / "final").rglob("*.safetensors")):
        a, b = (
            load_file(file),
            load_file(folder / stage / "final" / file.relative_to(finished / stage / "final")),
        )
        assert list(a) == list(b)
        assert all(a[key].equal(b[key]) for key in a), (stage, at, file.name)
    whole, broken = certificate.read(finished / stage), certificate.read(folder / stage)
    assert whole is not None
    assert broken is not None
    assert whole["weights"] == broken["weights"]
    assert timeless(whole["facts"]) == timeless(broken["facts"])


def test_a_killed_thinker_ends_with_the_same_weights(
    loaded: Any, finished: Path, recipe_file: Path, tmp_path: Path
) -> None:
    killed_then_finished(loaded, finished, recipe_file, tmp_path / "killed", "thinker")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_killed_stage_ends_with_the_same_weights(
    loaded: Any, finished: Path, recipe_file: Path, tmp_path: Path, stage: str
) -> None:
    killed_then_finished(loaded, finished, recipe_file, tmp_path / "killed", stage)


@pytest.mark.slow
def test_a_killed_voice_ends_with_the_same_weights(loaded: Any, tmp_path: Path) -> None:
    """By the command that its users know, dropout and all; one micro-batch in two is the last of its update."""
    if told := voices.lacking():
        pytest.skip(told)
    voices.build(tmp_path / "data")
    command = [
        "voice-train", "--train_manifest", str(tmp_path / "data" / "manifest.json"),
        "--output_dir", str(tmp_path / "whole"), "--base_ckpt", str(tmp_path / "data" / "base"),
        "--epochs", "3", "--grad_accum", "2", "--save_steps", "2", "--val_steps", "4", "--lora_r", "4",
        "--lr", "1e-2", "--set", "threads=1", "--set", "gates={text_wins: 0, reference_wins: 0, ends: 0}",
    ]  # fmt: skip
    assert cli._exit_code(command) == 0
    recipe = tmp_path / "set.yaml"  # with what the command was told by --set
    shutil.copyfile(tmp_path / "whole" / "voice_train.yaml", recipe)
    text = recipe.read_text().replace(
        "voice:", "threads: 1\nvoice:\n  gates: {text_wins: 0, reference_wins: 0, ends: 0}"
    )
    recipe.write_text(text)
    killed_then_finished(loaded, tmp_path / "whole", recipe, tmp_path / "killed", "voice", (), 6)
