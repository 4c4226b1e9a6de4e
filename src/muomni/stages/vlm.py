"""Shared by align and instruct: a pretrained language model behind a pretrained vision tower, and its
evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field, NonNegativeInt, field_validator

from muomni.data import indexed, stratify
from muomni.data.loader import Loader
from muomni.data.quarantine import Quarantine
from muomni.data.readers import load
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.evaluate import labels
from muomni.evaluate.facts import Fact
from muomni.evaluate.forgetting import Texts, own_texts
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import CAUSAL, COVERAGE, LABELS, NAMES, PACKING, SIGHT, ablation
from muomni.evaluate.vqa_evaluation import VqaEvaluation, by_length
from muomni.evaluate.watched_items import WatchedItems
from muomni.models import store
from muomni.stages.fusion import FusionSettings, FusionTraining
from muomni.stages.stage import Inputs
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.language import NextToken

VLM_GATES = (*CAUSAL, *PACKING, *LABELS, *COVERAGE, *SIGHT, *ablation("image"), NAMES)  # gates of both stages


class VlmSettings(FusionSettings):
    """Settings of a stage in which a language model learns to see.

    max_seq_len         longest row, in tokens; the rest of an answer is cut, never a picture or an end
    length_edges        lengths of answers, in tokens, between which held-out samples are drawn in equal
                        numbers
    watched_items       number of held-out items that are answered at every checkpoint and kept in golden/
    max_new_tokens      longest answer to a held-out item
    exact_match_tasks   tasks of short answers: these must be right more often than a guess from the question
                        alone
    regression_texts    texts, never trained on, that measure what the language model forgets; none: of a
                        language model of ours the texts that its own stage held out. Asked for where the
                        language model trains: a frozen one can't forget
    """

    max_seq_len: int = Field(512, ge=16)
    gradient_checkpointing: bool = False
    length_edges: list[NonNegativeInt] = [0, 10, 20]
    watched_items: int = Field(64, ge=0)
    max_new_tokens: int = Field(48, ge=1)
    exact_match_tasks: list[str] = []
    regression_texts: list[Source] = []
    prompts: dict[Literal["image"], str] = {"image": "what is in the picture?"}
    of_tasks: ClassVar[tuple[str, ...]] = ("ablation_tasks", "exact_match_tasks")
    decides: ClassVar[frozenset[str]] = frozenset(
        {"eval_items"}
    )  # so many held-out items are drawn, and validated

    @field_validator("length_edges")
    @classmethod
    def _rise(cls, edges: list[int]) -> list[int]:
        if edges != sorted(set(edges)) or edges[:1] != [0]:
            raise ValueError("length_edges must begin with 0 and rise")
        return edges

    @property
    def teaches_language(self) -> bool:
        """Whether its language model learns, and so may forget."""
        return False

    @property
    def has_names(self) -> bool:
        """Whether answers are to name a class."""
        return any(source.class_name is not None for source in self.data)


V = TypeVar("V", bound=VlmSettings)


class VlmTraining(FusionTraining[V]):
    """Samples with pictures, learned from the assistant's words alone; answers, ablations and regressions at
    the end.

    A stage's `wire` gives the model by `seen`; where the language model learns too, it writes `adapter`.

    bases        what its folder says of the networks that it stands on
    text_folder  where its language model lies
    """

    bases: dict[str, dict[str, Any]]
    text_folder: Path

    def vlm_objective(self) -> tuple[NextToken, dict[str, torch.nn.Module]]:
        """The objective of the model, and what of it is new."""
        self.omni.decoder.checkpointing = self.settings.gradient_checkpointing
        self.words = str(self.tokenizer)
        objective = NextToken(self.omni.decoder, self.omni, frozen_parts=("omni.decoder.", "omni.vision."))
        return objective, {"projectors": self.omni.projectors}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Conversations as rows of tokens; held-out ones are drawn evenly over the lengths of their
        answers."""
        self.stratified = _stratified(self.corpus.valid, self.tokenizer, self.settings, self.inputs)
        longest = min(self.settings.max_seq_len, self.omni.decoder.config.ctx_len)
        return self.rows([sample for sample, _ in self.stratified], longest)

    def prepare(self) -> dict[str, Fact]:
        """How well the language model knows held-out text before; the items that are answered at every
        checkpoint."""
        inputs, settings = self.inputs, self.settings
        facts = self.before(_texts(settings, inputs, self.text_folder))
        watched = self.stratified[: settings.watched_items]  # the first of a fair draw are one themselves
        self.watched = WatchedItems(inputs.folder / "golden", watched, self.engine, settings.max_new_tokens)
        return facts

    def checks(self) -> dict[str, Fact]:
        """Beside the labels: whether answers are whole."""
        return super().checks() | labels.whole(self.training, self.tokenizer)

    def saved(self, step: int) -> None:
        """Answers to the watched items."""
        self.watched.dump(step)

    def adapter(self, folder: Path) -> None:
        """What the language model itself has learned, where it has."""

    def save(self, folder: Path) -> None:
        """The connector, what the language model has learned, and on what both stand."""
        store.save(self.omni.projectors, folder / "projectors", extra={"bases": self.bases})
        self.adapter(folder / "lora")
        self.save_media(folder, bases=self.bases)

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Answers, whether they come from the pictures, losses by length, and what was forgotten."""
        settings, corpus = self.settings, self.corpus
        self.omni.eval()
        vqa = VqaEvaluation(
            self.engine(), settings.eval_items, self.inputs.run, max_new=settings.max_new_tokens
        )
        facts = vqa.answers(
            corpus.valid, stage_samples, taught=corpus.train, exact=settings.exact_match_tasks
        )
        facts |= vqa.ablations(self.held_out, settings.ablation_tasks)
        facts |= by_length(
            vqa, self.held_out, [bucket for _, bucket in self.stratified], settings.length_edges
        )
        return facts | self.forgetting.facts()


def _stratified(
    samples: Sequence[Sample], tokenizer: Tokenizer, settings: VlmSettings, inputs: Inputs
) -> list[tuple[Sample, int]]:
    """Held-out samples, equally many of each length of answer, with the number of their length; the choice is
    kept in `splits/`."""
    lengths = stratify.label_lengths(samples, tokenizer)
    path = inputs.folder / "splits" / f"seed{settings.seed}_of_{settings.eval_items}.json"
    chosen = stratify.keep(path, samples, lengths, settings.eval_items, settings.length_edges, settings.seed)
    numbers = stratify.buckets(lengths, settings.length_edges)
    return [(samples[place], numbers[place]) for place in chosen]


def _texts(settings: VlmSettings, inputs: Inputs, text_folder: Path) -> Texts:
    """The texts that only measure: those that the recipe names, else those that the language model's own
    stage held out."""
    if not settings.regression_texts:
        return own_texts(text_folder, inputs.base, settings.eval_items)
    quarantine = Quarantine(None, settings.quarantine_limit)
    corpus = load(
        settings.regression_texts,
        base=inputs.base,
        val_split=settings.val_split,
        seed=settings.seed,
        quarantine=quarantine,
    )
    texts = indexed.where(corpus.valid or corpus.train, lambda sample: not sample.media)
    return Texts(texts, "named in regression_texts")
