"""A corpus that a child reads while this process imports torch, where there is a second core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from muomni.data import readers
from muomni.data.check.media_pool import end_with
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source


class Recorded(Quarantine):
    """A quarantine that another one can repeat."""

    def __init__(self, limit: float) -> None:
        super().__init__(None, limit)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def add(self, path: str | Path, row: int | str, reason: str, detail: str = "") -> None:
        """As a quarantine does."""
        super().add(path, row, reason, detail)
        self.calls.append(("add", (path, row, reason, detail)))

    def note(self, path: str | Path, row: int | str, reason: str, detail: str) -> None:
        """As a quarantine does."""
        super().note(path, row, reason, detail)
        self.calls.append(("note", (path, row, reason, detail)))


class Reader:
    """A child that reads a corpus. It ends with this process.

    Where it fails, the corpus is read here as if there were none.
    """

    def __init__(self, **asked: Any) -> None:
        """Start it.

        Takes   asked: what `readers.load` is asked for; in the place of its quarantine the `limit` of one.
        """
        self.asked = asked
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._child = context.Process(target=_read, args=(theirs, os.getpid(), asked), daemon=True)
        self._child.start()
        theirs.close()

    def corpus(self, quarantine: Quarantine) -> readers.Corpus | None:
        """The corpus; what was set aside goes to the quarantine. None where the child has failed, for
        whatever reason."""
        corpus: readers.Corpus
        try:
            corpus, calls = self._ours.recv()
            self._ours.send("taken")
            self._child.join()
        except (EOFError, OSError):
            return None
        for name, args in calls:
            getattr(quarantine, name)(*args)
        return replace(corpus, notes=quarantine.notes)

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.join()
        self._ours.close()


def _read(connection: Connection, parent: int, asked: dict[str, Any]) -> None:
    end_with(parent)
    quarantine = Recorded(asked["limit"])
    rest = {name: value for name, value in asked.items() if name != "limit"}
    with contextlib.suppress(Exception):  # the parent reads the same and says what is wrong
        connection.send((readers.load(**rest, quarantine=quarantine), quarantine.calls))
        connection.recv()  # the parent has opened the samples' file


_reader: Reader | None = None


def begin(sources: Sequence[Source], **how: Any) -> None:
    """Have a child read what the next `load` will be asked for; for a process that has no threads yet.

    Takes   how: base, val_split, seed, limit (of the quarantine).
    """
    global _reader
    _reader = Reader(sources=list(sources), **how)


def load(sources: Sequence[Source], *, quarantine: Quarantine, **how: Any) -> readers.Corpus:
    """`readers.load`, by the child where it was begun with the same."""
    global _reader
    reader, _reader = _reader, None
    if reader is not None:
        asked = {"sources": list(sources), "limit": quarantine.limit}
        asked |= {name: value for name, value in how.items() if value is not None}
        corpus = reader.corpus(quarantine) if reader.asked == asked else None
        reader.close()
        if corpus is not None:
            return corpus
    return readers.load(sources, quarantine=quarantine, **how)
