"""Which accumulation a begun stage may be gone on with: one that makes the same batch on the ranks of
today."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from muomni import files
from muomni.execution import recipe, stage_run
from muomni.stages.stage import StageSettings


def accumulating(steps: int) -> StageSettings:
    made: StageSettings = recipe.stage("thinker").settings(
        data=[{"path": "x.jsonl"}], gradient_accumulation_steps=steps
    )
    return made


@pytest.mark.parametrize(
    ("accumulate", "world", "is_same"),
    [
        (6, 1, True),
        (3, 2, True),
        (2, 3, True),
        (3, 1, False),
        (2, 1, False),
        (6, 2, True),
    ],  # the last: the recipe's own, on more ranks
)
def test_ranks_times_accumulation_name_the_batch(
    tmp_path: Path, accumulate: int, world: int, is_same: bool
) -> None:
    begun = accumulating(6)
    files.write_text(tmp_path / "config.yaml", yaml.safe_dump(begun.model_dump(mode="json")))
    files.write_json(tmp_path / stage_run.BATCH, 6)
    named = stage_run.named_by(tmp_path, accumulating(accumulate), world, fresh=False)
    assert (recipe.digest(named, {}, "data") == recipe.digest(begun, {}, "data")) == is_same
    assert stage_run.named_by(tmp_path, accumulating(3), 2, fresh=True) == accumulating(3)
