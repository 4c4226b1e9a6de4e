"""One update: accumulated equals at once, unsafe changes nothing, and only what has weight moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_training import CPU, RowBatch, Rows, Toy, collate, settings

from muomni.runtime import Runtime
from muomni.train import optim
from muomni.train.objective import Objective, Term
from muomni.train.settings import TrainSettings
from muomni.train.step import StepResult, unsafe, update


def batch(*indices: int) -> RowBatch:
    return collate([Rows().item(i, np.random.default_rng(i)) for i in indices])


def step(
    model: Objective, micro: list[Any], chosen: TrainSettings | None = None, optimizer: Any = None
) -> StepResult:
    chosen = chosen or settings()
    optimizer = optimizer or optim.make_optimizer(model, optim.select(model, chosen), chosen)
    return update(model, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), micro, chosen, CPU)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Plain steps, whose sizes show the gradients; AdamW's would hide a wrong scale."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "pieces",
    [[[0, 1, 2, 3], [4, 5, 8, 11]], [[0], [1], [2], [3], [4], [5], [8], [11]], [[0, 3, 1, 4, 2], [5, 8, 11]]],
)
def test_micro_batches_of_unequal_labels_equal_one_batch(pieces: list[list[int]]) -> None:
    """A mean of the micro-batches' means would differ: their label counts do."""
    one, many = Toy(dropout=0.0), Toy(dropout=0.0)
    assert len({int((batch(*piece).y_BT >= 0).sum()) for piece in pieces}) > 1
    at_once = step(one, [batch(0, 1, 2, 3, 4, 5, 8, 11)], optimizer=sgd(one))
    pieced = step(many, [batch(*piece) for piece in pieces], optimizer=sgd(many))
    assert not at_once.skipped
    torch.testing.assert_close(weights(many), weights(one), atol=1e-6, rtol=0)
    assert pieced.loss == pytest.approx(at_once.loss, abs=1e-6)
    assert pieced.grad_norm == pytest.approx(at_once.grad_norm, abs=1e-6)
    assert (weights(one) - weights(Toy())).norm() > 0.1


def test_the_loss_is_the_mean_over_targets() -> None:
    model = Toy(dropout=0.0)
    one = batch(0, 1, 2)
    term = model(one)["nats"]
    result = step(model, [one])
    assert result.loss == pytest.approx(float(term.total.detach()) / 6, abs=1e-6)
    assert result.counts == {"nats": 6}


def test_what_is_told_without_weight_is_no_target() -> None:
    class Telling(Toy):
        def counts(self, batch: RowBatch) -> dict[str, int]:
            return {**super().counts(batch), "misses": super().counts(batch)["nats"]}

        def forward(self, batch: RowBatch) -> dict[str, Term]:
            terms = super().forward(batch)
            return {**terms, "misses": Term(terms["nats"].total.detach(), terms["nats"].count, weight=0.0)}

    result = step(Telling(dropout=0.0), [batch(0, 1, 2)])
    assert result.counts == {"nats": 6, "misses": 6}
    assert result.targets == {"nats": 6}


