"""Meaning of numbers, as the stages declare it: which fact a gate judges, and which direction is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muomni.evaluate.thresholds import SOUND
from muomni.evaluate.thresholds import STRUCTURE as STRUCTURE
from muomni.stages import recipe
from muomni.stages.scoreboard import ROWS


def fact_of(stage: str, gate: str) -> str:
    """The fact that a stage's gate judges."""
    declared = {each.name: each.fact for each in (*SOUND, *recipe.stage(stage).gates)}
    return declared.get(gate, gate.removeprefix("demand_"))


def teaches(stage: str) -> str:
    """What a stage teaches, in a few words."""
    return recipe.stage(stage).teaches


def least(metric: str, board: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The lowest accepted value of a score-board row, and whether more is better; older boards have no such value."""
    _, _, bound, more = ROWS.get(metric, ("", "", None, True))
    own = (board.get("least") or {}).get(metric, bound)
    return (own if isinstance(own, int | float) else None), more


def source(metric: str) -> tuple[str, str]:
    """The stage and fact behind a row of the score board; empty for one that spans stages."""
    stage, fact, _, _ = ROWS.get(metric, ("", "", None, True))
    return stage, fact
