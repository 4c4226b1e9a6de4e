"""In which number format a stage computes: the fastest that is sound here, and never an emulated one that
nobody asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from muomni import files, runtime
from muomni.evaluate import thresholds
from muomni.evaluate.facts import Fact
from muomni.execution import recipe as recipes
from muomni.execution import stage_run
from muomni.models.reference import NetworkReference, as_stored
from muomni.runtime import Runtime
from muomni.stages.stage import Entry, Inputs
from muomni.train.settings import TrainSettings

CPU = torch.device("cpu")
RUN = Runtime(CPU, torch.float32)
GATE = next(gate for gate in thresholds.SOUND if gate.name == "native_format")
SHIPPED = sorted(recipes.SHIPPED.glob("*.yaml"))


def chip(monkeypatch: pytest.MonkeyPatch, *, has: bool, gain: float) -> None:
    """A chip that is said to have bf16 or not, and what it is seen to do."""
    monkeypatch.setattr(runtime, "has_bf16", lambda device: has)
    monkeypatch.setattr(runtime, "bf16_gains", lambda device: has)
    monkeypatch.setattr("muomni.models.reference.has_bf16", lambda device: has)
    monkeypatch.setattr(runtime, "format_gain", lambda dtype, device: 1.0 if dtype == torch.float32 else gain)


def settings(stage: str, **values: Any) -> Any:
    return recipes.stage(stage).settings(**values)


def is_red(fact: Fact) -> bool:
    assert GATE.at_least is not None
    return fact.value < GATE.at_least


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_pins_a_format_that_a_chip_may_lack(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    stages = {name: each for name, each in content.items() if isinstance(each, dict)}
    assert {name for name, each in stages.items() if each.get("precision") in ("bf16", "fp16")} == set()
    assert all(
        base.get("dtype", "auto") == "auto"
        for each in stages.values()
        for base in each.values()
        if isinstance(base, dict)
    )


@pytest.mark.parametrize(
    ("has", "gain", "values", "red"),
    [
        (False, 0.02, {}, False),  # auto took float32
        (True, 2.0, {}, False),
        (True, 0.02, {}, True),  # the chip was believed
        (False, 0.02, {"precision": "bf16"}, False),  # by name
        (True, 0.02, {"precision": "fp32"}, False),
        (True, 0.02, {"precision": "fp32", "optimizer": "muon"}, True),  # Muon's iteration is ours to choose
        (True, 0.02, {"precision": "bf16", "optimizer": "muon"}, True),
        (False, 0.02, {"precision": "bf16", "optimizer": "muon"}, False),
    ],
)
def test_an_emulated_format_is_red_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, has: bool, gain: float, values: dict[str, Any], red: bool
) -> None:
    chip(monkeypatch, has=has, gain=gain)
    chosen = settings("thinker", **values)
    run = Runtime(CPU, chosen.number_format(Inputs(Path(), {}, Path(), RUN)))
    fact = stage_run._formats(chosen, run)["format_gain"]
    assert is_red(fact) is red
    assert runtime.format_name(run.dtype) in fact.note


def test_what_this_machine_chooses_is_green_here() -> None:
    chosen = settings("thinker", optimizer="muon")
    run = Runtime(CPU, chosen.number_format(Inputs(Path(), {}, Path(), RUN)))
    assert not is_red(stage_run._formats(chosen, run)["format_gain"])


def test_a_stage_without_a_model_is_as_wide_as_what_it_stands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, it was taken to be 256 wide, whatever it stood on."""
    chip(monkeypatch, has=True, gain=2.0)
    for width, wanted in ((64, torch.float32), (512, torch.bfloat16)):
        thinker = tmp_path / f"thinker-{width}"
        files.write_json(thinker / "config.json", {"model_type": "qwen3", "hidden_size": width})
        files.write_json(
            tmp_path / f"align-{width}" / "projectors" / "config.json",
            {"model_type": "projectors", "width": width},
        )
        upon = {
            "omni": {"thinker": thinker},
            "align": {"thinker": thinker},
            "instruct": {"align": tmp_path / f"align-{width}"},
        }
        for stage, needed in upon.items():
            values = {"connector": "align"} if stage == "instruct" else {}
            assert (
                settings(stage, **values).number_format(Inputs(tmp_path, needed, tmp_path, RUN)) == wanted
            ), stage


@pytest.mark.parametrize(
    ("dtype", "has", "opened"),
    [("auto", True, torch.float32), ("auto", False, torch.float32), ("bf16", False, torch.bfloat16)],
)
def test_a_network_stored_in_half_precision_is_opened_in_float32_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, has: bool, opened: torch.dtype
) -> None:
    chip(monkeypatch, has=has, gain=1.0)
    assert NetworkReference(name="qwen", dtype=dtype).dtype_on(CPU) == opened
    if dtype == "auto":
        assert as_stored(CPU) == opened


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_a_stage_says_what_it_is_and_what_it_emulates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], held: torch.dtype
) -> None:
    chip(monkeypatch, has=False, gain=0.02)
    chosen: Any = TrainSettings(max_steps=850)
    names = {"thinker": (), "hearing": (), "sweep/a": (), "sweep": ("sweep/a",)}
    entries = {
        name: Entry(name, recipes.stage(name), chosen, Path(), points) for name, points in names.items()
    }
    plan: Any = SimpleNamespace(stages=entries)
    train = SimpleNamespace(order=SimpleNamespace(batches_per_epoch=100))
    built: Any = SimpleNamespace(objective=torch.nn.Linear(2, 2).to(held), train=train, settings=chosen)
    monkeypatch.setattr(
        stage_run.introduction, "lines", lambda *_: []
    )  # what trains, and on what: test_curriculum.py
    stage_run._introduce(plan, entries["hearing"], built, RUN, [])
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith("[hearing] stage 2 of 3: ")
    assert recipes.stage("hearing").teaches in first
    assert "850 steps in float32 on cpu" in first
    assert len(more) == (held == torch.bfloat16)
    assert all("only emulated" in line for line in more)
