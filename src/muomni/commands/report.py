"""`muomni report`: the page of a run; and the same at the end of `run`, where it must not spoil what was trained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from muomni.commands import console
from muomni.errors import GateRed


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder or a stage's")],
    against: Annotated[Path | None, typer.Option(metavar="OTHER", help="another run, laid beside")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="where the page goes; DIR/report.html if left out")] = None,
) -> None:
    """Write the page of a run or a stage: gates, curves, and held-out samples to look at and listen to; one HTML file."""
    from muomni.report.build import report as write

    console.result(str(write(folder, against=against, out=out)))


@contextmanager
def reported(recipe: str, *, out: Path | None, stages: list[str] | None = None, overrides: list[str] | None = None) -> Iterator[None]:
    """Inside, a recipe is run: at its end, green or red, the pages of its stages and its own are written."""
    red: GateRed | None = None
    try:
        yield
    except GateRed as error:
        red = error
    if os.environ.get("RANK", "0") == "0":
        from muomni.stages import recipe as recipes

        plan = recipes.read(recipe, overrides, out=out)
        pages((out or Path("runs") / plan.name).resolve(), [name for name in plan.stages if not stages or name in stages])
    if red is not None:
        raise red


def pages(folder: Path, stages: list[str]) -> None:
    """Write the pages of stages and of their run folder.

    A page is no part of the result: whatever fails here is told in one line, and the training stands.
    """
    from muomni.report.build import report as write

    done = [folder / name for name in stages if (folder / name / "certificate.json").exists()]
    for each in [*done, folder] if done else []:
        try:
            page = write(each)
        except Exception as error:
            console.note(f"no report of {each}: {type(error).__name__}: {' '.join(str(error).split())}")
            continue
        if each == folder:
            console.note(f"report: {page}")
