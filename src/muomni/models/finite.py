"""Numbers that are none (NaN, infinite): weights are looked at once, when they are opened, what a network
gives at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn

from muomni.errors import CheckpointError

WEIGHTS = "*.safetensors"
AGAIN = "the file is damaged, or its training broke: put a good copy back, or train its stage again (--fresh)"
# Network -> the folder that it was opened from, so that what it gives can be told of a place.
_ORIGINS: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()


def bad(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold a number that is none.

    One sum a tensor and one question to the device: whatever is not finite makes a sum that is not. Only
    where one is not, values are looked at one by one, since a sum of large numbers may also overflow.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floats:
        return []
    sums = torch.stack(
        [tensor.sum().float() for tensor in floats.values()]
    )  # a sum is taken in float32, and copies nothing
    if bool(sums.isfinite().all()):
        return []
    return [name for name, tensor in floats.items() if not bool(tensor.isfinite().all())]


@torch.no_grad()
def demand_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See that tensors opened from a folder are numbers.

    Raises  CheckpointError naming the file and the tensor.
    """
    if names := bad(tensors):
        files = sorted(folder.rglob(WEIGHTS))
        file = next((file for file in files if names[0] in _names(file)), folder)
        raise _broken(file, names, tensors)


def demand_files(folder: Path) -> None:
    """See that all weights that lie in a folder and below it are numbers.

    Raises  CheckpointError as `demand_weights`.
    """
    for file in sorted(folder.rglob(WEIGHTS)):
        with safe_open(file, "pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
        if names := bad(tensors):
            raise _broken(file, names, tensors)


def _names(file: Path) -> set[str]:
    with safe_open(file, "pt") as stream:
        return set(stream.keys())


def _broken(file: Path, names: list[str], tensors: Mapping[str, Tensor]) -> CheckpointError:
    tensor = tensors[names[0]]
    count = int((~tensor.isfinite()).sum())
    more = f", so are some of {len(names) - 1} more tensors" if len(names) > 1 else ""
    return CheckpointError(
        f"{file}: {names[0]}: {count} of {tensor.numel()} numbers are NaN or infinite{more}", hint=AGAIN
    )


def came_from(network: nn.Module, folder: Path) -> None:
    """Remember where a network was opened, for what `demand` has to tell."""
    _ORIGINS[network] = folder


def demand(output: Tensor, network: nn.Module, what: str, again: Callable[[], Any] | None = None) -> None:
    """See that what a network gave are numbers: a small sum, where all is well.

    Takes   what: the name of what it gave; again: runs the network once more, to find the module where it
            begins.
    Raises  CheckpointError naming the network's folder and the module.
    """
    if math.isfinite(output.sum().item()) or bool(
        output.isfinite().all()
    ):  # each operation counts between two tokens
        return
    count, kind = int((~output.isfinite()).sum()), type(network).__name__
    begins = (
        "" if again is None or not (name := first_module(network, again)) else f", first in module {name}"
    )
    raise CheckpointError(
        f"{_ORIGINS.get(network, 'memory')}: {kind}: {count} of {output.numel()} {what} are NaN or infinite{begins}",
        hint="where the weights are sound it overflows in a narrow number format: try --precision fp32",
    )


@torch.no_grad()
def first_module(network: nn.Module, forward: Callable[[], Any]) -> str:
    """The first module, by name, whose output is not finite in a forward; empty where there is none."""
    names: list[str] = []
    hooks = []
    for name, module in network.named_modules():

        def look(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            if (
                not names
                and isinstance(output, Tensor)
                and output.is_floating_point()
                and not bool(torch.isfinite(output).all())
            ):
                names.append(name)

        hooks.append(module.register_forward_hook(look))
    try:
        forward()
    except (RuntimeError, ValueError, FloatingPointError):
        pass  # the search looks for the place only; whoever asks reports the failure itself
    finally:
        for hook in hooks:
            hook.remove()
    return names[0] if names else ""
