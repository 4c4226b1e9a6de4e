"""One stage before anything is spent: built in a temporary folder, counted, dry-run on its largest batch, and
timed.

`python -m muomni.planning.survey` does it in a process of its own: the memory is this stage's alone, and a
dry run that the machine can't hold ends nothing else. Takes a `Task` as JSON on standard input.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from muomni import files
from muomni.errors import MuomniError
from muomni.execution import recipe as recipes
from muomni.planning import accounts, building, extrapolate, missing_models, peak_memory
from muomni.planning.building import Task
from muomni.planning.dry_run import DryRun, SurveyedStage, probe
from muomni.train import account
from muomni.train.timing import LEAST
from muomni.units import format_seconds


def survey(task: Task) -> dict[str, Any]:
    """The account of one stage; keys as docs/plan.md has them.

    Raises  whatever the stage itself would, before it trains; ConfigError for a network that is neither there
            nor known.
    """
    peak_memory.warm_up()
    recipe = building.planned(recipes.read(task.recipe, task.overrides, out=Path(task.folder)))
    own = Path(task.temporary) / task.stage
    prepared = building.prepare(task, recipe, own)
    if absent := missing_models.missing(recipe, task.stage, Path(task.folder)):
        return {} if task.is_stand_in else extrapolate.survey(task, recipe, prepared, absent)
    surveyed = building.build(task, recipe, own, prepared)
    resident = peak_memory.resident_bytes()
    if task.is_needed or task.is_stand_in:
        surveyed.training.save(own / "final")
    if task.is_stand_in:
        return {}
    trial = DryRun(surveyed)
    speed = probe(surveyed, trial, task.probe, task.probe_s)
    surveyed = with_epoch(surveyed, speed)
    if speed is not None and speed["updates_timed"] < min(LEAST, task.probe):
        would_s = LEAST * speed["update_s"]
        surveyed.notes.append(
            f"its speed is that of {speed['updates_timed']} updates: {LEAST} would take {format_seconds(would_s)}"
        )
    memory = peak_memory.account(surveyed, trial, resident)
    stage_account: dict[str, Any] = {
        "stage": task.stage,
        "data_found": not surveyed.is_assumed,
        "notes": surveyed.notes,
        "device": surveyed.run.device.type,
        "number_format": str(surveyed.run.dtype).removeprefix("torch."),
        "parameters": account.parameters(surveyed.rows),
        "data": accounts.data(surveyed, trial.typical),
        "batch_size": surveyed.settings.batch_size,
        "gradient_accumulation_steps": surveyed.settings.gradient_accumulation_steps,
        "flops_per_update": trial.flops,
        "memory": memory,
        "speed": speed,
        "disk": accounts.disk(surveyed, own),
    }
    of = "process" if recipe.header.device == "cpu" else "device"
    stage_account["proposal"] = (
        peak_memory.propose(stage_account, task.memory, of=of) if task.memory else None
    )
    return stage_account


def with_epoch(surveyed: SurveyedStage, speed: dict[str, Any] | None) -> SurveyedStage:
    """The stage with its `epoch_duration: 1h` in samples, as the run's own probe would find them.

    Raises  ConfigError where nothing was timed.
    """
    settings = surveyed.settings
    if settings.epoch_duration is None or settings.samples_per_epoch is not None:
        return surveyed
    samples, note = building.epoch(settings, speed)
    surveyed.notes.append(note)
    return replace(surveyed, settings=settings.model_copy(update={"samples_per_epoch": samples}))


def main() -> None:
    """Read a task from standard input, write what was found, or the error, into the file that is named as the
    argument."""
    out = Path(sys.argv[1])
    try:
        files.write_json(out, {"found": survey(Task(**json.load(sys.stdin)))})
    except MuomniError as error:
        files.write_json(out, {"error": error.message, "hint": error.hint, "exit_code": error.exit_code})


if __name__ == "__main__":
    main()
