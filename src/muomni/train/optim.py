"""Which parameters train, with which rates: selection by name patterns, AdamW or Muon with decay on matrices
only, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muomni.config import is_set
from muomni.errors import CheckpointError, ConfigError
from muomni.runtime import product_format
from muomni.train.eager import AdamW, Eager
from muomni.train.settings import TrainSettings


@dataclass(frozen=True)
class Row:
    """One parameter in the account of what trains; from_step: the updates during which it rests at first."""

    name: str
    shape: tuple[int, ...]
    count: int
    lr: float
    wd: float
    from_step: int = 0

    @property
    def trains(self) -> bool:
        """True where the parameter changes."""
        return self.lr > 0


def select(model: nn.Module, settings: TrainSettings) -> list[Row]:
    """Freeze what no pattern of `settings.train` names (a pattern with ! in front excludes), and give the
    account of all parameters.

    What a group lets rest until its `from_step` is frozen too, until `join`; the model's `joining` names it.
    Raises  ConfigError for a pattern that matches nothing, or when nothing trains at first.
    """
    resting = getattr(model, "joining", {})
    names = [name for name, _ in model.named_parameters()]
    for pattern in [p.lstrip("!") for p in settings.train] + [
        group.pattern for group in settings.param_groups
    ]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"pattern {pattern!r} matches no parameter", hint=f"names look like {', '.join(names[:4])}"
            )
    rows = []
    for name, parameter in model.named_parameters():
        chosen = False
        for pattern in settings.train:
            if fnmatchcase(name, pattern.lstrip("!")):
                chosen = not pattern.startswith("!")
        chosen = chosen and (parameter.requires_grad or name in resting)
        lr, wd, from_step = settings.lr, settings.wd if parameter.ndim >= 2 else 0.0, 0
        for group in settings.param_groups:
            if fnmatchcase(name, group.pattern):
                lr = group.lr if group.lr is not None else lr
                wd = group.wd if group.wd is not None else wd
                from_step = group.from_step if group.from_step is not None else from_step
        parameter.requires_grad_(chosen and not from_step)
        rates = (lr, wd, from_step) if chosen else (0.0, 0.0, 0)
        rows.append(Row(name, tuple(parameter.shape), parameter.numel(), *rates))
    if not any(row.trains and not row.from_step for row in rows):
        raise ConfigError(
            "nothing trains: every parameter is frozen, or rests at first",
            hint="look at `train:` patterns, and from_step of param_groups",
        )
    if later := {row.name: row.from_step for row in rows if row.from_step}:
        model.joining = later  # type: ignore[assignment]
    _rest(model)
    return rows


def join(model: nn.Module, rows: Sequence[Row], step: int) -> list[str]:
    """Let those parameters learn that rest for no more than `step` updates; their names, if they rested.

    An optimizer over `rows` has them already: it passes over what has no gradient, and makes their state at
    their first.
    """
    parameters = dict(model.named_parameters())
    due = [row.name for row in rows if 0 < row.from_step <= step]
    joined = [name for name in due if not parameters[name].requires_grad]
    if not joined:
        return []
    for name in joined:
        parameters[name].requires_grad_(True)
    for part in model.modules():  # as `freeze` left them
        part.__dict__.pop("train", None)
    model.train(model.training)
    _rest(model)
    return joined


def refuse_idle(rows: Sequence[Row], settings: TrainSettings) -> None:
    """Raises ConfigError for a rate, a decay or an optimizer that is asked for, and moves no parameter."""
    trained = [row for row in rows if row.trains]
    for name in ("lr", "wd"):
        own = [group for group in settings.param_groups if getattr(group, name) is not None]
        is_idle = all(any(fnmatchcase(row.name, group.pattern) for group in own) for row in trained)
        if is_idle and is_set(settings, name):
            raise ConfigError(
                f"{name} has no effect: all that trains is in param_groups that set it",
                hint=f"leave out {name}, or the groups'",
            )
    for group in settings.param_groups:
        if not any(fnmatchcase(row.name, group.pattern) for row in trained):
            raise ConfigError(
                f"param_groups: {group.pattern!r} has no effect: it names nothing that trains",
                hint="look at `train:` patterns",
            )
    if settings.optimizer == "muon" and not any(is_for_muon(row) for row in trained):
        raise ConfigError(
            "optimizer: muon has no effect: nothing that trains here is a matrix that it steps",
            hint="optimizer: adamw",
        )


def _rest(model: nn.Module) -> None:
    """Keep every part whose parameters are all frozen in eval mode: no dropout where nothing learns (SPEC
    C8)."""
    for part in model.children():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            freeze(part)
        else:
            _rest(part)


def freeze(model: nn.Module) -> nn.Module:
    """The model without gradients and for ever in eval mode, whatever `.train()` is called on its parent."""
    model.requires_grad_(False)
    model.eval()
    model.train = partial(_stay, model)  # type: ignore[method-assign]
    return model


def _stay(model: nn.Module, mode: bool = True) -> nn.Module:
    """In the place of a frozen model's `train`. A partial of it, unlike a closure, is copied and pickled with
    its model."""
    return model


MATRICES = (
    "*_proj.weight",
    "*.projectors.*.weight",
)  # of attention and feed-forward in every network here, and of projectors


def is_for_muon(row: Row) -> bool:
    """Whether Muon steps this parameter, where it is asked for: gains of norms inside of projectors stay
    AdamW's."""
    return len(row.shape) == 2 and any(fnmatchcase(row.name, pattern) for pattern in MATRICES)


