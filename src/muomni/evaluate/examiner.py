"""Asks a finished Omni held-out questions, and measures what swapped, blank and noisy media do to its answers."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import torch

from muomni.data.conversation import Conversations, Item, MediaSpec, prepare
from muomni.data.sample import Message, Sample
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import bootstrap
from muomni.infer.generate import generate
from muomni.models.omni import Omni
from muomni.runtime import Runtime
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.train.objectives.language import LanguageBatch, NextToken, collate


class Examiner:
    """Asks held-out questions, one turn each, and measures what swapped, blank and noisy media do to the answers."""

    def __init__(self, omni: Omni, tokenizer: Tokenizer, spec: MediaSpec, items: int, run: Runtime) -> None:
        self.omni, self.tokenizer, self.spec, self.items, self.run = omni, tokenizer, spec, items, run

    def answers(self, samples: list[Sample]) -> dict[str, Fact]:
        """Exact answers by task and by kind of question, and with another sample's picture in place."""
        facts: dict[str, Fact] = {}
        by_task: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.media:
                by_task[sample.task].append(sample)
        for task, members in sorted(by_task.items()):
            asked = [single for sample in members for single in turns(sample)]
            asked = [asked[i] for i in np.linspace(0, len(asked) - 1, min(self.items, len(asked))).astype(int)]
            said = self.ask(asked)
            truths = [sample.answer for sample in asked]
            commonest = Counter(truths).most_common(1)[0][1] / len(truths)
            facts[f"{task}_exact"] = share(sum(s == t for s, t in zip(said, truths, strict=True)), len(truths), floor=commonest)
            kinds = defaultdict(list)
            for sample, guess in zip(asked, said, strict=True):
                kinds[str(sample.extra.get("kind", ""))].append(guess == sample.answer)
            facts |= {f"{task}_exact_{kind.replace(' ', '_')}": share(sum(hits), len(hits)) for kind, hits in sorted(kinds.items()) if kind}
            if any(sample.images for sample in asked):
                swapped = self.ask(asked, swap=True)
                facts[f"{task}_exact_swapped_image"] = share(sum(s == t for s, t in zip(swapped, truths, strict=True)), len(truths))
        return facts

    def ask(self, samples: list[Sample], *, swap: bool = False) -> list[str]:
        """Greedy answers, batched with left padding; `swap` shows each the picture of the next sample with another answer."""
        items = [prepare(sample, self.tokenizer, self.spec, self.omni.decoder.config.ctx_len, reply=True) for sample in samples]
        if swap:
            partners = [_partner(samples, i) for i in range(len(samples))]
            items = [
                dataclasses.replace(item, pictures=items[p].pictures[: len(item.pictures)] or item.pictures)
                for item, p in zip(items, partners)
            ]
        order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
        said = [""] * len(items)
        for first in range(0, len(order), 32):
            some = order[first : first + 32]
            batch = _left_padded([items[i] for i in some]).to(self.run.device)
            with torch.inference_mode():
                x_BTD = self.omni.embed(batch.ids_BT, batch.media)
                rows = generate(self.omni.decoder, x_BTD, keep_BT=batch.keep_BT, max_new=32, stop_ids=[self.tokenizer.special.end])
            for index, ids in zip(some, rows, strict=True):
                said[index] = self.tokenizer.decode(ids)
        return said

    @torch.inference_mode()
    def ablations(self, held_out: Conversations) -> dict[str, Fact]:
        """Nats of the answers with the right media, with another sample's, with none (zeros) and with noise, for each modality."""
        facts: dict[str, Fact] = {}
        rng = np.random.default_rng(0)
        for kind in ("image", "audio"):
            chosen = [i for i, sample in enumerate(held_out.samples) if (sample.images if kind == "image" else sample.audios)]
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(self.items, len(chosen))).astype(int)] if chosen else []
            items, kept = [], []
            for index in chosen:
                try:
                    items.append(held_out.item(index, rng))
                    kept.append(held_out.samples[index])
                except DataError:
                    continue
            if len(items) < 2:
                continue
            partners = [_partner(kept, i) for i in range(len(kept))]
            nats = {"correct": self._nats(items)}
            nats["swapped"] = self._nats([_swapped(item, items[p], kind, self) for item, p in zip(items, partners)])
            nats["zero"] = self._nats([_blank(item, kind) for item in items])
            nats["noise"] = self._nats([_noisy(item, kind, rng) for item in items])
            for name, values in nats.items():
                facts[f"{kind}_nats_{name}"] = Fact(float(np.mean(values)), len(values))
            gaps = np.array(nats["swapped"]) - np.array(nats["correct"])
            facts[f"{kind}_swap_gap_nats"] = Fact(float(gaps.mean()), len(gaps), bootstrap(gaps.tolist()))
            facts[f"{kind}_swap_win_rate"] = share(int((gaps > 0).sum()), len(gaps), floor=0.5)
        return facts

    def _nats(self, items: list[Item]) -> list[float]:
        """Mean nats per labelled token of each item."""
        out = []
        for item in items:
            batch = collate([item]).to(self.run.device)
            with self.run.autocast():
                term = NextToken(self.omni.decoder, self.omni).forward(batch)["text"]
            out.append(float(term.total) / max(1, term.count))
        return out


