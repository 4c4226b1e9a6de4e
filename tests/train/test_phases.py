"""Parts that rest at first (`from_step`): untouched to the bit before their step, in no checkpoint, learning
after; a kill on either side of the step changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from toy_training import CPU, Toy, fit, settings

from muomni.errors import ConfigError
from muomni.evaluate import soundness
from muomni.train import checkpoint, loop, optim
from muomni.train.settings import TrainSettings

STEPS, FROM = 8, 4
PHASES: dict[str, Any] = {
    "max_steps": STEPS,
    "checkpoint_freq": 2,
    "keep_checkpoints": 99,
    "val_freq": 2,
    "wd": 0.1,
    "lr": 0.05,
    "param_groups": [{"pattern": "body.*", "from_step": FROM, "lr": 0.01}],
}


class Based(Toy):
    """Its body comes whole from elsewhere; what it was after each update is kept."""

    def __init__(self) -> None:
        self.bodies: dict[int, torch.Tensor] = {}
        super().__init__()

    def frozen_parts(self) -> Sequence[str]:
        return ("body.",)

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.bodies[step] = self.body[0].weight.detach().clone()


def test_it_rests_to_the_bit_and_then_learns(tmp_path: Path) -> None:
    model = Based()
    before = model.body[0].weight.detach().clone()
    fitted = fit(tmp_path, model, **PHASES)
    for step in range(1, FROM + 1):
        assert torch.equal(model.bodies[step], before), "neither gradient nor decay"
    for step in range(FROM + 1, STEPS + 1):
        assert not torch.equal(model.bodies[step], model.bodies[step - 1])
    assert fitted.progress.moved_early == []
    assert set(fitted.progress.resting) == {"body.0.weight", "body.0.bias"}
    # Dropout of the body belongs to its training.
    assert {row.name: row.from_step for row in fitted.account if row.from_step} == {
        "body.0.weight": FROM,
        "body.0.bias": FROM,
    }


def test_checkpoints_of_the_first_phase_are_light(tmp_path: Path) -> None:
    fit(tmp_path, Based(), **PHASES)
    held = {
        step: {
            name.split(".")[0] for name in load_file(tmp_path / checkpoint.name(step) / "weights.safetensors")
        }
        for step in (2, 4, 6, 8)
    }
    assert held == {
        2: {"head", "seen"},
        4: {"head", "seen"},
        6: {"body", "head", "seen"},
        8: {"body", "head", "seen"},
    }
    moments = {
        step: len(
            torch.load(tmp_path / checkpoint.name(step) / "train_state.pt", weights_only=True)["optimizer"][
                "state"
            ]
        )
        for step in (4, 6)
    }
    assert moments == {4: 2, 6: 4}, "the optimizer has moments of what has learned"


@pytest.mark.parametrize("stopped", [2, 4, 6])
def test_a_resume_on_either_side_ends_with_the_same_bits(tmp_path: Path, stopped: int) -> None:
    whole, halves = Based(), Based()
    fit(tmp_path / "whole", whole, **PHASES)
    shutil.copytree(
        tmp_path / "whole" / checkpoint.name(stopped), tmp_path / "halves" / checkpoint.name(stopped)
    )
    fitted = fit(tmp_path / "halves", halves, **PHASES)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), halves.state_dict().values()))
    assert set(fitted.progress.resting) == {"body.0.weight", "body.0.bias"}
    assert fitted.progress.moved_early == []


def test_weights_that_move_early_are_named(tmp_path: Path) -> None:
    class Leaking(Based):
        """Its body is pushed while it rests."""

        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step == 1:
                with torch.no_grad():
                    self.body[0].bias.add_(1.0)

    fitted = fit(tmp_path, Leaking(), **PHASES)
    assert fitted.progress.moved_early == ["body.0.bias"]


def test_the_best_is_of_the_last_phase(tmp_path: Path) -> None:
    """A best of the first would lack the weights that learn later."""
    fitted = fit(tmp_path, Based(), **{**PHASES, "final": "best"})
    assert fitted.progress.best_step > FROM
    again = Based()
    how = settings(**PHASES, final="best")
    restored = loop.restore(again, None, how, CPU, tmp_path)
    assert restored.progress.best_step == fitted.progress.best_step


def test_what_rests_is_proven_to_rest_before_the_first_step() -> None:
    model = Based()
    how = settings(**PHASES)
    rows = optim.select(model, how)
    assert [row.name for row in rows if row.from_step] == ["body.0.weight", "body.0.bias"]
    assert not model.body.training, "it rests in evaluation mode"
    assert optim.join(model, rows, FROM - 1) == []
    assert optim.join(model, rows, FROM) == ["body.0.weight", "body.0.bias"]
    model.train()
    assert model.body.training
    again = optim.select(model, how)
    assert not any(p.requires_grad for p in model.body.parameters()), "a second selection lets it rest again"
    assert again == rows
    assert soundness._watched(model, {"head.weight"}).keys() >= {"body.0.weight", "body.0.bias"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"param_groups": [{"pattern": "*", "from_step": 99}]}, "no effect in a run of 8 steps"),
        ({**PHASES, "ema_decay": 0.9}, "leave out from_step"),
    ],
)
def test_phases_that_can_not_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSettings(**{"max_steps": STEPS, **values})


def test_something_must_train_at_first() -> None:
    with pytest.raises(ConfigError, match="rests at first"):
        optim.select(Based(), settings(**{**PHASES, "param_groups": [{"pattern": "*", "from_step": 2}]}))
