"""What lies in the folder that is served, for people: certificates, the report, a stage in training.

Read anew at each request, by the report's own readers, since another process may write it. Nothing outside of the folder
is read: a stage that a link leads out of it is left out, and so are samples that lie elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from muomni.errors import ConfigError
from muomni.evaluate.samples import ROWS
from muomni.models import integrity
from muomni.report import samples, stage_part
from muomni.report.build import NAME
from muomni.report.gather import Run, StageRun, gather
from muomni.report.html import Html, h
from muomni.train.watchdog import RUNNING_FILE

QUIET_S = 600.0  # without a sign of life for so long, a stage counts as ended, not as slow
OWN_FILES = ("certificate.json", "config.yaml", "metrics.jsonl", "account.json", "samples", RUNNING_FILE)


def root(where: Path) -> Path:
    """The folder that is served; of a `final/` the stage's."""
    folder = where.resolve()
    return folder.parent if folder.name == integrity.FINAL else folder


def stages(where: Path) -> list[StageRun]:
    """Its stages, in the order of a curriculum; none where it holds networks alone."""
    place = root(where)
    try:
        run: Run = gather(place)
    except ConfigError:
        return []
    return [_bounded(stage, place) for stage in run.stages if _is_inside(stage, place)]


def _is_inside(stage: StageRun, place: Path) -> bool:
    paths = [stage.folder, *(stage.folder / name for name in OWN_FILES)]
    return all(path.resolve().is_relative_to(place) for path in paths)


def _bounded(stage: StageRun, place: Path) -> StageRun:
    """Without rows of the album whose files lie elsewhere."""
    album = [
        row
        for row in stage.album
        if all(
            path.resolve().is_relative_to(place)
            for value in row.values()
            if isinstance(value, str) and (path := stage.media(value[:255])) is not None
        )
    ]
    return replace(stage, album=album, golden=[], points=[])


def certificates(where: Path, served: dict[str, Path]) -> dict[str, Any]:
    """Gates and waivers of each stage of the folder; `served` are the stages that answer, which may stand alone."""
    found = {stage.name: stage for stage in stages(where)}
    names = [*found, *(name for name in served if name not in found)]
    return {"stages": [_proof(name, found.get(name)) for name in names], "report": report(where) is not None}


def _proof(name: str, stage: StageRun | None) -> dict[str, Any]:
    gates = stage.gates if stage is not None else []
    inherited = stage.inherited if stage is not None else []
    return {
        "name": name,
        "verdict": "none" if stage is None else stage.verdict,
        "gates": [
            {
                "name": str(gate.get("name")),
                "verdict": str(gate.get("verdict")),
                "value": _finite(gate.get("value")),
                "threshold": None if gate.get("threshold") is None else str(gate["threshold"]),
                "why": None if gate.get("why") is None else str(gate["why"]),
            }
            for gate in gates
        ],
        "inherited": [{key: str(row.get(key)) for key in ("stage", "gate", "why")} for row in inherited],
    }


def report(where: Path) -> Path | None:
    """The report of the folder, where `muomni report` left one."""
    place = root(where)
    path = place / NAME
    return path if path.is_file() and path.resolve().is_relative_to(place) else None


def training(where: Path, chosen: str, seen: str) -> dict[str, Any]:
    """How a stage of the folder comes along: the chosen one, else the one in training, else the newest.

    Takes   seen: the version that the page shows; where it is still that, there is no `html`.
    """
    every = stages(where)
    if not every:
        return {
            "stages": [],
            "stage": "",
            "verdict": "",
            "is_running": False,
            "step": 0,
            "steps": None,
            "eta_s": None,
            "version": "",
            "html": None,
        }
    running = {stage.name: _signs(stage) for stage in every}
    stage = next((each for each in every if each.name == chosen), None) or max(
        every, key=lambda each: (running[each.name] is not None, _changed(each))
    )
    signs = running[stage.name]
    step = max([0, *(int(row["step"]) for row in stage.metrics if _finite(row.get("step")) is not None)])
    step = max(step, int(_finite((signs or {}).get("step")) or 0))
    steps = _finite(stage.settings.get("max_steps"))
    version = f"{stage.name}-{_changed(stage)}"
    return {
        "stages": [
            {"name": each.name, "verdict": each.verdict, "is_running": running[each.name] is not None}
            for each in every
        ],
        "stage": stage.name,
        "verdict": stage.verdict,
        "is_running": signs is not None,
        "step": step,
        "steps": None if steps is None else int(steps),
        "eta_s": None if signs is None or steps is None else _left_s(stage, int(steps) - step),
        "version": version,
        "html": None if version == seen else str(drawn(stage)),
    }


def drawn(stage: StageRun) -> Html:
    """Gates, curves and samples of a stage, as its report has them."""
    blocks = [
        ("Gates", stage_part.gates(stage)),
        ("Waived below it", stage_part.waived_below(stage)),
        ("Curves", stage_part.curves(stage)),
        ("Seen and heard", samples.gallery(stage)),
    ]
    told = [h("section", h("h3", name), block) for name, block in blocks if block is not None]
    return h("div", told or h("p", "Nothing was written down yet."))


def _signs(stage: StageRun) -> dict[str, Any] | None:
    """What a stage in training tells of itself; None where none is at work."""
    try:
        told = json.loads((stage.folder / RUNNING_FILE).read_text(encoding="utf-8"))
        fresh = time.time() - float(told["time"]) < QUIET_S
        alive = Path(f"/proc/{int(told['pid'])}").exists() or not Path("/proc").exists()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return told if fresh and alive else None


def _left_s(stage: StageRun, steps: int) -> float | None:
    """Seconds to the last step at the newest measured pace."""
    paces = [pace for row in stage.metrics if (pace := _finite(row.get("steps_per_s")))]
    return max(0, steps) / paces[-1] if paces and paces[-1] > 0 else None


def _changed(stage: StageRun) -> int:
    """When the newest of its files was written, in nanoseconds."""
    times = []
    for name in ("certificate.json", "metrics.jsonl", "config.yaml", f"samples/{ROWS}"):
        try:
            times.append(os.stat(stage.folder / name).st_mtime_ns)
        except OSError:
            continue
    return max(times, default=0)


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
