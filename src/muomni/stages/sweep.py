"""Sweep: align again at every point of a grid, each in a folder of its own; the best that looks is handed on."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from muomni import config, files
from muomni.errors import InternalError
from muomni.evaluate import certificate
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.models import integrity
from muomni.runtime import Runtime
from muomni.stages import align, one
from muomni.stages import recipe as recipes
from muomni.stages.align import AlignSettings
from muomni.stages.recipe import Recipe
from muomni.stages.stage import Stage
from muomni.train import distributed

TABLE = "table.json"
COLUMNS = ("point", "verdict", "loss", "swap_gap", "swap_gap_low", "zero_gap", "noise_gap", "win_rate", "looks", "eligible", "wins")


class SweepSettings(AlignSettings):
    """As stage align in this recipe, but for what is said here; `grid` gives values to try for any of its settings."""

    grid: dict[str, list[Any]] = Field({"lr": [5e-5, 1e-4, 2e-4], "vision_ln": ["off", "trained"]}, min_length=1)

    names_settings: ClassVar[frozenset[str]] = frozenset({"grid"})

    @property
    def needs(self) -> tuple[str, ...]:
        """Its points alone."""
        return ()


def table(folder: Path, points: list[str]) -> list[dict[str, Any]]:
    """A row a point, best first.

    The rule: a point looks if its swap gap is above 0 with its whole 95 % interval; among those that look, and are not red, the lowest
    loss on held-out captions wins. One that doesn't look can't win, however low its loss (lumo A54).
    """
    rows = []
    for point in points:
        found = certificate.read(folder / point) or {"verdict": "missing", "facts": {}}
        facts = {name: Fact.from_json(row) for name, row in found["facts"].items()}
        swap = facts.get("image_swap_gap_nats")
        low = swap.ci[0] if swap is not None and swap.ci is not None else None
        looks = low is not None and low > 0
        rows.append(
            {
                "point": point.partition("/")[2],
                "verdict": found["verdict"],
                "loss": _known(facts, "held_out_loss"),
                "swap_gap": _known(facts, "image_swap_gap_nats"),
                "swap_gap_low": low,
                "zero_gap": _known(facts, "image_zero_gap_nats"),
                "noise_gap": _known(facts, "image_noise_gap_nats"),
                "win_rate": _known(facts, "image_swap_win_rate"),
                "looks": looks,
                "eligible": looks and found["verdict"] in ("green", "waived"),
                "wins": False,
            }
        )
    rows.sort(key=lambda row: (not row["eligible"], row["loss"] if row["loss"] is not None else float("inf")))
    if rows and rows[0]["eligible"]:
        rows[0]["wins"] = True
    return rows


def _known(facts: dict[str, Fact], name: str) -> float | None:
    """The value of a fact; None where it was not measured, or is no number: nothing sorts beside NaN."""
    return facts[name].value if name in facts and math.isfinite(facts[name].value) else None


def conclude(plan: Recipe, name: str, folder: Path, machine: Runtime, *, fresh: bool, waived: dict[str, str]) -> dict[str, Any]:
    """Compare the points, write the table, hand the winner on; give the sweep's certificate: the winner's facts, judged anew.

    Raises  GateRed where none looks.
    """
    stage, settings, own = recipes.stage(name), plan.stages[name], folder / name
    points = list(recipes.needs(plan.stages, name))
    result: dict[str, Any] = {}
    if machine.is_main:
        rows = table(folder, points)
        files.write_json(own / TABLE, rows)
        print("\n".join(_lines(rows)), file=sys.stderr, flush=True)
        eligible = Fact(float(sum(row["eligible"] for row in rows)), len(rows))
        changed = one.base_mismatch(folder, points)
        # A point that is not what it was measured as may be the one that should win, or should not: none does.
        winner = next((f"{name}/{row['point']}" for row in rows if row["wins"] and not changed.value), None)
        found = certificate.demand(folder / winner, name) if winner else None
        facts = {key: Fact.from_json(row) for key, row in found["facts"].items()} if found else {}
        facts |= {"eligible": eligible, "base_mismatch": changed}
        digests: dict[str, Any] = {key: found[key] if found else "" for key in ("weights", "data", "settings")}
        modalities = found["modalities"] if found else []
        every = one.judge(stage, settings, modalities, facts, one.waived_here(stage, settings, waived))
        judged = every if found else [row for row in every if row.is_known(facts)]
        files.clear_leftovers(own)
        one.write_settings(own, settings, digests["settings"])
        if winner is None:
            shutil.rmtree(own / "final", ignore_errors=True)  # of another winner, before
        else:
            with files.fresh_folder(own / "final") as part:
                shutil.copytree(folder / winner / "final", part, dirs_exist_ok=True)
            if found is not None and integrity.digests(own / "final") != found["files"]:
                raise InternalError(f"{own / 'final'}: the copy of {winner} is not what was copied")
        more: dict[str, Any] = {"modalities": modalities, "seed": settings.seed, "inherited": integrity.waivers(found) if found else []}
        result = certificate.write(own, own.name, facts, judged, **digests, **more)
        one.tell(own.name, result)
    result = distributed.from_main(result, machine)
    one.refuse(result)
    return result


def gate(folder: Path, name: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The winner measured again and judged as the sweep judges it; how many may win is as its certificate says. Nothing is written."""
    stage, own = recipes.stage(name), folder / name
    settings = config.build(stage.settings, config.read_yaml(own / "config.yaml"), str(own / "config.yaml"), is_stored=True)
    stored = certificate.read(own)
    assert stored is not None
    rows = files.read_stored(own / TABLE, list, hint=f"run stage {name} again, which writes it anew")
    winner = next((row["point"] for row in rows if isinstance(row, dict) and row.get("wins")), None)
    again = one.gate_stage(folder, f"{name}/{winner}")["facts"] if winner is not None else {}
    facts = {key: Fact.from_json(row) for key, row in again.items()} | {"eligible": Fact.from_json(stored["facts"]["eligible"])}
    if "saved_error" in facts:
        facts["saved_error"] = one.also_changed(facts["saved_error"], own)
    judged = one.judge(stage, settings, stored["modalities"], facts, one.waived_before(stored))
    is_whole = winner is not None and "saved_error" in facts
    judged = judged if is_whole else [row for row in judged if row.is_known(facts)]
    return one.told_again(name, settings, facts, judged, earlier, stored.get("inherited", []))


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table for a terminal."""
    cells = [[_cell(row[column]) for column in COLUMNS] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(COLUMNS)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in [list(COLUMNS), *cells]]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else {True: "yes", False: "no"}.get(value, str(value))


STAGE = Stage(
    "sweep",
    "which settings of align learn to look",
    SweepSettings,
    align.AlignTraining,
    gates=(
        *align.STAGE.gates,
        Gate(
            "winner",
            "eligible",
            "no point of the grid is green with a swap gap surely above 0: they learned how captions sound, not what pictures show",
            at_least=1.0,
            source="SPEC V3",
        ),
    ),
    like="align",
    over=align.STAGE,
)
