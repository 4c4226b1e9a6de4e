"""One stage before anything is spent: built in a temporary folder, counted, dry-run on its largest batch, and timed.

`python -m muomni.planning.survey` does it in a process of its own: the memory is this stage's alone, and a dry run that the machine
can't hold ends nothing else. Takes a `Task` as JSON on standard input.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from muomni import files
from muomni.errors import ConfigError, MuomniError
from muomni.planning import accounts, bases, building, drawn, holding
from muomni.planning.building import Task
from muomni.planning.trial import Built, Trial, probe
from muomni.stages import recipe as recipes
from muomni.train import account
from muomni.train.timing import LEAST
from muomni.units import seconds, told_seconds


def survey(task: Task) -> dict[str, Any]:
    """The account of one stage; keys as docs/plan.md has them.

    Raises  whatever the stage itself would, before it trains; ConfigError for a network that is neither there nor known.
    """
    holding.warm_up()
    recipe = building.planned(recipes.read(task.recipe, task.overrides, out=Path(task.folder)))
    own = Path(task.temporary) / task.stage
    made = building.ready(task, recipe, own)
    if absent := bases.absent(recipe, task.stage, Path(task.folder)):
        return {} if task.is_stand_in else drawn.survey(task, recipe, made, absent)
    built = building.build(task, recipe, own, made)
    resident = holding.resident_bytes()
    if task.is_needed or task.is_stand_in:
        built.plan.save(own / "final")
    if task.is_stand_in:
        return {}
    trial = Trial(built)
    speed = probe(built, trial, task.probe, task.probe_s)
    built = with_epoch(built, speed)
    if speed is not None and speed["updates_timed"] < min(LEAST, task.probe):
        would_s = LEAST * speed["update_s"]
        built.notes.append(f"its speed is that of {speed['updates_timed']} updates: {LEAST} would take {told_seconds(would_s)}")
    memory = holding.account(built, trial, resident)
    found: dict[str, Any] = {
        "stage": task.stage,
        "data_found": not built.is_assumed,
        "notes": built.notes,
        "device": built.run.device.type,
        "number_format": str(built.run.dtype).removeprefix("torch."),
        "parameters": account.parameters(built.rows),
        "data": accounts.data(built, trial.typical),
        "batch_size": built.settings.batch_size,
        "gradient_accumulation_steps": built.settings.gradient_accumulation_steps,
        "flops_per_update": trial.flops,
        "memory": memory,
        "speed": speed,
        "disk": accounts.disk(built, own),
    }
    of = "process" if recipe.header.device == "cpu" else "device"
    found["proposal"] = holding.propose(found, task.memory, of=of) if task.memory else None
    return found


def with_epoch(built: Built, speed: dict[str, Any] | None) -> Built:
    """The stage with its `epoch_duration: 1h` in samples, as the run's own probe would find them.

    Raises  ConfigError where nothing was timed.
    """
    settings = built.settings
    if settings.epoch_duration is None or settings.samples_per_epoch is not None:
        return built
    if speed is None:
        raise ConfigError(
            f"epoch_duration: {settings.epoch_duration} is as many samples as a probe says", hint="plan it with --probe 50 or more"
        )
    updates = max(1, int(seconds(settings.epoch_duration, "epoch_duration") / speed["update_s"]))
    samples = updates * settings.batch_size * settings.gradient_accumulation_steps
    built.notes.append(f"epoch_duration: {settings.epoch_duration} is {samples} samples, by {speed['updates_timed']} timed updates")
    return replace(built, settings=settings.model_copy(update={"samples_per_epoch": samples}))


def main() -> None:
    """Read a task from standard input, write what was found, or the error, into the file that is named as the argument."""
    out = Path(sys.argv[1])
    try:
        files.write_json(out, {"found": survey(Task(**json.load(sys.stdin)))})
    except MuomniError as error:
        files.write_json(out, {"error": error.message, "hint": error.hint, "exit_code": error.exit_code})


if __name__ == "__main__":
    main()
