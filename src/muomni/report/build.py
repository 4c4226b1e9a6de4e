"""`muomni report`: from a folder to its page."""

from __future__ import annotations

from pathlib import Path

from muomni import files
from muomni.report import compare, overview, stage_part
from muomni.report.gather import Run, gather
from muomni.report.html import join
from muomni.report.page import page

NAME = "report.html"


def report(folder: Path | str, *, against: Path | str | None = None, out: Path | str | None = None) -> Path:
    """Write the page of a run's folder, or of one stage's, and give its path; it stands in the folder unless `out` says where.

    Raises  ConfigError where the folder (or the other) is neither.
    """
    run = gather(Path(folder))
    target = Path(out) if out is not None else run.folder / NAME
    files.write_text(target, render(run, gather(Path(against)) if against is not None else None))
    return target


def render(run: Run, other: Run | None = None) -> str:
    """The page as text."""
    links = [(stage.name, stage.name, stage.verdict) for stage in run.stages]
    parts = [stage_part.part(stage, others=other.stages if other else None) for stage in run.stages]
    if other is None:
        body = join(overview.head(run), overview.part(run), parts)
        return page(f"{run.name}: {run.verdict}", body, [("overview", "overview", ""), *links])
    head = overview.head(run, title=f"{run.name} against {other.name}")
    body = join(head, compare.part(run, other), overview.part(run), parts)
    return page(f"{run.name} against {other.name}", body, [("against", "difference", ""), ("overview", "overview", ""), *links])
