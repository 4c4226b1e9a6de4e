"""Voice base: all weights of a language model of words and speech codes (Higgs Audio v2), a new one or one that is
there; what stage voice adapts."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field, model_validator

from muomni import files
from muomni.data import indexed
from muomni.infer.voice import NOTE
from muomni.models import higgs_new, store
from muomni.models.higgs import Higgs
from muomni.models.higgs_new import HiggsConfig
from muomni.models.reference import NetworkReference
from muomni.stages import initial_weights
from muomni.stages.stage import Stage
from muomni.stages.voice_training import GATES, SpeechSettings, SpeechTraining, assume
from muomni.tokens import higgs_vocabulary
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec


class VoiceBaseSettings(SpeechSettings):
    """Settings of stage voice_base, beside those of all stages of voices.

    model   sizes of a new model, whose words are learned from the data; null, and no `base`: the standard ones
    base    instead: the model to begin with, of which all weights train. auto opens it in float32
    """

    model: HiggsConfig | None = None
    base: NetworkReference | None = None
    lr: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _one_start(self) -> VoiceBaseSettings:
        if self.model is not None and self.base is not None:
            raise ValueError("model and base are both given: a new model, or one that is there")
        return self

    @property
    def sizes(self) -> HiggsConfig:
        """Of a new model."""
        return self.model or HiggsConfig()

    @property
    def networks(self) -> dict[str, NetworkReference]:
        """The codec, and the model where it is there already."""
        return {**({} if self.base is None else {"base": self.base}), **super().networks}

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The model's, where it is there already."""
        return None if self.base is None else self.base.locate(needed, base)

    def width(self, needed: dict[str, Path], base: Path) -> int:
        """Of the model."""
        return self.sizes.width if self.base is None else super().width(needed, base)


class VoiceBaseTraining(SpeechTraining[VoiceBaseSettings]):
    """All weights of a model, from random ones or from those of a base."""

    def vocabulary(self) -> None:
        """The words: those of the weights it starts from, else learned from what the training rows say."""
        settings = self.settings
        if settings.base is not None:
            return
        known = initial_weights.tokenizer(settings.init_from, self.inputs.base)
        with indexed.seldom_collected():
            texts = (message.text for sample in self.corpus.train for message in sample.messages)
            self.tokenizer = known or higgs_vocabulary.learn(texts, settings.sizes.vocab_size)

    def open(self, folders: dict[str, Path]) -> tuple[Higgs, Tokenizer, Codec]:
        """A new model for the codec's codes, or the base with what lies beside it."""
        settings, device = self.settings, self.inputs.run.device
        if settings.base is None:
            codec = self.opened_codec(settings.sizes.books)
            model = higgs_new.make(settings.sizes, self.tokenizer, codec)
            return self.inputs.place(model), self.tokenizer, codec
        # What trains whole is kept in float32: updates are smaller than a step of bf16.
        dtype = torch.float32 if settings.base.dtype == "auto" else settings.base.dtype_on(device)
        model = self.inputs.place(Higgs.open(folders["base"], device=device, dtype=dtype))
        return model, Tokenizer.load(folders["base"]), self.opened_codec(model.books)

    def save(self, folder: Path) -> None:
        """The model as transformers opens it, its tokenizer, and by which codec it speaks."""
        higgs_new.save(self.model, self.tokenizer, folder)
        files.write_json(folder / NOTE, {"codec": self.bases["codec"]})

    def changed(self, folder: Path) -> list[str]:
        """Of the model."""
        return super().changed(folder) + store.changed(self.model.network, folder)


STAGE = Stage(
    "voice_base",
    "speech of words in the voice of a reference, to all weights of a model",
    VoiceBaseSettings,
    VoiceBaseTraining,
    gates=GATES,
    enough=256,
    assume=assume,
    anatomy="muomni.report.anatomy:voice",
)
