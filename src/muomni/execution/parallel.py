"""Jobs with dependencies: their order, which may start now, and commands run in parallel."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter

from muomni.errors import GateRed
from muomni.runtime import stop_on_signals

GRACE_S = 60.0  # how long a command may take to save after it was asked to stop


class Schedule:
    """Which jobs may start: each after those that it needs, in the order given, while there is room.

    Takes   needs: for each job, in order, those that must be done before it; a name that is no job counts as
            done; room, widths: jobs run together while their widths (else 1) fit the room; a wider one runs
            alone.
    Raises  graphlib.CycleError where jobs need each other in a circle.
    """

    def __init__(
        self, needs: Mapping[str, Iterable[str]], room: int = 1, widths: Mapping[str, int] | None = None
    ) -> None:
        inside = {name: [other for other in before if other in needs] for name, before in needs.items()}
        self._sorter = TopologicalSorter(inside)
        self._sorter.prepare()
        self._places = {name: place for place, name in enumerate(needs)}
        self._room, self._widths = room, widths or {}
        self._waiting: list[str] = []
        self._running: dict[str, int] = {}  # their widths

    def __bool__(self) -> bool:
        """Whether a job is not done yet."""
        return self._sorter.is_active()

    def start(self) -> Iterator[str]:
        """The jobs that may start now; each counts as running from when it is given."""
        self._waiting = sorted([*self._waiting, *self._sorter.get_ready()], key=self._places.__getitem__)
        for name in list(self._waiting):
            width = self._widths.get(name, 1)
            if not self._running or sum(self._running.values()) + width <= self._room:
                self._waiting.remove(name)
                self._running[name] = width
                yield name

    def done(self, name: str) -> None:
        """A running job has ended well: there is room again, and those that need it may start."""
        del self._running[name]
        self._sorter.done(name)


def in_order(needs: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """The jobs one after the other, as `Schedule` starts them where there is room for one.

    Raises  as `Schedule`.
    """
    schedule = Schedule(needs)
    while schedule:
        name = next(schedule.start())
        yield name
        schedule.done(name)


def side_by_side(
    commands: Mapping[str, Sequence[str]],
    needs: Mapping[str, Sequence[str]],
    *,
    jobs: int,
    environment: Mapping[str, str],
    widths: Mapping[str, int] | None = None,
    may_be_red: Collection[str] = (),
) -> tuple[str, int] | None:
    """Run named commands in their order, `jobs` at a time.

    Takes   needs: names that must have ended well before a command starts; widths: how many jobs' room a
            command fills, else one (threads that share cores wait for each other: two stages of two threads
            on two cores are slower than one after the other); may_be_red: commands that have ended well with
            exit code 1 too.
    Gives   None if all ended well, else the first that did not and its exit code; the others were asked to
            stop, and have saved. A signal to this process is passed on: then the name is "" and the code the
            signal's.
    """
    schedule = Schedule({name: needs[name] for name in commands}, jobs, widths)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: tuple[str, int] | None = None
    with stop_on_signals() as stop:
        try:
            while schedule:
                for name in schedule.start():
                    running[name] = subprocess.Popen(
                        commands[name], env=dict(environment), stdin=subprocess.DEVNULL
                    )
                time.sleep(0.1)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    if code == 0 or (code == GateRed.exit_code and name in may_be_red):
                        schedule.done(name)
                    elif failed is None:
                        failed = (name, code if code > 0 else 128 - code)
                if stop and failed is None:
                    failed = ("", stop.exit_code)
                if failed is not None:
                    break
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                try:
                    process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
    return failed
