"""Locks of a run's folder: one run owns it at a time; ranks and stages of that run may join."""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from muomni import files, runtime
from muomni.errors import UserError
from muomni.execution.recipe import Recipe

LOCKS, LOCK, OWNER = "locks", "run", "owner.json"
PATIENCE_S = 60.0


@contextmanager
def of_folder(
    folder: Path, recipe: Recipe, *, fresh: bool, patience_s: float | None = None
) -> Iterator[None]:
    """Hold a run's folder while a run of this recipe works there.

    Runs that describe its stages alike may work there together, each on other stages (a stage has a lock of
    its own), and so may the stages that a run has started as processes. Another run, and one that begins
    anew, waits until nobody works there, and is refused after a while: it would put its settings beside the
    results of others. The system frees the lock of a process that died.
    Takes   patience_s: how long it waits; None: a minute.
    Raises  UserError naming host and process of the other, and where its settings differ.
    """
    import fcntl

    own = {"host": socket.gethostname(), "pid": os.getpid(), "fresh": fresh, "stages": _digests(recipe)}
    files.make_folder(folder / LOCKS)
    with (folder / LOCKS / LOCK).open("a+", encoding="ascii") as stream:
        end = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
        waits = False
        while not _enter(stream, folder / LOCKS / OWNER, own):
            other = _owner(folder / LOCKS / OWNER)
            who = f"process {other.get('pid', 'unknown')} on {other.get('host', 'an unknown host')}"
            if time.monotonic() >= end:
                raise UserError(
                    f"{folder}: {who} is still at work there{_difference(own, other)}",
                    hint="let it end, or stop it, and run the same command again; --out DIR makes a run of its own",
                )
            if not waits:
                print(
                    f"[{recipe.name}] waiting for {who}, which is at work in {folder}",
                    file=sys.stderr,
                    flush=True,
                )
                waits = True
            time.sleep(random.uniform(0.1, 0.3))
        try:
            yield
        finally:
            fcntl.lockf(stream, fcntl.LOCK_UN)


def _enter(stream: IO[str], path: Path, own: dict[str, Any]) -> bool:
    """Take the lock, alone or beside runs of the same stages; whether it was had."""
    if _lock(stream, alone=True):
        files.write_json(path, own)
        _lock(stream, alone=False)
        return True
    if not _lock(stream, alone=False):  # another one writes its name this very moment
        return False
    other = _owner(path)
    if _may_join(own, other):
        files.write_json(path, {**other, "stages": {**other["stages"], **own["stages"]}})
        return True
    import fcntl

    fcntl.lockf(stream, fcntl.LOCK_UN)
    return False


def _lock(stream: IO[str], *, alone: bool) -> bool:
    """Ask the system for the lock without waiting. Children that are forked do not inherit it."""
    import fcntl

    try:
        fcntl.lockf(stream, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False


def _owner(path: Path) -> dict[str, Any]:
    """What the run at work has written of itself; empty where that is torn."""
    try:
        owner = files.read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("stages"), dict) else {}


def _may_join(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if not other:
        return False
    if os.environ.get(runtime.PARENT) == str(other["pid"]) and own["host"] == other["host"]:
        return True  # a stage of that very run
    return not own["fresh"] and not _different(own, other)


def _different(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Stages that both describe, each otherwise."""
    return [name for name, digest in own["stages"].items() if other["stages"].get(name, digest) != digest]


def _difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Why this run may not join the other."""
    if other and (different := _different(own, other)):
        return f" with other settings of {', '.join(different)}"
    return ", and --fresh would delete what it makes" if own["fresh"] else ""


def _digests(recipe: Recipe) -> dict[str, str]:
    return {
        name: files.sha256_json(entry.settings.model_dump(mode="json"))
        for name, entry in recipe.stages.items()
    }
