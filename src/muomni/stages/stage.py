"""What a stage is: frozen data that says what it needs, how it is wired, and what must hold at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from muomni import runtime
from muomni.data import ahead, cache, indexed, readers, uses
from muomni.data.loader import Dataset, Loader
from muomni.data.order import Order, tempered
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.segments import Segments
from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.evaluate import thresholds
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate, demanded
from muomni.evaluate.samples import StageSamples
from muomni.models import integrity, store
from muomni.runtime import Runtime
from muomni.stages import coded, initial_weights
from muomni.stages.placement import Placement
from muomni.train.best import Export
from muomni.train.loop import Fitted
from muomni.train.objective import Objective
from muomni.train.settings import TrainSettings


class StageSettings(TrainSettings):
    """Settings of any stage; `gates` sets bounds anew, by gate name; `extra_gates` adds gates, e.g.
    {digit_exact: ">= 0.93"}."""

    gates: dict[str, float] = {}
    extra_gates: dict[str, str] = {}
    eval_items: int = Field(256, ge=1, description="held-out items behind each costly fact")
    mix_temperature: float | None = Field(
        None,
        ge=1,
        description="T: sources are drawn by weight x size^(1/T) instead of weight x size; None and 1: by size",
    )
    learns_as: ClassVar[str] = (
        ""  # which stage of `data.uses` says what it can learn from; none: from anything
    )
    unused: ClassVar[dict[str, str]] = {}  # options of all stages that do nothing in this one, and why
    decides: ClassVar[frozenset[str]] = (
        frozenset()
    )  # settings that are harmless elsewhere (recipe.HARMLESS), and here decide the best

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        if self.mix_temperature is not None and len(self.data) < 2:
            raise ValueError(
                f"mix_temperature has an effect with two sources or more, here are {len(self.data)}"
            )
        return self

    def idle(self) -> dict[str, str]:
        """Beside those of every training: options that this stage has no use for (`unused`)."""
        return {**super().idle(), **self.unused}

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages of the recipe that these settings name, beside those that the stage always needs."""
        return ()

    def assuming(self, sources: list[Source]) -> Self:
        """These settings on assumed data, and without what else would be read."""
        return self.model_copy(update={"data": sources, "init_from": None})

    def external_digests(self, base: Path) -> dict[str, str]:
        """Digests of what is taken from outside of the recipe: pretrained networks, by the setting that names
        them."""
        return {}

    def external_folders(self, base: Path) -> list[Path]:
        """Folders of finished stages that it starts from and that are not its recipe's, where there are
        such."""
        folder = None if self.init_from is None else initial_weights.find(self.init_from, base)
        return (
            [folder / integrity.FINAL] if folder is not None and (folder / integrity.FINAL).is_dir() else []
        )

    @property
    def learned(self) -> list[Source]:
        """All sources that it learns from: where one of them changes, a finished stage is another."""
        return self.data

    @property
    def packs(self) -> bool:
        """Whether its rows hold several documents that must not see each other."""
        return False

    @property
    def chooses_format(self) -> bool:
        """Whether the number format is left to us, rather than asked for by name."""
        return self.use_amp and self.precision == "auto"

    def refusal(self, sample: Sample) -> str | None:
        """Why the stage can't learn from a sample, in a few words; None if it can."""
        return uses.refusal(self.learns_as, sample) if self.learns_as else None

    def segments(self) -> Segments | None:
        """What makes shorter samples of those that are too long for the stage; None: each is taken as it
        is."""
        return None

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The folder of the widest network that the stage computes with, where its own settings don't give a
        width."""
        return needed.get("thinker")

    def width(self, needed: dict[str, Path], base: Path) -> int:
        """Width of what it computes with, which decides the number format on a CPU: its model's, else that of
        the network it stands on."""
        model: Any = getattr(self, "model", None)
        if hasattr(model, "width"):
            return int(model.width)
        folder = self.stands_on(needed, base)
        content = {} if folder is None else store.read_config(folder)
        return int(
            content.get("hidden_size", content.get("width", 0))
        )  # 0: float32, which is sound everywhere

    def number_format(self, inputs: Inputs) -> torch.dtype:
        """The format in which the stage computes on this machine.

        Raises  ConfigError for one that the device does not have.
        """
        precision = self.precision if self.use_amp else "fp32"
        width = self.width(inputs.needed, inputs.base) if self.chooses_format else 0
        return runtime.choose_dtype(precision, width, inputs.run.device)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a stage: its own folder, the `final/` folders of needed stages, where data paths start, and
    the machine.

    `wire` passes every network through `place` as soon as it is opened or made: so it lies on the run's
    device, where all work is done.

    keeps   whether what is encoded may be kept for other runs
    """

    folder: Path
    needed: dict[str, Path]
    base: Path
    run: Runtime
    keeps: bool = True

    @cached_property
    def place(self) -> Placement:
        """The one that moves this stage's networks."""
        return Placement(self.run.device)

    @property
    def coded(self) -> Path:
        """Where codes of speech are kept: in the stage's folder, or where MUOMNI_CACHE says, for all runs."""
        return (coded.shared_cache() if self.keeps else None) or self.folder / "coded"

    def corpus(self, settings: StageSettings) -> readers.Corpus:
        """The samples of the stage's sources, split; bad rows go to its quarantine.

        Raises  ConfigError where the stage has no data; DataError where it could learn from none of them.
        """
        if not settings.data:
            raise ConfigError(f"{self.folder.name}.data: no sources", hint="e.g. data: [{path: texts.txt}]")
        quarantine = Quarantine(
            self.folder / "quarantine.jsonl" if self.run.is_main else None, settings.quarantine_limit
        )
        corpus_read = ahead.load(
            settings.data,
            base=self.base,
            val_split=settings.val_split,
            seed=settings.seed,
            quarantine=quarantine,
            segments=settings.segments(),
        )
        uses.demand(self.folder.name, corpus_read.train, settings.refusal)
        if settings.mix_temperature is None:
            return corpus_read
        assert isinstance(corpus_read.weights, readers.Runs)
        return replace(
            corpus_read, weights=readers.Runs(tempered(corpus_read.weights.runs, settings.mix_temperature))
        )


