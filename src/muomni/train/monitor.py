"""What a run tells: metrics.jsonl, a bar on a terminal or plain lines in a log, tensorboard by extra, and
what went wrong where."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from muomni import files, runtime
from muomni.errors import ConfigError
from muomni.models import finite
from muomni.runtime import Runtime
from muomni.units import format_seconds

PACE_STEPS, PACE_S = (
    20,
    60.0,
)  # steps, or seconds and a few steps, after which a run says how long it will take


class Monitor:
    """Writes the numbers of a run. On resume it keeps the rows up to the step it starts from, so every step
    stands once."""

    def __init__(
        self, folder: Path, name: str, *, step: int, max_steps: int, is_main: bool, tensorboard: bool = False
    ) -> None:
        self.folder, self.name, self.max_steps, self.is_main = folder, name, max_steps, is_main
        self.path = folder / "metrics.jsonl"
        self.started = time.perf_counter()
        self.first_step = step
        self.timed: tuple[int, float] | None = (
            None  # a step, and when it was done: from there on the time of a step is reckoned
        )
        self.has_told_time = False
        self._bar: Any = None
        self._board: Any = None
        if is_main:
            files.write_jsonl(self.path, [row for row in read_metrics(self.path) if row["step"] <= step])
            self._stream = self.path.open("a", encoding="utf-8")
            if tensorboard:
                self._board = _board(folder / "tensorboard", step)

    def __enter__(self) -> Self:
        if self.is_main and sys.stderr.isatty() and not os.environ.get("MUOMNI_PLAIN"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            text_columns = (TextColumn("{task.fields[left]}"), TextColumn("{task.fields[note]}"))
            columns = (TextColumn(self.name), BarColumn(), MofNCompleteColumn(), *text_columns)
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=self.max_steps, completed=self.first_step, left="", note=""
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self.is_main:
            self._stream.close()
        if self._board is not None:
            self._board.close()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, read from the file."""
        return read_metrics(self.path)

    def log(self, row: dict[str, Any]) -> None:
        """One row of metrics at `row["step"]`: written and shown. None is held: a run may have millions."""
        if not self.is_main:
            return
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        self._show(row)
        if self._board is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key, value, row["step"])

    def tick(self, step: int) -> None:
        """A step is done. Once a few have shown their pace, tell how long all will take (the first is left
        out: it sets things up)."""
        if self.timed is None:
            self.timed = (step, time.perf_counter())
        seen_s, seen = time.perf_counter() - self.timed[1], step - self.timed[0]
        if not self.has_told_time and seen and (seen + 1 >= PACE_STEPS or (seen >= 3 and seen_s > PACE_S)):
            self.has_told_time = True
            whole_s = self.max_steps * seen_s / seen
            left_s = self._left_s(step)
            more = f", {format_seconds(left_s)} to go" if self.first_step else ""
            end = time.strftime(
                "%H:%M" if left_s < 12 * 3600 else "%Y-%m-%d %H:%M", time.localtime(time.time() + left_s)
            )
            self.say(
                f"about {format_seconds(whole_s)} for {self.max_steps} steps{more}, until {end}; validation and measuring come on top"
            )

    def _left_s(self, step: int) -> float:
        """Seconds to the last step at the pace so far."""
        done, since = (
            (self.first_step, self.started) if self.timed is None or step <= self.timed[0] else self.timed
        )
        return (time.perf_counter() - since) / max(1, step - done) * (self.max_steps - step)

    def _show(self, row: dict[str, Any]) -> None:
        left = format_seconds(self._left_s(row["step"]))
        shown = " ".join(
            f"{key}={_short(value)}"
            for key, value in row.items()
            if key != "step" and isinstance(value, int | float)
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], left=f"{left} left", note=shown[:100])
            return
        print(
            f"[{self.name}] step {row['step']}/{self.max_steps}, {left} left: {shown}",
            file=sys.stderr,
            flush=True,
        )

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if self.is_main:
            print(f"[{self.name}] {text}", file=sys.stderr, flush=True)


def _board(folder: Path, step: int) -> Any:
    """A writer of curves; what an interrupted run wrote past `step` is hidden.

    Raises  ConfigError where tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard: true needs tensorboard", hint="pip install 'muomni[track]', or leave it out"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a half-written last line of a killed run is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
    return rows


def find_nonfinite(model: nn.Module, batch: Any, run: Runtime) -> str:
    """The first module whose output is not finite for a batch, by name; generators are left as they were
    (SPEC C5)."""
    state = torch.get_rng_state()
    try:
        with run.autocast():
            return finite.first_module(model, lambda: model(batch))
    finally:
        torch.set_rng_state(state)


def peak_memory_mb(run: Runtime) -> float:
    """The most memory so far, in MB: of tensors on a GPU, of the process on a CPU, with what stages before
    this one took in it."""
    if run.device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.device) / 1e6
    return runtime.memory_bytes() / 1e6
