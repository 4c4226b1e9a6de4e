"""What align and instruct share: a language model that others trained, eyes that others trained, and what is measured of both together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, NonNegativeInt, field_validator

from muomni import files
from muomni.data import indexed, stratify
from muomni.data.conversation import Conversations, MediaSpec
from muomni.data.loader import Loader
from muomni.data.pictures import PictureAugment
from muomni.data.quarantine import Quarantine
from muomni.data.readers import load
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.evaluate import labels
from muomni.evaluate.album import Album
from muomni.evaluate.examiner import Examiner, by_length
from muomni.evaluate.facts import Fact
from muomni.evaluate.forgetting import Forgetting, Texts, own_texts
from muomni.evaluate.golden import Golden
from muomni.infer.engine import Engine
from muomni.infer.parts import Parts
from muomni.models import store
from muomni.models.omni import Omni
from muomni.stages.stage import Inputs, StageSettings, Training, demand_tasks, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.language import NextToken, collate


class SeeingSettings(StageSettings):
    """Settings of a stage in which a language model learns to see.

    max_seq_len         longest row, in tokens; the rest of an answer is cut, never a picture or an end
    length_edges        lengths of answers, in tokens, between which held-out samples are drawn in equal numbers
    watched_items       number of held-out items that are answered at every checkpoint and kept in golden/
    max_new_tokens      longest answer to a held-out item
    separate_questions  questions about the same pictures learn without seeing each other
    ablation_tasks      tasks by which swapped pictures judge whether the model uses them; none: all
    exact_match_tasks   tasks of short answers: these must be right more often than a guess from the question alone
    regression_texts    texts, never trained on, that measure what the language model forgets; none: of a language model of ours
                        the texts that its own stage held out. Asked for where the language model trains: a frozen one can't forget
    """

    max_seq_len: int = Field(512, ge=16)
    gradient_checkpointing: bool = False
    length_edges: list[NonNegativeInt] = [0, 10, 20]
    watched_items: int = Field(64, ge=0)
    max_new_tokens: int = Field(48, ge=1)
    separate_questions: bool = False
    augment: PictureAugment = PictureAugment()
    ablation_tasks: list[str] = []
    exact_match_tasks: list[str] = []
    regression_texts: list[Source] = []
    prompts: dict[Literal["image"], str] = {"image": "what is in the picture?"}
    decides: ClassVar[frozenset[str]] = frozenset({"eval_items"})  # so many held-out items are drawn, and validated

    @field_validator("length_edges")
    @classmethod
    def _rise(cls, edges: list[int]) -> list[int]:
        if edges != sorted(set(edges)) or edges[:1] != [0]:
            raise ValueError("length_edges must begin with 0 and rise")
        return edges

    @property
    def packs(self) -> bool:
        """Separate questions share a row and do not see each other."""
        return self.separate_questions

    @property
    def teaches_language(self) -> bool:
        """Whether its language model learns, and so may forget."""
        return False

    @property
    def has_names(self) -> bool:
        """Whether answers are to name a class."""
        return any(source.class_name is not None for source in self.data)


V = TypeVar("V", bound=SeeingSettings)


class SeeingTraining(Training[V]):
    """Samples with pictures, learned from the assistant's words alone; answers, ablations and regressions at the end.

    A stage's `wire` gives the model by `seen`; where the language model learns too, it writes `adapter`.

    bases        what its folder says of the networks that it stands on
    text_folder  where its language model lies
    """

    omni: Omni
    tokenizer: Tokenizer
    spec: MediaSpec
    bases: dict[str, dict[str, Any]]
    text_folder: Path

    def vocabulary(self) -> None:
        """Nothing is learned; tasks that settings name are looked for."""
        settings = self.settings
        named = {f"augment.{name}": getattr(settings.augment, name) for name in ("flip_tasks", "shift_only_tasks")}
        named |= {name: getattr(settings, name) for name in ("ablation_tasks", "exact_match_tasks")}
        demand_tasks(self.corpus, **named)

    def seen(self) -> tuple[NextToken, dict[str, torch.nn.Module]]:
        """The objective of the model, and what of it is new."""
        self.omni.decoder.checkpointing = self.settings.gradient_checkpointing
        self.words = str(self.tokenizer)
        objective = NextToken(self.omni.decoder, self.omni, given=("omni.decoder.", "omni.vision."))
        return objective, {"projectors": self.omni.projectors}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Conversations as rows of tokens; held-out ones are drawn evenly over the lengths of their answers."""
        settings, corpus, tokenizer = self.settings, self.corpus, self.tokenizer
        longest = min(settings.max_seq_len, self.omni.decoder.config.ctx_len)
        shape, apart = (tokenizer, self.spec, longest), settings.separate_questions
        self.drawn = _drawn(corpus.valid, tokenizer, settings, self.inputs)
        self.training = Conversations(corpus.train, *shape, apart=apart, changes=settings.augment)
        self.held_out = Conversations([sample for sample, _ in self.drawn], *shape, apart=apart)
        order: Any = {"weights": corpus.weights, "lengths": Conversations.lengths}
        return loaders(self.training, self.held_out, collate, settings, **order)

    def prepare(self) -> dict[str, Fact]:
        """How well the language model knows held-out text before; the items that are answered at every checkpoint."""
        inputs, settings = self.inputs, self.settings
        texts = _texts(settings, inputs, self.text_folder)
        objective: Any = self.objective
        self.forgetting = Forgetting(objective, texts.samples, self.tokenizer, inputs.folder / "tokens", inputs.run)
        watched = _golden(self.drawn, settings)
        self.golden = Golden(inputs.folder / "golden", watched, self.engine, settings.max_new_tokens)
        return {**texts.fact(), **self.forgetting.before()}

    def engine(self) -> Engine:
        """The model at work, with the weights in place."""
        media = (self.spec, self.settings.prompts)
        parts = {"thinker": self.omni.decoder, "tokenizer": self.tokenizer, "omni": self.omni, "media": media}
        return Engine(Parts.live(self.inputs.run.device, **parts))

    def checks(self) -> dict[str, Fact]:
        """The labels, against the samples."""
        return labels.conversations(self.training, self.tokenizer) | labels.whole(self.training, self.tokenizer)

    def saved(self, step: int) -> None:
        """Answers to the watched items."""
        self.golden.dump(step)

    def adapter(self, folder: Path) -> None:
        """What the language model itself has learned, where it has."""

    def save(self, folder: Path) -> None:
        """The connector, what the language model has learned, and on what both stand."""
        store.save(self.omni.projectors, folder / "projectors", extra={"bases": self.bases})
        self.adapter(folder / "lora")
        media = {**dataclasses.asdict(self.spec), "mel": self.spec.mel.model_dump()}
        files.write_json(folder / "omni.json", {"media": media, "prompts": self.settings.prompts, "bases": self.bases})

    def measure(self, fitted: Fitted, album: Album) -> dict[str, Fact]:
        """Answers, whether they come from the pictures, losses by length, and what was forgotten."""
        settings, corpus = self.settings, self.corpus
        self.omni.eval()
        examiner = Examiner(self.engine(), settings.eval_items, self.inputs.run, max_new=settings.max_new_tokens)
        facts = examiner.answers(corpus.valid, album, taught=corpus.train, exact=settings.exact_match_tasks)
        facts |= examiner.ablations(self.held_out, settings.ablation_tasks)
        facts |= by_length(examiner, self.held_out, [bucket for _, bucket in self.drawn], settings.length_edges)
        return facts | self.forgetting.facts()


