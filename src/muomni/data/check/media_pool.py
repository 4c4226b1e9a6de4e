"""Media opened side by side: decoding holds Python's lock most of its time, so processes do it, where the
system can fork them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from muomni.data.check import media_stats
from muomni.data.check.media_stats import MediaStats
from muomni.data.sample import AudioPart, ImagePart
from muomni.errors import DataError

MOST_WORKERS = 8
FEW = 128  # media that are opened here: a process takes longer to begin
AT_ONCE = 8  # media of one message to a worker
LOOKED_S = 1.0  # how often a worker looks whether its parent is there


class MediaPool:
    """Opens pictures and sounds; `with` ends its workers."""

    def __init__(self, workers: int | None = None, few: int = FEW) -> None:
        """Takes workers: None: as many as this process has cores, up to 8; few: how many media are opened
        before there are any."""
        self._workers = min(MOST_WORKERS, cores()) if workers is None else workers
        self._left = few
        self._executor: Executor | None = None

    def __enter__(self) -> MediaPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def examine(self, parts: Sequence[ImagePart | AudioPart]) -> Iterator[MediaStats | DataError]:
        """What each of them is, or why it can't be used, in their order.

        Raises  DataError (undecodable) where a decoder ended its process.
        """
        self._left -= len(parts)
        if self._left >= 0 or self._workers < 2:
            return map(_examined, parts)
        if self._executor is None:
            self._executor = _executor(self._workers)
        return self._together(self._executor, parts)

    @staticmethod
    def _together(
        executor: Executor, parts: Sequence[ImagePart | AudioPart]
    ) -> Iterator[MediaStats | DataError]:
        try:
            yield from executor.map(_examined, parts, chunksize=AT_ONCE)
        except BrokenProcessPool as error:
            names = f"{parts[0].path:.80} and {parts[-1].path:.80}"
            raise DataError(
                "undecodable", f"a decoder died at one of {len(parts)} files, between {names}"
            ) from error


def _executor(workers: int) -> Executor:
    # macOS's own libraries don't stand a fork.
    return forked(workers) if sys.platform == "linux" else ThreadPoolExecutor(workers)


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def forked(workers: int, begin: Callable[..., None] | None = None, *args: Any) -> Executor:
    """Processes that have all modules at once, and need no guarded main module.

    Takes   begin: what each calls first, with args; neither is pickled.
    """
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(), begin, args))


def _begin(parent: int, begin: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    end_with(parent)
    if begin is not None:
        begin(*args)


def end_with(parent: int) -> None:
    """In a child: an interrupt is its parent's matter, and it ends with its parent, even where that was
    killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKED_S)
    os._exit(1)


def _examined(part: ImagePart | AudioPart) -> MediaStats | DataError:
    try:
        return media_stats.examine(part)
    except DataError as error:
        return error
