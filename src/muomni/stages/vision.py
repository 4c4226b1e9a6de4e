"""Vision: pictures and captions find each other by contrast; the eyes that stage omni looks through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn

from muomni.data import indexed
from muomni.data.batch import right_padded
from muomni.data.loader import Loader
from muomni.data.pictures import Captioned, PictureAugment, Pictures
from muomni.data.readers import Corpus
from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.evaluate import sample_writers
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import SIGHT, held_out_gap
from muomni.evaluate.vision_evaluation import VisionEvaluation
from muomni.models import pretrained, store
from muomni.models.decoder import Decoder
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.stages import assumed, initial_weights
from muomni.stages.stage import BoardRow, Stage, StageSettings, Training, demand_tasks, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.contrast import Contrast, VisionBatch
from muomni.train.optim import freeze


class VisionSettings(StageSettings):
    """Settings of stage vision.

    text              the caption's tower; its vocabulary comes from the tokenizer
    word_loss_weight  of the loss that predicts a token of the caption from the summary and the surest patch;
                      0: no such loss
    num_negatives     false captions a picture, where the data have them
    probe_data        pictures with attributes in `extra`, for linear probes of the vision tower's features
    zero_shot_tasks   tasks whose captions are classes: held-out pictures are to find their own among all of
                      the task's captions
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
        """Beside those of all stages: sizes of a caption's tower that its kind does not have, or that others
        decide."""
        idle_options = {
            "text.vocab_size": "it is the tokenizer's: set vocab_size of the stage",
            "text.source_width": "it is the Thinker's width",
        }
        if self.text.kind == "thinker":
            idle_options["vocab_size"] = "the Thinker's tokenizer reads the captions"
            idle_options["text.width"] = "the tower is as wide as the Thinker"
        if self.text.kind != "transformer":
            idle_options |= dict.fromkeys(
                ("text.layers", "text.heads", "text.ffn_width"),
                f"a text tower of kind {self.text.kind} has no blocks",
            )
        if not self.probe_data:
            idle_options["probe_keys"] = "there is no `probe_data`"
        return {**super().idle(), **idle_options}

    @property
    def needs(self) -> tuple[str, ...]:
        """The Thinker, where it reads the captions."""
        return ("thinker",) if self.text.kind == "thinker" else ()

    learns_as: ClassVar[str] = "vision"

    def assuming(self, sources: list[Source]) -> Self:
        """Beside what all stages leave out."""
        return super().assuming(sources).model_copy(update={"probe_data": []})


def collate(items: list[Captioned]) -> VisionBatch:
    """Pictures with padded captions, true and false."""
    ids_BT, keep_BT = right_padded([item.caption_ids for item in items])
    count = max(len(item.negatives) for item in items)
    false = keep_false = None
    if count:
        rows = [item.negatives[n] if n < len(item.negatives) else [] for item in items for n in range(count)]
        flat, keep = right_padded(rows)
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


