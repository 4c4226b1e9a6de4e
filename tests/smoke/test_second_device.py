"""Every stage whole on a second device, imitated: built, proven, trained, measured, saved, measured again,
opened and asked.

The real one: `pytest -m gpu` (test_gpu.py), by the same recipe. The tests stand in the order in which stages
need each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import device_recipe
from muomni.evaluate import certificate
from muomni.evaluate.forgetting import Forgetting
from muomni.execution import runner
from muomni.infer.engine import Engine
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.stages.placement import Placement
from muomni.train import loop
from pretended_device import DEVICE, Mixed, pretended_device

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe and its data."""
    os.environ["MUOMNI_PLAIN"] = "1"
    folder = tmp_path_factory.mktemp("second")
    return device_recipe.write(folder / "recipe.yaml", device_recipe.recipe(folder))


def train(written: Path, stage: str, out: Path | None = None) -> dict[str, Any]:
    """A stage (what it needs is there or is made first) by the recipe; its certificate."""
    out = out or written.parent / "run"
    for name in (*device_recipe.NEEDS[stage], stage):
        if name == stage or not (out / name / "certificate.json").exists():
            runner.run(
                str(written),
                stages=[name],
                out=out,
                waive=device_recipe.learned(name),
                reason="so few steps teach nothing",
            )
    found = certificate.read(out / stage)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", device_recipe.ORDER)
def test_a_stage_runs_whole_on_a_second_device(written: Path, stage: str) -> None:
    point = (
        "sweep/lr-0.001" if stage == "sweep" else stage
    )  # whether a sweep has a winner to measure is luck after four steps
    with pretended_device():
        train(written, stage)
        found: Any = certificate.read(written.parent / "run" / point)
        again: Any = runner.gate(written.parent / "run" / point)
    assert found["facts"]["misplaced"]["value"] == 0
    assert (written.parent / "run" / point / "final").is_dir()
    for report in (found, again):
        rows = {row["name"]: row for row in report["gates"]}
        may_be_red = (
            device_recipe.learned("align") if stage == "sweep" else []
        )  # a point's waivers are the sweep's
        assert [
            name for name, row in rows.items() if row["verdict"] == "red" and name not in may_be_red
        ] == []
        assert rows["placement"]["verdict"] == "green"
    same = {
        "held_out_loss",
        "training_loss",
        "text_bits_per_byte",
        "own_cer",
        "cer",
        "retrieval_r1",
        "mel_error",
    } & again["facts"].keys()
    assert same
    for name in same:
        assert again["facts"][name]["value"] == pytest.approx(found["facts"][name]["value"], rel=1e-4), name


def test_what_was_made_there_is_asked_there(written: Path) -> None:
    with pretended_device():
        for stage in ("omni", "instruct"):
            train(written, stage)
        run = written.parent / "run"
        engine = Engine.load(run, "cuda")
        picture = next((written.parent / "world" / "images").iterdir())
        answer = engine.answer("what colour is it?", images=[picture], max_new=4)
        spoken, rate = engine.speak(["it is red"])[0]
        assert isinstance(answer.text, str)
        assert engine.transcribe([(spoken, rate)]) is not None
        assert engine.parts.omni is not None
        assert engine.parts.voice.device == DEVICE
        assert all(
            p.device == DEVICE
            for p in [*engine.parts.omni.parameters(), *engine.parts.voice.codec.parameters()]
        )
        with_lora = Engine.load(run / "instruct", "cuda")
        assert isinstance(with_lora.answer("what colour is it?", images=[picture], max_new=4).text, str)
        assert next(with_lora.parts.thinker.parameters()).device == DEVICE
        assert len(spoken)
        assert np.isfinite(spoken).all()


# --- what the imitation is for: networks left behind, each in another place ---------------------------------------------------------------


def skipping(kind: type[torch.nn.Module]) -> AbstractContextManager[Any]:
    """Networks of this kind are not placed."""
    true = Placement.__call__
    return patch.object(
        Placement,
        "__call__",
        lambda self, network: network if isinstance(network, kind) else true(self, network),
    )


def moved_back() -> AbstractContextManager[Any]:
    """Forgetting puts the eyes back on the CPU before it measures."""
    true = Forgetting.measure

    def measure(self: Forgetting) -> float:
        if self.objective.omni is not None:
            self.objective.omni.vision.cpu()  # type: ignore[union-attr]
        return true(self)

    return patch.object(Forgetting, "measure", measure)


PLANTS: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]], str]] = {
    "talker's codec": ("talker", lambda: skipping(Codec), "same device"),
    "talker's Thinker": ("talker", lambda: skipping(Decoder), "same device"),
    "omni's eyes": ("omni", moved_back, "gate placement"),
}


def stand_on(written: Path, stage: str, folder: Path) -> None:
    """What a stage needs, made on the second device and linked into a folder of its own."""
    with pretended_device():
        for name in device_recipe.NEEDS[stage]:
            train(written, name)
    for name in device_recipe.NEEDS[stage]:
        (folder / name).symlink_to(written.parent / "run" / name)


@pytest.mark.parametrize(("stage", "plant", "told"), PLANTS.values(), ids=PLANTS)
def test_a_network_left_behind_stops_the_run(
    written: Path, stage: str, plant: Callable[[], AbstractContextManager[Any]], told: str, tmp_path: Path
) -> None:
    stand_on(written, stage, tmp_path)
    with pretended_device(), plant(), pytest.raises((Mixed, runner.GateRed), match=told):
        train(written, stage, tmp_path)


@pytest.mark.parametrize("stage", ["talker", "omni"])
def test_what_was_never_placed_is_red_by_name_on_a_cpu_before_a_step_is_paid_for(
    written: Path, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the run would go through: it is the list of what was placed that tells."""
    stand_on(written, stage, tmp_path)
    content = device_recipe.read(written) | {"device": "cpu"}
    own = device_recipe.write(tmp_path / "recipe.yaml", content)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("a step was paid for"))
    kind = Codec if stage == "talker" else Decoder
    with skipping(kind), pytest.raises(runner.GateRed, match="placement"):
        train(own, stage, tmp_path)
    found = certificate.read(tmp_path / stage)
    assert found is not None
    assert "was never placed" in found["facts"]["misplaced"]["note"]
