"""Output of commands: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from muomni.errors import DataError, MuomniError

T = TypeVar("T")
R = TypeVar("R")


def result(text: str) -> None:
    """A line of the result."""
    print(text, flush=True)


def result_json(value: Any) -> None:
    """The result as one JSON value."""
    result(json.dumps(value, ensure_ascii=False, indent=2))


def note(text: str) -> None:
    """A line of progress or explanation, on standard error."""
    print(text, file=sys.stderr, flush=True)


def problem(error: MuomniError | OSError | str) -> None:
    """An error in one line."""
    note("error: " + " ".join(str(error).split()))


def verdicts(title: str, gates: Sequence[Mapping[str, Any]], others: Sequence[list[str]] = ()) -> None:
    """Gates as a certificate has them (`Judged.to_json`), as a table; others: rows behind them."""
    rows = [
        [row["name"], row["verdict"], _number(row["value"]), row["threshold"], row["why"]] for row in gates
    ]
    table(title, ["gate", "verdict", "value", "should be", "why"], [*rows, *others])


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Rows as a table, as wide as the terminal; in a pipe as wide as it must be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def each(items: list[T], read: Callable[[T], R]) -> tuple[dict[int, R], int]:
    """The readable ones of many, by place; each unreadable one is reported in a line, and counted."""
    results: dict[int, R] = {}
    for place, item in enumerate(items):
        try:
            results[place] = read(item)
        except (DataError, OSError) as error:
            problem(error)
    return results, len(items) - len(results)
