"""Files that are either whole or absent: atomic writes, digests, JSON lines."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from muomni.errors import UserError

T = TypeVar("T")
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}

PART = (
    ".part"  # ends the name of everything that is being made; what has it after a crash is nothing to anyone
)
READY = ".new"  # ends the name of a whole folder that waits for its place, where two names can't be exchanged


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename after it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; each new name is on the disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part, after a power cut
    too."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.chmod(name, 0o644)
            os.fsync(stream.fileno())
        os.replace(name, path)
        sync(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given, human-readable."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_stored(path: Path, kind: type[T], *, hint: str) -> T:
    """The value in a JSON file that this program wrote itself.

    Raises  UserError where it is torn, or holds no value of that kind: nothing is guessed in its place.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: torn, or no JSON: {' '.join(str(error).split())[:120]}", hint=hint
        ) from error
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{path}: torn: expected {_KINDS[kind]}, got {type(value).__name__}", hint=hint)
    return value


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, whole and synced, when the block ends well; else it leaves
    nothing.

    A folder that is there already is there until the very moment in which the new one is: their names are
    exchanged in one system call. Where the system has none (other than Linux, some network disks), the old
    one steps aside for the new one, which lies ready beside it, and `warm_start` finishes what a crash
    between the two renames left.
    """
    make_folder(path.parent)
    settle(path)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART))
    try:
        yield part
        os.chmod(part, 0o755)
        for file in sorted(part.rglob("*")):
            sync(file)
        sync(part)
        if not path.exists() and _take_free_name(part, path):
            sync(path.parent)
        elif _exchange(part, path):
            sync(path.parent)  # before the old one is taken apart: else a power cut could leave neither
            remove(part)
        else:
            _step_aside(part, path)
    except BaseException:
        remove(part)
        raise


def _take_free_name(part: Path, path: Path) -> bool:
    """Call `part` `path`; False where another process, a rank that made the same, came first."""
    try:
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _step_aside(part: Path, path: Path) -> None:
    """Put `part` in the place of `path` by three renames, each of which leaves the old or the new whole one
    to be found."""
    ready = path.parent / f".{path.name}{READY}"
    os.replace(part, ready)
    sync(path.parent)
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART))
    os.replace(path, old / "old")
    os.replace(ready, path)
    sync(path.parent)
    remove(old)


def settle(path: Path) -> None:
    """Bring a folder to its name that was whole and ready when a crash kept it from it; nothing else
    changes."""
    ready = path.parent / f".{path.name}{READY}"
    if not ready.exists():
        return
    if path.exists():  # the crash came before the old one stepped aside
        remove(ready)
    else:
        os.replace(ready, path)
        sync(path.parent)


def clear_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Finish or remove what writers that died left in a folder, and below it if `deep`. Nobody else may be
    writing there."""
    if not folder.is_dir():
        return
    entries = folder.rglob(".*") if deep else folder.glob(".*")
    for path in sorted(entries):
        if path.name.endswith(READY) and path.is_dir():
            settle(path.with_name(path.name[1 : -len(READY)]))
        elif path.name.endswith(PART):
            remove(path)


@contextmanager
def only_writer(
    lock: Path, *, patience_s: float = 60.0, say: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold a lock file for this process; whoever else asks for it waits, and is refused after a while.

    The system frees it however the process ends, and children do not inherit it. It stays as an empty file.
    Raises  UserError, with the other's process number, where that doesn't let go.
    """
    import fcntl

    make_folder(lock.parent)
    with lock.open("a+", encoding="ascii") as stream:
        end = time.monotonic() + patience_s
        waits = False
        while True:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
            stream.seek(0)
            other = stream.read().strip()
            if time.monotonic() >= end:
                raise UserError(
                    f"{lock}: process {other or 'unknown'} is still at work there after {patience_s:.0f} s",
                    hint="let it end, or stop it, and run the same command again",
                )
            if not waits:
                say(f"waiting for process {other or 'unknown'}, which is still at work there")
                waits = True
            time.sleep(0.2)
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        try:
            yield
        finally:
            stream.seek(0)
            stream.truncate()


class Use:
    """A lock file that says that a thing is in use: shared by all who read it, or one process' alone, to make
    or remove it.

    Who waits, waits for a share and never to be alone: one who went from alone to a share and kept it would
    otherwise be waited for as long as it lives. The system frees it however the process ends. Children that
    are forked hold it too, those that are spawned don't.
    """

    def __init__(self, lock: Path) -> None:
        make_folder(lock.parent)
        self._stream = lock.open("a")

    def share(self, say: Callable[[str], None] | None = None) -> bool:
        """Read from here on, together with others, and wait where another is alone; `say` is told that.
        Without it, don't wait. Whether it is shared. Between `alone` and this, another may have been alone:
        look again."""
        import fcntl

        if self._now(fcntl.LOCK_SH):
            return True
        if say is None:
            return False
        say(f"waiting for another process, which is at work on {self._stream.name}")
        fcntl.flock(self._stream, fcntl.LOCK_SH)
        return True

    def alone(self) -> bool:
        """Whether nobody else uses it, and it is ours alone from here on; if not, a share that was held is
        gone too."""
        import fcntl

        return self._now(fcntl.LOCK_EX)

    def _now(self, kind: int) -> bool:
        import fcntl

        try:
            fcntl.flock(self._stream, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True

    def close(self) -> None:
        """Use it no more."""
        self._stream.close()


def put_away(path: Path) -> None:
    """Delete a whole folder, whose name is gone at once: a crash half-way leaves nothing of it under that
    name."""
    away = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART))
    os.replace(path, away / path.name)
    sync(path.parent)
    remove(away)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, as far as it goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(one: Path, two: Path) -> bool:
    """Swap two names in one step, so that each is there at any time; False where the system can't."""
    call = _renameat2()
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call is None:
        return False
    if call(here, os.fsencode(one), here, os.fsencode(two), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (
        errno.ENOSYS,
        errno.EINVAL,
        errno.EOPNOTSUPP,
    ):  # an old kernel, or a disk that has no such call
        return False
    raise OSError(number, os.strerror(number), str(two))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's function, None where it has none."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    call.restype = ctypes.c_int
    function: Callable[..., int] = call
    return function


def sha256_bytes(content: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_once(path: Path) -> str:
    """As `sha256_file`, but a file that has not changed since is read once a process: weights are
    gigabytes."""
    status = path.stat()
    key = str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    if key not in _DIGESTS:
        _DIGESTS[key] = sha256_file(path)
    return _DIGESTS[key]


State = tuple[
    str, int, int, int, int
]  # of a file: path, size in bytes, times of change (content, and anything) in ns, inode
_DIGESTS: dict[State, str] = {}


def known_digests() -> dict[State, str]:
    """What `sha256_once` has read so far: the main rank tells it to the others, which then need not read the
    same files."""
    return dict(_DIGESTS)


def learn_digests(digests: dict[State, str]) -> None:
    """Take over what another rank's `known_digests` gave."""
    _DIGESTS.update(digests)


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return sha256_bytes(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()
    )
