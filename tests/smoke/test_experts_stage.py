"""A Thinker with experts as a stage: sound before its first step, judged by the use of its experts, read by
stage omni."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_curriculum import changed

from muomni import files
from muomni.data.batch import SequenceBatch
from muomni.evaluate import certificate
from muomni.execution import runner
from muomni.execution.recipe import stage
from muomni.infer.engine import Engine
from muomni.models.decoder import Decoder, DecoderConfig, ExpertsConfig
from muomni.runtime import Runtime
from muomni.stages import thinker
from muomni.stages.stage import Inputs
from muomni.train.objectives.language import NextToken
from shared import once

EXPERTS = {"num_experts": 3, "experts_per_token": 2, "ffn_width": 32, "balance_weight": 0.1}


@pytest.fixture(scope="module")
def with_experts(finished: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thinker, with experts, and of omni upon it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        model = yaml.safe_load(recipe_file.read_text())["thinker"]["model"]
        how = {
            "model": {**model, "experts": EXPERTS},
            "gradient_accumulation_steps": 2,
            "gates": {"experts": 0.01},
        }
        path = changed(recipe_file, folder, "thinker", **how)
        (folder / "run").mkdir()
        for needed in ("hearing", "vision"):
            os.symlink(finished / needed, folder / "run" / needed)
        runner.run(str(path), stages=["thinker", "omni"], out=folder / "run")

    return once(tmp_path_factory, "experts", make) / "run"


class Silenced(torch.nn.Module):
    """A router that never chooses its last expert."""

    def __init__(self, router: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = router.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x @ self.weight[:-1].T, torch.full((*x.shape[:-1], 1), -1e9)), -1)


def found(run: Path, name: str) -> dict[str, Any]:
    read = certificate.read(run / name)
    assert read is not None
    return read


def test_it_is_sound_and_its_experts_are_counted(with_experts: Path) -> None:
    told = found(with_experts, "thinker")
    assert told["verdict"] == "green", certificate.reasons(told)
    gates = {gate["name"] for gate in told["gates"]}
    assert gates >= {
        "experts",
        "padding",
        "accumulation",
        "gradient_reach",
        "all_learn",
        "causality",
        "packing",
        "counts",
    }
    facts = told["facts"]
    assert facts["least_expert"]["value"] <= 1 <= facts["most_expert"]["value"]
    assert "expert" in facts["least_expert"]["note"]
    assert facts["active_parameters"]["value"] < facts["parameters"]["value"]
    lines = (with_experts / "thinker" / "metrics.jsonl").read_text().splitlines()
    assert any("balance" in line for line in lines), "its own term"


def test_omni_stands_on_it_and_answers(with_experts: Path) -> None:
    assert found(with_experts, "omni")["verdict"] == "green"
    config = files.read_json(with_experts / "omni" / "final" / "thinker" / "config.json")
    assert (config["model_type"], config["num_experts"]) == ("qwen3_moe", 3)
    engine = Engine.load(with_experts, "cpu")
    one = engine.answer("where is the star", max_new=8)
    assert list(one.token_ids) == list(
        engine.answer_many(["where is the star", "what"], max_new=8)[0].token_ids
    )


def test_an_expert_that_nobody_uses_is_red(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = Decoder(
        DecoderConfig(
            vocab_size=40,
            width=16,
            layers=2,
            heads=2,
            ffn_width=32,
            experts=ExpertsConfig(num_experts=4, ffn_width=8),
        )
    )
    objective = NextToken(decoder)
    ids = torch.randint(15, 40, (4, 30))
    inputs = Inputs(tmp_path, {}, tmp_path, Runtime(torch.device("cpu"), torch.float32))
    gate = next(gate for gate in stage("thinker").gates if gate.name == "experts")
    assert gate.at_least is not None
    alive = thinker._experts(objective, [SequenceBatch(["a"] * 4, ids, ids)], inputs)
    assert alive["least_expert"].value > gate.at_least
    decoder.model.layers[1].mlp.gate = Silenced(decoder.model.layers[1].mlp.gate)
    dead = thinker._experts(objective, [SequenceBatch(["a"] * 4, ids, ids)], inputs)
    assert dead["least_expert"].value < gate.at_least
    assert "of the 2. layer" in dead["least_expert"].note
    assert dead["least_expert"].n == 120


def test_a_thinker_without_experts_is_not_asked(finished: Path) -> None:
    assert "experts" not in {gate["name"] for gate in found(finished, "thinker")["gates"]}
