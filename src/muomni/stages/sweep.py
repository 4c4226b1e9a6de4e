"""Sweep: stage align at every point of a grid, each in a folder of its own, and the best of those that look.

A sweep is what a recipe means by its key `sweep`: `expand` makes stages of it, `pick` chooses among what they
came to. All others see stages: the points, and after them one that needs them (`winner`).
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import field_validator

from muomni import config
from muomni.errors import ConfigError
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.stages import align
from muomni.stages.align import AlignSettings
from muomni.stages.stage import Entry, Stage

NAME, SWEPT = "sweep", align.STAGE
COLUMNS = (
    "point",
    "verdict",
    "loss",
    "swap_gap",
    "swap_gap_low",
    "zero_gap",
    "noise_gap",
    "win_rate",
    "looks",
    "eligible",
    "wins",
)


class SweepSettings(AlignSettings):
    """As stage align in this recipe, but for what is said here; `grid` gives values to try for any of its
    settings."""

    grid: dict[str, Any] = {"lr": [5e-5, 1e-4, 2e-4], "connector": {"vision_ln": ["off", "trained"]}}

    names_settings: ClassVar[frozenset[str]] = frozenset({"grid"})

    @field_validator("grid")
    @classmethod
    def _tries_something(cls, grid: dict[str, Any]) -> dict[str, Any]:
        tried = config.leaves(grid)
        if not tried or not all(isinstance(values, list) and values for values in tried.values()):
            raise ValueError("give a list of values for each setting")
        return grid


WINNER = Gate(
    "winner",
    "eligible",
    "no point of the grid is green with a swap gap surely above 0: they learned how captions sound, not what pictures show",
    at_least=1.0,
    source="SPEC V3",
)
STAGE = Stage(
    NAME,
    "which settings of align learn to look",
    SweepSettings,
    align.AlignTraining,
    gates=(*SWEPT.gates, WINNER),
    anatomy="muomni.report.anatomy:language",
)


def is_point(name: str) -> bool:
    """Whether a stage of a recipe, or of a run's folder, is a point of its sweep."""
    return name.startswith(f"{NAME}/")


def with_those_of_align(settings: Mapping[str, Any], recipe: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a recipe's sweep, with those of its align that it leaves out.

    Raises  ConfigError where the recipe has no align.
    """
    if SWEPT.name not in recipe:
        raise ConfigError(f"{where} does as {SWEPT.name} does, which the recipe does not have")
    of_align = recipe[SWEPT.name] or {}
    connector = {**of_align.get("connector", {}), **settings.get("connector", {})}
    return {**of_align, **settings, "connector": connector}


def expand(sweep: Entry, values: Mapping[str, Any], where: str) -> list[Entry]:
    """The stages that a sweep of a recipe stands for: its points, and what picks one of them.

    Takes   values: its settings as they were read, where: of which file, for messages.
    Raises  ConfigError for settings that a point can't have.
    """
    if sweep.settings.epoch_duration is not None:
        raise ConfigError(
            f"{where}: epoch_duration: each point of a sweep would have another length",
            hint="give samples_per_epoch",
        )
    shared = {key: value for key, value in values.items() if key != "grid"}
    points = []
    for name, changes in grid_points(sweep.settings, sweep.folder).items():
        own = copy.deepcopy(shared)
        for path, value in changes.items():
            config.put(own, path, value)
        settings = config.build(SWEPT.settings, own, f"{where.removesuffix(NAME)}{name}")
        points.append(Entry(name, SWEPT, settings, sweep.run, may_be_red=True))
    return [*points, replace(sweep, points=tuple(point.name for point in points))]


def grid_points(settings: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """Every combination of a sweep's grid, values by the paths of settings, by the name of its stage, e.g.
    sweep/lr-0.0001_max_steps-50.

    Takes   folder: the sweep's; a point that lies there under the old names of its keys keeps that name, so
            that it is reused.
    Raises  ConfigError where two would have one name.
    """
    tried, first_tried = (
        config.leaves(grid) for grid in (settings.grid, config.first_names(settings.grid, type(settings)))
    )
    points: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*tried.values()):
        point = dict(zip(tried, values))
        name, first_name = _folder_name(point), _folder_name(dict(zip(first_tried, values)))
        name = f"{NAME}/{first_name if (folder / first_name).is_dir() else name}"
        if name in points:
            raise ConfigError(
                f"grid: {points[name]} and {point} would share the folder {name}",
                hint="give values that differ in letters",
            )
        points[name] = point
    return points


def _folder_name(point: Mapping[str, Any]) -> str:
    words = "_".join(f"{key}-{'off' if value is False else value}" for key, value in point.items())
    return re.sub(r"[^\w.+-]+", "-", words)  # hub ids have slashes, lists have commas


def pick(certificates: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """A row a point, best first; the first one wins, if it may.

    The rule: a point looks if its swap gap is above 0 with its whole 95 % interval; among those that look,
    and are not red, the lowest loss on held-out captions wins. One that doesn't look can't win, however low
    its loss (lumo A54).

    Takes   certificates: by the points' names, in the grid's order; None or an empty one of a point that is
            not finished.
    """
    rows = []
    for point, certificate in certificates.items():
        found = certificate or {}
        facts = {name: Fact.from_json(row) for name, row in found.get("facts", {}).items()}
        swap = facts.get("image_swap_gap_nats")
        low = swap.ci[0] if swap is not None and swap.ci is not None else None
        looks = low is not None and low > 0
        verdict = found.get("verdict", "missing")
        rows.append(
            {
                "point": point.removeprefix(f"{NAME}/"),
                "verdict": verdict,
                "loss": _known(facts, "held_out_loss"),
                "swap_gap": _known(facts, "image_swap_gap_nats"),
                "swap_gap_low": low,
                "zero_gap": _known(facts, "image_zero_gap_nats"),
                "noise_gap": _known(facts, "image_noise_gap_nats"),
                "win_rate": _known(facts, "image_swap_win_rate"),
                "looks": looks,
                "eligible": looks and verdict in ("green", "waived"),
                "wins": False,
            }
        )
    rows.sort(key=lambda row: (not row["eligible"], row["loss"] if row["loss"] is not None else float("inf")))
    if rows and rows[0]["eligible"]:
        rows[0]["wins"] = True
    return rows


def _known(facts: Mapping[str, Fact], name: str) -> float | None:
    """The value of a fact; None where it was not measured, or is no number: nothing sorts beside NaN."""
    return facts[name].value if name in facts and math.isfinite(facts[name].value) else None


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for a terminal."""
    cells = [[_cell(row[column]) for column in COLUMNS] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(COLUMNS)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in [list(COLUMNS), *cells]
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else {True: "yes", False: "no"}.get(value, str(value))
