"""Omni: the Thinker learns to read what the frozen eyes and ears send it, and to answer about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from muomni.data import indexed
from muomni.data.conversation import MediaSpec, input_media
from muomni.data.loader import Loader
from muomni.data.sample import Sample
from muomni.evaluate.facts import Fact
from muomni.evaluate.forgetting import Senses, Texts, own_texts
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import CAUSAL, LABELS, MEASURABLE, PACKING, SIGHT, ablation, held_out_gap
from muomni.evaluate.vqa_evaluation import VqaEvaluation
from muomni.media.frames import PAD_S, STATES_HZ
from muomni.models import lora, pretrained, store
from muomni.models.decoder import Decoder
from muomni.models.lora import LoraSettings
from muomni.models.omni import MEDIA_INPUTS, Omni, Projectors, ProjectorsConfig, ProjectorSettings
from muomni.stages import assumed, initial_weights
from muomni.stages.fusion import FusionSettings, FusionTraining
from muomni.stages.stage import BoardRow, Inputs, Stage
from muomni.stages.vision_statistics import standardise
from muomni.train.loop import Fitted
from muomni.train.objectives.language import NextToken
from muomni.train.optim import freeze


class OmniSettings(FusionSettings):
    """Settings of stage omni.

    projectors         how a picture and a sound become tokens
    lora               of the Thinker, which then rests: LoRA and projectors alone learn; None: all of it
                       learns
    max_audio_tokens   None: a quarter of the context (SPEC M-E)
    dropout            of the Thinker while it learns here; None: as it was trained. What it knows by heart
                       about the training pictures (no star was ever red) it would else believe over its eyes
    prompts            what is asked of a lone "image" or "audio"
    """

    projectors: ProjectorSettings = ProjectorSettings()
    lora: LoraSettings | None = None
    max_audio_tokens: int | None = Field(None, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)
    prompts: dict[Literal["image", "audio"], str] = {
        "image": "what is in the picture?",
        "audio": "what did you hear?",
    }
    train: list[str] = ["omni.decoder.*", "omni.projectors.*"]

    @model_validator(mode="before")
    @classmethod
    def _beside_lora(cls, values: Any) -> Any:
        """Where there is LoRA, it learns in place of the Thinker, unless the recipe says otherwise."""
        has_lora = isinstance(values, dict) and values.get("lora") is not None
        return {"train": [lora.NAMES, "omni.projectors.*"], **values} if has_lora else values

    @model_validator(mode="after")
    def _lora_learns(self) -> Self:
        if self.lora is not None and not any(
            "lora_" in pattern or pattern in ("*", "omni.*", "omni.decoder.*") for pattern in self.train
        ):
            raise ValueError(f"lora has no effect where train names none of it, e.g. {lora.NAMES}")
        return self

    learns_as: ClassVar[str] = "omni"


class OmniTraining(FusionTraining[OmniSettings]):
    """Frozen towers, projectors as loud as the embeddings, typed samples through the chat template; answers
    and ablations at the end."""

    def vocabulary(self) -> None:
        """The Thinker's tokenizer."""
        super().vocabulary()
        settings, inputs = self.settings, self.inputs
        self.tokenizer = pretrained.open_tokenizer(inputs.needed["thinker"])
        initial_weights.demand_tokenizer(settings.init_from, inputs.base, self.tokenizer, "thinker")
        self.words = str(self.tokenizer)

    def wire(self) -> tuple[NextToken, dict[str, torch.nn.Module]]:
        """The Thinker, frozen towers before it, and projectors between them."""
        settings, place, needed = self.settings, self.inputs.place, self.inputs.needed
        decoder = place(Decoder.open(needed["thinker"]))
        for part in decoder.modules():
            if isinstance(part, torch.nn.Dropout) and settings.dropout is not None:
                part.p = settings.dropout
        vision, audio = place(store.load(needed["vision"])), place(store.load(needed["hearing"]))
        shape = ProjectorsConfig(
            width=decoder.config.width,
            vision_width=vision.config.width,
            audio_width=audio.config.width,
            **dict(settings.projectors),
        )
        projectors = place(Projectors(shape).init_output_scale(decoder.embedding_rms))
        self.thinker = decoder
        if settings.lora is not None:
            place(lora.attach(decoder, settings.lora))
            self.thinker = place(
                lora.base_of(decoder)
            )  # what lies in final/thinker: the same tensors under Qwen3's names
        self.omni = Omni(decoder, freeze(vision), freeze(audio), projectors)  # type: ignore[arg-type]
        self.spec = MediaSpec(
            image_size=vision.config.image_size,
            image_tokens=shape.image_tokens,
            mel=audio.config.mel,
            downsample=audio.config.downsample,
            audio_pool=shape.audio_pool,
            max_audio_tokens=settings.max_audio_tokens or decoder.config.ctx_len // 4,
            pad_s=store.extra_of(needed["hearing"]).get("pad_s", PAD_S),
        )
        networks = {"thinker": self.thinker, "vision": vision, "hearing": audio, "projectors": projectors}
        return NextToken(
            decoder, self.omni, frozen_parts=() if settings.lora is None else ("omni.decoder.",)
        ), networks

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Samples of all kinds as rows of tokens, with places for their media."""
        omni, samples = self.omni, self.corpus.train
        for kind, row in MEDIA_INPUTS.items():
            projector = row.projector(omni)
            if projector is not None and not any(kind in input_media(sample) for sample in samples):
                projector.requires_grad_(False)  # nothing would ever teach it
        return self.rows(self.corpus.valid, omni.decoder.config.ctx_len)

    def prepare(self) -> dict[str, Fact]:
        """Statistics of what the eyes give, and how well the Thinker knows held-out text before."""
        inputs, most = self.inputs, self.settings.eval_items
        standardise(self.omni, self.corpus.train, self.spec, inputs.run.device)
        self.senses = Senses(inputs.needed, inputs.base, inputs.run, most, inputs.place)
        return self.before(_texts(self.corpus.valid, inputs, most))

    def save(self, folder: Path) -> None:
        """All parts of a model that answers, and what its media are."""
        networks = self.networks
        store.save(self.thinker, folder / "thinker")
        self.tokenizer.save(folder / "thinker", self.thinker.config.ctx_len)
        if self.settings.lora is not None:
            lora.save(self.omni.decoder, folder / "lora", "thinker")
        store.save(networks["vision"], folder / "vision")
        store.save(networks["hearing"], folder / "hearing", extra={"pad_s": self.spec.pad_s})
        store.save(self.omni.projectors, folder / "projectors")
        self.save_media(folder)

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Answers, whether they come from the media, and what was forgotten."""
        settings = self.settings
        self.omni.eval()
        vqa = VqaEvaluation(self.engine(), settings.eval_items, self.inputs.run)
        facts = vqa.answers(self.corpus.valid, stage_samples) | vqa.ablations(
            self.held_out, settings.ablation_tasks
        )
        towers: Any = (self.networks["vision"], self.networks["hearing"])
        return facts | self.forgetting.facts() | self.senses.facts(*towers)


