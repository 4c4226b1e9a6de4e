"""The imitated device does as CUDA does: it tells where tensors lie, hands that on, and refuses to mix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.train.optim import freeze
from pretended_device import DEVICE, Mixed, pretended_device


@pytest.fixture(autouse=True)
def _second() -> Iterator[None]:
    with pretended_device():
        yield


def test_what_comes_of_a_tensor_lies_beside_it() -> None:
    here, there = torch.ones(2, 3), torch.ones(2, 3, device=DEVICE)
    made = [
        there + 1,
        there[0],
        there.view(-1),
        F.pad(there, (0, 1)),
        torch.zeros_like(there),
        there.new_zeros(3),
        there.sum(),
        there.to(DEVICE),
    ]
    made += [
        here.to(DEVICE),
        here.to("cuda"),
        here.to(there),
        here.to(device="cuda:0", dtype=torch.float64),
        here.cuda(),
        there.detach().clone(),
    ]
    made += [
        torch.tensor([1], device=DEVICE),
        torch.arange(3, device=there.device),
        torch.cat([there, there]),
        *there.topk(1),
    ]
    made += [*there.unbind(), copy.deepcopy(there), there.expand_as(here), F.one_hot(there.long())]
    assert all(each.device == DEVICE and each.is_cuda for each in made)
    made = [
        here + 1,
        there.cpu(),
        there.to("cpu"),
        there.to(here),
        torch.ones(2),
        here.copy_(there),
        here.expand_as(there),
        here,
    ]
    assert all(each.device.type == "cpu" and not each.is_cuda for each in made)


def test_a_copy_on_another_device_is_a_copy() -> None:
    here = torch.zeros(2)
    there = here.to(DEVICE)
    there += 1
    back = there.cpu()
    back += 1
    assert (here.tolist(), there.tolist(), back.tolist()) == ([0, 0], [1, 1], [2, 2])


MIX: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add": lambda here, there: there + here,
    "add, from here": lambda here, there: here + there,
    "in place": lambda here, there: here.add_(there),
    "number there": lambda here, there: here * there.sum(),
    "cat": lambda here, there: torch.cat([here, there]),
    "stack of numbers": lambda here, there: torch.stack([here.sum(), there.sum()]),
    "linear": lambda here, there: F.linear(there, here),
    "embedding": lambda here, there: F.embedding(torch.tensor([0]), there),
    "mask": lambda here, there: there.masked_fill(here > 0, 0.0),
    "index": lambda here, there: here[there.long()[0]],
    "values by index": lambda here, there: there.__setitem__(torch.tensor([0, 1]), here),
    "where": lambda here, there: torch.where(here > 0, there, 0.0),
    "equal": torch.equal,
    "generator": lambda here, there: torch.rand(2, device=DEVICE, generator=torch.Generator()),
    "numpy": lambda here, there: there.numpy(),
    "as an array": lambda here, there: np.asarray(there),
}


@pytest.mark.parametrize("mix", MIX.values(), ids=MIX)
def test_two_devices_do_not_meet(mix: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises((Mixed, TypeError)):
        mix(torch.ones(2, 2), torch.ones(2, 2, device=DEVICE))


def test_what_cuda_allows_is_allowed() -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device=DEVICE)
    assert (there * here.sum()).is_cuda
    assert there[torch.tensor([0])].is_cuda
    there[torch.tensor([0])] = 3.0
    there[0] = here[0]
    assert torch.rand(2, device=DEVICE, generator=torch.Generator(DEVICE)).is_cuda
    assert torch.randperm(3, generator=torch.Generator()).device.type == "cpu"
    assert np.asarray(there.cpu()).shape == (2, 2)


def test_a_network_trains_there_and_its_gradients_lie_there() -> None:
    network = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    before = copy.deepcopy(network)
    for _ in range(2):
        network(torch.tensor([1, 2], device=DEVICE)).square().sum().backward()
        assert all(p.grad is not None and p.grad.is_cuda for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.is_cuda for p in [*network.parameters(), *before.parameters()])
    assert not torch.equal(network[2].weight, before[2].weight)
    with pytest.raises(Mixed):
        network(torch.tensor([1, 2]))
    with pytest.raises(Mixed):
        freeze(network).cpu()(torch.tensor([1, 2], device=DEVICE))


def test_parameters_that_move_under_inference_mode_can_never_train() -> None:
    network = nn.Linear(2, 2)
    with torch.inference_mode():
        network.to(DEVICE)
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        network.requires_grad_(True)(torch.ones(1, 2, device=DEVICE)).sum().backward()


def test_afterwards_all_is_as_it_was() -> None:
    with pretended_device():
        pass
    assert torch.ones(1).device.type == "cpu"
