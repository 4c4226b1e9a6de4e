"""Commands side by side: each starts as soon as those that it needs have ended well, at most so many at a time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Mapping, Sequence

from muomni.errors import GateRed
from muomni.runtime import stop_on_signals

GRACE_S = 60.0  # how long a command may take to save after it was asked to stop


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

    Takes   needs: names that must have ended well before a command starts; widths: how many jobs' room a command fills, else one (threads
            that share cores wait for each other: two stages of two threads on two cores are slower than one after the other);
            may_be_red: commands that have ended well with exit code 1 too.
    Gives   None if all ended well, else the first that did not and its exit code; the others were asked to stop, and have saved.
            A signal to this process is passed on: then the name is "" and the code the signal's.
    """
    waiting, done, widths = list(commands), set[str](), widths or {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: tuple[str, int] | None = None
    with stop_on_signals() as stop:
        try:
            while (waiting and failed is None) or running:
                for name in list(waiting):
                    taken = sum(widths.get(other, 1) for other in running)
                    has_room = not running or taken + widths.get(name, 1) <= jobs
                    if failed is None and done.issuperset(needs[name]) and has_room:
                        running[name] = subprocess.Popen(commands[name], env=dict(environment), stdin=subprocess.DEVNULL)
                        waiting.remove(name)
                time.sleep(0.1)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    code = running.pop(name).returncode
                    if code == 0 or (code == GateRed.exit_code and name in may_be_red):
                        done.add(name)
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
