"""Meaning of numbers, as stages declare it: the fact that a gate judges, and which direction is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muomni.evaluate.thresholds import SOUND
from muomni.evaluate.thresholds import STRUCTURE as STRUCTURE
from muomni.execution import recipe
from muomni.stages import registry
from muomni.stages.stage import BoardRow

NO_ROW = ("", BoardRow("", ""))  # of a metric that no stage declares


def fact_of(stage: str, gate: str) -> str:
    """The fact that a stage's gate judges."""
    declared = {each.name: each.fact for each in (*SOUND, *recipe.stage(stage).gates)}
    return declared.get(gate, gate.removeprefix("demand_"))


def teaches(stage: str) -> str:
    """What a stage teaches, in a few words."""
    return recipe.stage(stage).teaches


def least(metric: str, board: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The least value of a row of a score board, and whether more is better; boards of earlier builds hold no
    least values."""
    _, row = registry.board().get(metric, NO_ROW)
    own = (board.get("least") or {}).get(metric, row.least)
    return (own if isinstance(own, int | float) else None), row.more_is_better


def source(metric: str) -> tuple[str, str]:
    """The stage and fact behind a row of the score board; empty for one that spans stages."""
    stage, row = registry.board().get(metric, NO_ROW)
    return (stage if row.fact else ""), row.fact


def needs(stage: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that one was built on, by the settings that lie in its folder; those of every run, where
    they can't be read."""
    declared = recipe.stage(stage)
    try:
        return (*declared.needs, *declared.settings.model_validate(settings).needs)
    except ValueError:
        return declared.needs