def _texts(held_out: Sequence[Sample], inputs: Inputs, most: int) -> Texts:
    """The texts that forgetting is measured by: those held out here, else those that the Thinker's own stage
    held out."""
    replayed = indexed.where(held_out, lambda sample: not sample.media)
    return (
        Texts(replayed, "held out here")
        if replayed
        else own_texts(inputs.needed["thinker"], inputs.base, most)
    )


def assume(settings: OmniSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Pictures, sounds, both, and text, in turn; every KINDS-th sample is as long as the context allows."""
    room = settings.max_audio_tokens or context // 4
    sounds = assumed.sounds(folder, (room - 4) * settings.projectors.audio_pool / STATES_HZ)
    pictures, text = assumed.pictures(folder, 224), assumed.Text(words)
    rows: list[assumed.Row] = []
    for number in range(assumed.BATCHES * settings.batch_size):
        picture, (sound, _) = (
            assumed.part("image", pictures[number % assumed.KINDS]),
            sounds[number % assumed.KINDS],
        )
        media = [[picture], [assumed.part("audio", sound)], [picture, assumed.part("audio", sound)], []][
            number % 4
        ]
        used = (
            len(media) * 4
            + (1 + settings.projectors.pool_grid**2) * (picture in media)
            + room * (len(media) > (picture in media))
        )
        if number % assumed.KINDS == assumed.KINDS - 2:
            long = text.take(
                max(8, int((context - used - 16) / assumed.TOKENS_PER_WORD))
            )  # what is too much is cut off
            rows.append(assumed.turns([*media, assumed.part("text", text.take(6))], long))
        elif media:
            rows.append(
                assumed.turns(
                    [*media, assumed.part("text", text.take(6))], text.take(assumed.WORDS_OF_ANSWER)
                )
            )
        else:
            rows.append({"text": text.take(context // 8), "task": "text"})
    return rows


STAGE = Stage(
    "omni",
    "answers about pictures and sounds",
    OmniSettings,
    OmniTraining,
    needs=("thinker", "hearing", "vision"),
    gates=(
        *CAUSAL,
        *PACKING,
        *LABELS,
        *SIGHT,
        *ablation("image"),
        *ablation("audio"),
        Gate(
            "forgetting",
            "forgetting_bits_per_byte",
            "the Thinker forgot its language: more text replay, lower lr",
            at_most=0.15,
            source="SPEC 7",
        ),
        MEASURABLE,
        Gate(
            "forgetting_ears",
            "forgetting_cer",
            "the ears hear worse than after stage hearing",
            at_most=0.01,
            source="frozen: 0 but for rounding",
            modality="audio",
        ),
        Gate(
            "forgetting_eyes",
            "forgetting_retrieval",
            "the eyes find fewer captions than after stage vision",
            at_most=0.01,
            source="frozen: 0 but for rounding",
            modality="image",
        ),
        held_out_gap(1.0, "nats a token"),
    ),
    board=(
        BoardRow("omni.vqa_exact", "question_exact", 0.65),
        BoardRow("omni.vqa_exact_swapped_image", "question_exact_swapped_image", more_is_better=False),
        BoardRow("omni.spoken_vqa_exact", "spoken_question_exact", 0.6),
        BoardRow("omni.spoken_digit_exact", "digit_exact", 0.95),
        BoardRow("omni.speech_to_speech_exact", "", 0.45),  # measured by the board itself: it spans stages
        BoardRow("omni.forgetting_bits_per_byte", "forgetting_bits_per_byte", 0.15, more_is_better=False),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:language",
)
