"""The stages: ours, and those of installed packages (`plugins.STAGES`)."""

from __future__ import annotations

from muomni.errors import ConfigError
from muomni.plugins import STAGES
from muomni.stages.stage import BoardRow, Stage

OURS = tuple(STAGES.ours)
names = STAGES.names


def find(name: str) -> Stage:
    """The stage of that name; its module, and what it imports, is loaded only now.

    Raises  ConfigError where there is none.
    """
    stage: Stage | None = STAGES.find(name)
    if stage is None:
        raise ConfigError(f"{name}: no such stage", hint=f"one of {', '.join(names())}")
    return stage


def board() -> dict[str, tuple[str, BoardRow]]:
    """The rows of the score board by name, each with the stage whose fact it shows."""
    return {row.name: (name, row) for name in names() for row in find(name).board}
