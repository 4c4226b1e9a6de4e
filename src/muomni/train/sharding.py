"""FSDP2: weights, gradients and optimizer state shared out among the ranks, for stages that train all of their weights.

Between updates the objective can be had whole (`whole`): validation, `best/` and checkpoints then see the plain
modules and parameters that the stage built, and know nothing of shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from muomni.errors import ConfigError
from muomni.runtime import Runtime
from muomni.train.objective import Objective, Term
from muomni.train.optim import Row
from muomni.train.settings import TrainSettings

# What fully_shard changes of a module beside its class and its parameters.
HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def refuse(objective: Objective, rows: Sequence[Row], settings: TrainSettings, run: Runtime) -> None:
    """Raises ConfigError where `shard` would have no effect, or what a stage asks for can't be shared out."""
    if not settings.shard:
        return
    resting = [row.name for row in rows if not row.trains or row.from_step]
    for is_refused, why, hint in (
        (
            run.world == 1,
            "there is one process",
            "torchrun --nproc_per_node=2 -m muomni run ..., or leave it out",
        ),
        (
            not objective.blocks(),
            "this stage, or a model with experts, has no blocks that may be apart",
            "leave it out: its ranks hold all weights",
        ),
        (
            bool(resting),
            f"{len(resting)} parameters rest, the first is {', '.join(resting[:1])}",
            "an adapter is small: leave shard out; or train all from the first step",
        ),
        (settings.optimizer == "muon", "muon needs whole matrices", "optimizer: adamw"),
        (settings.ema_decay is not None, "the moving average is kept whole", "leave out ema_decay or it"),
        (run.dtype == torch.float16, "fp16's scale of gradients is not shared", "precision: bf16"),
    ):
        if is_refused:
            raise ConfigError(f"shard: true can't be: {why}", hint=hint)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules: what is called one after the other, and may be apart."""
    found: list[nn.Module] = []
    for part in module.children():
        found += list(part) if isinstance(part, nn.ModuleList) else blocks_of(part)
    return found


class _Root(nn.Module):
    """The objective with tensors in place of terms: FSDP looks for tensors in tuples and dicts alone."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any) -> dict[str, tuple[Tensor, int, float]]:
        return {name: (term.total, term.count, term.weight) for name, term in self.objective(batch).items()}


@dataclass
class _Face:
    """Modules as they are at a time: their classes, hooks and parameters."""

    modules: list[tuple[nn.Module, type[nn.Module], dict[str, Any], dict[str, nn.Parameter | None]]]

    @classmethod
    def of(cls, root: nn.Module) -> _Face:
        """The modules of a root now."""
        return cls(
            [
                (module, type(module), {name: vars(module)[name] for name in HOOKS}, dict(module._parameters))
                for module in root.modules()
            ]
        )

    def copied(self) -> _Face:
        """The same with hooks of its own."""
        return _Face(
            [(m, kind, {key: value.copy() for key, value in h.items()}, p) for m, kind, h, p in self.modules]
        )

    def show(self) -> None:
        """Have the modules be so again."""
        for module, kind, hooks, parameters in self.modules:
            module.__class__ = kind
            vars(module).update(hooks)
            module._parameters.update(parameters)

    def parameters(self) -> Iterator[nn.Parameter]:
        """In a fixed order; one that two modules share comes twice."""
        for _, _, _, parameters in self.modules:
            yield from (each for each in parameters.values() if each is not None)


class Shards(nn.Module):
    """An objective of which each rank holds a part: every block is put together when it computes, and taken apart
    behind it.

    Gradients are divided by the ranks, as DDP's are. The objective's own parameters are empty until `whole` or
    `end`, so that an optimizer must be made after this.

    Takes   objective: with the same weights on every rank.
    """

    def __init__(self, objective: Objective, run: Runtime) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__()
        self.run = run
        root = _Root(objective)
        self._plain = _Face.of(root).copied()
        mesh = init_device_mesh(run.device.type, (run.world,))
        for block in objective.blocks():
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # The root stays whole between forward and backward: its output table is used in the loss's own backward.
        self.root: Any = fully_shard(root, mesh=mesh, reshard_after_forward=False)
        # Ranks may hold other kinds of rows: what one of them does not use is asked of all.
        self.root.set_reduce_scatter_unused_params(True)
        self._sharded = _Face.of(root)
        self._empty()

    def forward(self, batch: Any) -> dict[str, Term]:
        """The objective's terms."""
        terms: dict[str, tuple[Tensor, int, float]] = self.root(batch)
        return {name: Term(*parts) for name, parts in terms.items()}

    @property
    def numbers(self) -> tuple[int, int]:
        """Of weights, on this rank and in all."""
        own = {id(each): each for each in self._sharded.parameters()}.values()
        return sum(local(each).numel() for each in own), sum(each.numel() for each in own)

    @contextmanager
    def whole(self, *, everywhere: bool) -> Iterator[None]:
        """The objective with all of its weights, as the stage built it; no update may be made within.

        Takes   everywhere: on all ranks; False: on the main one alone, the others hold nothing.
        """
        self.root.reshard()
        self._gather(everywhere=everywhere)
        try:
            yield
        finally:
            self._empty()
            self._sharded.show()

    def end(self) -> None:
        """Leave the objective whole on all ranks, for good."""
        self.root.reshard()
        self._gather(everywhere=True)

    @torch.no_grad()
    def _gather(self, *, everywhere: bool) -> None:
        filled: set[int] = set()
        for plain, sharded in zip(self._plain.parameters(), self._sharded.parameters(), strict=True):
            if id(plain) in filled:  # tied to another
                continue
            filled.add(id(plain))
            full = full_tensor(sharded)
            if everywhere or self.run.is_main:
                plain.data = full
        self._plain.show()

    def _empty(self) -> None:
        for plain in self._plain.parameters():
            plain.data = plain.data.new_empty(0)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state dict of the optimizer as that of one process; all ranks call it, the main one alone gets the
        moments."""
        stored = optimizer.state_dict()
        moments: dict[int, dict[str, Any]] = {}
        for number, state in stored["state"].items():
            for name, value in state.items():
                full = full_tensor(value)
                if self.run.is_main:
                    moments.setdefault(number, {})[name] = full
        return {**stored, "state": moments}


def full_tensor(value: Any) -> Any:
    """A tensor of all ranks' parts; what is not shared out as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor().detach() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    from torch.distributed.tensor import DTensor

    return value.to_local() if isinstance(value, DTensor) else value


def share_out(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """The state dict of one process as this rank's optimizer takes it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    owners = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))

    def part(owner: Any, value: Any) -> Any:
        if not isinstance(owner, DTensor) or not isinstance(value, Tensor) or value.shape != owner.shape:
            return value
        there = value.to(owner.device)
        return distribute_tensor(there, owner.device_mesh, owner.placements, src_data_rank=None)

    moments = {
        number: {name: part(owners.get(number), value) for name, value in state.items()}
        for number, state in stored.get("state", {}).items()
    }
    return {**stored, "state": moments}
