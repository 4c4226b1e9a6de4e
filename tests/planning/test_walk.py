"""The walk through training: every stage's batch with the shapes that it really has, up to the terms that the
objective gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import device_recipe
from muomni import cli, files
from muomni.errors import ConfigError
from muomni.infer.hops import Hop
from muomni.planning import walk
from shared import once

ROWS = 4
# What must stand among the hops of a stage, in this order; None: whatever the batch has.
EXPECTED: dict[str, list[tuple[str, tuple[int | None, ...]]]] = {
    "thinker": [
        ("ids", (4, 96)),
        ("embeddings", (4, 96, 32)),
        ("block 2", (4, 96, 32)),
        ("targets", (4, 95)),
        ("logits", (None, 330)),
    ],
    "hearing": [
        ("frames", (4, None, 128)),
        ("one second", (1, 30)),
        ("states", (4, None, 16)),
        ("symbols", (4, None, 99)),
    ],
    "vision": [
        ("pictures", (4, 32, 32, 3)),
        ("patches", (4, 16, 4, 4)),
        ("seen", (4, 17, 16)),
        ("picture embeddings", (4, 8)),
        ("caption states", (4, None, 32)),
        ("caption embeddings", (4, 8)),
        ("similarities", (4, 4)),
    ],
    "codec": [
        ("log-mel", (4, 64, 80)),
        ("latents", (4, 8, 4)),
        ("codes", (4, 8, 2)),
        ("quantised", (4, 8, 4)),
        ("rebuilt", (4, 64, 80)),
    ],
    "image_codec": [
        ("pixels", (4, 32, 32, 3)),
        ("fine grid", (4, 8, 8, 8)),
        ("token grid", (4, 16, 4, 4)),
        ("latents", (4, 5, 4, 4)),
        ("codes", (4, 16)),
        ("quantised", (4, 16, 5)),
        ("rebuilt", (4, 3, 32, 32)),
    ],
    "omni": [
        ("ids", (4, None)),
        ("picture tokens", (None, 5, 32)),
        ("fused", (4, None, 32)),
        ("hidden", (4, None, 32)),
    ],
    "align": [
        ("resampled", (4, 4, 16)),
        ("picture tokens", (4, 4, 32)),
        ("fused", (4, None, 32)),
        ("logits", (None, 330)),
    ],
    "sweep": [("resampled", (4, 4, 16)), ("picture tokens", (4, 4, 32)), ("logits", (None, 330))],
    "instruct": [
        ("picture tokens", (None, 4, 32)),
        ("LoRA", (4, None, 2)),
        ("hidden", (4, None, 32)),
        ("logits", (None, 330)),
    ],
}
TERMS = {
    "hearing": {"ctc"},
    "vision": {"contrast", "words"},
    "codec": {"l1", "mse", "delta", "commitment"},
    "image_codec": {"l1", "mse"},
    "talker": {"book0", "book1"},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage, tiny, on the CPU; none is trained."""

    def make(folder: Path) -> None:
        folder.mkdir()
        device_recipe.write(folder / "all.yaml", {**device_recipe.recipe(folder), "device": "cpu"})

    return once(tmp_path_factory, "walked", make) / "all.yaml"


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (None, size) for size, want in zip(shape, wanted, strict=True)
    )


def is_whole(hops: list[Hop], terms: set[str]) -> None:
    """It ends in all terms, and in the loss that they make."""
    named = {hop.name.removeprefix("term ") for hop in hops if hop.name.startswith("term ")}
    assert named == terms
    assert hops[-1].name == "loss"
    assert all(hop.shape == () for hop in hops if hop.name.startswith("term ") or hop.name == "loss")
    assert math.isfinite(float(hops[-1].meaning.split(":")[0]))


@pytest.mark.parametrize("stage", EXPECTED)
def test_every_stage_is_walked_through(recipe: Path, tmp_path: Path, stage: str) -> None:
    hops, notes = walk.trace(str(recipe), stage, out=tmp_path / "run")
    rest = iter(hops)
    for name, shape in EXPECTED[stage]:
        found = next((hop for hop in rest if hop.name == name), None)
        assert found is not None, f"{name} is missing, or stands too early: {[hop.name for hop in hops]}"
        assert fits(found.shape, shape), found
    is_whole(hops, TERMS.get(stage, {"text", "misses"}))
    needed = device_recipe.NEEDS[stage] if stage != "instruct" else ("align",)
    assert all(any(note.startswith(f"stage {name} is not trained yet") for note in notes) for name in needed)
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_two_codebooks_go_from_previous_codes_to_two_heads(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sources' way: what was said before (B, T, 2) leads to a score for each of 128 codes by each of two
    heads."""
    settings = ["codec.model.codebook_size=128", "talker.model.layout=parallel"]
    with pytest.raises(SystemExit) as left:
        cli.main(
            [
                "trace",
                str(recipe),
                "talker",
                "--training",
                "--json",
                "--out",
                str(tmp_path / "run"),
                *settings,
            ]
        )
    told = capsys.readouterr()
    assert not left.value.code
    hops = {hop["name"]: tuple(hop["shape"]) for hop in json.loads(told.out)}
    rows, frames, books = hops["codes"]
    steps = frames + 1  # the end is said too
    assert (rows, books) == (ROWS, 2)
    assert hops["targets"] == hops["previous codes"] == (ROWS, steps, 2)
    assert hops["states"] == (ROWS, steps, 16)
    assert hops["head 1"] == (ROWS, steps, 129)
    assert hops["head 2"] == (ROWS, steps, 128)
    assert {"term book0", "term book1", "loss"} <= hops.keys()
    assert told.err.count("an untrained network of its size stands in") == 3


def test_a_finished_run_is_walked_on_what_it_has(recipe: Path, tmp_path: Path) -> None:
    """A run's folder says which recipe; finished stages are built on as they lie there."""
    run = tmp_path / "run"
    files.write_json(
        run / "recipe.json",
        {"recipe": str(recipe), "base": str(recipe.parent), "device": "cpu", "threads": 1},
    )
    with pytest.raises(ConfigError, match="no stage nothing"):
        walk.trace(str(run), "nothing")
    hops, notes = walk.trace(str(run), "hearing")
    is_whole(hops, {"ctc"})
    assert notes == []