def _drawn(samples: Sequence[Sample], tokenizer: Tokenizer, settings: SeeingSettings, inputs: Inputs) -> list[tuple[Sample, int]]:
    """Held-out samples, equally many of each length of answer, with the number of their length; the choice is kept in `splits/`."""
    lengths = stratify.label_lengths(samples, tokenizer)
    path = inputs.folder / "splits" / f"seed{settings.seed}_of_{settings.eval_items}.json"
    chosen = stratify.keep(path, samples, lengths, settings.eval_items, settings.length_edges, settings.seed)
    numbers = stratify.buckets(lengths, settings.length_edges)
    return [(samples[place], numbers[place]) for place in chosen]


def _golden(drawn: list[tuple[Sample, int]], settings: SeeingSettings) -> list[tuple[Sample, int]]:
    """The items that are answered at every checkpoint: of those drawn the first, which are a fair draw themselves."""
    return drawn[: settings.watched_items]


def _texts(settings: SeeingSettings, inputs: Inputs, text_folder: Path) -> Texts:
    """The texts that only measure: those that the recipe names, else those that the language model's own stage held out."""
    if not settings.regression_texts:
        return own_texts(text_folder, inputs.base, settings.eval_items)
    quarantine = Quarantine(None, settings.quarantine_limit)
    found = load(settings.regression_texts, base=inputs.base, val_split=settings.val_split, seed=settings.seed, quarantine=quarantine)
    texts = indexed.where(found.valid or found.train, lambda sample: not sample.media)
    return Texts(texts, "named in regression_texts")
