"""Optimizers compute what torch's compute, and leave torch.compile's tracer unloaded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from muomni.train import eager

PAIRS = [(eager.AdamW, torch.optim.AdamW, {"fused": True}), (eager.SGD, torch.optim.SGD, {"momentum": 0.9})]


def trained(
    kind: type[torch.optim.Optimizer], given: dict[str, object]
) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """Weights after five updates, with a reload of the state between."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, 5))
    optimizer = kind([{"params": [weight], "weight_decay": 0.1}], lr=0.05, **given)
    for number in range(5):
        optimizer.zero_grad()
        (weight * torch.randn(7, 5)).pow(2).sum().backward()
        optimizer.step()
        if number == 2:
            optimizer.load_state_dict(optimizer.state_dict())
    return weight.detach(), optimizer


@pytest.mark.parametrize(("ours", "theirs", "given"), PAIRS)
def test_updates_are_those_of_torch(
    ours: type[torch.optim.Optimizer], theirs: type[torch.optim.Optimizer], given: dict[str, object]
) -> None:
    mine, optimizer = trained(ours, given)
    assert torch.equal(mine, trained(theirs, given)[0])
    assert isinstance(optimizer, theirs)


def test_hooks_and_closures_work() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = eager.SGD([weight], lr=0.5)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert called == ["before", "after"]
    assert torch.equal(weight.detach(), torch.full((3,), 0.5))
    assert not weight.grad_fn
    assert torch.is_grad_enabled()


def test_the_tracer_is_not_loaded() -> None:
    program = """
import sys, torch
from muomni.train import cost, eager, flops, optim
weight = torch.nn.Parameter(torch.ones(4, 4))
for made in (eager.AdamW([weight], fused=True), eager.SGD([weight]), optim.Muon([weight]), optim.Both([eager.SGD([weight])])):
    weight.grad = torch.ones(4, 4)
    made.step()
    made.load_state_dict(made.state_dict())
    made.zero_grad()
for mode in (flops.Counted(), cost.LiveTensors()):
    with mode:
        weight @ weight
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
