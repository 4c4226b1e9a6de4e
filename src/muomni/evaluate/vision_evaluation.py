"""Vision evaluation: retrieval, captions with one attribute changed, zero-shot classes and linear probes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muomni.data.batch import right_padded
from muomni.data.pictures import Pictures
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import linear_probe, retrieval
from muomni.runtime import Runtime
from muomni.train.objectives.contrast import Contrast


class VisionEvaluation:
    """Measurements with the towers as they are; unreadable pictures were counted before and are left out."""

    def __init__(self, objective: Contrast, run: Runtime) -> None:
        self.objective, self.run = objective.eval(), run

    @torch.inference_mode()
    def images(self, pictures: Pictures, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Unit vectors and pooled states of pictures, in batches."""
        unit, pooled = [], []
        for start in range(0, len(indices), 64):
            pixels = torch.from_numpy(
                np.stack([pictures.pixels(i) for i in indices[start : start + 64]])
            ).permute(0, 3, 1, 2)
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
            ids, keep = right_padded([pictures.ids(caption) for caption in captions[start : start + 128]])
            with self.run.autocast():
                parts.append(
                    self.objective.texts(ids.to(self.run.device), keep.to(self.run.device)).float().cpu()
                )
        return torch.cat(parts)

    def retrieval(self, held_out: Pictures) -> dict[str, Fact]:
        """R@1 and R@5 in batches of 64, mean of both directions; chance beside it, which is more where
        captions are equal."""
        usable = readable(held_out)
        if len(usable) < 2:
            return {}
        captions = [held_out.samples[i].answer for i in usable]
        ranks = retrieval(
            self.images(held_out, usable)[0].numpy(),
            self.texts(held_out, captions).numpy(),
            captions,
            batch=64,
        )
        size = min(64, len(usable))
        return {
            f"retrieval_r{k}": Fact(ranks.mean(k), len(usable), None, ranks.chance[k])
            for k in (1, 5)
            if k <= size
        }

    def changed(self, held_out: Pictures) -> dict[str, Fact]:
        """How often the true caption wins against one with a changed attribute, by kind; chance 0.5."""
        rows = [(i, n) for i in readable(held_out) for n in held_out.samples[i].negatives]
        if not rows:
            return {}
        indices = sorted({i for i, _ in rows})
        unit = dict(zip(indices, self.images(held_out, indices)[0], strict=True))
        true = dict(
            zip(indices, self.texts(held_out, [held_out.samples[i].answer for i in indices]), strict=True)
        )
        false = self.texts(held_out, [n.text for _, n in rows])
        wins: dict[str, list[bool]] = defaultdict(list)
        for (index, negative), vector in zip(rows, false, strict=True):
            wins[negative.kind].append(bool(unit[index] @ true[index] > unit[index] @ vector))
        facts = {
            f"changed_{kind}": share(sum(won), len(won), floor=0.5) for kind, won in sorted(wins.items())
        }
        named = [
            facts[f"changed_{kind}"] for kind in ("colour", "shape", "place") if f"changed_{kind}" in facts
        ] or list(facts.values())
        if named:
            facts["attribute_changed"] = Fact(
                sum(f.value for f in named) / len(named), sum(f.n or 0 for f in named), None, 0.5
            )
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
            facts[f"zero_shot_{task}"] = share(
                hits, len(truths), floor=max(truths.count(name) for name in names) / len(truths)
            )
        return facts

    def probes(self, train: Pictures, valid: Pictures, keys: list[str]) -> dict[str, Fact]:
        """Linear probes of attributes on what the eyes pool, with the commonest value as the floor."""
        seen = {
            name: self.images(p, readable(p))[1].numpy() for name, p in (("train", train), ("valid", valid))
        }
        facts = {}
        for key in keys:
            labels: dict[str, list[Any]] = {}
            for name, p in (("train", train), ("valid", valid)):
                labels[name] = [p.samples[i].extra.get(key) for i in readable(p)]
            if None in labels["train"] or None in labels["valid"]:
                continue
            accuracy = linear_probe(seen["train"], labels["train"], seen["valid"], labels["valid"])
            n = len(labels["valid"])
            commonest = (
                max(Counter(labels["valid"]).values()) / n
            )  # what a probe of features that say nothing comes to
            facts[f"{key}_probe"] = share(
                round(accuracy * n), n, floor=max(commonest, 1 / len(set(labels["train"])))
            )
        worst = min(facts, key=lambda name: facts[name].value - (facts[name].floor or 0.0), default="")
        return {**facts, "probe_least": replace(facts[worst], note=worst)} if facts else facts


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
