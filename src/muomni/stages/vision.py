"""Vision: pictures and captions find each other by contrast; the eyes that stage omni looks through."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from muomni.data.pictures import Captioned, PictureAugment, Pictures
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.gates import Gate
from muomni.evaluate.metrics import linear_probe, retrieval
from muomni.models import store
from muomni.models.decoder import Decoder
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.contrast import Contrast, VisionBatch, pad
from muomni.train.optim import freeze


class VisionSettings(StageSettings):
    """Settings of stage vision.

    text        the caption's tower; its vocabulary comes from the tokenizer
    word_weight how much it counts that a linear layer tells the caption's tokens from the pooled picture; 0: not asked
    negatives   false captions a picture, where the data have them
    probe       pictures with attributes in `extra`, for linear probes of what the eyes carry
    zero_shot   tasks whose captions are classes: held-out pictures are to find their own among all of the task's captions
    """

    model: VisionEncoderConfig = VisionEncoderConfig()
    text: TextTowerConfig = TextTowerConfig()
    temperature: float = Field(0.07, gt=0)
    word_weight: float = Field(0.0, ge=0)
    negatives: int = Field(0, ge=0)
    vocab_size: int = Field(5000, ge=300)
    augment: PictureAugment = PictureAugment()
    probe: list[Source] = []
    probe_keys: list[str] = ["shape", "colour", "place"]
    zero_shot: list[str] = []


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
    reader = None
    text = settings.text
    if text.kind == "thinker":
        reader = freeze(Decoder.open(inputs.needed["thinker"]))
        tokenizer = Tokenizer.load(inputs.needed["thinker"])
        text = text.model_copy(update={"source_width": reader.config.width})  # type: ignore[union-attr]
    else:
        texts = [caption for sample in corpus.train for caption in (sample.answer, *(n.text for n in sample.negatives))]
        tokenizer = Tokenizer.train(texts, settings.vocab_size)
    encoder = VisionEncoder(settings.model)
    tower = TextTower(text.model_copy(update={"vocab_size": tokenizer.vocab_size}))
    objective = Contrast(encoder, tower, temperature=settings.temperature, word_weight=settings.word_weight, reader=reader)
    size = settings.model.image_size
    training = Pictures(corpus.train, tokenizer, size, negatives=settings.negatives, changes=settings.augment)
    held_out = Pictures(corpus.valid, tokenizer, size)
    train, valid = loaders(training, held_out, collate, settings, weights=corpus.weights)

    def save(folder: Path) -> None:
        store.save(encoder, folder)
        store.save(objective.text, folder / "text_tower")
        tokenizer.save(folder)

    def measure(_: Fitted) -> dict[str, Fact]:
        eyes = _Eyes(objective, inputs)
        facts = {**eyes.retrieval(held_out), **eyes.changed(held_out), **eyes.classes(held_out, settings.zero_shot)}
        if settings.probe:
            probes = inputs.corpus(settings.model_copy(update={"data": settings.probe}))
            facts |= eyes.probes(Pictures(probes.train, tokenizer, size), Pictures(probes.valid, tokenizer, size), settings.probe_keys)
        return facts

    return Plan(objective, train, valid, save, measure, corpus)


class _Eyes:
    """Measurements with the towers as they are; unreadable pictures were counted before and are left out."""

    def __init__(self, objective: Contrast, inputs: Inputs) -> None:
        self.objective, self.run = objective.eval(), inputs.run

    @torch.inference_mode()
    def images(self, pictures: Pictures, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Unit vectors and pooled states of pictures, in batches."""
        unit, pooled = [], []
        for start in range(0, len(indices), 64):
            pixels = torch.from_numpy(np.stack([pictures.pixels(i) for i in indices[start : start + 64]])).permute(0, 3, 1, 2)
            with self.run.autocast():
                both = self.objective.vision.pooled(self.objective.vision(pixels.to(self.run.device)))
                unit.append(self.objective.vision.unit(both))
            pooled.append(both.float())
        return torch.cat(unit).cpu(), torch.cat(pooled).cpu()

    @torch.inference_mode()
    def texts(self, pictures: Pictures, captions: list[str]) -> Tensor:
        """Unit vectors of captions."""
        parts = []
        for start in range(0, len(captions), 128):
            ids, keep = pad([pictures.ids(caption) for caption in captions[start : start + 128]])
            with self.run.autocast():
                parts.append(self.objective.texts(ids.to(self.run.device), keep.to(self.run.device)).float().cpu())
        return torch.cat(parts)

    def retrieval(self, held_out: Pictures) -> dict[str, Fact]:
        """R@1 and R@5 in batches of 64, mean of both directions; chance beside it."""
        usable = readable(held_out)
        if len(usable) < 2:
            return {}
        captions = [held_out.samples[i].answer for i in usable]
        found = retrieval(self.images(held_out, usable)[0].numpy(), self.texts(held_out, captions).numpy(), captions, batch=64)
        size = min(64, len(usable))
        return {f"retrieval_r{k}": Fact(found.mean(k), len(usable), None, k / size) for k in (1, 5) if k <= size}

    def changed(self, held_out: Pictures) -> dict[str, Fact]:
        """How often the true caption wins against one with a changed attribute, by kind; chance 0.5."""
        rows = [(i, n) for i in readable(held_out) for n in held_out.samples[i].negatives]
        if not rows:
            return {}
        indices = sorted({i for i, _ in rows})
        unit = dict(zip(indices, self.images(held_out, indices)[0], strict=True))
        true = dict(zip(indices, self.texts(held_out, [held_out.samples[i].answer for i in indices]), strict=True))
        false = self.texts(held_out, [n.text for _, n in rows])
        wins: dict[str, list[bool]] = defaultdict(list)
        for (index, negative), vector in zip(rows, false, strict=True):
            wins[negative.kind].append(bool(unit[index] @ true[index] > unit[index] @ vector))
        facts = {f"changed_{kind}": share(sum(won), len(won), floor=0.5) for kind, won in sorted(wins.items())}
        named = [facts[f"changed_{kind}"] for kind in ("colour", "shape", "place") if f"changed_{kind}" in facts]
        if named:
            facts["attribute_changed"] = Fact(sum(f.value for f in named) / len(named), sum(f.n or 0 for f in named), None, 0.5)
        return facts

    def classes(self, held_out: Pictures, tasks: list[str]) -> dict[str, Fact]:
        """Zero-shot accuracy among the captions of each task, with the commonest class as the floor."""
        facts = {}
        for task in tasks:
            usable = [i for i in readable(held_out) if held_out.samples[i].task == task]
            if not usable:
                continue
            truths = [held_out.samples[i].answer for i in usable]
            names = sorted(set(truths))
            best = (self.images(held_out, usable)[0] @ self.texts(held_out, names).T).argmax(1).tolist()
            hits = sum(names[guess] == truth for guess, truth in zip(best, truths, strict=True))
            facts[f"zero_shot_{task}"] = share(hits, len(truths), floor=max(truths.count(name) for name in names) / len(truths))
        return facts

    def probes(self, train: Pictures, valid: Pictures, keys: list[str]) -> dict[str, Fact]:
        """Linear probes of attributes on what the eyes pool; chance beside them."""
        seen = {name: self.images(p, readable(p))[1].numpy() for name, p in (("train", train), ("valid", valid))}
        facts = {}
        for key in keys:
            labels: dict[str, list[Any]] = {}
            for name, p in (("train", train), ("valid", valid)):
                labels[name] = [p.samples[i].extra.get(key) for i in readable(p)]
            if None in labels["train"] or None in labels["valid"]:
                continue
            accuracy = linear_probe(seen["train"], labels["train"], seen["valid"], labels["valid"])
            n = len(labels["valid"])
            facts[f"{key}_probe"] = share(round(accuracy * n), n, floor=1 / len(set(labels["train"])))
        return facts


def readable(pictures: Pictures) -> list[int]:
    """The indices whose picture can be read."""
    usable = []
    for index in range(len(pictures)):
        try:
            pictures.pixels(index)
        except DataError:
            continue
        usable.append(index)
    return usable


STAGE = Stage(
    "vision",
    "pictures and captions",
    VisionSettings,
    build,
    gates=(
        Gate(
            "retrieval",
            "retrieval_r1",
            "captions do not find their pictures: train longer, larger batch, audible positions",
            above_floor=0.1,
        ),
    ),
)
