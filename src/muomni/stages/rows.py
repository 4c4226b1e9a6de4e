"""Rows: a frozen language model gets embeddings and output rows for the tokens of images and sounds; they
alone learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from muomni.errors import ConfigError
from muomni.evaluate.gates import Gate
from muomni.evaluate.thresholds import CAUSAL, CODED, LABELS, MEASURABLE, held_out_gap
from muomni.models import lora, pretrained, rows, store
from muomni.models.reference import NetworkReference
from muomni.stages import assumed
from muomni.stages.stage import BoardRow, Stage
from muomni.stages.token_model import (
    NEW_ROWS,
    STAGES,
    TokenSettings,
    TokenTraining,
    open_codecs,
    without_dtype,
)
from muomni.tokens.space import SPECIAL_SIZE, TokenSpace
from muomni.train import optim
from muomni.train.objectives.tokens import TokenTasks
from muomni.train.optim import freeze

FASTEST_HZ = 90  # no codec of transformers has more frames a second: DAC 86, EnCodec 75, Mimi 12.5
ROOM, MOST_S = 64, 10.0  # tokens beside a sound of assumed data, and its longest; the source's clips are 10 s


class RowsSettings(TokenSettings):
    """Settings of stage rows.

    llm             the language model, frozen: a stage of this recipe, a folder or a hub id
    image_codec, audio_codec   whose codes become ids: a stage of this recipe or a folder; null: the space has
                               no such ids
    audio_codebooks  how many residual books of the audio codec are used; a codec of transformers must be told
    layout          how the books of an audio codec become ids
    special_size    ids kept for special tokens
    spread          of new rows around the mean of the text's at first, in the text's deviations
    train           the new rows alone; beside them parameters of the language model may be named, in a second
                    phase: `param_groups` must give these a `from_step`, until which they rest
    """

    llm: NetworkReference = NetworkReference(name="thinker")
    image_codec: NetworkReference | None = NetworkReference(name="image_codec")
    audio_codec: NetworkReference | None = NetworkReference(name="codec")
    audio_codebooks: int | None = Field(None, ge=1)
    layout: Literal["interleaved", "delay", "parallel"] = "interleaved"
    special_size: int = Field(SPECIAL_SIZE, ge=10)
    spread: float = Field(0.02, ge=0)
    train: list[str] = [*NEW_ROWS]
    learns_as: ClassVar[str] = "rows"

    def idle(self) -> dict[str, str]:
        """Beside those of all such stages: how the books of a codec are used that is not named."""
        found = super().idle()
        for name in ("image_codec", "audio_codec"):
            found |= without_dtype(getattr(self, name), name)
        if self.audio_codec is None:
            found |= dict.fromkeys(("audio_codebooks", "layout"), "there is no audio_codec")
        return found

    @model_validator(mode="after")
    def _learns_in_float32(self) -> Self:
        if self.last_phase and self.llm.dtype == "bf16":
            raise ValueError("llm.dtype: what learns is held in float32; leave it out, or from_step")
        return self

    @property
    def codecs(self) -> dict[str, NetworkReference]:
        """Those that are asked for, by modality."""
        return {
            name: base
            for name, base in (("image", self.image_codec), ("audio", self.audio_codec))
            if base is not None
        }

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that it stands on, where it stands on stages."""
        return tuple(
            dict.fromkeys(base.name for base in (self.llm, *self.codecs.values()) if base.name in STAGES)
        )

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The language model's."""
        return self.llm.locate(needed, base)

    def external_digests(self, base: Path) -> dict[str, str]:
        """Digests of the networks that come from elsewhere."""
        outside = {
            name: each for name, each in {"llm": self.llm, **self.codecs}.items() if each.name not in STAGES
        }
        return {name: pretrained.digest(each.locate({}, base)) for name, each in outside.items()}

    def external_folders(self, base: Path) -> list[Path]:
        """Networks that come from elsewhere may be stages of another run."""
        named = [each for each in (self.llm, *self.codecs.values()) if each.name not in STAGES]
        return [*super().external_folders(base), *(each.locate({}, base) for each in named)]


