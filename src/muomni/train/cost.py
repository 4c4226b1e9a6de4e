"""What an update costs in memory and arithmetic: counted on real tensors, before anything is spent."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from muomni.runtime import Runtime
from muomni.train import flops
from muomni.train.eager import untraced
from muomni.train.objective import Objective
from muomni.train.settings import TrainSettings
from muomni.train.step import update


@untraced
class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that follows the bytes of all tensors made in it, each storage once, and keeps the most that
    lived at a time.

    It sees every operation, those of the backward too, so what autograd keeps, what is passing, and gradients
    all count. Not seen is what a kernel allocates for itself.
    known   tensors that were there before, of which views do not count
    """

    def __init__(self, known_tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {tensor.untyped_storage()._cdata for tensor in known_tensors}
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or key in self.known:
            return
        self.alive[key] = storage.nbytes()
        self.now += self.alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def of_update(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: list[Any],
    settings: TrainSettings,
    run: Runtime,
    scaler: Any,
) -> int:
    """The most bytes beside weights and optimizer state that lived at a time in one real update, which
    changes the weights.

    The optimizer must have made its state before.
    """
    known_tensors = [
        *objective.parameters(),
        *objective.buffers(),
        *tensors(optimizer.state_dict()),
        *tensors(batches),
    ]
    live, before = LiveTensors(known_tensors), _reset(run)
    with live if before is None else nullcontext():
        update(objective, objective, optimizer, scaler, batches, settings, run)
    objective.after_step(1)
    return live.peak if before is None else _peak(run) - before


def flops_of_update(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batches: list[Any],
    settings: TrainSettings,
    run: Runtime,
    scaler: Any,
) -> float:
    """Floating point operations of one real update, without what checkpointed blocks make again
    (train.flops)."""
    with flops.Counted() as counted:
        update(objective, objective, optimizer, scaler, batches, settings, run)
    objective.after_step(1)
    return float(counted.total)


@torch.no_grad()
def of_validation(objective: Objective, batch: Any, run: Runtime) -> int:
    """The most bytes that lived at a time while a held-out batch was judged."""
    live = LiveTensors([*objective.parameters(), *objective.buffers(), *tensors(batch)])
    before = _reset(run)
    was_training = objective.training
    objective.eval()
    objective.begin([batch], 1)
    with ExitStack() as stack:
        if before is None:
            stack.enter_context(live)
        stack.enter_context(run.autocast())
        objective(batch)
    objective.train(was_training)
    return live.peak if before is None else _peak(run) - before


def _reset(run: Runtime) -> int | None:
    """Begin to watch the device's own allocator and give what lives in it; None on a CPU, which has none that
    tells."""
    if run.device.type != "cuda":
        return None
    torch.cuda.synchronize(run.device)
    torch.cuda.reset_peak_memory_stats(run.device)
    return torch.cuda.memory_allocated(run.device)


def _peak(run: Runtime) -> int:
    return torch.cuda.max_memory_allocated(run.device)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested lists, mappings and objects with fields."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors(part)]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return (
        [tensor for part in vars(value).values() for tensor in tensors(part)]
        if hasattr(value, "__dict__")
        else []
    )


def size(tensors_counted: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum(
        {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors_counted
        }.values()
    )


def weights(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return size([*model.parameters(), *model.buffers()])


def gradients(model: nn.Module) -> int:
    """Bytes of the gradients of what trains."""
    return size([parameter for parameter in model.parameters() if parameter.requires_grad])
