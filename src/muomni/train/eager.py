"""torch's optimizers without torch.compile: theirs load all of its tracer at the first update, 2 s of a start and 100 MB that nobody uses.

A `step` of torch is wrapped in a function that tells the tracer where to break its graph; what it does besides, switching gradients off, is
done here. Some methods of `Optimizer` are wrapped so that the tracer leaves them alone: at the first call it is imported, and what it says
is to be called instead is noted at the function itself. That note is made here, with the function as it is. A torch that wraps otherwise
loads its tracer again, and everything is computed as before.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch

_NOTE = "__dynamo_disable"


class Eager(torch.optim.Optimizer):
    """Mixed in front of an optimizer of torch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "torch._dynamo" not in sys.modules:
            for method in vars(torch.optim.Optimizer).values():
                if inspect.isfunction(method) and method.__code__.co_filename == torch._compile.__file__:
                    vars(method.__wrapped__).setdefault(_NOTE, method.__wrapped__)
        super().__init__(*args, **kwargs)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update."""
        return inspect.unwrap(super().step.__func__)(self, closure)


class AdamW(Eager, torch.optim.AdamW):
    """torch.optim.AdamW."""


class SGD(Eager, torch.optim.SGD):
    """torch.optim.SGD."""