class RowsTraining(TokenTraining[RowsSettings]):
    """New rows at the mean of the old ones, on a language model that stays as it is."""

    def wire(self) -> tuple[TokenTasks, dict[str, nn.Module]]:
        """The language model and the codecs that it stands on; the token space follows from them."""
        settings, inputs = self.settings, self.inputs
        folder = settings.llm.locate(inputs.needed, inputs.base)
        # What learns is held in float32: in bf16 a small step is lost.
        dtype = torch.float32 if settings.last_phase else settings.llm.dtype_on(inputs.run.device)
        decoder = pretrained.open_decoder(folder, device=inputs.run.device, dtype=dtype)
        tokenizer = pretrained.open_tokenizer(folder)
        codecs, entries, self.bases = open_codecs(
            settings.codecs, {"audio": settings.audio_codebooks}, settings.layout, inputs
        )
        self.bases["thinker"] = settings.llm.describe(folder, is_stage=settings.llm.name in inputs.needed)
        self.text_folder = folder
        if settings.last_phase:  # where the names of its parameters decide
            self.plain = inputs.place(lora.base_of(decoder)).requires_grad_(True)
        else:
            freeze(decoder)
        model = self.opened(
            decoder, tokenizer, codecs, TokenSpace.of(tokenizer, entries, settings.special_size)
        )
        vectors = {codec.modality: codec.code_vectors() for codec in codecs}
        model.start(torch.Generator().manual_seed(settings.seed), settings.spread, vectors)
        for parameter in (model.new_embed, model.new_head):
            parameter.requires_grad_(True)
        objective = self.tasks(frozen=True)
        if settings.last_phase:
            self._demand_rest(objective)
        return objective, {}

    def _demand_rest(self, objective: TokenTasks) -> None:
        """Raises ConfigError where a part of the language model would learn from the first step on, or new rows
        would rest."""
        account = optim.select(objective, self.settings)
        new = {id(self.model.new_embed), id(self.model.new_head)}
        parameters = dict(objective.named_parameters())
        early = [
            row.name
            for row in account
            if row.trains and not row.from_step and id(parameters[row.name]) not in new
        ]
        if early:
            raise ConfigError(
                f"rows: {early[0]} would learn from the first step: the language model rests at first",
                hint="a from_step in param_groups for what is of it, or stage mmpt",
            )
        if late := [row.name for row in account if row.from_step and id(parameters[row.name]) in new]:
            raise ConfigError(
                f"rows: {late[0]} would rest at first: the new rows are what this stage teaches",
                hint='another group behind it, {pattern: "*.new_*", from_step: 0}',
            )

    @property
    def _has_own_base(self) -> bool:
        """Whether the language model is no longer that which the stage began with."""
        base = (each for name, each in self.model.decoder.named_parameters() if not name.startswith("grown_"))
        return any(each.requires_grad for each in base)

    def save(self, folder: Path) -> None:
        """The new rows, and on what they stand: the base that it began with, or its own once that learns."""
        if self._has_own_base:
            self.save_with_base(folder, self.plain)
        else:
            self.save_rows(folder, self.bases["thinker"])

    def changed(self, folder: Path) -> list[str]:
        """Beside the new rows: the language model, where it has learned."""
        own = store.changed(self.plain, folder / rows.THINKER) if self._has_own_base else []
        return super().changed(folder) + [f"{rows.THINKER}/{name}" for name in own]


def _longest_s(settings: Any, context: int) -> float:
    """Seconds of a sound that about fill a row beside its words, where a codec of transformers is used; with
    another one, a second."""
    books: int | None = getattr(settings, "audio_codebooks", None)
    if books is None:
        return 1.0
    return min(MOST_S, max(0.5, (context - ROOM) / (books * FASTEST_HZ)))


def assume(settings: Any, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Captions of pictures and of sounds, by turns, prompts to draw and to say, and texts to replay; in
    letters, which are a token or two in any vocabulary."""
    pictures, text = assumed.pictures(folder, 64), assumed.Text(assumed.LETTERS)
    sounds = assumed.sounds(folder, _longest_s(settings, context))
    made = []
    for number in range(4 * assumed.BATCHES * settings.batch_size):
        kind = number // 4 % assumed.KINDS
        medium = assumed.part(*(("image", pictures[kind]) if number % 2 else ("audio", sounds[kind][0])))
        said = text.take(assumed.WORDS_OF_CAPTION)
        is_read = number % 4 < 2
        made.append(assumed.turns([medium], said) if is_read else assumed.turns(said, [medium]))
    texts = 2 * settings.batch_size if settings.replay else 0
    return [*made, *({"text": text.take(assumed.WORDS_OF_ANSWER)} for _ in range(texts))]


USED = tuple(
    gate
    for kind, task in (("image", "i2t"), ("audio", "a2t"))
    for gate in (
        Gate(
            f"{task}_swap_gap",
            f"{task}_swap_gap_nats",
            f"texts ignore the {kind}: train longer, more data of {task}, look at the swapped pairs",
            at_least=0.1,
            source="SPEC T6, reference lumo B51",
            when=f"teaches_{task}",
        ),
        Gate(
            f"{task}_swap_wins",
            f"{task}_swap_win_rate",
            f"texts ignore the {kind}: train longer, more data of {task}, look at the swapped pairs",
            at_least=0.8,
            source="SPEC T6, reference lumo B51",
            when=f"teaches_{task}",
        ),
        Gate(
            f"{task}_noise_wins",
            f"{task}_noise_win_rate",
            f"texts are as likely with random {kind} tokens as with the right ones",
            at_least=0.85,
            source="reference lumo B51",
            when=f"teaches_{task}",
        ),
    )
)
TEXT_KEPT = Gate(
    "text_kept",
    "text_change",
    "texts cost more bits than before, over all ids: more `replay`, lower lr, fewer steps",
    at_most=0.02,
    source="SPEC T6, T7: 2 %",
)
HEAD_LEARNS = Gate(
    "head_learns",
    "written_share",
    "codes are written no better than blindly: output rows only learn where a task asks for them, t2i or t2a at a low weight",
    below_floor=0.9,
    source="reference lumo C41: the source's head never learned",
    when="writes",
)

STAGE = Stage(
    "rows",
    "what tokens of images and sounds mean, to a language model that stays as it is",
    RowsSettings,
    RowsTraining,
    gates=(
        *CAUSAL,
        *LABELS,
        *CODED,
        *USED,
        MEASURABLE,
        TEXT_KEPT,
        HEAD_LEARNS,
        held_out_gap(1.5, "nats a token"),
    ),
    board=(
        BoardRow("rows.image_swap_wins", "i2t_swap_win_rate", 0.8),
        BoardRow("rows.audio_swap_wins", "a2t_swap_win_rate", 0.8),
    ),
    assume=assume,
    enough=512,
    is_row_a_sample=False,
    anatomy="muomni.report.anatomy:tokens",
)
