"""Frozen pretrained parts: left out of checkpoints, shared by trial copies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from muomni import files
from muomni.errors import CheckpointError
from muomni.models import store
from muomni.train.objective import Objective

# Parameter -> (its version, its digest): 16 GB are read once a run, not once a checkpoint.
_DIGESTS: MutableMapping[Tensor, tuple[int, str]] = WeakTensorKeyDictionary()


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The frozen parameters of the parts that an objective names as `frozen_parts`, under every name that
    they have; none of another module."""
    parts = model.frozen_parts() if isinstance(model, Objective) else ()
    resting = {
        id(p)
        for part in parts
        for p in model.get_submodule(part.rstrip(".")).parameters()
        if not p.requires_grad
    }
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if id(p) in resting}


def checkpoint_state(model: nn.Module) -> dict[str, Tensor]:
    """The state beside them: what a checkpoint must hold."""
    left_out = frozen_parameters(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}


@dataclass(frozen=True)
class StateMismatch:
    """Where stored tensors and a model's state disagree, by name: what each side alone has, and what has two
    shapes."""

    missing: list[str]
    unexpected: list[str]
    shapes: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        named = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.shapes),
        )
        parts = [
            f"{kind} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for kind, names in named
            if names
        ]
        return "; ".join(parts)


def state_mismatch(model: nn.Module, tensors: Mapping[str, Tensor]) -> StateMismatch:
    """What keeps tensors from being the whole of `checkpoint_state(model)`: no more names, no fewer, and each
    of its shape."""
    own = checkpoint_state(model)
    shapes = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)})"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    return StateMismatch(sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys()), shapes)


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Load what `checkpoint_state` gave into a model, all of it or nothing. The one home of
    `load_state_dict(strict=False)`.

    PyTorch's strict mode can't be used, since the frozen parts from elsewhere are not in the file; its other
    mode says nothing.
    Raises  CheckpointError naming what is missing, unexpected or of another shape.
    """
    if mismatch := state_mismatch(model, tensors):
        raise CheckpointError(
            f"{where}: weights of another model: {mismatch}",
            hint="was it made by other settings, or other code?",
        )
    model.load_state_dict(dict(tensors), strict=False)


def load_matching(
    model: nn.Module, tensors: Mapping[str, Tensor], *, where: str
) -> tuple[int, StateMismatch]:
    """Load those tensors that a model has by the same name and shape, as a start for another training.

    Gives   how many there were, and what was left: it is for the caller to tell.
    Raises  CheckpointError where none fits.
    """
    left, own = state_mismatch(model, tensors), checkpoint_state(model)
    fitting = {
        name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise CheckpointError(f"{where}: no tensor fits this stage: {left}")
    model.load_state_dict(fitting, strict=False)
    return len(fitting), left


def digest(model: nn.Module) -> str:
    """sha256 over their names and bytes, empty where there are none."""
    digests = {}
    for name, parameter in frozen_parameters(model).items():
        version, parameter_digest = _DIGESTS.get(parameter, (-1, ""))
        if version != parameter._version:  # every change in place counts it up
            parameter_digest = store.digest_of(parameter)
            _DIGESTS[parameter] = parameter._version, parameter_digest
        digests[name] = parameter_digest
    return files.sha256_json(digests) if digests else ""


def sharing_copy(objective: Objective) -> Objective:
    """A copy for trials that holds these very parameters, and its own of all else."""
    return copy.deepcopy(
        objective, {id(parameter): parameter for parameter in frozen_parameters(objective).values()}
    )