class VisionTraining(Training[VisionSettings]):
    """Pictures beside their captions, two towers, InfoNCE; retrieval, changed attributes and probes at the
    end."""

    def vocabulary(self) -> None:
        """The tokenizer: the Thinker's, that of the weights it starts from, or one learned from the
        captions."""
        settings, inputs, corpus = self.settings, self.inputs, self.corpus
        named = {
            f"augment.{name}": getattr(settings.augment, name) for name in ("flip_tasks", "shift_only_tasks")
        }
        demand_tasks(corpus, zero_shot_tasks=settings.zero_shot_tasks, **named)
        if settings.num_negatives and not any(sample.negatives for sample in corpus.train):
            hint = "leave it out, or give rows `negatives`"
            raise ConfigError("num_negatives has no effect: no sample has a false caption", hint=hint)
        if settings.text.kind == "thinker":
            self.tokenizer = pretrained.open_tokenizer(inputs.needed["thinker"])
            initial_weights.demand_tokenizer(settings.init_from, inputs.base, self.tokenizer, "thinker")
        else:
            tokenizer = initial_weights.tokenizer(settings.init_from, inputs.base)
            self.tokenizer = tokenizer or Tokenizer.train(_texts(corpus), settings.vocab_size)
        self.words = str(self.tokenizer)

    def wire(self) -> tuple[Contrast, dict[str, nn.Module]]:
        """Two towers; that of the captions may stand on the Thinker."""
        settings, place, reader = self.settings, self.inputs.place, None
        shape = {"vocab_size": self.tokenizer.vocab_size}
        if settings.text.kind == "thinker":
            reader = place(Decoder.open(self.inputs.needed["thinker"]))
            shape["source_width"] = reader.config.width
            freeze(reader)
        self.encoder, tower = VisionEncoder(settings.model), TextTower(settings.text.model_copy(update=shape))
        how: dict[str, Any] = {"temperature": settings.temperature, "word_weight": settings.word_loss_weight}
        self.towers = place(Contrast(self.encoder, tower, reader=reader, **how))
        return self.towers, {".": self.encoder, "text_tower": self.towers.text}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Pictures with captions, true and false; what is learned from is changed a little each time."""
        settings, corpus, size = self.settings, self.corpus, self.settings.model.image_size
        changes: dict[str, Any] = {"negatives": settings.num_negatives, "changes": settings.augment}
        training = Pictures(corpus.train, self.tokenizer, size, **changes)
        self.held_out = Pictures(corpus.valid, self.tokenizer, size)
        return loaders(training, self.held_out, collate, settings, weights=corpus.weights)

    def save(self, folder: Path) -> None:
        """Both towers and the tokenizer."""
        store.save(self.encoder, folder)
        store.save(self.towers.text, folder / "text_tower")
        self.tokenizer.save(folder)

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Retrieval, pictures told from others by one attribute, classes, linear probes."""
        settings, held_out = self.settings, self.held_out
        eyes = VisionEvaluation(self.towers, self.inputs.run)
        sample_writers.pictures(stage_samples, eyes, held_out)
        facts = {
            **eyes.retrieval(held_out),
            **eyes.changed(held_out),
            **eyes.classes(held_out, settings.zero_shot_tasks),
        }
        if settings.probe_data:
            probes = self.inputs.corpus(settings.model_copy(update={"data": settings.probe_data}))
            size = settings.model.image_size
            train, valid = (Pictures(side, self.tokenizer, size) for side in (probes.train, probes.valid))
            facts |= eyes.probes(train, valid, settings.probe_keys)
        return facts


def _texts(corpus: Corpus) -> Iterator[str]:
    """The captions that the vocabulary learns from, false ones too."""
    for row in indexed.rows(corpus.train):
        said = next(
            (turn["content"] for turn in reversed(row["messages"]) if turn["role"] == "assistant"), ""
        )
        yield (
            said
            if isinstance(said, str)
            else "".join([part["text"] for part in said if part["type"] == "text"])
        )
        yield from [false["text"] for false in row["negatives"]]


def assume(settings: VisionSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Noise for pictures, with captions, and as many false ones as are asked for."""
    pictures, text = assumed.pictures(folder, settings.model.image_size), assumed.Text(words)
    length = assumed.WORDS_OF_CAPTION
    count = max(2 * settings.batch_size * settings.gradient_accumulation_steps, len(words) // length + 1)
    rows = []
    for number in range(count):
        row = assumed.turns([assumed.part("image", pictures[number % assumed.KINDS])], text.take(length))
        false = [{"kind": "word", "text": text.take(length)} for _ in range(settings.num_negatives)]
        rows.append({**row, "negatives": false})
    return rows


STAGE = Stage(
    "vision",
    "pictures and captions",
    VisionSettings,
    VisionTraining,
    gates=(
        *SIGHT,
        Gate(
            "retrieval",
            "retrieval_r1",
            "captions do not find their pictures: train longer, larger batch, audible positions",
            above_floor=0.1,
            source="chance + 0.1",
        ),
        Gate(
            "changed",
            "attribute_changed",
            "captions with one attribute changed are not told from true ones: harder negatives, train longer",
            above_floor=0.1,
            source="SPEC 7: retrieval alone is a weak gate",
            when="num_negatives",
        ),
        Gate(
            "probes",
            "probe_least",
            "an attribute can't be read off what the eyes give: nothing that reads them later will find it",
            above_floor=0.1,
            source="SPEC 7: run the probe before stage omni",
            when="probe_data",
        ),
        held_out_gap(2.0, "nats a picture"),
    ),
    board=(
        BoardRow("vision.retrieval_r1", "retrieval_r1", 0.9),
        BoardRow("vision.attribute_changed", "attribute_changed", 0.85),
        BoardRow("vision.shape_probe", "shape_probe", 0.8),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:vision",
)