class Muon(Eager, torch.optim.Muon):
    """torch's Muon, but for the format of its iteration: torch takes bf16 everywhere, which a chip without it
    emulates 50 times slower."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update along the orthogonalised momentum, scaled to the size of AdamW's (Liu et al. 2025)."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"])  # Nesterov
                direction = orthogonal(ahead, product_format(min(ahead.shape), ahead.device))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonal(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """The matrix with its singular values brought near 1 (0.7 to 1.2), by a quintic Newton-Schulz iteration
    in a number format.

    Takes   matrix of two dimensions, any scale.
    Gives   a matrix of the same shape in `dtype`.
    Source  Jordan et al. 2024, coefficients and order of operations as torch.optim.Muon has them: in bf16 it
            gives torch's bits.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.to(dtype)
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)  # no singular value is above the root of the sum of their squares
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Both(Eager):
    """Several optimizers, each with parameters of its own, that step, save and load as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [
            group for part in self.parts for group in part.param_groups
        ]  # loading made new ones


def make_optimizer(model: nn.Module, rows: list[Row], settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW (fused where torch has it), or Muon for MATRICES beside it; `base_lr` of a group is its rate at
    scale 1.

    Groups are one for each (rate, decay) pair. Muon steps along the orthogonalised momentum, scaled so that
    rates and decay mean what they mean for AdamW. It iterates in the fastest sound format of the device. It
    lifts the smallest singular values of a gradient some 900 times, what rounding left there too: N ranks
    step as one process to 1e-4 of a step in float32, to a few percent in bf16.
    Source  Jordan et al. 2024 (Muon); Liu et al. 2025 (scale by the larger side).
    """
    parameters = dict(model.named_parameters())
    kinds: dict[bool, dict[tuple[float, float], list[nn.Parameter]]] = {True: {}, False: {}}
    for row in rows:
        if row.trains:
            by_muon = settings.optimizer == "muon" and is_for_muon(row)
            kinds[by_muon].setdefault((row.lr, row.wd), []).append(parameters[row.name])
    groups = {
        by_muon: [
            {"params": members, "lr": lr, "base_lr": lr, "weight_decay": wd}
            for (lr, wd), members in chosen.items()
        ]
        for by_muon, chosen in kinds.items()
    }
    parts: list[torch.optim.Optimizer] = []
    if groups[True]:
        parts.append(Muon(groups[True]))
    if groups[False]:
        parts.append(AdamW(groups[False], betas=settings.betas, fused=True))
    return parts[0] if len(parts) == 1 else Both(parts)


def go_on(optimizer: torch.optim.Optimizer, stored: dict[str, Any], *, where: Path) -> None:
    """Give an optimizer the moments that a checkpoint holds; rates, decay and betas stay those of the
    settings.

    Raises  CheckpointError where it was made for other groups of parameters.
    """
    own = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where}: its optimizer has other parameter groups: {error}", hint="--fresh starts anew"
        ) from error
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def lr_scale(step: int, settings: TrainSettings) -> float:
    """The schedule's factor for update number `step` (0, 1, ...): never 0 at the first, constant past the
    last (SPEC C2)."""
    warmup, total, floor = settings.warmup_steps, settings.max_steps, settings.min_lr_ratio
    assert total is not None  # train.settings.sized has filled it in
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    if settings.schedule == "linear":
        return floor + (1 - floor) * (1 - progress)
    if settings.schedule == "wsd":
        start = 1 - settings.decay_share
        return 1.0 if progress <= start else floor + (1 - floor) * (1 - progress) / (1 - start)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Put base rate x scale into every group, as plain floats."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * scale
