"""Shared by omni, align and instruct: media before a language model, rows with media tokens, ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from muomni import files
from muomni.data.conversation import Conversations, MediaSpec
from muomni.data.loader import Loader
from muomni.data.pictures import PictureAugment
from muomni.data.sample import Sample
from muomni.evaluate import labels
from muomni.evaluate.facts import Fact
from muomni.evaluate.forgetting import Forgetting, Texts
from muomni.infer.engine import Engine
from muomni.infer.folders import OMNI
from muomni.infer.parts import Parts
from muomni.models.omni import Omni
from muomni.stages.stage import StageSettings, Training, demand_tasks, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.language import collate


class FusionSettings(StageSettings):
    """Settings of a stage in which a language model reads media.

    augment             changes of training pictures
    separate_questions  questions about the same media learn without seeing each other, as if each was asked
                        first
    ablation_tasks      tasks by which swapped media judge whether the model uses them, none: all. For data
                        that hold some of a task that are too few to learn it from; what each task gains is
                        told all the same
    """

    augment: PictureAugment = PictureAugment()
    separate_questions: bool = False
    ablation_tasks: list[str] = []
    of_tasks: ClassVar[tuple[str, ...]] = ("ablation_tasks",)  # settings that name tasks of the data

    @property
    def packs(self) -> bool:
        """Separate questions share a row and do not see each other."""
        return self.separate_questions


F = TypeVar("F", bound=FusionSettings)


class FusionTraining(Training[F]):
    """A stage's `wire` sets omni, tokenizer and spec; the rest reads them."""

    omni: Omni
    tokenizer: Tokenizer
    spec: MediaSpec

    def vocabulary(self) -> None:
        """Nothing is learned; tasks that settings name are looked for."""
        settings = self.settings
        named = {name: getattr(settings, name) for name in settings.of_tasks}
        named |= {
            f"augment.{name}": getattr(settings.augment, name) for name in ("flip_tasks", "shift_only_tasks")
        }
        demand_tasks(self.corpus, **named)

    def rows(
        self, held_out: Sequence[Sample], longest: int
    ) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Loaders of conversations, `longest` tokens at most, the rest of an answer is cut; rows of like
        length together."""
        settings, shape = self.settings, (self.tokenizer, self.spec, longest)
        self.training = Conversations(
            self.corpus.train, *shape, apart=settings.separate_questions, changes=settings.augment
        )
        self.held_out = Conversations(held_out, *shape, apart=settings.separate_questions)
        order: Any = {"weights": self.corpus.weights, "lengths": Conversations.lengths}
        return loaders(self.training, self.held_out, collate, settings, **order)

    def before(self, texts: Texts) -> dict[str, Fact]:
        """How well the language model knows texts before it trains; `forgetting` asks again afterwards."""
        inputs, objective = self.inputs, self.objective
        cache: Any = inputs.folder / "tokens"
        self.forgetting = Forgetting(objective, texts.samples, self.tokenizer, cache, inputs.run)  # type: ignore[arg-type]
        return {**texts.fact(), **self.forgetting.before()}

    def engine(self) -> Engine:
        """The model at work, with the weights in place."""
        settings: Any = self.settings
        parts: dict[str, Any] = {"omni": self.omni, "media": (self.spec, settings.prompts)}
        parts |= {"thinker": self.omni.decoder, "tokenizer": self.tokenizer}
        return Engine(Parts.live(self.inputs.run.device, **parts))

    def checks(self) -> dict[str, Fact]:
        """The labels, against the samples."""
        return labels.conversations(self.training, self.tokenizer)

    def save_media(self, folder: Path, **more: Any) -> None:
        """What its media are and what is asked of a lone one: `omni.json`, by which an engine knows the
        folder."""
        settings: Any = self.settings
        media = {**dataclasses.asdict(self.spec), "mel": self.spec.mel.model_dump()}
        files.write_json(folder / OMNI, {"media": media, "prompts": settings.prompts, **more})
