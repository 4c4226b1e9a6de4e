"""Marks arithmetic that is done once more to save memory, so that whoever counts what a model needs (train.flops) can leave it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_depth = 0  # of marked contexts; a plain global: the backward of a GPU runs in a thread of its own


@contextmanager
def recomputing() -> Iterator[None]:
    """A context for what was, or will be, computed another time."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def is_recomputing() -> bool:
    """True within `recomputing`."""
    return _depth > 0


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch.utils.checkpoint's `context_fn`: around the forward, and around its repetition in the backward."""
    return nullcontext(), recomputing()
