"""Ranks: sums over all of them, the wrapper that syncs gradients, and what happens when one of them fails or
the main one works alone.

Collectives are for what all ranks do in step. Whatever only one rank does (measuring, saving, failing) goes
over the key-value store that the process group was made with: no collective waits for it, so no collective
can run out of time over it.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import DistributedDataParallel

from muomni.errors import InternalError, MuomniError
from muomni.runtime import Runtime

POLL_S = 0.5
HEARD_WITHIN_S = 5.0  # a failing main rank takes its store with it, so it stays until the others know why
SILENT_S = 300.0  # a rank that gives no sign of life for so long is given up
STUCK_S = 60.0  # on a GPU a collective may never return once a rank is gone: the process then ends itself
# What gloo says when a connection breaks or nobody answers: it has no error of its own, and names its source
# file in most of them.
LOST = ("gloo/", "Application timeout caused pair closure")


class RankFailed(MuomniError):
    """Another rank ended, so this one can't go on; the message is the other's."""


# --- what all ranks do in step ------------------------------------------------------------------------------------------------------------


def gather(value: Any, runtime: Runtime) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    if runtime.world == 1:
        return [value]
    everyone: list[Any] = [None] * runtime.world
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def added(parts: list[dict[str, float]]) -> dict[str, float]:
    """Each named number summed; the parts may hold different names."""
    out: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            out[name] = out.get(name, 0) + value
    return dict(sorted(out.items()))


def sum_counts(counts: dict[str, float], runtime: Runtime) -> dict[str, float]:
    """Each named number summed over the ranks; ranks may hold different names."""
    return counts if runtime.world == 1 else added(gather(counts, runtime))


def wrap(objective: nn.Module, runtime: Runtime) -> nn.Module:
    """The objective under DDP where there are several ranks; unused parameters are looked for: ranks may hold
    other modalities."""
    if runtime.world == 1:
        return objective
    devices = [runtime.device.index] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(
        objective, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False
    )


def spread(value: str, runtime: Runtime) -> int:
    """How many ranks hold another value than the main one."""
    everyone = gather(value, runtime)
    return sum(other != everyone[0] for other in everyone)


# --- what one rank does alone -------------------------------------------------------------------------------------------------------------


def wait_for_main(runtime: Runtime) -> None:
    """Wait, for as long as it takes, until the main rank has come to this place too; the main rank does not
    wait."""
    from_main(None, runtime)


def from_main(value: Any, runtime: Runtime) -> Any:
    """The main rank's value, on every rank, however long the main rank needs to get here.

    Raises  RankFailed where another rank ended meanwhile.
    """
    return value if runtime.world == 1 else line(runtime).from_main(value)


@contextmanager
def together(runtime: Runtime, *, alike: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Work of all ranks: an error of one of them ends all the others with its message.

    Takes   alike: errors that every rank raises by itself, so that nobody needs to be told.
    Raises  RankFailed in place of the error of a collective that another rank left.
    """
    if runtime.world == 1:
        yield
        return
    ours = line(runtime)
    ours.depth += 1
    try:
        yield
    except BaseException as error:
        if isinstance(error, alike):
            ours.settle()
        if isinstance(error, (RankFailed, *alike)):
            raise
        if is_lost(error):
            failure = ours.why()
            ours.tell(failure)
            raise failure from error
        ours.tell(error)
        raise
    else:
        ours.settle()
    finally:
        ours.depth -= 1


def is_lost(error: BaseException) -> bool:
    """Whether an error is that of a collective, or of the store, whose other end is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return type(error) is RuntimeError and any(words in str(error) for words in LOST)


_LINES: dict[int, Line] = {}  # by the identity of the process group
atexit.register(lambda: leave())


def line(runtime: Runtime) -> Line:
    """This process's line to the other ranks of the group that it is in."""
    group = id(torch.distributed.group.WORLD)
    if group not in _LINES:
        _LINES[group] = Line(runtime)
    return _LINES[group]


def leave() -> None:
    """Leave the group; at the end of a process it is done for it."""
    for ours in _LINES.values():
        ours.leave()
    _LINES.clear()


