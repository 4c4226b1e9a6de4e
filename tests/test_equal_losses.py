"""The comparison of two builds' losses: a planted difference is named, a renamed term or tensor is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared import benchmark

equal_losses = benchmark("equal_losses")


def stage(
    folder: Path,
    *,
    change: float = 0.0,
    at: int = 0,
    term: str = "text",
    tensor: str = "a.weight",
    add: float = 0.0,
) -> Path:
    """The folder of a stage of three updates, whose loss of update `at` and weights are moved a little."""
    (folder / "final" / "part").mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            term: 2.5 + step + change * (step == at),
            "loss": 2.5 + step + change * (step == at),
            "steps_per_s": 1 / len(term),
        }
        for step in (1, 2, 3)
    ]
    rows.append({"step": 3, f"val_{term}": 5.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "cer": {"value": 0.25, "n": 4, "note": "of 4"},
        "wall_s": {"value": 1 / len(str(folder)), "n": None},
    }
    (folder / "certificate.json").write_text(json.dumps({"facts": facts}))
    save_file(
        {tensor: torch.ones(2, 3) + add, "b": torch.zeros(4, dtype=torch.bfloat16)},
        folder / "final/part/model.safetensors",
    )
    return folder


def verdict(tmp_path: Path, **planted: Any) -> tuple[bool, str]:
    old, new = stage(tmp_path / "old"), stage(tmp_path / "another", **planted)
    found: tuple[bool, str] = equal_losses.verdict(equal_losses.read(old), equal_losses.read(new))
    return found


def test_what_a_clock_decides_is_no_difference(tmp_path: Path) -> None:
    assert verdict(tmp_path) == (True, "equal")


def test_the_first_update_and_term_that_differ_are_named_to_the_last_bit(tmp_path: Path) -> None:
    last_bit = 2**-50  # of 4.5, a double
    same, line = verdict(tmp_path, change=last_bit, at=2)
    assert not same
    assert line == f"DIFFERENT; losses: update 2, text: 4.5, now {4.5 + last_bit!r}"


def test_a_tensor_that_differs_is_named_with_its_file(tmp_path: Path) -> None:
    same, line = verdict(tmp_path, add=2**-20)
    assert not same
    assert line.startswith("DIFFERENT; weights: part/model.safetensors: a.weight: ")


def test_a_renamed_term_or_tensor_with_the_same_numbers_is_equal_and_told(tmp_path: Path) -> None:
    same, line = verdict(tmp_path, term="words", tensor="c.weight")
    assert same
    assert line.startswith("equal; renamed: text -> words, val_text -> val_words; tensors renamed: ")


def test_a_renamed_term_with_other_numbers_is_different(tmp_path: Path) -> None:
    same, line = verdict(tmp_path, term="words", change=0.5, at=3)
    assert not same
    assert "losses: update 1, text is gone" in line


def test_a_missing_update_is_different(tmp_path: Path) -> None:
    short = stage(tmp_path / "short")
    rows = (short / "metrics.jsonl").read_text().splitlines(keepends=True)
    (short / "metrics.jsonl").write_text("".join(rows[:-2]))
    same, line = equal_losses.verdict(equal_losses.read(stage(tmp_path / "old")), equal_losses.read(short))
    assert not same
    assert line == "DIFFERENT; losses: 4 rows of metrics, now 2"


def test_a_fact_that_differs_is_told_and_does_not_decide(tmp_path: Path) -> None:
    other = stage(tmp_path / "other")
    content = json.loads((other / "certificate.json").read_text())
    content["facts"]["cer"]["value"] = 0.5
    (other / "certificate.json").write_text(json.dumps(content))
    found = equal_losses.verdict(equal_losses.read(stage(tmp_path / "old")), equal_losses.read(other))
    assert found == (True, "equal; facts: cer: 0.25, now 0.5")


@pytest.mark.slow
def test_a_stage_trains_in_a_process_of_its_build(tmp_path: Path) -> None:
    """The codec alone: it needs no other, and its losses are read from what the run has left."""
    found = equal_losses.train(equal_losses.REPOSITORY, ["codec"], tmp_path)
    assert [*found] == ["codec"]
    steps = [row["step"] for row in found["codec"].losses if "loss" in row]
    assert steps == list(range(1, equal_losses.UPDATES + 1))
    assert found["codec"].weights
