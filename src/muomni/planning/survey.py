"""One stage before anything is spent: built in a temporary folder, counted, dry-run on its largest batch, and timed.

`python -m muomni.planning.survey` does it in a process of its own: the memory is this stage's alone, and a dry run that the machine
can't hold ends nothing else. Takes a `Task` as JSON on standard input.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from muomni import files, runtime
from muomni.data import readers
from muomni.data.readers import Corpus
from muomni.errors import DataError, MuomniError
from muomni.planning import assumed, holding
from muomni.planning.trial import Built, Trial, extent, probe
from muomni.runtime import Runtime
from muomni.stages import recipe as recipes
from muomni.stages.one import default_threads
from muomni.stages.recipe import Recipe
from muomni.stages.stage import Inputs, StageSettings
from muomni.train import cost, given, optim

# Samples that are enough for stages which read all of their data as soon as they are built; others take only what they draw.
ENOUGH = {"thinker": 20_000, "talker": 256}
HELD_OUT = 128


@dataclass(frozen=True)
class Task:
    """What is asked of a survey.

    folder        the run's folder, in which finished stages may lie; read only
    temporary     where stand-ins and caches go
    is_stand_in   only leave an untrained stand-in for the stages that build upon this one
    """

    recipe: str
    overrides: list[str]
    stage: str
    folder: str
    temporary: str
    probe: int = 20
    probe_s: float = 10.0
    memory: int | None = None
    is_needed: bool = False
    is_stand_in: bool = False


@dataclass(frozen=True)
class Sampled(Inputs):
    """Inputs that give a part of the corpus: as many samples as a survey needs, evenly chosen."""

    part: Corpus

    def corpus(self, settings: StageSettings) -> Corpus:
        """The part, whatever the sources."""
        return self.part


def survey(task: Task) -> dict[str, Any]:
    """The account of one stage; keys as docs/plan.md has them.

    Raises  whatever the stage itself would, before it trains.
    """
    holding.warm_up()
    recipe = recipes.read(task.recipe, task.overrides, out=Path(task.folder))
    own = Path(task.temporary) / task.stage
    built = build(task, recipe, own)
    resident = holding.resident_bytes()
    if task.is_needed or task.is_stand_in:
        built.plan.save(own / "final")
    if task.is_stand_in:
        return {}
    trial = Trial(built)
    speed = probe(built, trial, task.probe, task.probe_s)
    memory = holding.account(built, trial, resident)
    found: dict[str, Any] = {
        "stage": task.stage,
        "data_found": not built.is_assumed,
        "notes": built.notes,
        "device": built.run.device.type,
        "number_format": str(built.run.dtype).removeprefix("torch."),
        "parameters": parameters(built.rows),
        "data": data(built, trial),
        "batch_size": built.settings.batch_size,
        "gradient_accumulation_steps": built.settings.gradient_accumulation_steps,
        "flops_per_update": trial.flops,
        "memory": memory,
        "speed": speed,
        "disk": disk(built, own),
    }
    of = "process" if recipe.header.device == "cpu" else "device"
    found["proposal"] = holding.propose(found, task.memory, of=of) if task.memory else None
    return found


def build(task: Task, recipe: Recipe, own: Path) -> Built:
    """The stage on its own data, or on assumed ones where they are not there; on finished stages, or stand-ins of them."""
    stage, settings = recipes.stage(task.stage), recipe.stages[task.stage]
    machine = runtime.start(device=recipe.header.device, threads=settings.threads or default_threads(recipe))
    notes: list[str] = []
    is_assumed = bool(absent(settings, recipe.base))
    if is_assumed:
        thinker: Any = recipe.stages.get("thinker", settings)
        words = getattr(settings, "vocab_size", thinker.model.vocab_size if "thinker" in recipe.stages else 2000)
        context = thinker.model.ctx_len if "thinker" in recipe.stages else 512
        sources = assumed.make(task.stage, settings, context, words, own / "assumed")
        notes.append(f"no data found ({absent(settings, recipe.base)[0]}): shapes are assumed, as large as the settings allow")
        settings = _with(settings, data=sources, tokenizer_data=[], probe=[], init_from=None, lm_order=0)
    # Codebooks that start late would leave their share of an update unseen.
    settings = _with(settings, quantise_after=0)
    precision = settings.precision if settings.use_amp else "fp32"
    run = Runtime(machine.device, runtime.choose_dtype(precision, settings.width, machine.device))
    runtime.seed_everything(settings.seed)
    needed = {name: _needed(name, task, notes) for name in stage.needs}
    whole = Inputs(own, needed, recipe.base, run).corpus(settings)
    part, scale = sample(whole, ENOUGH.get(task.stage))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = stage.build(settings, Sampled(own, needed, recipe.base, run, part))
    notes += [str(warning.message) for warning in caught if "tokenizer" in str(warning.message)]
    plan.objective.to(run.device).train()
    rows = optim.select(plan.objective, settings)
    return Built(stage, settings, plan, run, rows, whole, scale, is_assumed, notes)


def absent(settings: StageSettings, base: Path) -> list[str]:
    """The sources of a stage that are not there."""
    missing = []
    for source in settings.data:
        try:
            readers.locate(source, base)
        except DataError:
            missing.append(source.path)
    return missing


def sample(whole: Corpus, most: int | None) -> tuple[Corpus, float]:
    """At most so many training samples of a corpus, evenly chosen, and how many times they are contained in it."""
    places = np.arange(len(whole.train))
    if most is not None and len(places) > most:
        places = np.linspace(0, len(places) - 1, most).astype(int)
    valid = whole.valid[:: math.ceil(len(whole.valid) / HELD_OUT)] if whole.valid else []
    part = replace(whole, train=[whole.train[i] for i in places], valid=valid, weights=[whole.weights[i] for i in places])
    return part, len(whole.train) / max(1, len(places))


def _with(settings: StageSettings, **changes: Any) -> StageSettings:
    """Settings with those of the changes that the stage has."""
    return settings.model_copy(update={key: value for key, value in changes.items() if key in type(settings).model_fields})


def _needed(name: str, task: Task, notes: list[str]) -> Path:
    final = Path(task.folder) / name / "final"
    if final.is_dir():
        return final
    notes.append(f"stage {name} is not trained yet: an untrained network of its size stands in")
    return Path(task.temporary) / name / "final"


def parameters(rows: list[optim.Row]) -> dict[str, Any]:
    """The account of what trains: in all, and by part; parts are named as far down as it takes to tell them apart."""
    names = [row.name.split(".") for row in rows]
    depth = next((n for n in range(1, 4) if len({tuple(name[:n]) for name in names}) > 1), 1)
    parts: dict[str, dict[str, Any]] = {}
    for row, name in zip(rows, names, strict=True):
        part = parts.setdefault(".".join(name[:depth]), {"count": 0, "trained": 0, "rates": set(), "decays": set()})
        part["count"] += row.count
        if row.trains:
            part["trained"] += row.count
            part["rates"].add(row.lr)
            part["decays"].add(row.wd)
    trained = sum(row.count for row in rows if row.trains)
    count = sum(row.count for row in rows)
    told = [{"part": name, **{k: sorted(v) if isinstance(v, set) else v for k, v in part.items()}} for name, part in parts.items()]
    return {"all": count, "trained": trained, "frozen": count - trained, "parts": told}


def data(built: Built, trial: Trial) -> dict[str, Any]:
    """Samples, what an average one holds, and how often the run goes through them."""
    order, settings = built.plan.train.order, built.settings
    per_update = settings.batch_size * settings.gradient_accumulation_steps
    samples = round(order.samples_per_epoch * built.scale)
    unit, amount = extent(trial.typical)
    steps = settings.max_steps
    if settings.max_epochs is not None:
        steps = min(steps, math.ceil(settings.max_epochs * samples / per_update))
    return {
        "samples": samples,
        "held_out": len(built.whole.valid),
        "unit": unit,
        "units_per_sample": amount / len(trial.typical.sample_ids),
        "batches_per_epoch": math.ceil(samples / settings.batch_size),
        "updates_per_epoch": math.ceil(samples / per_update),
        "updates": steps,
        "epochs": steps * per_update / samples,
    }


def disk(built: Built, own: Path) -> dict[str, Any]:
    """Bytes that the stage leaves: checkpoints, what is handed on, and tokens."""
    settings, objective = built.settings, built.plan.objective
    state = cost.size(given.beside(objective).values())
    ema = cost.gradients(objective) if settings.ema_decay else 0
    checkpoint = state + holding.optimizer_bytes(built) + ema
    kept = min(settings.keep_checkpoints, math.ceil(settings.max_steps / settings.checkpoint_freq))
    tokens = sum(file.stat().st_size for file in (own / "tokens").rglob("*") if file.is_file()) * built.scale
    if not (own / "final").is_dir():
        built.plan.save(own / "final")
    final = sum(file.stat().st_size for file in (own / "final").rglob("*") if file.is_file())
    best = state if settings.final == "best" else 0
    total = kept * checkpoint + final + best + tokens
    return {"checkpoint": checkpoint, "checkpoints_kept": kept, "final": final, "best": best, "tokens": int(tokens), "total": int(total)}


def main() -> None:
    """Read a task from standard input, write what was found, or the error, into the file that is named as the argument."""
    out = Path(sys.argv[1])
    try:
        files.write_json(out, {"found": survey(Task(**json.load(sys.stdin)))})
    except MuomniError as error:
        files.write_json(out, {"error": error.message, "hint": error.hint, "exit_code": error.exit_code})


if __name__ == "__main__":
    main()
