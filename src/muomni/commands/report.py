"""`muomni report`: write a run's HTML page, also at the end of `run`, where a failure changes no result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from muomni.commands import console
from muomni.errors import GateRed


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder or a stage's")],
    against: Annotated[Path | None, typer.Option(metavar="OTHER", help="another run, laid beside")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where the page goes; DIR/report.html if left out")
    ] = None,
) -> None:
    """Write the page of a run or a stage: gates, curves, and held-out samples to look at and listen to; one HTML file."""
    from muomni.report.build import report as write

    console.result(str(write(folder, against=against, out=out)))


@contextmanager
def with_pages(stages: list[str] | None = None, *, alone: bool = False) -> Iterator[Callable[[Path], None]]:
    """Write the pages of these stages (none: all) and of their run when what is trained inside ends, green or red.

    Gives   what is to be told the run's folder; of a run that ends red, the error knows it.
    Takes   alone: the parent process writes the run's page, once for all stages.
    """
    done: list[Path] = []
    try:
        yield done.append
    except GateRed as red:
        done += [] if red.folder is None else [red.folder]
        raise
    finally:
        for folder in done[-1:]:
            pages(folder, stages, alone=alone)


def pages(folder: Path, stages: list[str] | None = None, *, alone: bool = False) -> None:
    """Write the pages of stages, where they are not written yet, and of their run folder; only the main rank does.

    A page is no part of the result: whatever fails here is told in one line, and the training stands.
    """
    done = [
        path.parent
        for path in sorted(folder.glob("*/certificate.json"))
        if not stages or path.parent.name in stages
    ]
    if not done or os.environ.get("RANK", "0") != "0":
        return
    from muomni.report.build import report as write

    due = [each for each in done if not _is_newer(each / "report.html", each / "certificate.json")]
    for each in [*due, *([] if alone else [folder])]:
        try:
            page = write(each)
        except Exception as error:
            console.note(f"no report of {each}: {type(error).__name__}: {' '.join(str(error).split())}")
            continue
        if each == folder:
            console.note(f"report: {page}")


def _is_newer(page: Path, certificate: Path) -> bool:
    return page.exists() and page.stat().st_mtime_ns >= certificate.stat().st_mtime_ns
