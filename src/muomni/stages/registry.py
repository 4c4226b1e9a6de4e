"""Registry of stages: ours, and those of installed packages (entry points)."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint

from muomni import plugins
from muomni.errors import ConfigError
from muomni.stages.stage import BoardRow, Stage

OURS = (
    "thinker",
    "hearing",
    "vision",
    "codec",
    "image_codec",
    "rows",
    "mmpt",
    "talker",
    "omni",
    "align",
    "sweep",
    "instruct",
)
GROUP = "muomni.stages"  # of entry points: `NAME = "package.module:STAGE"`


def names() -> tuple[str, ...]:
    """The names of all stages, ours first."""
    return (*OURS, *_others())


def find(name: str) -> Stage:
    """The stage of that name; its module, and what it imports, is loaded only now.

    Raises  ConfigError where there is none.
    """
    if name in OURS:
        stage: Stage = importlib.import_module(f"muomni.stages.{name}").STAGE
        return stage
    others = _others()
    if name not in others:
        raise ConfigError(f"{name}: no such stage", hint=f"one of {', '.join((*OURS, *others))}")
    stage_brought: Stage = others[name].load()
    return stage_brought


def board() -> dict[str, tuple[str, BoardRow]]:
    """The rows of the score board by name, each with the stage whose fact it shows."""
    return {row.name: (name, row) for name in names() for row in find(name).board}


def _others() -> dict[str, EntryPoint]:
    """What installed packages bring, by name; none of them takes the name of one of ours."""
    return plugins.installed(GROUP, OURS)
