"""Device placement: `Placement` moves every network of a stage; a search finds those that it never moved."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from muomni.errors import InternalError

M = TypeVar("M", bound=nn.Module)

# Data, and what holds no networks: not looked into.
LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    ModuleType,
    Tensor,
    np.ndarray,
    np.generic,
    BaseModel,
)


class Placement:
    """Puts the networks of a stage on its device and remembers them; nothing else moves one.

    A stage passes each network through it as soon as it is opened or made, so that all that follows is done
    on the device. It remembers on a CPU as well: a network that was forgotten is found on any machine, before
    it stops a run on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._placed: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __call__(self, network: M) -> M:
        """The network itself, on the device. What is added to it later (LoRA) is placed by another call.

        Raises  InternalError under inference_mode: parameters that move there can never train.
        """
        if torch.is_inference_mode_enabled():
            raise InternalError(
                f"{type(network).__name__} is placed under inference_mode: it could never train"
            )
        network.to(self.device)
        self._placed.update(network.modules())
        return network

    def misplaced(self, **roots: object) -> list[str]:
        """What is wrong with the networks that can be reached from objects: tensors elsewhere, tensors that
        can't train, never placed.

        It looks through attributes, containers, bound methods, partials, and what functions close over. A
        line a module.
        """
        problems = []
        for name, module in modules_of(roots):
            tensors = [
                tensor
                for table in (module._parameters, module._buffers)
                for tensor in table.values()
                if tensor is not None
            ]
            if not tensors:
                continue
            if elsewhere := sorted({str(tensor.device) for tensor in tensors if not self._is_here(tensor)}):
                problems.append(
                    f"{name} ({type(module).__name__}) lies on {', '.join(elsewhere)}, not on {self.device}"
                )
            elif any(tensor.is_inference() for tensor in tensors):
                problems.append(f"{name} ({type(module).__name__}) was made under inference_mode")
            elif module not in self._placed:
                problems.append(f"{name} ({type(module).__name__}) was never placed")
        return problems

    def _is_here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type and (tensor.device.index or 0) == (
            self.device.index or 0
        )


def modules_of(roots: Mapping[str, object]) -> Iterator[tuple[str, nn.Module]]:
    """All modules that can be reached from objects, each once, under the first name on which it was met."""
    met: dict[int, object] = {}  # the objects too, so that no number is used twice
    open_ends: list[tuple[str, object]] = [*roots.items()][::-1]
    while open_ends:
        name, thing = open_ends.pop()
        if isinstance(thing, LEAVES) or id(thing) in met:
            continue
        met[id(thing)] = thing
        if isinstance(thing, nn.Module):
            yield name, thing
        open_ends += [
            (f"{name}.{part}" if part else name, other)
            for part, other in _inside(thing)
            if not isinstance(other, LEAVES)
        ]


def _inside(thing: Any) -> Iterator[tuple[str, object]]:
    """What an object holds, by name."""
    if isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from (("", value) for value in thing)
    elif isinstance(thing, MethodType):
        yield from (("", part) for part in (thing.__self__, thing.__func__))
    elif isinstance(thing, partial):
        yield from (("", part) for part in (thing.func, thing.args, thing.keywords))
    elif isinstance(thing, FunctionType):
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # named, and not yet given a value
                continue
        yield from (("", part) for part in (thing.__defaults__, thing.__kwdefaults__))
    if isinstance(thing, nn.Module):  # its parts by their own names
        yield from (
            *thing._modules.items(),
            *((k, v) for k, v in vars(thing).items() if not k.startswith("_")),
        )
    else:
        yield from (getattr(thing, "__dict__", None) or {}).items()
        slots = [slot for kind in type(thing).__mro__ for slot in _slots(kind)]
        yield from ((slot, getattr(thing, slot)) for slot in slots if hasattr(thing, slot))


def _slots(kind: type) -> tuple[str, ...]:
    """The slots that a class adds, of ours and those of its users; those of the library hold no networks."""
    declared = kind.__dict__.get("__slots__", ())
    return (declared,) if isinstance(declared, str) else tuple(declared)
