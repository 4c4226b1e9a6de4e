"""Experts: each token goes through those that its router finds likeliest, weighted; all of them stay in
reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from muomni.nn import moe, recompute
from muomni.nn.moe import MoE, Routing


def made(experts: int = 5, per_token: int = 2, *, normalise: bool = True) -> MoE:
    torch.manual_seed(0)
    return MoE(8, 12, experts, per_token, normalise=normalise)


def one_by_one(network: MoE, x_ND: Tensor) -> Tensor:
    """Token after token, expert after expert."""
    rows = []
    for x_D in x_ND:
        weights = F.softmax(network.gate(x_D).float(), -1).detach()
        best = sorted(range(len(network.experts)), key=lambda number: -float(weights[number]))[
            : network.per_token
        ]
        total = sum(float(weights[number]) for number in best) if network.normalise else 1.0
        rows.append(
            torch.stack([weights[number] / total * network.experts[number](x_D) for number in best]).sum(0)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("experts", "per_token"), [(5, 2), (3, 1), (4, 4), (1, 1)])
def test_it_is_what_its_experts_say_one_by_one(experts: int, per_token: int, normalise: bool) -> None:
    network = made(experts, per_token, normalise=normalise)
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        network(x), one_by_one(network, x.flatten(0, 1)).view(x.shape), rtol=1e-5, atol=1e-6
    )
    assert network(x[:, :0]).shape == (2, 0, 8)
    torch.testing.assert_close(network(x[0, 3]), network(x)[0, 3], rtol=1e-5, atol=1e-6)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero() -> None:
    """Ranks exchange the gradients of all parameters; one that was missing on a rank would hold the others
    up."""
    network = made(experts=6, per_token=1)
    network(torch.ones(1, 2, 8)).square().sum().backward()
    grads = [expert.down_proj.weight.grad for expert in network.experts]
    assert all(grad is not None for grad in grads)
    assert sum(bool(grad.any()) for grad in grads if grad is not None) == 1


def test_routing_is_told_once_though_a_block_is_computed_twice() -> None:
    network, routing = made(), Routing()
    x = torch.randn(1, 4, 8, requires_grad=True)
    out = checkpoint(network, x, routing, use_reentrant=False, context_fn=recompute.contexts)
    out.sum().backward()
    assert [logits.shape for logits in routing.logits] == [(1, 4, 5)]


def test_use_and_probabilities_count_real_tokens_only() -> None:
    network, other, routing = made(), made(), Routing()
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(2))
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[1, 4:] = False
    network(x, routing), other(-x, routing)
    used = moe.use(routing, keep, 2)
    assert used.shape == (2, 5)
    assert used.sum(1).tolist() == [20, 20]
    by_hand = torch.zeros(5)
    for row, t in keep.nonzero().tolist():
        for number in network.gate(x[row, t]).topk(2).indices.tolist():
            by_hand[number] += 1
    assert used[0].tolist() == by_hand.tolist()
    assert moe.probabilities(routing, keep).sum().item() == pytest.approx(20.0)
