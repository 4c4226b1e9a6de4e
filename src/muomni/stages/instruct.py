"""Instruct: the language model learns, by LoRA, to answer questions about what the aligned connector shows
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from muomni.errors import ConfigError
from muomni.evaluate.gates import Gate
from muomni.evaluate.thresholds import MEASURABLE_IF_TAUGHT, held_out_gap, language
from muomni.infer.parts import Parts
from muomni.models import lora, pretrained
from muomni.models.lora import LoraSettings
from muomni.stages import assumed
from muomni.stages.stage import Stage
from muomni.stages.vlm import VLM_GATES, VlmSettings, VlmTraining
from muomni.train.objectives.language import NextToken
from muomni.train.optim import freeze
from muomni.train.settings import ParamGroup

CONNECTORS = ("align", "sweep")  # stages of a recipe whose connector it may start from
LORA, CONNECTOR = lora.NAMES, "omni.projectors.*"  # names of what learns


class InstructSettings(VlmSettings):
    """Settings of stage instruct.

    connector     where it starts: stage align or sweep of this recipe, or the `final/` of one; its bases come
                  with it
    lora          of the language model; None: it stays as it is, and the connector alone learns
    """

    connector: str = "sweep"
    lora: LoraSettings | None = LoraSettings()
    max_seq_len: int = Field(2048, ge=16)
    lr: float = Field(1e-4, gt=0)
    wd: float = Field(0.0, ge=0)
    train: list[str] = [LORA, CONNECTOR]
    param_groups: list[ParamGroup] = [
        ParamGroup(pattern=LORA, lr=5e-5, wd=0.0),
        ParamGroup(pattern=CONNECTOR, lr=1e-4, wd=0.01),
    ]

    @model_validator(mode="before")
    @classmethod
    def _without_lora(cls, values: Any) -> Any:
        """Where there is no LoRA, the connector alone trains, at the stage's own rate, unless the recipe says
        otherwise."""
        is_without = isinstance(values, dict) and values.get("lora", ...) is None
        return {"train": [CONNECTOR], "param_groups": [], **values} if is_without else values

    @property
    def teaches_language(self) -> bool:
        """LoRA teaches the language model."""
        return self.lora is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """The stage whose connector it starts from, where it is one."""
        return (self.connector,) if self.connector in CONNECTORS else ()

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The connector's, which is as wide as the language model."""
        return _folder(self, needed, base) / "projectors"

    def external_digests(self, base: Path) -> dict[str, str]:
        """The digest of a connector that comes from elsewhere."""
        return {} if self.needs else {"connector": pretrained.digest(_folder(self, {}, base) / "projectors")}

    def external_folders(self, base: Path) -> list[Path]:
        """A connector of another run."""
        return [*super().external_folders(base), *([] if self.needs else [_folder(self, {}, base)])]

    learns_as: ClassVar[str] = "instruct"


def _folder(settings: InstructSettings, needed: dict[str, Path], base: Path) -> Path:
    """The `final/` that holds the connector.

    Raises  ConfigError where it holds none.
    """
    folder = needed.get(settings.connector, base / settings.connector)
    if not (folder / "projectors").is_dir():
        raise ConfigError(
            f"connector: {folder} holds no projectors", hint="give stage align or sweep, or the final/ of one"
        )
    if (folder / "lora").is_dir():
        raise ConfigError(
            f"connector: {folder} has a LoRA of its own",
            hint="start from the align or sweep that it started from",
        )
    return folder


class InstructTraining(VlmTraining[InstructSettings]):
    """The aligned model as it was left, LoRA on its language model, conversations about pictures."""

    def wire(self) -> tuple[NextToken, dict[str, nn.Module]]:
        """The model of the stage that it starts from; its eyes rest, its language model learns by LoRA or
        rests too."""
        settings, inputs = self.settings, self.inputs
        parts = Parts(_folder(settings, inputs.needed, inputs.base), inputs.run.device)
        omni, spec = parts.omni, parts.media[0]
        assert omni is not None
        assert spec is not None
        assert omni.vision is not None
        inputs.place(omni)
        freeze(omni.vision)
        if settings.lora is None:
            freeze(omni.decoder)
        else:
            inputs.place(lora.attach(omni.decoder, settings.lora))
        self.omni, self.spec, self.tokenizer = omni, spec, parts.tokenizer
        self.bases, self.text_folder = parts.bases, parts.text_folder
        return self.vlm_objective()

    def adapter(self, folder: Path) -> None:
        """The LoRA."""
        if self.settings.lora is not None:
            lora.save(self.omni.decoder, folder, self.bases["thinker"]["name"])


def assume(settings: InstructSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Conversations of TURNS turns about a picture; every KINDS-th is as long as a row may be, by its last
    answer."""
    pictures, text = assumed.pictures(folder, assumed.SEEN), assumed.Text(assumed.LETTERS)
    room = assumed.room(context)
    short = min(assumed.WORDS_OF_ANSWER, room // (3 * assumed.TURNS))
    rows = []
    for number in range(assumed.BATCHES * settings.batch_size):
        turns = [assumed.turns(text.take(6), text.take(short)) for _ in range(assumed.TURNS - 1)]
        first = turns[0]["messages"][0]
        first["content"] = [
            assumed.part("image", pictures[number % assumed.KINDS]),
            assumed.part("text", first["content"]),
        ]
        used = (assumed.TURNS - 1) * (6 + short)
        last = room - used if number % assumed.KINDS == assumed.KINDS - 1 else short
        rows.append(
            {
                "messages": [
                    m
                    for turn in [*turns, assumed.turns(text.take(6), text.take(last))]
                    for m in turn["messages"]
                ]
            }
        )
    return rows


STAGE = Stage(
    "instruct",
    "answers about pictures, as they are asked for",
    InstructSettings,
    InstructTraining,
    gates=(
        *VLM_GATES,
        Gate(
            "above_question",
            "above_question_only",
            "answers are no better than a guess from the question alone: it does not look where it is asked to",
            more_than=0.0,
            source="SPEC M-E: question-only baseline; the low end of 95 % (sign test)",
            by_ci=True,
            when="exact_match_tasks",
        ),
        MEASURABLE_IF_TAUGHT,
        language(0.15),
        held_out_gap(1.5, "nats a token"),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:language",
)