def turns(sample: Sample) -> list[Sample]:
    """Each question of a sample as a sample of its own, its media in front of the words."""
    media = [part for message in sample.messages for part in message.parts if part.type != "text" and message.role == "user"]
    kinds = sample.extra.get("kinds") or [sample.extra.get("kind", "")] * len(sample.messages)
    singles = []
    pairs = [(a, b) for a, b in zip(sample.messages, sample.messages[1:]) if a.role == "user" and b.role == "assistant"]
    for number, (question, answer) in enumerate(pairs):
        words = [part for part in question.parts if part.type == "text"]
        asked = Message(role="user", content=[*media, *words])
        extra: dict[str, Any] = {**sample.extra, "kind": kinds[number] if number < len(kinds) else ""}
        singles.append(sample.model_copy(update={"id": f"{sample.id}/{number}", "messages": [asked, answer], "extra": extra}))
    return singles


def _partner(samples: list[Sample], index: int) -> int:
    """The next sample whose answer, and whose media, are others': a swap with an equal answer would prove nothing."""
    for step in range(1, len(samples)):
        other = (index + step) % len(samples)
        if samples[other].answer != samples[index].answer and samples[other].group != samples[index].group:
            return other
    return (index + 1) % len(samples)


def _swapped(item: Item, other: Item, kind: str, examiner: Examiner) -> Item:
    """The item with the other's pictures, or its sounds cut or repeated to the same number of frames."""
    if kind == "image":
        return dataclasses.replace(item, pictures=[other.pictures[0] for _ in item.pictures] if other.pictures else item.pictures)
    return dataclasses.replace(
        item, mels=[np.resize(other.mels[0], mel.shape).astype(np.float32) for mel in item.mels] if other.mels else item.mels
    )


def _blank(item: Item, kind: str) -> Item:
    if kind == "image":
        return dataclasses.replace(item, pictures=[np.zeros_like(picture) for picture in item.pictures])
    return dataclasses.replace(item, mels=[np.full_like(mel, mel.min()) for mel in item.mels])


def _noisy(item: Item, kind: str, rng: np.random.Generator) -> Item:
    if kind == "image":
        return dataclasses.replace(item, pictures=[rng.integers(0, 256, picture.shape, dtype=np.uint8) for picture in item.pictures])
    return dataclasses.replace(item, mels=[rng.normal(mel.mean(), mel.std(), mel.shape).astype(np.float32) for mel in item.mels])


def _left_padded(items: list[Item]) -> LanguageBatch:
    """Items padded on the left, ready to be continued."""
    size = max(len(item.ids) for item in items)
    ids = torch.zeros(len(items), size, dtype=torch.int64)
    keep = torch.zeros(len(items), size, dtype=torch.bool)
    for row, item in enumerate(items):
        ids[row, size - len(item.ids) :] = torch.tensor(item.ids)
        keep[row, size - len(item.ids) :] = True
    batch = collate(items)
    return dataclasses.replace(batch, ids_BT=ids, keep_BT=keep, labels_BT=torch.full_like(ids, IGNORE))
