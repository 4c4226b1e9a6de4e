"""Marks recomputation (activation checkpointing), so that train.flops can leave it out of a model's FLOPs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

_depth = 0  # of marked contexts; a plain global: the backward of a GPU runs in a thread of its own


class Recomputing:
    """A context for what was, or will be, computed another time. It may be entered again: several backwards
    through one forward do so."""

    def __enter__(self) -> None:
        global _depth
        _depth += 1

    def __exit__(self, *error: object) -> None:
        global _depth
        _depth -= 1


def is_recomputing() -> bool:
    """True within `Recomputing`."""
    return _depth > 0


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch.utils.checkpoint's `context_fn`: around the forward, and around its repetition in the
    backward."""
    return nullcontext(), Recomputing()
