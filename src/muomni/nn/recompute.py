"""Recomputation (activation checkpointing): marked, so that train.flops can leave it out of a model's FLOPs,
and in the contexts that its forward had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

_around: list[AbstractContextManager[Any]] = []  # contexts that blocks are computed again in
_depth = 0  # of marked contexts; a plain global: the backward of a GPU runs in a thread of its own


class Recomputing:
    """A context for what was, or will be, computed another time. It may be entered again: several backwards
    through one forward do so."""

    def __enter__(self) -> None:
        global _depth
        _depth += 1
        for each in _around:
            each.__enter__()

    def __exit__(self, *error: object) -> None:
        global _depth
        _depth -= 1
        for each in reversed(_around):
            each.__exit__(None, None, None)


@contextmanager
def within(context: AbstractContextManager[Any]) -> Iterator[None]:
    """While it lasts, blocks that are computed again are so in this context too (one that may be entered
    again). A function mode needs it: torch leaves it before a backward."""
    _around.append(context)
    try:
        yield
    finally:
        _around.remove(context)


def is_recomputing() -> bool:
    """True within `Recomputing`."""
    return _depth > 0


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch.utils.checkpoint's `context_fn`: around the forward, and around its repetition in the
    backward."""
    return nullcontext(), Recomputing()
