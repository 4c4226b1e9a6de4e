"""`muomni report`: from a run folder to its HTML page."""

from __future__ import annotations

from pathlib import Path

from muomni import files
from muomni.report import compare, overview, stage_part
from muomni.report.gather import Run, gather
from muomni.report.html import join
from muomni.report.page import page
from muomni.report.stage_part import NAME as NAME


def report(folder: Path | str, *, against: Path | str | None = None, out: Path | str | None = None) -> Path:
    """Write the page of a run's folder or of one stage, and return its path; by default it lies in that
    folder.

    In the folder, the points of a sweep get pages of their own too, where these are missing or older than
    what they tell of.

    Raises  ConfigError where the folder (or the other) is neither.
    """
    run = gather(Path(folder))
    target = Path(out) if out is not None else run.folder / NAME
    for point in (point for stage in run.stages for point in stage.points):
        if out is None and _is_stale(point.folder):
            report(point.folder)
    files.write_text(
        target, render(run, target.resolve().parent, gather(Path(against)) if against is not None else None)
    )
    return target


def _is_stale(folder: Path) -> bool:
    """Whether a point's page is missing or older than its certificate or its metrics."""
    times = [
        (folder / name).stat().st_mtime
        for name in ("certificate.json", "metrics.jsonl")
        if (folder / name).is_file()
    ]
    return not (folder / NAME).is_file() or max(times, default=0.0) > (folder / NAME).stat().st_mtime


def render(run: Run, place: Path, other: Run | None = None) -> str:
    """The page as text, for a file in `place`."""
    links = [(stage.name, stage.name, stage.verdict) for stage in run.stages]
    parts = [stage_part.part(stage, place, others=other.stages if other else None) for stage in run.stages]
    if other is None:
        body = join(overview.head(run), overview.part(run), parts)
        return page(f"{run.name}: {run.verdict}", body, [("overview", "overview", ""), *links])
    head = overview.head(run, title=f"{run.name} against {other.name}")
    body = join(head, compare.part(run, other), overview.part(run), parts)
    return page(
        f"{run.name} against {other.name}",
        body,
        [("against", "difference", ""), ("overview", "overview", ""), *links],
    )
