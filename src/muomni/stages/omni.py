"""Omni: the Thinker learns to read what the frozen eyes and ears send it, and to answer about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, model_validator

from muomni import files
from muomni.data import indexed
from muomni.data.conversation import Conversations, MediaSpec
from muomni.data.pictures import PictureAugment
from muomni.data.sample import Sample
from muomni.evaluate import labels, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.examiner import Examiner
from muomni.evaluate.facts import Fact
from muomni.evaluate.forgetting import Forgetting, Senses, Texts, own_texts
from muomni.infer.engine import Engine
from muomni.infer.parts import Parts
from muomni.media.frames import PAD_S
from muomni.models import lora, pretrained, store
from muomni.models.connector import PerceiverConfig
from muomni.models.decoder import Decoder
from muomni.models.lora import LoraSettings
from muomni.models.omni import Omni, Projectors, ProjectorsConfig
from muomni.stages import initial_weights
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, demand_tasks, loaders
from muomni.stages.statistics import standardise
from muomni.train.loop import Fitted
from muomni.train.objectives.language import NextToken, collate
from muomni.train.optim import freeze


class OmniSettings(StageSettings):
    """Settings of stage omni.

    grid, levels, audio_pool   how a picture and a sound become tokens (see ProjectorsConfig)
    resampler          in place of the grid: a Perceiver of so many tokens a picture, as stage align has it
    lora               of the Thinker, which then rests: LoRA and projectors alone learn; None: all of it learns
    max_audio_tokens   None: a quarter of the context (SPEC M-E)
    dropout            of the Thinker while it learns here; None: as it was trained. What it knows by heart about the training pictures
                       (no star was ever red) it would else believe over its eyes
    augment            changes of training pictures
    apart              questions about the same media learn without seeing each other, as if each was asked first
    proof              tasks by which swapped media judge whether it looks and listens, none: all. For data that hold some of a task that
                       are too few to learn it from; what each task gains is told all the same
    prompts            what is asked of a lone "image" or "audio"
    """

    grid: int = Field(0, ge=0)
    levels: tuple[NonNegativeInt, ...] = ()
    resampler: PerceiverConfig | None = None
    lora: LoraSettings | None = None
    audio_pool: int = Field(1, ge=1, le=4)
    max_audio_tokens: int | None = Field(None, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)
    augment: PictureAugment = PictureAugment()
    apart: bool = False
    proof: list[str] = []
    prompts: dict[Literal["image", "audio"], str] = {"image": "what is in the picture?", "audio": "what did you hear?"}
    train: list[str] = ["omni.decoder.*", "omni.projectors.*"]

    @model_validator(mode="before")
    @classmethod
    def _beside_lora(cls, values: Any) -> Any:
        """Where there is LoRA, it learns in place of the Thinker, unless the recipe says otherwise."""
        has_lora = isinstance(values, dict) and values.get("lora") is not None
        return {"train": [lora.NAMES, "omni.projectors.*"], **values} if has_lora else values

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.resampler is not None and self.grid:
            raise ValueError("grid has no effect beside a resampler")
        if self.lora is not None and not any("lora_" in pattern or pattern in ("*", "omni.*", "omni.decoder.*") for pattern in self.train):
            raise ValueError(f"lora has no effect where train names none of it, e.g. {lora.NAMES}")
        return self

    @property
    def packs(self) -> bool:
        """Questions that stand apart share a row and do not see each other."""
        return self.apart

    learns_as: ClassVar[str] = "omni"


def build(settings: OmniSettings, inputs: Inputs) -> Plan:
    """Frozen towers, projectors as loud as the embeddings, typed samples through the chat template; answers and ablations at the end."""
    tokenizer = pretrained.open_tokenizer(inputs.needed["thinker"])
    initial_weights.demand_tokenizer(settings.init_from, inputs.base, tokenizer, "thinker")
    decoder = inputs.place(Decoder.open(inputs.needed["thinker"]))
    for part in decoder.modules():
        if isinstance(part, torch.nn.Dropout) and settings.dropout is not None:
            part.p = settings.dropout
    vision, audio = inputs.place(store.load(inputs.needed["vision"])), inputs.place(store.load(inputs.needed["hearing"]))
    shape = ProjectorsConfig(
        width=decoder.config.width,
        vision_width=vision.config.width,
        audio_width=audio.config.width,
        grid=settings.grid,
        perceiver=settings.resampler,
        levels=settings.levels,
        audio_pool=settings.audio_pool,
    )
    projectors = inputs.place(Projectors(shape).start_at(decoder.embedding_rms))
    thinker = decoder
    if settings.lora is not None:
        inputs.place(lora.attach(decoder, settings.lora))
        thinker = inputs.place(lora.base_of(decoder))  # what lies in final/thinker: the same tensors under Qwen3's names
    omni = Omni(decoder, freeze(vision), freeze(audio), projectors)  # type: ignore[arg-type]
    spec = MediaSpec(
        image_size=vision.config.image_size,
        image_tokens=shape.image_tokens,
        mel=audio.config.mel,
        downsample=audio.config.downsample,
        audio_pool=settings.audio_pool,
        max_audio_tokens=settings.max_audio_tokens or decoder.config.ctx_len // 4,
        pad_s=store.extra_of(inputs.needed["hearing"]).get("pad_s", PAD_S),
    )
    corpus = inputs.corpus(settings)
    demand_tasks(corpus, proof=settings.proof, **{f"augment.{name}": getattr(settings.augment, name) for name in ("flip", "spared")})
    standardise(omni, corpus.train, spec, inputs.run.device)
    training = Conversations(corpus.train, tokenizer, spec, decoder.config.ctx_len, apart=settings.apart, changes=settings.augment)
    held_out = Conversations(corpus.valid, tokenizer, spec, decoder.config.ctx_len, apart=settings.apart)
    train, valid = loaders(training, held_out, collate, settings, weights=corpus.weights, lengths=Conversations.lengths)  # type: ignore[arg-type]
    objective = NextToken(decoder, omni, given=() if settings.lora is None else ("omni.decoder.",))
    for kind, projector in (("image", omni.projectors.vision), ("audio", omni.projectors.audio)):
        if projector is not None and not any(sample.images if kind == "image" else sample.audios for sample in corpus.train):
            projector.requires_grad_(False)  # nothing would ever teach it
    texts = _texts(corpus.valid, inputs, settings.eval_items)
    forgetting = Forgetting(objective, texts.samples, tokenizer, inputs.folder / "tokens", inputs.run)
    senses = Senses(inputs.needed, inputs.base, inputs.run, settings.eval_items, inputs.place)

    def save(folder: Path) -> None:
        store.save(thinker, folder / "thinker")
        tokenizer.save(folder / "thinker", thinker.config.ctx_len)
        if settings.lora is not None:
            lora.save(decoder, folder / "lora", "thinker")
        store.save(vision, folder / "vision")
        store.save(audio, folder / "hearing", extra={"pad_s": spec.pad_s})
        store.save(omni.projectors, folder / "projectors")
        media = {**dataclasses.asdict(spec), "mel": spec.mel.model_dump()}
        files.write_json(folder / "omni.json", {"media": media, "prompts": settings.prompts})

    def measure(_: Fitted, album: Album) -> dict[str, Fact]:
        omni.eval()
        parts = Parts.live(inputs.run.device, thinker=decoder, tokenizer=tokenizer, omni=omni, media=(spec, settings.prompts))
        examiner = Examiner(Engine(parts), settings.eval_items, inputs.run)
        facts = {**examiner.answers(corpus.valid, album), **examiner.ablations(held_out, settings.proof), **forgetting.facts()}
        return facts | senses.facts(vision, audio)

    def checks() -> dict[str, Fact]:
        return labels.conversations(training, tokenizer)

    networks = {"thinker": thinker, "vision": vision, "hearing": audio, "projectors": omni.projectors}
    notes = {**texts.fact(), **forgetting.before()}
    return Plan(objective, train, valid, save, measure, corpus, networks, checks, notes, words=str(tokenizer))


def _texts(held_out: Sequence[Sample], inputs: Inputs, most: int) -> Texts:
    """The texts that forgetting is measured by: those held out here, else those that the Thinker's own stage held out."""
    replayed = indexed.where(held_out, lambda sample: not sample.media)
    return Texts(replayed, "held out here") if replayed else own_texts(inputs.needed["thinker"], inputs.base, most)


STAGE = Stage(
    "omni",
    "answers about pictures and sounds",
    OmniSettings,
    build,
    needs=("thinker", "hearing", "vision"),
    gates=thresholds.STAGES["omni"],
)
