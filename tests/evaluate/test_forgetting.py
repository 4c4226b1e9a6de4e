"""The meter of forgetting takes fewer long rows at a time, and moves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from muomni import files
from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.evaluate import forgetting, gates
from muomni.evaluate.forgetting import Forgetting, own_texts, rows_at_once
from muomni.execution import recipe as recipes
from muomni.infer.engine import Engine
from muomni.runtime import Runtime
from muomni.train.objectives.language import NextToken

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_the_mask_of_a_batch_is_bounded() -> None:
    assert [rows_at_once(row_len) for row_len in (24, 1024, 2048, 10240)] == [16, 16, 4, 1]
    assert all(rows_at_once(row_len) * row_len**2 <= 1 << 24 for row_len in range(16, 4096, 40))


def test_batches_of_other_sizes_measure_the_same(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [
        Sample(
            id=str(n),
            group=str(n),
            task="text",
            text="the red circle is left of the blue square " * (1 + n % 3),
        )
        for n in range(12)
    ]
    found = []
    for pairs in (1 << 24, 2000):
        monkeypatch.setattr(forgetting, "PAIRS_AT_ONCE", pairs)
        meter = Forgetting(NextToken(engine.parts.thinker), samples, engine.tokenizer, tmp_path, CPU)
        found.append(meter.start)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def stage_folder(folder: Path, **settings: Any) -> Path:
    """A stage thinker as a run leaves it: where its data start, its settings, its `final/`."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "texts.txt").write_text("\n".join(f"the red circle number {n}" for n in range(40)))
    files.write_json(folder / "run" / "recipe.json", {"base": str(folder / "data")})
    content = {"data": [{"path": "texts.txt"}], "val_split": 0.25, "seed": 3, **settings}
    files.write_text(folder / "run" / "thinker" / "config.yaml", yaml.safe_dump(content))
    (folder / "run" / "thinker" / "final").mkdir()
    return folder / "run" / "thinker" / "final"


def test_a_language_model_of_ours_is_asked_what_its_own_stage_held_out(tmp_path: Path) -> None:
    final = stage_folder(tmp_path)
    corpus = readers.load(
        [Source(path="texts.txt")],
        base=tmp_path / "data",
        val_split=0.25,
        seed=3,
        quarantine=Quarantine(None, 1.0),
    )
    held_out = {sample.id for sample in corpus.valid}
    found = own_texts(final, tmp_path / "elsewhere", 100)
    assert {sample.id for sample in found.samples} == held_out
    assert not held_out & {sample.id for sample in corpus.train}
    some = own_texts(final, tmp_path, 3)
    assert len(some.samples) == some.fact()["regression_texts"].value == 3
    assert {sample.id for sample in some.samples} < held_out


def test_where_nobody_knows_there_is_nothing_and_the_gate_is_red(tmp_path: Path) -> None:
    gone = stage_folder(tmp_path / "gone", data=[{"path": "nowhere.txt"}])
    others = tmp_path / "qwen3"
    others.mkdir()
    for final, why in ((gone, "can't be read"), (others, "no stage of ours")):
        fact = own_texts(final, tmp_path, 9).fact()
        assert fact["regression_texts"].value == 0
        assert why in fact["regression_texts"].note
        for stage in ("omni", "align", "instruct"):
            gates_ = {row.name: row for row in gates.judge(recipes.stage(stage).gates, fact)}
            assert gates_["regression_texts"].verdict == "red"
            assert "nothing to measure forgetting by" in gates_["regression_texts"].why
            assert gates_["forgetting" if stage == "omni" else "language"].verdict == "red", (
                "what was not measured is not green"
            )


@pytest.mark.parametrize("stage", ["omni", "align", "instruct"])
def test_forgetting_is_asked_of_every_stage_that_may_forget(stage: str) -> None:
    settings = recipes.stage(stage).settings(data=[])
    names = {gate.name for gate in recipes.stage(stage).gates if gate.applies(settings, {"image"})}
    asked = {"regression_texts", "forgetting" if stage == "omni" else "language"}
    assert names & asked == (set() if stage == "align" else asked), (
        "align leaves its language model as it is: gate `frozen` sees to that"
    )
