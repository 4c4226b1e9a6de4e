"""Canonical paths: one file has one path and one group, whatever links or spellings a manifest uses."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from muomni.errors import DataError
from muomni.media import stored

LONGEST_TOLD = 500  # characters of a path in a message: it may be a picture in base64
KEPT = 1 << 16  # spellings whose places are remembered: rows of one photo lie near each other


class Places:
    """Finds media by the paths that rows name.

    A path without links is told from its folder's real path, looked up once a folder. A linked file is the
    file that it points to. Only files of several hard links, and those in folders that don't tell capitals
    from small letters, are remembered one by one.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        """Takes roots: absolute folders that are tried one after another; names are told from the first."""
        self.roots = tuple(dict.fromkeys(roots))
        self._real_root = os.path.realpath(self.roots[0])
        self._found: dict[str, tuple[str, str]] = {}
        self._folders: dict[
            str, tuple[str, bool]
        ] = {}  # folder -> its one name, and whether case counts for nothing in it
        self._named: dict[
            str, str
        ] = {}  # real path of a folder outside of the root -> the first name that it had
        self._inodes: dict[tuple[int, int], str] = {}

    def find(self, path: str) -> tuple[str, str]:
        """The absolute path of a medium, and its name for groups: the path from the first root, so that no
        machine's folders are in it.

        Raises  DataError (missing).
        """
        place = self._found.get(path)
        if place is None:
            container = stored.container(path) if "!" in path else None
            if container is not None:
                whole = self._path(container) + path[len(container) :]
                name = stored.identity(whole)
                place = whole, self._from_root(name) if name.startswith("/") else name
            else:
                full = self._path(path)
                place = full, self._from_root(full)
            if len(self._found) >= KEPT:
                self._found.clear()
            self._found[path] = place
        return place

    def has(self, root: str, path: str) -> bool:
        """Whether a root has such a file."""
        return self._file(os.path.normpath(os.path.join(root, path))) is not None

    def _path(self, path: str) -> str:
        for root in self.roots:
            status = self._file(full := os.path.normpath(os.path.join(root, path)))
            if status is not None:
                return self._one(full, status)
        first_path = os.path.join(self.roots[0], path)
        try:
            first_path.encode()
        except UnicodeEncodeError as error:
            raise DataError("missing", f"{path!r}: expected a path in UTF-8, got {first_path!r}") from error
        hint = (
            "nothing is fetched from the network; download it first"
            if "://" in path
            else "check the source's `root`"
        )
        raise DataError("missing", f"{path[:LONGEST_TOLD]}: expected a file under {self.roots[0]}", hint=hint)

    @staticmethod
    def _file(full: str) -> os.stat_result | None:
        """What the system says of a file, or of a link to one."""
        try:
            if not full.isascii():
                full.encode()
            status = os.lstat(full)
            if stat.S_ISREG(status.st_mode):
                return status
            return status if stat.S_ISLNK(status.st_mode) and os.path.isfile(full) else None
        except (OSError, ValueError):  # a NUL in the name, half a surrogate pair
            return None

    def _one(self, full: str, status: os.stat_result) -> str:
        """The one path of a file."""
        if stat.S_ISLNK(status.st_mode):
            full = os.path.realpath(full)
            status = os.stat(full)
        folder, _, name = full.rpartition("/")
        folder, folds = self._folder(folder, name)
        full = f"{folder}/{name}"
        if status.st_nlink > 1 or folds:
            return self._inodes.setdefault((status.st_dev, status.st_ino), full)
        return full

    def _folder(self, folder: str, name: str) -> tuple[str, bool]:
        known_folder = self._folders.get(folder)
        if known_folder is None:
            real = os.path.realpath(folder)
            if real == self._real_root or real.startswith(f"{self._real_root}/"):
                one = self.roots[0] + real[len(self._real_root) :]
            else:
                one = self._named.setdefault(real, folder)
            known_folder = self._folders[folder] = one, _folds_case(folder, name)
        return known_folder

    def _from_root(self, full: str) -> str:
        root = self.roots[0]
        return full[len(root) + 1 :] if full.startswith(f"{root}/") else os.path.relpath(full, root)


def _folds_case(folder: str, name: str) -> bool:
    """Whether a folder finds its files under other capitals too, as those of macOS and Windows do: tried with
    one of them."""
    other = name.swapcase()
    try:
        return (
            other != name
            and os.path.samefile(f"{folder}/{name}", f"{folder}/{other}")
            and other not in os.listdir(folder)
        )
    except OSError:
        return False
