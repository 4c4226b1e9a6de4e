"""Mmpt: multimodal token pretraining. The language model itself, or LoRA on it, learns to read and write
media tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import soxr
import torch
from pydantic import Field, model_validator
from torch import nn

from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.evaluate import token_samples
from muomni.evaluate.gates import Gate
from muomni.evaluate.thresholds import CAUSAL, CODED, LABELS, MEASURABLE, held_out_gap
from muomni.infer.sampling import MediaSampling
from muomni.infer.transcribe import transcribe
from muomni.media.frames import PAD_S
from muomni.models import lora, pretrained, rows, store
from muomni.models import reference as bases
from muomni.models.lora import LoraSettings
from muomni.models.reference import NetworkReference
from muomni.stages.rows import TEXT_KEPT, USED, assume
from muomni.stages.stage import BoardRow, Stage, demand_tasks
from muomni.stages.token_model import STAGES, TaskName, TokenSettings, TokenTraining, place, without_dtype
from muomni.tokens.space import TokenSpace
from muomni.train.objectives.tokens import TokenTasks

HEARING = "hearing"  # the stage of a recipe that may be named as judge


class MmptSettings(TokenSettings):
    """Settings of stage mmpt.

    judge   stage hearing of this recipe, or the `final/` of one: it transcribes the sounds that are written,
            which are then compared with their prompts; null: nobody listens
    spoken_tasks  tasks of the data whose sounds the judge must understand word for word
    rows    where it starts: stage rows of this recipe, or a folder of rows; the language model and the codecs
            come with it
    lora    of the language model; null: all of it learns
    writing   by medium (image, audio), how its codes are drawn, when the stage is measured and later:
            temperature, top_k, top_p, guidance, candidates; greedily where it is not named
    """

    rows: NetworkReference = NetworkReference(name="rows")
    lora: LoraSettings | None = None
    judge: NetworkReference | None = None
    spoken_tasks: list[str] = []
    writing: dict[Literal["image", "audio"], MediaSampling] = {}
    tasks: dict[TaskName, float] = {"i2t": 1.0, "a2t": 1.0, "t2i": 1.0, "t2a": 1.0}
    train: list[str] = ["*"]
    max_seq_len: int = Field(512, ge=16)
    learns_as: ClassVar[str] = "mmpt"

    def assuming(self, sources: list[Source]) -> Self:
        """Beside what all such stages leave out."""
        return super().assuming(sources).model_copy(update={"spoken_tasks": []})

    @model_validator(mode="after")
    def _is_guided(self) -> Self:
        if not self.drop_prompts and any(how.guidance > 1 for how in self.writing.values()):
            raise ValueError("writing: guidance needs rows without words: drop_prompts, e.g. 0.1")
        for kind, how in self.writing.items():
            if how.candidates > 1 and kind not in self.media_read:
                raise ValueError(
                    f"writing: candidates of {kind} are chosen by reading them: task i2t or a2t too"
                )
        return self

    def idle(self) -> dict[str, str]:
        """Beside those of all such stages: a judge of sounds that nobody writes, sounds that nobody judges."""
        found = {**super().idle(), **without_dtype(self.rows, "rows"), **without_dtype(self.judge, "judge")}
        for kind, is_written in (("image", self.teaches_t2i), ("audio", self.teaches_t2a)):
            if kind in self.writing and not is_written:
                found["writing"] = f"no task writes {kind}"
        if not self.teaches_t2a:
            found |= dict.fromkeys(("judge", "spoken_tasks"), "no task speaks (t2a)")
        elif self.judge is None:
            found["spoken_tasks"] = "nobody listens: name a `judge`"
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """Stage rows, where it starts from one, and what that stands on."""
        own = [self.rows.name] if self.rows.name in STAGES else []
        return (*own, *([HEARING] if self.judge is not None and self.judge.name == HEARING else []))

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The language model's."""
        return _thinker(self.rows.locate(needed, base))

    def external_digests(self, base: Path) -> dict[str, str]:
        """The digests of rows and of a judge that come from elsewhere."""
        digests = {}
        if self.rows.name not in STAGES:
            digests["rows"] = rows.digest(self.rows.locate({}, base))
        if (judge := self._judge_elsewhere) is not None:
            digests["judge"] = pretrained.digest(judge.locate({}, base))
        return digests

    def external_folders(self, base: Path) -> list[Path]:
        """Rows and a judge of another run."""
        return [
            *super().external_folders(base),
            *([] if self.rows.name in STAGES else [self.rows.locate({}, base)]),
            *([] if self._judge_elsewhere is None else [self._judge_elsewhere.locate({}, base)]),
        ]

    @property
    def _judge_elsewhere(self) -> NetworkReference | None:
        """The judge, where it is no stage of this recipe."""
        return None if self.judge is None or self.judge.name == HEARING else self.judge


def _thinker(folder: Path) -> Path:
    """The language model that a folder of rows stands on.

    Raises  ConfigError for rows that were trained with a LoRA, which is not opened here.
    """
    if (folder / rows.ADAPTER).is_dir():
        raise ConfigError(
            f"rows: {folder} has a LoRA of its own", hint="start from the rows that it started from"
        )
    own = folder / rows.THINKER
    return own if own.is_dir() else bases.find(rows.Note.read(folder).base, folder)[1]


