"""Voice: LoRA on a language model of words and speech codes (Higgs Audio v2) learns the voices of
recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from muomni import files
from muomni.evaluate import voice_evaluation
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.infer.voice import NOTE
from muomni.models import lora
from muomni.models.higgs import Higgs
from muomni.models.lora import LoraSettings
from muomni.models.reference import NetworkReference
from muomni.stages.stage import BoardRow, Stage
from muomni.stages.voice_training import GATES, SpeechSettings, SpeechTraining, assume
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec

HIGGS = "bosonai/higgs-audio-v2-generation-3B-base"
ADAPTER = lora.NAMES
Group = Literal["attn", "text_ffn", "audio_ffn"]


class VoiceLora(BaseModel):
    """Rank, strength and groups of the adapter (SPEC H5).

    groups  attn: attention; text_ffn, audio_ffn: what words and codes go through
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    r: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0, description="the delta is alpha / r * B A")
    dropout: float = Field(0.05, ge=0, lt=1, description="on what A reads, in training mode")
    groups: list[Group] = Field(["attn", "text_ffn", "audio_ffn"], min_length=1)


class VoiceSettings(SpeechSettings):
    """Settings of stage voice, beside those of all stages of voices.

    base   the model of words and codes, frozen: a folder that transformers wrote, a hub id, or stage voice_base
    """

    base: NetworkReference = NetworkReference(name=HIGGS)
    lora: VoiceLora = VoiceLora()
    train: list[str] = [ADAPTER]
    lr: float = Field(2e-4, gt=0)

    @property
    def networks(self) -> dict[str, NetworkReference]:
        """Model and codec."""
        return {"base": self.base, **super().networks}

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The model's."""
        return self.base.locate(needed, base)


class VoiceTraining(SpeechTraining[VoiceSettings]):
    """An adapter on a frozen model."""

    is_frozen = True

    def open(self, folders: dict[str, Path]) -> tuple[Higgs, Tokenizer, Codec]:
        """The base, with what lies beside it."""
        device = self.inputs.run.device
        dtype = self.settings.base.dtype_on(device)
        model = self.inputs.place(Higgs.open(folders["base"], device=device, dtype=dtype))
        return model, Tokenizer.load(folders["base"]), self.opened_codec(model.books)

    def adapt(self) -> None:
        """The adapter learns, and nothing else."""
        chosen = self.settings.lora
        targets = self.model.targets(list(chosen.groups))
        adapter = LoraSettings(r=chosen.r, alpha=chosen.alpha, dropout=chosen.dropout, targets=targets)
        lora.attach(self.model, adapter)

    def checks(self) -> dict[str, Fact]:
        """Beside those of all voices, the adapter against its groups."""
        return {**voice_evaluation.adapter(self.model, self.settings.lora.groups), **super().checks()}

    def save(self, folder: Path) -> None:
        """The adapter as PEFT has it, and on what it stands."""
        lora.save(self.model, folder, self.bases["base"]["name"])
        files.write_json(folder / NOTE, self.bases)

    def changed(self, folder: Path) -> list[str]:
        """Of the adapter."""
        return super().changed(folder) + lora.changed(self.model, folder)


STAGE = Stage(
    "voice",
    "the voices of recordings, to a model that speaks in the voice of a reference",
    VoiceSettings,
    VoiceTraining,
    gates=(
        *GATES,
        Gate(
            "adapted",
            "adapter_gaps",
            "the adapter does not stand on the groups that were asked for, and on them alone: a path learns nothing",
            at_most=0.0,
            source="SPEC H5",
        ),
    ),
    enough=256,
    board=(
        BoardRow("voice.stop_within_20pct", "stop_within_20pct", 0.95),
        BoardRow("voice.reference_wins", "reference_swap_win_rate", 0.8),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:voice",
)
