"""Align: a connector learns to say in the embeddings of a frozen language model what frozen eyes see."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeInt
from torch import nn

from muomni.data.conversation import MediaSpec
from muomni.evaluate.facts import Fact
from muomni.evaluate.thresholds import MEASURABLE_IF_TAUGHT, held_out_gap, language
from muomni.models import pretrained
from muomni.models.connector import PerceiverConfig
from muomni.models.omni import Omni, Projectors, ProjectorsConfig
from muomni.models.reference import NetworkReference
from muomni.stages import assumed
from muomni.stages.stage import Stage
from muomni.stages.vision_statistics import standardise
from muomni.stages.vlm import VLM_GATES, VlmSettings, VlmTraining
from muomni.train.objectives.language import NextToken
from muomni.train.optim import freeze

STAGES = ("thinker", "vision")  # of a recipe, that may be named as bases


class AlignSettings(VlmSettings):
    """Settings of stage align.

    llm, vision_tower    what it stands on, frozen: a stage of this recipe, a folder or a hub id
    connector            the Perceiver that makes tokens of what the vision tower gives, always as many,
                         whatever the picture's size
    feature_layers       after how many blocks the vision tower is read (see ProjectorSettings)
    standardise          bring what the vision tower gives to mean 0 and spread 1 first, by statistics of
                         training pictures
    """

    llm: NetworkReference = NetworkReference(name="thinker")
    vision_tower: NetworkReference = NetworkReference(name="vision")
    connector: PerceiverConfig = PerceiverConfig()
    feature_layers: tuple[NonNegativeInt, ...] = ()
    standardise: bool = True
    train: list[str] = ["omni.projectors.*"]

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that it stands on, where it stands on stages."""
        return tuple(
            dict.fromkeys(base.name for base in (self.llm, self.vision_tower) if base.name in STAGES)
        )

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The language model's."""
        return self.llm.locate(needed, base)

    def external_digests(self, base: Path) -> dict[str, str]:
        """Digests of the networks that come from elsewhere."""
        outside = {
            name: each
            for name, each in (("llm", self.llm), ("eyes", self.vision_tower))
            if each.name not in STAGES
        }
        return {name: pretrained.digest(each.locate({}, base)) for name, each in outside.items()}

    def external_folders(self, base: Path) -> list[Path]:
        """Networks that come from elsewhere may be stages of another run."""
        named = [each for each in (self.llm, self.vision_tower) if each.name not in STAGES]
        return [*super().external_folders(base), *(each.locate({}, base) for each in named)]

    learns_as: ClassVar[str] = "align"


class AlignTraining(VlmTraining[AlignSettings]):
    """Frozen towers, a connector as loud as the embeddings, captions through the chat template."""

    def wire(self) -> tuple[NextToken, dict[str, nn.Module]]:
        """The two networks that it stands on, and a Perceiver between them."""
        settings, inputs = self.settings, self.inputs
        named = {"thinker": settings.llm, "vision": settings.vision_tower}
        folders = {name: base.locate(inputs.needed, inputs.base) for name, base in named.items()}
        device, place = inputs.run.device, inputs.place
        llm_dtype, eyes_dtype = settings.llm.dtype_on(device), settings.vision_tower.dtype_on(device)
        decoder = place(pretrained.open_decoder(folders["thinker"], device=device, dtype=llm_dtype))
        tower = place(pretrained.open_tower(folders["vision"], device=device, dtype=eyes_dtype))
        self.tokenizer = pretrained.open_tokenizer(folders["thinker"])
        shape = ProjectorsConfig(
            width=decoder.config.width,
            vision_width=tower.width,
            audio_width=None,
            num_cls_tokens=tower.num_cls_tokens,
            perceiver=settings.connector,
            feature_layers=settings.feature_layers,
        )
        projectors = place(Projectors(shape).init_output_scale(decoder.embedding_rms))
        freeze(decoder), freeze(tower)
        self.omni = Omni(decoder, tower, None, projectors, self.tokenizer.special_tokens)
        self.spec = MediaSpec(
            image_size=tower.image_size, image_tokens=shape.image_tokens, resample=tower.resample
        )
        stages = inputs.needed
        self.bases = {
            name: base.describe(folders[name], is_stage=base.name in stages) for name, base in named.items()
        }
        self.text_folder = folders["thinker"]
        return self.vlm_objective()

    def prepare(self) -> dict[str, Fact]:
        """Beside the text: statistics of what the eyes give."""
        if self.settings.standardise:
            standardise(self.omni, self.corpus.train, self.spec, self.inputs.run.device)
        return super().prepare()


def assume(settings: AlignSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Captions; every KINDS-th is as long as a row may be."""
    pictures, text = assumed.pictures(folder, assumed.SEEN), assumed.Text(assumed.LETTERS)
    rows = []
    for number in range(assumed.BATCHES * settings.batch_size):
        kind = number % assumed.KINDS
        count = (
            assumed.room(context, settings.connector.tokens)
            if kind == assumed.KINDS - 1
            else assumed.WORDS_OF_CAPTION
        )
        user_parts = [assumed.part("image", pictures[kind]), assumed.part("text", "what is this?")]
        rows.append(assumed.turns(user_parts, text.take(count)))
    return rows


STAGE = Stage(
    "align",
    "what pictures show, to a language model that stays as it is",
    AlignSettings,
    AlignTraining,
    gates=(
        *VLM_GATES,
        MEASURABLE_IF_TAUGHT,
        language(0.0),
        held_out_gap(1.5, "nats a token"),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:language",
)
