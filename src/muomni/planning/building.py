"""A stage as a plan builds it: on its own data or on assumed ones, on finished stages or on untrained
stand-ins."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from muomni import runtime
from muomni.data import indexed, readers
from muomni.data.readers import Corpus
from muomni.errors import ConfigError, DataError
from muomni.execution.recipe import Recipe
from muomni.execution.stage_run import default_threads
from muomni.models.decoder import DecoderConfig
from muomni.models.reference import NetworkReference
from muomni.planning.dry_run import SurveyedStage
from muomni.stages import assumed
from muomni.stages.stage import Entry, StageSettings
from muomni.stages.stage import build as build_stage
from muomni.train import optim
from muomni.train.timing import MOST
from muomni.units import seconds

HELD_OUT = 128
STARTS = ("connector", "rows")  # settings that name a stage of the recipe to start from


@dataclass(frozen=True)
class Task:
    """What is asked of a survey.

    folder        the run's folder, in which finished stages may lie; read only
    temporary     where stand-ins and caches go
    is_stand_in   only leave an untrained stand-in for the stages that build on this one
    """

    recipe: str
    overrides: list[str]
    stage: str
    folder: str
    temporary: str
    probe: int = MOST
    probe_s: float = 10.0
    memory: int | None = None
    is_needed: bool = False
    is_stand_in: bool = False


@dataclass
class Prepared:
    """Settings whose data are there, the stage's own or assumed ones, and what is to be said of them."""

    settings: StageSettings
    is_assumed: bool
    notes: list[str]


def planned(recipe: Recipe) -> Recipe:
    """The recipe with its sweep as the first point that this picks from, since all cost the same."""
    entries = recipe.stages
    tried = {
        name: replace(entries[entry.points[0]], name=name) for name, entry in entries.items() if entry.points
    }
    return replace(recipe, stages=entries | tried)


def prepare(task: Task, recipe: Recipe, own: Path) -> Prepared:
    """A stage's settings as a plan tries them."""
    entry = recipe.stages[task.stage]
    settings = entry.settings
    notes: list[str] = []
    missing = absent_data(settings, recipe.base)
    if missing:
        known = _with_start(recipe, entry)
        sources = assumed.make(entry.stage, known, *_language(settings, recipe), own / "assumed")
        notes.append(f"no data found ({missing[0]}): shapes are assumed, as large as the settings allow")
        settings = settings.assuming(sources)
    return Prepared(settings, bool(missing), notes)


def _with_start(recipe: Recipe, entry: Entry) -> Any:
    """A stage's settings, and what else those of the stage whose rows it starts from say: how many books a
    codec has."""
    start = start_of(recipe, entry.name)
    beneath = {} if start is None else vars(recipe.stages[start].settings)
    return SimpleNamespace(**{**beneath, **vars(entry.settings)})


def _language(settings: StageSettings, recipe: Recipe) -> tuple[int, int]:
    """Positions of a row and words of the language model that a stage builds on, or is."""
    thinker: Any = recipe.stages.get("thinker")
    most = getattr(settings, "max_seq_len", None)  # null: what the model allows
    sizes = DecoderConfig(vocab_size=2000, ctx_len=most or 512)
    model: Any = sizes if thinker is None else thinker.settings.model
    return min(model.ctx_len, most or model.ctx_len), getattr(settings, "vocab_size", model.vocab_size)


def start_of(recipe: Recipe, stage: str) -> str | None:
    """The stage whose connector or rows this one starts from, and with them the networks that they stand on;
    None for one that makes its own, or takes a folder's."""
    for setting in STARTS:
        base = getattr(recipe.stages[stage].settings, setting, None)
        name = base.name if isinstance(base, NetworkReference) else base
        if isinstance(name, str) and name in recipe.stages:
            return name
    return None


def build(
    task: Task, recipe: Recipe, own: Path, prepared: Prepared, needed: Mapping[str, Path] | None = None
) -> SurveyedStage:
    """The stage, built.

    Takes   needed: folders that stand for stages, in place of those that `found` gives.
    """
    stage, settings, notes = recipe.stages[task.stage].stage, prepared.settings, list(prepared.notes)
    machine = runtime.start(device=recipe.header.device, threads=settings.threads or default_threads(recipe))
    folders = dict(needed) if needed is not None else needed_stages(task, recipe, notes)
    read: list[Corpus] = []

    def part(corpus: Corpus) -> Corpus:
        read.append(corpus)
        return sample(corpus, stage.enough)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training = build_stage(stage, settings, own, folders, recipe.base, machine, part=part)
    run = training.inputs.run
    notes += [str(warning.message) for warning in caught if "tokenizer" in str(warning.message)]
    notes += runtime.emulated({run.dtype, *(p.dtype for p in training.objective.parameters())}, run.device)
    training.objective.train()
    rows = optim.select(training.objective, settings)
    if optim.join(training.objective, rows, settings.last_phase):
        notes.append(
            f"planned as it is from step {settings.last_phase} on, when all that trains does (from_step)"
        )
    whole = read[0]
    scale = len(whole.train) / max(1, len(training.corpus.train))
    return SurveyedStage(stage, settings, training, run, rows, whole, scale, prepared.is_assumed, notes)


def needed_stages(task: Task, recipe: Recipe, notes: list[str]) -> dict[str, Path]:
    """The folders of the stages that this one builds on, finished ones or stand-ins, which the notes then
    tell."""
    folders = {}
    for name in recipe.stages[task.stage].needs:
        folders[name] = Path(task.temporary) / name / "final"
        if not folders[name].is_symlink():
            notes.append(f"stage {name} is not trained yet: an untrained network of its size stands in")
    return folders


def absent_data(settings: StageSettings, base: Path) -> list[str]:
    """The sources of a stage that are not there."""
    missing = []
    for source in settings.data:
        try:
            readers.locate(source, base)
        except DataError:
            missing.append(source.path)
    return missing


def sample(whole: Corpus, most: int | None) -> Corpus:
    """At most so many training samples of a corpus, evenly chosen, and some held-out ones."""
    count, train, weights = len(whole.train), whole.train, whole.weights
    if most is not None and count > most:
        places = np.linspace(0, count - 1, most).astype(int).tolist()
        train, weights = indexed.pick(train, places), [weights[place] for place in places]
    valid = whole.valid[:: math.ceil(len(whole.valid) / HELD_OUT)] if whole.valid else []
    return replace(whole, train=train, valid=valid, weights=weights)


def changed(settings: StageSettings, **changes: Any) -> StageSettings:
    """Settings with those of the changes that the stage has."""
    return settings.model_copy(
        update={key: value for key, value in changes.items() if key in type(settings).model_fields}
    )


def epoch(settings: StageSettings, speed: dict[str, Any] | None) -> tuple[int, str]:
    """Samples of an epoch of the time that `epoch_duration` names, as the run's own probe would find them,
    and a line about it.

    Raises  ConfigError where nothing was timed.
    """
    assert settings.epoch_duration is not None
    if speed is None:
        raise ConfigError(
            f"epoch_duration: {settings.epoch_duration} is as many samples as a probe says",
            hint="plan it with --probe 50 or more",
        )
    updates = max(1, int(seconds(settings.epoch_duration, "epoch_duration") / speed["update_s"]))
    samples = updates * settings.batch_size * settings.gradient_accumulation_steps
    timed = f"by {speed['updates_timed']} timed updates"
    return samples, f"epoch_duration: {settings.epoch_duration} is {samples} samples, {timed}"