S = TypeVar("S", bound=StageSettings)


class Training(ABC, Generic[S]):
    """The life of a stage. A stage's file says its steps; `build` takes the first four, in this order, then
    the loop fits.

    vocabulary  what the networks' sizes take from the data (tokens, voices); most stages have none
    wire        the networks and the objective, on earlier stages; no sample is read
    data        loaders of training and held-out rows
    prepare     what is measured before the first step: statistics of the data, how well the networks did
                before
    measure     facts on held-out data, with the trained weights in place

    corpus      the samples it is trained on, and those held out
    networks    what lies in `final/`, by folder ("." its top), to compare what was saved with what was
                measured
    notes       facts that are known before the first step
    words       what its ids stand for, in a few words ("tokenizer of 5000 tokens"); empty where it has none
    """

    objective: Objective
    networks: dict[str, nn.Module]
    train: Loader[Any, Any]
    valid: Loader[Any, Any] | None
    words: str = ""

    def __init__(self, settings: S, inputs: Inputs, corpus: readers.Corpus) -> None:
        self.settings, self.inputs, self.corpus = settings, inputs, corpus
        self.notes: dict[str, Fact] = {}

    def vocabulary(self) -> None:
        """Learn from the corpus what `wire` must know. Refuses, by ConfigError, data that don't suit the
        settings."""

    @abstractmethod
    def wire(self) -> tuple[Objective, dict[str, nn.Module]]:
        """The objective, and the networks of `final/`; each is passed through `inputs.place` as soon as it is
        there."""

    @abstractmethod
    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Loaders of training and of held-out rows (see `loaders`)."""

    def prepare(self) -> dict[str, Fact]:
        """Measure what must be known before training, and give the facts of it."""
        return {}

    def checks(self) -> dict[str, Fact]:
        """Facts about the rows as they are taught, measured before the first step."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the files of `final/`: here its networks, each in its place."""
        for place, network in self.networks.items():
            store.save(network, folder / place)

    def saved(self, step: int) -> None:
        """A checkpoint was written; called on the main rank, with the weights in place."""

    @abstractmethod
    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Facts on held-out data; only the main rank asks. What was measured on goes into the album."""

    def changed(self, folder: Path) -> list[str]:
        """Tensors of what `save` writes that are others in a folder than in memory."""
        return [
            f"{place}/{name}"
            for place, network in self.networks.items()
            for name in store.changed(network, folder / place)
        ]

    @property
    def export(self) -> Export:
        """How its weights are written so that they can be opened, before the end too."""
        return Export(self.save, self.networks)

    @property
    def modalities(self) -> set[str]:
        """What its samples hold: image, audio, text (samples without media)."""
        return self.corpus.modalities


@dataclass(frozen=True)
class BoardRow:
    """A row of the score board: a fact of a stage under a public name, and the least that is accepted of it
    (SPEC 7's, where given).

    fact   empty for what the board measures itself, over stages
    """

    name: str
    fact: str
    least: float | None = None
    more_is_better: bool = True


Assume = Callable[
    [Any, int, list[str], Path], list[dict[str, Any]]
]  # settings, positions of a row, words, where media go


@dataclass(frozen=True)
class Stage:
    """A line of the table of contents: what it teaches, what it stands on, and its gates.

    board    its rows of the score board
    assume   rows of data in the shapes that its settings allow, for a plan that is made before its data are
             there
    enough   for a stage that encodes all of its samples before it begins: so many show what it costs
    is_row_a_sample   whether a row is made of one sample alone
    anatomy  "module:function" that shows a batch of one row on a page (`report.anatomy`)
    """

    name: str
    teaches: str
    settings: type[StageSettings]
    training: type[Training[Any]]
    gates: tuple[Gate, ...]
    needs: tuple[str, ...] = ()
    board: tuple[BoardRow, ...] = ()
    assume: Assume | None = None
    enough: int | None = None
    is_row_a_sample: bool = True
    anatomy: str = "muomni.report.anatomy:fields"


@dataclass(frozen=True)
class Entry:
    """A stage of a run: which one, with which settings, where, and what must be done before it.

    name        its key in the recipe, and its folder in the run's
    run         the run's folder
    points      the entries among which it picks one, and trains nothing itself; of all others none
    may_be_red  whether the run goes on where its gates are red
    """

    name: str
    stage: Stage
    settings: StageSettings
    run: Path
    points: tuple[str, ...] = ()
    may_be_red: bool = False

    @property
    def folder(self) -> Path:
        """Its own."""
        return self.run / self.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The entries that must be done before it."""
        return self.points or (*self.stage.needs, *self.settings.needs)

    @property
    def needed(self) -> dict[str, Path]:
        """The `final/` of each of these."""
        return {name: self.run / name / "final" for name in self.needs}

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates that every stage has, the stage's own, and the recipe's `extra_gates`."""
        return (*thresholds.SOUND, *self.stage.gates, *demanded(self.settings.extra_gates))


@indexed.seldom_collected()
def build(
    stage: Stage,
    settings: StageSettings,
    folder: Path,
    needed: dict[str, Path],
    base: Path,
    machine: Runtime,
    *,
    part: Callable[[readers.Corpus], readers.Corpus] | None = None,
) -> Training[Any]:
    """A stage up to its first step, as its seed and number format say: the one way in which a stage is built.

    Takes   folder: the stage's own; needed: `final/` of the stages that it needs; base: where data paths
            start; part: chooses samples, to look at a stage without training it. Nothing is prepared then,
            and nothing kept for others.
    Raises  what the stage raises; ConfigError and DataError for its data.
    """
    inputs = Inputs(folder, needed, base, machine, keeps=part is None)
    inputs = replace(inputs, run=replace(machine, dtype=settings.number_format(inputs)))
    runtime.seed_everything(settings.seed)
    cache.begin(settings.cache_mb)
    corpus = inputs.corpus(settings)
    training = stage.training(settings, inputs, corpus if part is None else part(corpus))
    training.vocabulary()
    training.objective, training.networks = training.wire()
    training.train, training.valid = training.data()
    if part is None:
        training.notes |= training.prepare()
    return training


def demand_tasks(corpus: readers.Corpus, **named: Sequence[str]) -> None:
    """Raises ConfigError where a setting names a task that no sample has. The data are read only if one names
    any."""
    missing_tasks = {task for tasks in named.values() for task in tasks}
    for sample in chain(corpus.train, corpus.valid) if missing_tasks else ():
        missing_tasks.discard(sample.task)
        if not missing_tasks:
            return
    for setting, tasks in named.items():
        if lost := [task for task in tasks if task in missing_tasks]:
            raise ConfigError(
                f"{setting} has no effect: no sample has task {', '.join(lost)}",
                hint="name tasks of the stage's data",
            )


def loaders(
    train: Dataset[Any],
    valid: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    settings: StageSettings,
    *,
    weights: Sequence[float] | None = None,
    lengths: Callable[[Dataset[Any]], Sequence[int] | NDArray[Any]] | None = None,
) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
    """Loaders for training (weighted) and held-out data, both shuffled; with `lengths`, batches hold samples
    of like length."""
    runs = [(weight, len(list(members))) for weight, members in groupby(weights or repeat(1.0, len(train)))]
    order = Order(
        [size for _, size in runs],
        weights=[weight for weight, _ in runs],
        batch_size=settings.batch_size,
        seed=settings.seed,
        lengths=lengths(train) if lengths else None,
    )
    held_out = None
    if len(valid):
        # Shuffled once and for all: the first `val_batches` speak for all of it, short and long.
        fixed = Order(
            [len(valid)],
            batch_size=settings.batch_size,
            seed=settings.seed,
            lengths=lengths(valid) if lengths else None,
        )
        held_out = Loader(valid, fixed, collate)
    return Loader(train, order, collate, workers=settings.num_workers), held_out
