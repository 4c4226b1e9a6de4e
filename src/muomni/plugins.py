"""Registries: a name -> an object of ours or of an installed package, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


@dataclass(frozen=True)
class Registry:
    """Ours by name, each as "module:object", and what packages bring by entry points of a group under other
    names."""

    group: str
    ours: dict[str, str]

    def names(self) -> tuple[str, ...]:
        """All names, ours first; nothing is imported."""
        return (*self.ours, *self._brought())

    def find(self, name: str) -> Any | None:
        """The object of a name, None where there is none; its module, and what that imports, is loaded only
        now."""
        if name in self.ours:
            return load(self.ours[name])
        brought = self._brought().get(name)
        return None if brought is None else brought.load()

    def _brought(self) -> dict[str, EntryPoint]:
        return _installed(self.group, tuple(self.ours), tuple(sys.path))


def load(place: str) -> Any:
    """The object that "module:object" names."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


@lru_cache(maxsize=16)  # names are asked for all over a recipe and a page, and a look costs milliseconds
def _installed(group: str, ours: tuple[str, ...], paths: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The entry points of a group, of packages on these paths, which are the interpreter's."""
    return {each.name: each for each in entry_points(group=group) if each.name not in ours}


# Each stage's file holds its `STAGE`. Of two that leave the same kind of model, the later is the more finished.
STAGES = Registry(
    "muomni.stages",
    {
        name: f"muomni.stages.{name}:STAGE"
        for name in (
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
            "voice_base",
            "voice",
        )
    },
)