class MmptTraining(TokenTraining[MmptSettings]):
    """The rows as they were left, and the language model beneath them."""

    def vocabulary(self) -> None:
        """Refuses tasks to listen to that no sample has, and a judge that lies nowhere, too: it listens when
        the training is over."""
        super().vocabulary()
        demand_tasks(self.corpus, spoken_tasks=self.settings.spoken_tasks)
        if (judge := self.settings.judge) is not None:
            self.hearing = judge.locate(self.inputs.needed, self.inputs.base)

    def wire(self) -> tuple[TokenTasks, dict[str, nn.Module]]:
        """The model of the rows; with LoRA its base rests."""
        settings, inputs = self.settings, self.inputs
        start = settings.rows.locate(inputs.needed, inputs.base)
        folder, note, space = _thinker(start), rows.Note.read(start), TokenSpace.load(start)
        # What learns is held in float32: in bf16 a small step is lost.
        dtype = torch.float32 if settings.lora is None else bases.as_stored(inputs.run.device)
        decoder = pretrained.open_decoder(folder, device=inputs.run.device, dtype=dtype)
        codecs = rows.open_codecs(start, device=inputs.run.device)
        for codec in codecs:
            place(codec, inputs)
        if settings.lora is not None:
            lora.attach(decoder, settings.lora)
        model = self.opened(decoder, pretrained.open_tokenizer(folder), codecs, space)
        rows.load_rows(model, start, base_digest=pretrained.digest(folder))
        self.bases = {"thinker": note.base, **note.codecs}
        self.text_folder = folder
        if settings.lora is None:
            # What is saved: the same tensors under Qwen3's names, without the new rows. They learn through
            # the model.
            self.plain = inputs.place(lora.base_of(decoder)).requires_grad_(True)
            return self.tasks(frozen=False), {rows.THINKER: self.plain}
        for parameter in (model.new_embed, model.new_head):
            parameter.requires_grad_(True)
        return self.tasks(frozen=True), {}

    @property
    def writing(self) -> dict[str, MediaSampling]:
        """As the settings say."""
        return {str(kind): how for kind, how in self.settings.writing.items()}

    @property
    def spoken_tasks(self) -> list[str]:
        """Those that the settings name."""
        return self.settings.spoken_tasks

    def judge(self) -> token_samples.Hear | None:
        """The hearing that is named."""
        if self.settings.judge is None:
            return None
        encoder = self.inputs.place(store.load(self.hearing, self.inputs.run.device))
        pad_s = store.extra_of(self.hearing).get("pad_s", PAD_S)
        codec = self.unified.codecs["audio"]
        rate_hz = encoder.config.mel.rate_hz

        def hear(waves: Sequence[Any]) -> list[str]:
            heard = [
                wave
                if codec.sample_rate_hz == rate_hz
                else soxr.resample(wave, codec.sample_rate_hz, rate_hz)
                for wave in waves
            ]
            return transcribe(encoder, heard, pad_s=pad_s)

        return hear

    def save(self, folder: Path) -> None:
        """The rows; and the language model where it learned, or its LoRA."""
        if self.settings.lora is not None:
            lora.save(self.model.decoder, folder / rows.ADAPTER, self.bases["thinker"]["name"])
            self.save_rows(folder, self.bases["thinker"])
            return
        self.save_with_base(folder, self.plain)

    def changed(self, folder: Path) -> list[str]:
        """Beside the rows: the adapter."""
        adapter = (
            [] if self.settings.lora is None else lora.changed(self.model.decoder, folder / rows.ADAPTER)
        )
        return super().changed(folder) + adapter


def _prompted(task: str, medium: str) -> tuple[Gate, ...]:
    ignored = f"{medium}s ignore the prompt: a larger weight for {task}, longer training"
    return (
        Gate(
            f"{task}_swap_wins",
            f"{task}_swap_win_rate",
            ignored,
            at_least=0.7,
            source="SPEC T7",
            when=f"teaches_{task}",
        ),
        Gate(
            f"{task}_swap_sure",
            f"{task}_swap_gap_nats",
            ignored,
            more_than=0.0,
            source="SPEC T7: correct < swapped, paired, 95 %",
            when=f"teaches_{task}",
            by_ci=True,
        ),
        Gate(
            f"{task}_empty_wins",
            f"{task}_empty_win_rate",
            ignored,
            at_least=0.8,
            source="SPEC T7",
            when=f"teaches_{task}",
        ),
        Gate(
            f"{task}_decodes",
            f"{task}_decoded",
            f"{medium}s that are held to the grammar can't be decoded",
            at_least=1.0,
            source="SPEC T7: 100 %",
            when=f"teaches_{task}",
        ),
    )


STAGE = Stage(
    "mmpt",
    "to read and write images and sounds as tokens",
    MmptSettings,
    MmptTraining,
    gates=(
        *CAUSAL,
        *LABELS,
        *CODED,
        *USED,
        *_prompted("t2i", "image"),
        *_prompted("t2a", "sound"),
        Gate(
            "reading_kept",
            "reading_change",
            "texts of images or sounds cost more nats than the rows alone did: larger weights for i2t and a2t",
            at_most=0.02,
            source="SPEC T7: 2 %",
            when="reads",
        ),
        Gate(
            "drawn_right",
            "drawn_right",
            "drawn pictures do not show the colour and shape that the prompt names, as a checker by rules sees them",
            at_least=0.8,
            source="issue 16",
            when="checked_tasks",
        ),
        Gate(
            "spoken_right",
            "spoken_right",
            "our own hearing understands other words in the sounds that are written than their prompts hold",
            at_least=0.8,
            source="issue 16",
            when="spoken_tasks",
        ),
        MEASURABLE,
        TEXT_KEPT,
        held_out_gap(1.5, "nats a token"),
    ),
    board=(
        BoardRow("mmpt.drawn_right", "drawn_right", 0.8),
        BoardRow("mmpt.spoken_right", "spoken_right", 0.8),
        BoardRow("mmpt.text_change", "text_change", 0.02, more_is_better=False),
    ),
    assume=assume,
    enough=512,
    is_row_a_sample=False,
    anatomy="muomni.report.anatomy:tokens",
)
