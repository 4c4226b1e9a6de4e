"""torch without torch.compile: several of its parts load all of its tracer at first use, 2 s of a start and
100 MB that nobody uses.

A `step` of torch's optimizers is wrapped in a function that tells the tracer where to break its graph; what
it does besides, switching gradients off, is done here. Some other functions are wrapped so that the tracer
leaves them alone: at the first call it is imported, and what it says is to be called instead is noted at the
function itself. That note is made here, with the function as it is. A torch that wraps otherwise loads its
tracer again, and everything is computed as before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_NOTE = "__dynamo_disable"


Kind = TypeVar("Kind", bound=type)


def untraced(kind: Kind) -> Kind:
    """A class whose own functions load no tracer, unless it is there already."""
    if "torch._dynamo" not in sys.modules:
        for method in vars(kind).values():
            if inspect.isfunction(method) and method.__code__.co_filename == torch._compile.__file__:
                plain = getattr(method, "__wrapped__")  # noqa: B009  (types know of no such attribute)
                plain.__dict__.setdefault(_NOTE, plain)
    return kind


class Eager(torch.optim.Optimizer):
    """Mixed in front of an optimizer of torch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        untraced(torch.optim.Optimizer)
        super().__init__(*args, **kwargs)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update."""
        theirs: Callable[..., Any] = inspect.unwrap(getattr(super().step, "__func__"))  # noqa: B009  (types know of no such attribute)
        return theirs(self, closure)


class AdamW(Eager, torch.optim.AdamW):
    """torch.optim.AdamW."""


class SGD(Eager, torch.optim.SGD):
    """torch.optim.SGD."""