class Line:
    """The key-value store of a process group as a side channel: who failed and why, what the main rank has to
    tell, who is alive.

    A thread looks into it all the time, so that a rank knows of a failure also after the main rank, which
    holds the store, has gone.
    """

    def __init__(self, runtime: Runtime, *, stuck_s: float | None = None) -> None:
        self.runtime, self.store = runtime, c10d._get_default_store()
        self.stuck_s = (
            stuck_s if stuck_s is not None else (STUCK_S if runtime.device.type == "cuda" else None)
        )
        self.told = 0  # values of the main rank so far
        self.depth = self.settled = 0  # how often `together` is entered, and was left for good
        self.failure: RankFailed | None = None
        self.store_is_gone = False
        self.is_leaving = threading.Event()
        self._over = threading.Event()
        self._signs: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._look, daemon=True, name="ranks")
        self._thread.start()

    def from_main(self, value: Any) -> Any:
        """As the function of this name."""
        self.told += 1
        key, pause_s = f"told/{self.told}", 0.01
        if self.runtime.is_main:
            self.store.set(key, base64.b64encode(pickle.dumps(value)).decode())
            return value
        while True:
            if self.failure is not None:
                raise self.failure
            try:
                if self.store.check([key]):
                    return pickle.loads(
                        base64.b64decode(self.store.get(key))
                    )  # written by our own main rank, as in torch's collectives
            except RuntimeError as error:
                raise self.why() from error
            if self._is_silent(0, SILENT_S):
                raise RankFailed(f"rank 0 gave no sign of life for {SILENT_S:.0f} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S)

    def tell(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends; the first failure of all is the one that they hear of."""
        self.is_leaving.set()
        own = (
            f"rank {self.runtime.rank}: {type(error).__name__}: {error}"
            if not isinstance(error, RankFailed)
            else error.message
        )
        failure = (own, getattr(error, "exit_code", InternalError.exit_code), self.runtime.rank)
        with contextlib.suppress(RuntimeError):
            self.store.compare_set("failed", "", json.dumps(failure))
            if self.runtime.is_main:
                self._wait(lambda rank: self.store.check([f"heard/{rank}"]), HEARD_WITHIN_S)

    def why(self, within_s: float = 3.0) -> RankFailed:
        """Why a collective broke: what the failing rank said, if it said anything in time."""
        self.is_leaving.set()
        end = time.monotonic() + within_s
        while self.failure is None and not self.store_is_gone and time.monotonic() < end:
            time.sleep(POLL_S / 10)
        if self.failure is not None:
            return self.failure
        who = "rank 0" if self.store_is_gone else "another rank"
        return RankFailed(
            f"{who} ended without a word, or hangs",
            hint="killed, out of memory? run the same command again to go on",
        )

    def settle(self) -> None:
        """All work is done: the main rank, which holds the store, stays until nobody needs it any more."""
        if self.depth > 1:
            return
        self.settled += 1
        with contextlib.suppress(RuntimeError):
            self.store.set(f"done/{self.settled}/{self.runtime.rank}", "1")
            if self.runtime.is_main:
                self._wait(
                    lambda rank: (
                        self.store.check([f"done/{self.settled}/{rank}"])
                        or self._is_silent(rank, 20 * POLL_S)
                    ),
                    60.0,
                )

    def leave(self) -> None:
        """Leave the group at the end of the process."""
        self._over.set()
        self._thread.join(timeout=10 * POLL_S)
        if self.failure is not None or self.is_leaving.is_set():
            return  # what is broken is not taken apart: it could hang
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _wait(self, is_done: Any, most_s: float) -> None:
        end = time.monotonic() + most_s
        others = set(range(self.runtime.world)) - {self.runtime.rank}
        while others and time.monotonic() < end:
            others = {rank for rank in others if not is_done(rank)}
            time.sleep(POLL_S / 10 if others else 0)

    def _is_silent(self, rank: int, for_s: float) -> bool:
        """Whether a rank's sign of life has not changed for so long."""
        key = f"alive/{rank}"
        sign = self.store.get(key) if self.store.check([key]) else b""
        if self._signs.get(rank, (None, 0.0))[0] != sign:
            self._signs[rank] = sign, time.monotonic()
        return time.monotonic() - self._signs[rank][1] > for_s

    def _look(self) -> None:
        signs, since = 0, None
        while not self._over.wait(POLL_S):
            try:
                signs += 1
                self.store.set(f"alive/{self.runtime.rank}", str(signs))
                if self.failure is None and self.store.check(["failed"]):
                    message, code, rank = json.loads(self.store.get("failed"))
                    if rank != self.runtime.rank:
                        failure = RankFailed(message)
                        failure.exit_code = code
                        self.failure, since = failure, time.monotonic()
                    self.store.set(f"heard/{self.runtime.rank}", "1")
            except RuntimeError:  # the store is gone
                self.store_is_gone = True
                since = since or time.monotonic()
            is_stuck = (
                self.stuck_s is not None and since is not None and time.monotonic() - since > self.stuck_s
            )
            if is_stuck and not self.is_leaving.is_set():
                failure = self.failure or RankFailed("rank 0 ended without a word")
                print(
                    f"error: {failure.message}; this rank waits for it in a collective, and is ended",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(failure.exit_code)
            if self.store_is_gone and self.stuck_s is None:
                return
