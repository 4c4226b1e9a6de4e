"""One update of the weights: the only place that divides a loss, syncs gradients, and decides whether an
update is safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from muomni.runtime import Runtime, seed_device
from muomni.train import sharding
from muomni.train.distributed import added, sum_counts
from muomni.train.objective import Objective, Term
from muomni.train.settings import TrainSettings

LOSS_BOUND = 1e6  # SPEC C5


@dataclass
class StepResult:
    """What one update did. Losses are means over the targets of all micro-batches and ranks."""

    losses: dict[str, float]
    counts: dict[str, float]
    grad_norm: float
    lr: float  # as it stood in the optimizer when it stepped, the largest of its groups
    skipped: str = ""  # the reason, empty where the weights changed
    sample_ids: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(
        default_factory=dict
    )  # of the terms; one of weight 0 is told, not learned
    overflowed: bool = (
        False  # the scaled gradients left fp16's range: no update, and nothing wrong with the weights
    )
    scale: float = 1.0  # of the loss in the next backward

    @property
    def targets(self) -> dict[str, float]:
        """Targets of each term that is learned."""
        return {name: count for name, count in self.counts.items() if self.weights.get(name, 1.0)}

    @property
    def loss(self) -> float:
        """The weighted total."""
        return self.losses["loss"]


def update(
    objective: Objective,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    micro_batches: Sequence[Any],
    settings: TrainSettings,
    runtime: Runtime,
    *,
    counts: dict[str, float] | None = None,
    seeds: Sequence[int] | None = None,
    rounds: int | None = None,
) -> StepResult:
    """Change the weights once by the micro-batches of this rank (DESIGN 4).

    Takes   counts: targets per term over all ranks, where the caller has exchanged them already; seeds: of
            the random numbers (dropout) of each micro-batch, so that they are the same whichever rank
            computes it; rounds: forwards that every rank must make where weights are shared out, each of which
            all ranks take part in: a rank with fewer micro-batches makes its last one again, for nothing.

    Every term is divided by its count over all micro-batches and ranks, so N micro-batches, N ranks and one
    big batch give the same update. An update with a loss outside of [-1e6, 1e6] or a gradient norm that is
    not finite or above `explosion_norm` is skipped on all ranks. In fp16 gradients that are not finite are
    first taken for an overflow of their scale, which is halved: nothing is wrong as long as there is
    something to halve. Where they are not finite at scale 1 either, the update is unsafe like any other.
    """
    # 1. counts first: they need no forward, and every term is divided by the global one
    counts = sum_counts(local_counts(objective, micro_batches), runtime) if counts is None else counts
    objective.begin(micro_batches, runtime.world)

    # 2. backward of all micro-batches, gradients synced on the last only
    totals: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    own = len(micro_batches)
    for number in range(own if rounds is None else rounds):
        batch, counted = micro_batches[min(number, own - 1)], number < own
        holds_back = isinstance(wrapped, DistributedDataParallel) and not syncs(number, own)
        hold = wrapped.no_sync() if holds_back else nullcontext()  # type: ignore[operator]
        if seeds is not None:
            seed_device(seeds[min(number, own - 1)], runtime.device)
        with hold:
            with runtime.autocast():
                terms = wrapped(batch)
            parts = []
            for name, term in terms.items():
                weights[name] = term.weight
                total = totals.get(name, term.total.new_zeros((), dtype=torch.float32))
                totals[name] = total + term.total.detach().float() if counted else total
                parts.append(mean_share(term, counts.get(name, 1)))
            # DDP averages over ranks; our divisor is global already, so its mean is undone
            loss = torch.stack(parts).sum() * (runtime.world if counted else 0)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)

    # 3. one fused check: the norm and all losses come to the host in a single sync
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    names = sorted(totals)
    numbers = torch.stack([sharding.full_tensor(norm).float(), *(totals[name] for name in names)]).tolist()
    grad_norm, sums = numbers[0], dict(zip(names, numbers[1:], strict=True))
    sums = sum_counts(sums, runtime)
    # A term without targets in this update has no mean.
    losses = {name: total / counts.get(name, 1) for name, total in sums.items() if counts.get(name, 1)}
    losses["loss"] = sum(weights.get(name, 1.0) * value for name, value in losses.items())
    is_overflow = (
        scaler.is_enabled() and not math.isfinite(grad_norm) and not unsafe(losses["loss"], 0.0, 1.0)
    )
    overflowed = is_overflow and scaler.get_scale() > 1.0  # asked for late: it waits for the device
    reason = "" if overflowed else unsafe(losses["loss"], grad_norm, settings.explosion_norm)

    lr = max(float(group["lr"]) for group in optimizer.param_groups)

    # 4. clip by one global norm, step, clear
    if not reason and not overflowed:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    ids = [name for batch in micro_batches for name in batch.sample_ids] if reason else []
    return StepResult(
        losses,
        counts,
        grad_norm,
        lr,
        reason,
        ids,
        weights,
        overflowed,
        scaler.get_scale() if overflowed else 1.0,
    )


def local_counts(objective: Objective, micro_batches: Sequence[Any]) -> dict[str, float]:
    """Targets per term of this rank's micro-batches."""
    return added([dict(objective.counts(batch)) for batch in micro_batches])


def mean_share(term: Term, count: float) -> Tensor:
    """What one batch's term adds to the mean over `count` targets of all micro-batches and ranks,
    weighted."""
    return term.total.float() * (term.weight / max(1, count))


def syncs(number: int, micro_batches: int) -> bool:
    """Whether ranks exchange gradients after this micro-batch: after the last one only, when all have been
    added up."""
    return number == micro_batches - 1


def unsafe(loss: float, grad_norm: float, explosion_norm: float) -> str:
    """Why an update must not be made, or an empty string (SPEC C5)."""
    if not math.isfinite(loss) or abs(loss) > LOSS_BOUND:
        return f"loss {loss:g} is outside of [-1e6, 1e6]"
    if not math.isfinite(grad_norm):
        return f"gradient norm is {grad_norm:g}"
    if grad_norm > explosion_norm:
        return f"gradient norm {grad_norm:.1f} is above {explosion_norm:g}"
    return ""
