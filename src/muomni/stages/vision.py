"""Vision: pictures and captions find each other by contrast; the eyes that stage omni looks through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from muomni.data.pictures import Captioned, PictureAugment, Pictures
from muomni.data.readers import Corpus
from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.evaluate import exhibits, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.eyes import Eyes
from muomni.evaluate.facts import Fact
from muomni.models import pretrained, store
from muomni.models.decoder import Decoder
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.stages import initial_weights
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, demand_tasks, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.contrast import Contrast, VisionBatch, pad
from muomni.train.optim import freeze


class VisionSettings(StageSettings):
    """Settings of stage vision.

    text              the caption's tower; its vocabulary comes from the tokenizer
    word_loss_weight  of the loss that predicts a token of the caption from the summary and the surest patch; 0: no such loss
    num_negatives     false captions a picture, where the data have them
    probe_data        pictures with attributes in `extra`, for linear probes of the vision tower's features
    zero_shot_tasks   tasks whose captions are classes: held-out pictures are to find their own among all of the task's captions
    """

    model: VisionEncoderConfig = VisionEncoderConfig()
    text: TextTowerConfig = TextTowerConfig()
    temperature: float = Field(0.07, gt=0)
    word_loss_weight: float = Field(0.0, ge=0)
    num_negatives: int = Field(0, ge=0)
    vocab_size: int = Field(5000, ge=300)
    augment: PictureAugment = PictureAugment()
    probe_data: list[Source] = []
    probe_keys: list[str] = ["shape", "colour", "place"]
    zero_shot_tasks: list[str] = []
    unused: ClassVar[dict[str, str]] = {
        "eval_items": "all held-out items are measured here",
        "len_buckets": "batches here hold rows of all lengths",
    }

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: sizes of a caption's tower that its kind does not have, or that others decide."""
        found = {
            "text.vocab_size": "it is the tokenizer's: set vocab_size of the stage",
            "text.source_width": "it is the Thinker's width",
        }
        if self.text.kind == "thinker":
            found["vocab_size"] = "the Thinker's tokenizer reads the captions"
            found["text.width"] = "the tower is as wide as the Thinker"
        if self.text.kind != "transformer":
            found |= dict.fromkeys(("text.layers", "text.heads", "text.hidden"), f"a text tower of kind {self.text.kind} has no blocks")
        if not self.probe_data:
            found["probe_keys"] = "there is no `probe_data`"
        return {**super().idle(), **found}

    @property
    def needs(self) -> tuple[str, ...]:
        """The Thinker, where it reads the captions."""
        return ("thinker",) if self.text.kind == "thinker" else ()

    learns_as: ClassVar[str] = "vision"


def collate(items: list[Captioned]) -> VisionBatch:
    """Pictures with padded captions, true and false."""
    ids_BT, keep_BT = pad([item.caption_ids for item in items])
    count = max(len(item.negatives) for item in items)
    false = keep_false = None
    if count:
        rows = [item.negatives[n] if n < len(item.negatives) else [] for item in items for n in range(count)]
        flat, keep = pad(rows)
        false, keep_false = flat.unflatten(0, (-1, count)), keep.unflatten(0, (-1, count))  # type: ignore[no-untyped-call]
    return VisionBatch(
        [item.sample_id for item in items],
        torch.from_numpy(np.stack([item.pixels for item in items])),
        ids_BT,
        keep_BT,
        torch.tensor([item.key for item in items]),
        false,
        keep_false,
    )


def build(settings: VisionSettings, inputs: Inputs) -> Plan:
    """Pictures beside their captions, two towers, InfoNCE; retrieval, changed attributes and probes at the end."""
    corpus = inputs.corpus(settings)
    named = {f"augment.{name}": getattr(settings.augment, name) for name in ("flip_tasks", "shift_only_tasks")}
    demand_tasks(corpus, zero_shot_tasks=settings.zero_shot_tasks, **named)
    if settings.num_negatives and not any(sample.negatives for sample in corpus.train):
        raise ConfigError("num_negatives has no effect: no sample has a false caption", hint="leave it out, or give rows `negatives`")
    reader = None
    text = settings.text
    if text.kind == "thinker":
        reader = inputs.place(freeze(Decoder.open(inputs.needed["thinker"])))
        tokenizer = pretrained.open_tokenizer(inputs.needed["thinker"])
        text = text.model_copy(update={"source_width": reader.config.width})  # type: ignore[union-attr]
        initial_weights.demand_tokenizer(settings.init_from, inputs.base, tokenizer, "thinker")
    else:
        tokenizer = initial_weights.tokenizer(settings.init_from, inputs.base) or Tokenizer.train(_texts(corpus), settings.vocab_size)
    encoder = VisionEncoder(settings.model)
    tower = TextTower(text.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    objective = Contrast(encoder, tower, temperature=settings.temperature, word_weight=settings.word_loss_weight, reader=reader)
    inputs.place(objective)
    size = settings.model.image_size
    training = Pictures(corpus.train, tokenizer, size, negatives=settings.num_negatives, changes=settings.augment)
    held_out = Pictures(corpus.valid, tokenizer, size)
    train, valid = loaders(training, held_out, collate, settings, weights=corpus.weights)

    def save(folder: Path) -> None:
        store.save(encoder, folder)
        store.save(objective.text, folder / "text_tower")
        tokenizer.save(folder)

    def measure(_: Fitted, album: Album) -> dict[str, Fact]:
        eyes = Eyes(objective, inputs.run)
        exhibits.pictures(album, eyes, held_out)
        facts = {**eyes.retrieval(held_out), **eyes.changed(held_out), **eyes.classes(held_out, settings.zero_shot_tasks)}
        if settings.probe_data:
            probes = inputs.corpus(settings.model_copy(update={"data": settings.probe_data}))
            facts |= eyes.probes(Pictures(probes.train, tokenizer, size), Pictures(probes.valid, tokenizer, size), settings.probe_keys)
        return facts

    return Plan(objective, train, valid, save, measure, corpus, {".": encoder, "text_tower": objective.text}, words=str(tokenizer))


def _texts(corpus: Corpus) -> Iterator[str]:
    """The captions that the vocabulary learns from, false ones too."""
    return (caption for sample in corpus.train for caption in (sample.answer, *(n.text for n in sample.negatives)))


STAGE = Stage(
    "vision",
    "pictures and captions",
    VisionSettings,
    build,
    gates=thresholds.STAGES["vision"],
)
