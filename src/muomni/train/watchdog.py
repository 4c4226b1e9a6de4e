"""Watchdog of a run: after a crash, a kill or a hang it leaves the step, its samples, the memory and the
error."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from muomni import files, runtime
from muomni.units import format_seconds

RUNNING_FILE = "alive.json"  # there while a run works; what a run finds there, another left when it died
CRASH_FILE = "death.json"
PATIENCE_S = 120.0  # a step that takes longer than this, and than PATIENCE_STEPS usual ones, is told
PATIENCE_STEPS = 20.0
SHOWN_IDS = 8


class Watchdog:
    """Writes the step it is at before each update; tells of steps that do not end, of errors, and of the
    death of the run before.

    folder   of the stage; say: where lines go; patience_s: how long a step may take before it is called stuck
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        *,
        is_main: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.folder, self.say, self.is_main, self.patience_s = folder, say, is_main, patience_s
        self._now: dict[str, Any] = {}
        self._since = time.monotonic()
        self._usual_s = 0.0
        self._reported = -1
        self._over = threading.Event()

    def __enter__(self) -> Self:
        if self.is_main:
            before = crash_report(self.folder)
            if before:
                self.say(before)
            threading.Thread(target=self._look, daemon=True, name="watch").start()
        return self

    def step(self, number: int, sample_ids: list[str]) -> None:
        """An update begins."""
        if not self.is_main:
            return
        now = time.monotonic()
        if self._now:
            took_s = now - self._since
            self._usual_s = took_s if not self._usual_s else 0.9 * self._usual_s + 0.1 * took_s
        self._since = now
        self._now = {
            "step": number,
            "samples": sample_ids,
            "memory_mb": round(runtime.memory_bytes() / 1e6),
            "pid": os.getpid(),
        }
        # Neither atomic nor synced: it is written at every step, and a torn one still tells that somebody
        # died.
        with contextlib.suppress(OSError):
            (self.folder / RUNNING_FILE).write_text(
                json.dumps({**self._now, "time": time.time()}), encoding="utf-8"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if not self.is_main:
            return
        (self.folder / RUNNING_FILE).unlink(missing_ok=True)
        if error is not None and self._now:
            what = f"{type(error).__name__}: {error}"
            files.write_json(self.folder / CRASH_FILE, {**self._now, "error": what})
            self.say(f"ended in step {self._now['step']} by {what}; {_where(self._now)}")

    def _look(self) -> None:
        while not self._over.wait(min(5.0, self.patience_s / 4)):
            waited_s = time.monotonic() - self._since
            number = self._now.get("step", 0)
            if (
                self._now
                and waited_s > max(self.patience_s, PATIENCE_STEPS * self._usual_s)
                and self._reported != number
            ):
                self._reported = number
                waited = f"{format_seconds(waited_s)} (usual {format_seconds(self._usual_s)})"
                self.say(f"stuck in step {number} for {waited}; {_where(self._now)}; see stuck.txt")
                with (
                    contextlib.suppress(OSError),
                    (self.folder / "stuck.txt").open("w", encoding="utf-8") as stream,
                ):
                    faulthandler.dump_traceback(stream, all_threads=True)


def crash_report(folder: Path) -> str:
    """One line on a previous run that was killed without an error (kill -9, out of memory, power); else
    empty."""
    path = folder / RUNNING_FILE
    if not path.exists():
        return ""
    try:
        left = json.loads(path.read_text(encoding="utf-8"))
        if _is_alive(int(left["pid"])):
            return ""
        share = 1e6 * float(left["memory_mb"]) / max(1, total_memory_bytes())
        cause = "probably out of memory" if share > 0.8 else "probably a kill signal or power loss"
        return f"the previous run ended in step {left['step']} without an error: {cause}; {_where(left)} ({share:.0%} of the machine's)"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return f"the previous run ended without an error, and {path} is torn"


def _is_alive(pid: int) -> bool:
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _where(now: dict[str, Any]) -> str:
    ids = [str(name) for name in now["samples"]]
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f"samples {', '.join(ids[:SHOWN_IDS])}{more}; memory {now['memory_mb']} MB"


def total_memory_bytes() -> int:
    """What this process may use: the machine's memory, or its container's share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text(encoding="ascii")))
    return total
