"""What trains, and how fast."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_training import Rows, Toy, collate, fit, settings

from muomni import runtime
from muomni.errors import ConfigError
from muomni.models.connector import PerceiverConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.omni import Projectors, ProjectorsConfig
from muomni.train import optim
from muomni.train.settings import TrainSettings


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_schedule_starts_above_zero_and_stays_where_it_ends(schedule: str, warmup: int) -> None:
    chosen = settings(max_steps=100, warmup_steps=warmup, schedule=schedule, min_lr_ratio=0.1)
    scales = [optim.lr_scale(step, chosen) for step in range(250)]
    assert all(
        type(scale) is float for scale in scales
    )  # a tensor as rate turns the fused optimiser off (B32)
    assert 0 < scales[0] <= 1
    assert max(scales) == 1.0
    end = 1.0 if schedule == "constant" else 0.1
    assert scales[99] == pytest.approx(end)  # the last update of the run
    assert scales[100:] == pytest.approx([end] * 150)  # and not up again at 2 x max_steps (B32)
    if warmup:
        assert scales[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
        assert scales[10] == pytest.approx(1.0)
    falling = scales[warmup:100]
    assert all(a >= b for a, b in pairwise(falling))


def test_cosine_and_decay_have_their_shapes() -> None:
    chosen = settings(max_steps=101, warmup_steps=0, min_lr_ratio=0.0)
    for step, expected in ((25, 0.5 * (1 + math.cos(math.pi / 4))), (50, 0.5), (100, 0.0)):
        assert optim.lr_scale(step, chosen) == pytest.approx(expected, abs=1e-9)
    wsd = settings(max_steps=101, warmup_steps=0, schedule="wsd", decay_share=0.2, min_lr_ratio=0.0)
    assert optim.lr_scale(80, wsd) == 1.0
    assert optim.lr_scale(90, wsd) == pytest.approx(0.5)
    assert optim.lr_scale(0, settings(max_steps=1, warmup_steps=0)) == 1.0


def test_the_rate_of_a_group_is_a_float_at_each_step() -> None:
    model = Toy()
    chosen = settings(lr=0.01, param_groups=[{"pattern": "head.*", "lr": 0.1}])
    optimizer = optim.make_optimizer(model, optim.select(model, chosen), chosen)
    optim.set_lr(optimizer, 0.5)
    rates = {type(group["lr"]) for group in optimizer.param_groups}
    assert rates == {float}
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.005, 0.05]


def test_decay_is_on_matrices_only() -> None:
    model = Toy()
    rows = {row.name: row for row in optim.select(model, settings(wd=0.3))}
    assert rows["head.weight"].wd == 0.3
    assert rows["head.bias"].wd == 0.0
    optimizer = optim.make_optimizer(model, list(rows.values()), settings(wd=0.3))
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_patterns_choose_exclude_and_name_their_rates() -> None:
    model = Toy()
    rows = {
        r.name: r
        for r in optim.select(
            model,
            settings(train=["*", "!body.*"], param_groups=[{"pattern": "*.bias", "lr": 0.5, "wd": 0.2}]),
        )
    }
    assert {name for name, row in rows.items() if row.trains} == {"head.weight", "head.bias"}
    assert rows["head.bias"].lr == 0.5
    assert rows["head.bias"].wd == 0.2
    assert rows["body.0.bias"].lr == 0.0
    assert [p.requires_grad for p in model.body.parameters()] == [False, False]
    assert sum(row.count for row in rows.values()) == sum(p.numel() for p in model.parameters())


def test_the_last_pattern_that_fits_wins() -> None:
    rows = optim.select(Toy(), settings(train=["!body.*", "*.bias", "!head.bias"]))
    assert [row.name for row in rows if row.trains] == ["body.0.bias"]


@pytest.mark.parametrize(
    "values",
    [
        {"train": ["haed.*"]},
        {"train": ["*", "!nothing*"]},
        {"param_groups": [{"pattern": "tail*", "lr": 1.0}]},
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        optim.select(Toy(), settings(**values))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing trains"):
        optim.select(Toy(), settings(train=["!*"]))
    with pytest.raises(ConfigError, match="nothing trains"):
        optim.select(optim.freeze(Toy()), settings())


def test_a_frozen_part_stays_in_eval_mode_without_gradients_and_unchanged(tmp_path: Path) -> None:
    class Watched(Toy):
        modes: set[bool] = set()

        def forward(self, batch: object) -> dict[str, object]:
            self.modes.add(self.body.training)
            return super().forward(batch)  # type: ignore[arg-type, return-value]

    for patterns, frozen_by_hand in ((["*"], True), (["head.*"], False)):
        model = Watched()
        if frozen_by_hand:
            optim.freeze(model.body)
        Watched.modes = set()
        before = [p.detach().clone() for p in model.body.parameters()]
        fit(tmp_path / str(frozen_by_hand), model, train=patterns, max_steps=4)
        assert Watched.modes == {False}, "its dropout was on"
        assert all(p.grad is None and not p.requires_grad for p in model.body.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, model.body.parameters()))
        assert not torch.equal(model.head.weight, Toy().head.weight)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copied", "pickled"]
)
def test_a_frozen_model_is_frozen_again_as_a_copy_and_is_itself(
    again: Callable[[nn.Module], nn.Module],
) -> None:
    model = optim.freeze(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    other = again(nn.ModuleList([model]))[0]
    assert other.train() is other
    assert model.train() is model
    assert not any(part.training for part in other.modules())
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_a_part_that_trains_is_in_training_mode() -> None:
    model = Toy()
    optim.select(model, settings(train=["head.*"]))
    model.train()
    assert model.head.training
    assert model.training
    assert not model.body[0].training
    assert torch.equal(
        *(model.body(collate([Rows().item(0, np.random.default_rng(0))]).x_BD) for _ in range(2))
    )


def test_tied_weights_train_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    model = Tied()
    rows = optim.select(model, settings())
    optimizer = optim.make_optimizer(model, rows, settings())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == 3


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=20, width=16, layers=2, heads=2, ffn_width=32, ctx_len=16))
    chosen = settings(optimizer="muon", param_groups=[{"pattern": "*q_proj*", "lr": 0.5}])
    optimizer = optim.make_optimizer(model, optim.select(model, chosen), chosen)
    assert isinstance(optimizer, optim.Both)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon, by_adamw = (
        {names[id(p)] for group in part.param_groups for p in group["params"]} for part in optimizer.parts
    )
    assert by_muon | by_adamw == set(names.values())
    assert by_muon == {name for name in names.values() if "_proj" in name}
    assert len(by_muon) == 2 * 7
    assert isinstance(
        optim.make_optimizer(Toy(), optim.select(Toy(), settings()), chosen), torch.optim.AdamW
    ), "it has none of them"


def test_gains_within_a_resampler_are_no_matrices() -> None:
    """torch's Muon takes matrices alone: a connector with norms would have stopped a run at its start."""
    shape = ProjectorsConfig(
        width=8, vision_width=8, audio_width=8, perceiver=PerceiverConfig(tokens=2, width=8, heads=2, depth=1)
    )
    model = nn.ModuleDict({"omni": nn.ModuleDict({"projectors": Projectors(shape)})})
    chosen = settings(optimizer="muon")
    optimizer = optim.make_optimizer(model, optim.select(model, chosen), chosen)
    assert isinstance(optimizer, optim.Both)
    muon, adamw = optimizer.parts
    assert {p.dim() for group in muon.param_groups for p in group["params"]} == {2}
    assert {p.dim() for group in adamw.param_groups for p in group["params"]} >= {1}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "muon"}, "muon has no effect"),
        ({"lr": 0.5, "param_groups": [{"pattern": "*", "lr": 0.1}]}, "lr has no effect"),
        ({"wd": 0.5, "param_groups": [{"pattern": "*", "wd": 0.2}]}, "wd has no effect"),
        (
            {"train": ["body.*"], "param_groups": [{"pattern": "head.*", "lr": 0.1}]},
            "names nothing that trains",
        ),
    ],
)
def test_what_would_move_nothing_is_refused(values: dict[str, Any], words: str) -> None:
    chosen = TrainSettings(**values)
    with pytest.raises(ConfigError, match=words):
        optim.refuse_idle(optim.select(Toy(), chosen), chosen)


