"""What installed packages bring to a registry of ours, by entry points of its group."""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points


def installed(group: str, ours: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The entry points of a group by name, not loaded yet.

    Takes   ours: names that no package takes from us.
    """
    return _installed(group, ours, tuple(sys.path))


@lru_cache(maxsize=16)  # names are asked for all over a recipe and a page, and a look costs milliseconds
def _installed(group: str, ours: tuple[str, ...], paths: tuple[str, ...]) -> dict[str, EntryPoint]:
    """The same for packages on these paths, the interpreter's."""
    return {each.name: each for each in entry_points(group=group) if each.name not in ours}
