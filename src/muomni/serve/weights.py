"""Weights that can't change while they answer.

`safetensors` maps files: the tensors of a network are pages of the file, so whoever copies a newer file over it
in place changes the numbers of a network that is open, those already read too. What this project writes is always
a new file that takes the old one's name, and a mapping keeps the old one; other programs do otherwise. So a server
copies its weights into memory of its own as it opens them, where they are small enough, and watches the files of
the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from muomni.models import store
from muomni.serve.errors import OURS, ApiError

COPIED_SHARE = 0.25  # of the machine's memory: what is larger stays mapped
MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class _State:
    device: int
    inode: int
    size: int
    changed_ns: int


class Weights:
    """The files of weights that this process still maps, as they were when it began to serve."""

    def __init__(self) -> None:
        self.files = {path: state for path in mapped() if (state := _state(path)) is not None}

    def changed(self) -> Path | None:
        """A file that was written to in place since; None where all are what they were. A file that another took the
        name of, or that was deleted, is what it was to those who map it."""
        for path, before in self.files.items():
            now = _state(path)
            if now is not None and (now.device, now.inode) == (before.device, before.inode) and now != before:
                return path
        return None

    def require_unchanged(self) -> None:
        """Raises  ApiError (503) for ever after where a file was written to in place."""
        if self.changed() is not None:
            message = "the weights were overwritten while they were served: start the server again"
            raise ApiError(503, message, kind=OURS, code="weights_changed")


@contextlib.contextmanager
def private(folders: list[Path]) -> Iterator[bool]:
    """While it lasts, weights are copied as they are opened; gives whether they are (the files of `folders` may be too
    large for that)."""
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*.safetensors"))
    fits = size <= COPIED_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with store.copying() if fits else contextlib.nullcontext():
        yield fits


def mapped() -> list[Path]:
    """The files of weights that this process maps; none where the system does not say."""
    try:
        lines = MAPS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    names = {line.split(maxsplit=5)[5] for line in lines if line.endswith(".safetensors")}
    return sorted(Path(name) for name in names)


def _state(path: Path) -> _State | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