def test_muon_goes_on_from_its_state_as_if_it_had_never_stopped() -> None:
    def made() -> tuple[Decoder, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Decoder(
            DecoderConfig(vocab_size=20, width=16, layers=1, heads=2, ffn_width=32, ctx_len=16, dropout=0.0)
        )
        chosen = settings(optimizer="muon", lr=0.01)
        return model, optim.make_optimizer(model, optim.select(model, chosen), chosen)

    def train(model: Decoder, optimizer: torch.optim.Optimizer, steps: range) -> float:
        ids = torch.arange(16)[None] % 20
        for step in steps:
            optim.set_lr(optimizer, 1.0 - step / 20)
            loss = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    whole, optimizer = made()
    first = train(whole, optimizer, range(1))
    assert train(whole, optimizer, range(1, 12)) < first
    before, optimizer = made()
    train(before, optimizer, range(5))
    after, fresh = made()
    after.load_state_dict(before.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(after, fresh, range(5, 12))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), after.parameters(), strict=True))


# --- Muon's number format -----------------------------------------------------------------------------------------------------------------


class Formats(TorchDispatchMode):
    """Notes the number formats of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {
            value.dtype
            for value in tree_leaves(out)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        return out


def stepped(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], shape: tuple[int, int]
) -> tuple[torch.Tensor, set[torch.dtype]]:
    """A matrix after three updates by the same random gradients, and the formats that the updates computed
    in."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer, formats = make([parameter]), Formats()
    for _ in range(3):
        parameter.grad = torch.randn(shape, generator=generator)
        with formats:
            optimizer.step()
    return parameter.detach(), formats.seen


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_muon_is_torchs_where_it_iterates_in_bf16(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "product_format", lambda width, device: torch.bfloat16)
    ours, _ = stepped(lambda held: optim.Muon(held, lr=0.1, weight_decay=0.1), shape)
    theirs, _ = stepped(
        lambda held: torch.optim.Muon(held, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), shape
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_muon_emulates_nothing_and_steps_where_torchs_does(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "bf16_gains", lambda device: False)
    ours, formats = stepped(lambda held: optim.Muon(held, lr=0.1, weight_decay=0.1), shape)
    theirs, of_torch = stepped(
        lambda held: torch.optim.Muon(held, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), shape
    )
    assert formats == {torch.float32}
    assert torch.bfloat16 in of_torch, "torch no longer iterates in bf16: is optim.Muon still needed?"
    start, _ = stepped(lambda held: torch.optim.SGD(held, lr=0.0), shape)
    assert (ours - theirs).norm() < 0.02 * (start - theirs).norm()


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((32, 64), (64, 32)):
        values = torch.linalg.svdvals(optim.orthogonal(1e-3 * torch.randn(shape), torch.float32))
        assert values.min() > 0.6
        assert values.max() < 1.3
    assert torch.equal(optim.orthogonal(torch.zeros(3, 4), torch.float32), torch.zeros(3, 4))


@pytest.mark.parametrize(("rank", "least", "most"), [(1, 1e-5, 2e-4), (4, 1e-6, 2e-4), (48, 1e-7, 1e-4)])
@pytest.mark.parametrize("shape", [(48, 48), (48, 160), (160, 48)])
def test_muon_lifts_what_rounding_leaves_of_a_gradient(
    shape: tuple[int, int], rank: int, least: float, most: float
) -> None:
    """What docs/architecture.md says of ranks: they sum in another order, and 1e-7 of a gradient is not 1e-7
    of a step."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(shape[0], rank, generator=generator) @ torch.randn(
            rank, shape[1], generator=generator
        )
        noise = torch.randn(shape, generator=generator)
        other = gradient + noise * (1e-7 * gradient.norm() / noise.norm())
        for dtype, bound in ((torch.float32, most), (torch.bfloat16, 0.1)):
            one, two = optim.orthogonal(gradient, dtype).float(), optim.orthogonal(other, dtype).float()
            moved = float((one - two).norm() / one.norm())
            assert moved < bound
            assert moved > least or dtype == torch.bfloat16


def test_a_kept_matrix_is_not_changed_by_its_orthogonal_one() -> None:
    kept = torch.randn(4, 6)
    before = kept.clone()
    optim.orthogonal(kept, torch.float32)
    assert torch.equal(kept, before)
