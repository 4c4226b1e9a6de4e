"""The end of a sweep: its winner is handed on as the sweep's own result, and can be measured again."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import Any

from muomni import files
from muomni.errors import InternalError
from muomni.evaluate import certificate
from muomni.evaluate.facts import Fact
from muomni.execution import recipe as recipes
from muomni.execution import stage_run
from muomni.execution.recipe import Recipe
from muomni.models import integrity
from muomni.runtime import Runtime
from muomni.stages import sweep
from muomni.stages.stage import Entry
from muomni.train import distributed

TABLE = "table.json"


def conclude(
    recipe: Recipe, entry: Entry, machine: Runtime, *, fresh: bool, waived: dict[str, str]
) -> dict[str, Any]:
    """Compare the points, write the table, hand the winner on; give the sweep's certificate: the winner's
    facts, judged anew.

    Raises  GateRed where none looks.
    """
    folder, own, settings = entry.run, entry.folder, entry.settings
    result: dict[str, Any] = {}
    if machine.is_main:
        rows = sweep.pick({point: certificate.read(folder / point) for point in entry.points})
        files.write_json(own / TABLE, rows)
        print("\n".join(sweep.lines(rows)), file=sys.stderr, flush=True)
        eligible = Fact(float(sum(row["eligible"] for row in rows)), len(rows))
        changed = stage_run.base_mismatch(entry)
        # A point that is not what it was measured as may be the one that should win, or should not: none
        # does.
        winner = None if changed.value else _winner(entry, rows)
        stored = certificate.demand(folder / winner, entry.name) if winner else None
        facts = {key: Fact.from_json(row) for key, row in stored["facts"].items()} if stored else {}
        facts |= {"eligible": eligible, "base_mismatch": changed}
        digests: dict[str, Any] = {
            key: stored[key] if stored else "" for key in ("weights", "data", "settings")
        }
        modalities = stored["modalities"] if stored else []
        every = stage_run.judge(entry, modalities, facts, stage_run.waived_here(entry, waived))
        judged = every if stored else [row for row in every if row.is_known(facts)]
        files.clear_leftovers(own)
        stage_run.write_settings(own, settings.model_dump(mode="json"), digests["settings"])
        if winner is None:
            shutil.rmtree(own / "final", ignore_errors=True)  # of another winner, before
        else:
            with files.fresh_folder(own / "final") as part:
                shutil.copytree(folder / winner / "final", part, dirs_exist_ok=True)
            if stored is not None and integrity.digests(own / "final") != stored["files"]:
                raise InternalError(f"{own / 'final'}: the copy of {winner} is not what was copied")
        more: dict[str, Any] = {
            "modalities": modalities,
            "seed": settings.seed,
            "inherited": integrity.waivers(stored) if stored else [],
        }
        result = certificate.write(own, own.name, facts, judged, **digests, **more)
        stage_run.tell(own.name, result)
    result = distributed.from_main(result, machine)
    stage_run.refuse(result)
    return result


def gate(entry: Entry, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The winner measured again and judged as the sweep judges it; how many may win is as its certificate
    says. Nothing is written."""
    own = entry.folder
    stored = certificate.read(own)
    assert stored is not None
    rows = files.read_stored(own / TABLE, list, hint=f"run stage {entry.name} again, which writes it anew")
    winner = _winner(entry, rows)
    again = stage_run.gate_stage(recipes.stored(entry.run, winner))["facts"] if winner is not None else {}
    facts = {key: Fact.from_json(row) for key, row in again.items()} | {
        "eligible": Fact.from_json(stored["facts"]["eligible"])
    }
    if "saved_error" in facts:
        facts["saved_error"] = stage_run.also_changed(facts["saved_error"], own)
    judged = stage_run.judge(entry, stored["modalities"], facts, stage_run.waived_before(stored))
    is_whole = winner is not None and "saved_error" in facts
    judged = judged if is_whole else [row for row in judged if row.is_known(facts)]
    return stage_run.certified_again(entry, facts, judged, earlier, stored.get("inherited", []))


def _winner(entry: Entry, rows: list[Any]) -> str | None:
    """The point that wins, by its name; None where none does."""
    return next(
        (f"{entry.name}/{row['point']}" for row in rows if isinstance(row, dict) and row.get("wins")), None
    )