class Broken(Toy):
    """Its loss is changed on the way."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(dropout=0.0)
        self.change = change

    def forward(self, batch: RowBatch) -> dict[str, Term]:
        terms = super().forward(batch)
        terms["nats"].total = self.change(terms["nats"].total)
        return terms


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x * math.nan, "loss nan"),
        (lambda x: x + math.inf, "loss inf"),
        (lambda x: x - math.inf, "loss -inf"),
        (lambda x: x + 1e9, "loss 3.33"),
        (lambda x: x - 1e9, "loss -3.33"),
        (lambda x: x * 1e4, "gradient norm"),
        (lambda x: (x * 0).sqrt() + x.detach(), "gradient norm is nan"),
    ],
)
def test_unsafe_updates_change_nothing(change: Callable[[Tensor], Tensor], reason: str) -> None:
    model = Broken(change)
    optimizer = optim.make_optimizer(model, optim.select(model, settings()), settings())
    before = weights(model).clone()
    result = step(model, [batch(1, 2), batch(3)], optimizer=optimizer)
    assert result.skipped.startswith(reason)
    assert result.sample_ids == ["row 1", "row 2", "row 3"]
    assert torch.equal(weights(model), before)
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())  # nothing is left in the accumulator (B33)
    model.change = lambda x: x
    assert not step(model, [batch(1, 2)], optimizer=optimizer).skipped
    assert bool(weights(model).isfinite().all())


def test_one_bad_micro_batch_among_good_ones_skips_the_whole_update() -> None:
    model = Broken(lambda x: x)
    poisoned = batch(4, 5)
    poisoned.x_BD[0, 0] = math.nan
    before = weights(model).clone()
    result = step(model, [batch(1), poisoned, batch(3)])
    assert result.skipped
    assert torch.equal(weights(model), before)


def test_bounds_of_an_unsafe_update() -> None:
    assert not unsafe(1e6, 100.0, 100.0)
    assert not unsafe(-1e6, 0.0, 100.0)
    assert unsafe(1.1e6, 1.0, 100.0)
    assert unsafe(0.0, 100.1, 100.0)


def test_clipping_keeps_the_direction_of_the_whole_gradient() -> None:
    """One global norm: clipping by module would turn the gradient (B34)."""
    free, clipped = Toy(dropout=0.0), Toy(dropout=0.0)
    start = weights(free).clone()
    norm = step(free, [batch(0, 3)], settings(max_grad_norm=1e9), sgd(free)).grad_norm
    result = step(clipped, [batch(0, 3)], settings(max_grad_norm=norm / 10), sgd(clipped))
    assert result.grad_norm == pytest.approx(norm)  # told before it is clipped
    torch.testing.assert_close((weights(clipped) - start) * 10, weights(free) - start, atol=1e-5, rtol=1e-4)


class Two(Objective):
    """Two numbers, each with a term of its own."""

    def __init__(self, weights: tuple[float, float]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.weights = weights

    def counts(self, batch: Any) -> dict[str, int]:
        return {"a": 4, "b": 2}

    def forward(self, batch: Any) -> dict[str, Term]:
        return {"a": Term(self.a.sum(), 4, self.weights[0]), "b": Term(self.b.sum(), 2, self.weights[1])}


def test_terms_are_weighted_and_those_without_weight_do_not_train() -> None:
    model = Two((0.5, 0.0))
    result = step(model, [batch(0)], settings(max_grad_norm=1e9), sgd(model))
    assert result.loss == pytest.approx(0.5 * 1.0)  # (4 / 4) * 0.5
    assert result.losses["b"] == pytest.approx(2.0)  # shown all the same
    torch.testing.assert_close(model.a.detach(), torch.full((2, 2), 1 - 0.5 / 4))
    assert torch.equal(model.b.detach(), torch.ones(2, 2))


def test_terms_missing_from_some_micro_batches_are_divided_by_their_own_count() -> None:
    class Sometimes(Two):
        def counts(self, batch: Any) -> dict[str, int]:
            return {"a": 4} if len(batch.sample_ids) == 1 else {"a": 4, "b": 2}

        def forward(self, batch: Any) -> dict[str, Term]:
            terms = super().forward(batch)
            return terms if len(batch.sample_ids) > 1 else {"a": terms["a"]}

    model = Sometimes((1.0, 1.0))
    result = step(model, [batch(0), batch(1, 2), batch(3)], settings(max_grad_norm=1e9), sgd(model))
    assert result.losses["a"] == pytest.approx(1.0)
    assert result.losses["b"] == pytest.approx(2.0)
    torch.testing.assert_close(model.a.detach(), torch.full((2, 2), 1 - 3 / 12))
    torch.testing.assert_close(model.b.detach(), torch.full((2, 2), 1 - 1 / 2))


def test_a_batch_without_labels_changes_nothing() -> None:
    model = Toy(dropout=0.0)
    empty = batch(0, 1)
    empty.y_BT[:] = -100
    before = weights(model).clone()
    result = step(model, [empty], optimizer=sgd(model))
    assert torch.equal(weights(model), before)
    assert result.loss == 0.0


def test_the_scaled_path_gives_the_same_update() -> None:
    """fp16's GradScaler: unscaled before any check, so norm, limit and weights are as without it."""
    plain, scaled = Toy(dropout=0.0), Toy(dropout=0.0)
    chosen = settings()
    expected = step(plain, [batch(0, 1), batch(3)])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True)
    optimizer = optim.make_optimizer(scaled, optim.select(scaled, chosen), chosen)
    result = update(scaled, scaled, optimizer, scaler, [batch(0, 1), batch(3)], chosen, CPU)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert not result.skipped
    torch.testing.assert_close(weights(scaled), weights(plain), atol=1e-6, rtol=0)


def test_an_overflow_of_the_scaled_path_is_skipped_and_halves_the_scale() -> None:
    model = Broken(lambda x: x * math.inf)
    chosen = settings()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=True)
    optimizer = optim.make_optimizer(model, optim.select(model, chosen), chosen)
    before = weights(model).clone()
    result = update(model, model, optimizer, scaler, [batch(0)], chosen, CPU)
    assert result.skipped
    assert scaler.get_scale() == 512.0
    assert torch.equal(weights(model), before)


def broken_backward(x: Tensor) -> Tensor:
    """A loss that is finite, and a gradient that is not."""
    return (x * 0).sqrt() + x.detach()


def test_an_overflow_that_the_scaler_answers_is_no_unsafe_update() -> None:
    """The scale is halved while there is something to halve; gradients that are not finite at scale 1 are the
    network's own fault."""
    model, chosen = Broken(broken_backward), settings()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=True)
    optimizer = optim.make_optimizer(model, optim.select(model, chosen), chosen)
    before = weights(model).clone()
    results = [update(model, model, optimizer, scaler, [batch(0)], chosen, CPU) for _ in range(3)]
    assert [result.overflowed for result in results] == [True, True, False]
    assert [result.scale for result in results[:2]] == [2.0, 1.0]
    assert [bool(result.skipped) for result in results] == [False, False, True]
    assert torch.equal(weights(model), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_half_precision_trains_on_a_gpu() -> None:
    run = Runtime(torch.device("cuda"), torch.float16)
    model = Toy(dropout=0.0).to(run.device)
    chosen = settings()
    optimizer = optim.make_optimizer(model, optim.select(model, chosen), chosen)
    scaler = torch.amp.GradScaler("cuda")
    results = [
        update(model, model, optimizer, scaler, [batch(0, 1, 3).to(run.device)], chosen, run)
        for _ in range(30)
    ]
    assert results[-1].loss < results[0].loss
