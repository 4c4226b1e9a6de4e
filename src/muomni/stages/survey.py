"""One stage before anything is spent: built in a temporary folder, counted, dry-run on its largest batch, and timed.

`python -m muomni.stages.survey` does it in a process of its own, so that memory is that of this stage alone, and a dry run that the machine
can't hold ends nothing else. Takes a `Task` as JSON on standard input.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from muomni import files, runtime
from muomni.data import readers
from muomni.data.loader import Loader
from muomni.data.readers import Corpus
from muomni.errors import ConfigError, DataError, MuomniError
from muomni.runtime import Runtime
from muomni.stages import assumed, holding
from muomni.stages import recipe as recipes
from muomni.stages.one import default_threads
from muomni.stages.recipe import Recipe
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings
from muomni.train import cost, monitor, optim
from muomni.train.step import update

# Samples that are enough for stages which read all of their data as soon as they are built; others take only what they draw.
ENOUGH = {"thinker": 20_000, "talker": 256}
HELD_OUT = 128
# A dry run of the whole batch that would take longer (on the stage's own data, on assumed ones) is made on fewer rows, and drawn out in a line.
DRY_RUN_S, ASSUMED_S = 4.0, 1.0
DISCARDED = 1  # first updates of a probe: caches fill, kernels are made


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


@dataclass
class Built:
    """A stage as a survey builds it. `whole` counts what the sources hold, `scale` how many times the part that was built."""

    stage: Stage
    settings: StageSettings
    plan: Plan
    run: Runtime
    rows: list[optim.Row]
    whole: Corpus
    scale: float
    is_assumed: bool
    notes: list[str]


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
    memory = holding.account(built, trial, resident)
    speed = probe(built, trial, task)
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
    found["proposal"] = holding.propose(found, task.memory) if task.memory else None
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
        settings = _with(settings, data=sources, tokenizer_data=[], probe=[], init_from=None)
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


class Trial:
    """Updates of a built stage for their cost: memory of the largest batch, arithmetic of a typical one."""

    def __init__(self, built: Built) -> None:
        self.built = built
        settings, plan, run = built.settings, built.plan, built.run
        self.optimizer = optim.make_optimizer(plan.objective, built.rows, settings)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        optim.set_lr(self.optimizer, 1e-3)
        typical, largest = typical_and_largest(plan.train)
        self.items = _items(plan.train, largest)
        typical_items = self.items if typical == largest else _items(plan.train, typical)
        self.typical = self.batch(typical_items)
        self.of(self.items[-1:])  # makes the optimizer's state
        begin = time.perf_counter()
        one = self.of(self.items[-1:])
        row_s = time.perf_counter() - begin
        self.rows = len(self.items)
        allowed = int((ASSUMED_S if built.is_assumed else DRY_RUN_S) / row_s)
        self.rows_run = min(self.rows, max(2, allowed)) if run.device.type == "cpu" else self.rows
        most = self.of(_some(self.items, self.rows_run)) if self.rows_run > 1 else one
        fewer = max(1, self.rows_run // 2)
        less = self.of(_some(self.items, fewer)) if fewer > 1 else one
        self.per_row = max(0.0, (most.peak_bytes - less.peak_bytes) / max(1, self.rows_run - fewer))
        self.fixed = most.peak_bytes - self.per_row * self.rows_run
        some = _some(typical_items, min(self.rows_run, len(typical_items)))
        flops = most.flops if typical == largest else self.of(some).flops
        self.flops = flops * len(typical_items) / len(some) * settings.gradient_accumulation_steps
        self.valid_bytes = self._validation() if plan.valid is not None else 0

    def batch(self, items: Sequence[Any]) -> Any:
        """A batch on the device."""
        return self.built.plan.train.collate(list(items)).to(self.built.run.device)

    def of(self, items: Sequence[Any]) -> cost.Cost:
        """The cost of one update by one micro-batch."""
        built = self.built
        return cost.of_update(built.plan.objective, self.optimizer, [self.batch(items)], built.settings, built.run, self.scaler)

    def peak(self, batch_size: int) -> float:
        """The most bytes beside weights and optimizer state in an update of so many rows."""
        return self.fixed + self.per_row * batch_size

    def _validation(self) -> int:
        valid = self.built.plan.valid
        assert valid is not None
        items = _items(valid, typical_and_largest(valid)[1])
        some = _some(items, min(self.rows_run, len(items)))
        batch = valid.collate(some).to(self.built.run.device)
        return int(cost.of_validation(self.built.plan.objective, batch, self.built.run) * len(items) / len(some))


def typical_and_largest(loader: Loader[Any, Any], most: int = 4000) -> tuple[int, int]:
    """The numbers of the batches of an epoch with the median and the most padded elements, as far as lengths tell."""
    order = loader.order
    count = min(order.batches_per_epoch, most)
    if order.lengths is None:
        return 0, 0
    draws = [order.batch(number) for number in range(count)]
    padded = [len(batch) * int(order.lengths[[draw.index for draw in batch]].max()) for batch in draws]
    by_size = np.argsort(padded, kind="stable")
    return int(by_size[len(by_size) // 2]), int(by_size[-1])


def _items(loader: Loader[Any, Any], number: int) -> list[Any]:
    """The readable items of a batch, the longest last.

    Raises  the last DataError where none is readable.
    """
    items, error = [], None
    lengths = loader.order.lengths
    for draw in sorted(loader.order.batch(number), key=lambda draw: 0 if lengths is None else int(lengths[draw.index])):
        try:
            items.append(loader.dataset.item(draw.index, np.random.default_rng([draw.epoch, draw.index])))
        except DataError as bad:
            error = bad
    if not items:
        assert error is not None
        raise error
    return items


def _some(items: list[Any], count: int) -> list[Any]:
    """So many of the items, evenly, the last among them."""
    return [items[int(place)] for place in np.linspace(len(items) - 1, 0, count).round()][::-1]


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


def extent(batch: Any) -> tuple[str, float]:
    """What a batch holds of its own kind: seconds of sound, tokens, or pictures."""
    if hasattr(batch, "mel_BFM"):
        return "seconds", float(batch.frames_B.sum()) / 100
    if hasattr(batch, "codes_BKF"):
        return "code frames", float(batch.frames_B.sum())
    if hasattr(batch, "ids_BT"):
        keep = batch.keep_BT if batch.keep_BT is not None else batch.documents_BT >= 0 if batch.documents_BT is not None else None
        return "tokens", float(batch.ids_BT.numel() if keep is None else keep.sum())
    return "pictures", float(len(batch.sample_ids))


def probe(built: Built, trial: Trial, task: Task) -> dict[str, Any] | None:
    """Real updates on real batches, timed; None where none are wanted.

    Where data are assumed and a whole batch would take too long, rows of it are timed and the time is drawn out in proportion.
    """
    settings, plan, run = built.settings, built.plan, built.run
    if not task.probe:
        return None
    accumulation, rows = settings.gradient_accumulation_steps, settings.batch_size
    loader, share = plan.train, 1.0
    if built.is_assumed:
        loader = Loader(plan.train.dataset, plan.train.order, plan.train.collate)
        share = trial.rows_run / rows
    stream = loader.numbers(range(10**6)) if share == 1 else None
    wanted, begin = task.probe + DISCARDED, time.perf_counter()
    busy, waited, held = [], [], []
    while len(busy) < wanted and (len(busy) < DISCARDED + 1 or time.perf_counter() - begin < (ASSUMED_S if stream is None else task.probe_s)):
        start = time.perf_counter()
        if stream is None:
            batches = [plan.train.collate(_some(trial.items, trial.rows_run))]
        else:
            batches = [batch for batch in (next(stream).batch for _ in range(accumulation)) if batch is not None]
        moved = [batch.to(run.device) for batch in batches]
        waited.append(time.perf_counter() - start)
        start = time.perf_counter()
        update(plan.objective, plan.objective, trial.optimizer, trial.scaler, moved, settings, run)
        plan.objective.after_step(len(busy) + 1)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        busy.append(time.perf_counter() - start)
        held.append(sum(extent(batch)[1] for batch in batches))
    kept = slice(min(DISCARDED, len(busy) - 1), None)
    factor = 1.0 if stream is not None else accumulation / share
    update_s = statistics.median(a + b for a, b in zip(busy[kept], waited[kept], strict=True)) * factor
    typical_units = extent(trial.typical)[1] * accumulation
    return {
        "update_s": update_s,
        "updates_timed": len(busy[kept]),
        "rows_timed": rows if stream is not None else trial.rows_run,
        "data_wait": sum(waited[kept]) / (sum(waited[kept]) + sum(busy[kept])) if stream is not None else None,
        "units_per_s": (statistics.median(held[kept]) if stream is not None else typical_units) / update_s,
        "mfu": trial.flops / update_s / monitor.matmul_peak(run),
    }


def disk(built: Built, own: Path) -> dict[str, Any]:
    """Bytes that the stage leaves: checkpoints, what is handed on, and tokens."""
    settings, objective = built.settings, built.plan.objective
    state = cost.size(objective.state_dict().values())
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
