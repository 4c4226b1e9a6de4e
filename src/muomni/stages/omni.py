"""Omni: the Thinker learns to read what the frozen eyes and ears send it, and to answer about it."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from muomni import files
from muomni.data.conversation import Conversations, Item, MediaSpec, prepare
from muomni.data.corpus import TokenCorpus
from muomni.data.pictures import PictureAugment
from muomni.data.sample import Message, Sample
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.gates import Gate
from muomni.evaluate.metrics import bits_per_byte, bootstrap
from muomni.infer.generate import generate
from muomni.models import store
from muomni.models.decoder import Decoder
from muomni.models.omni import Omni, Projectors, ProjectorsConfig
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, loaders
from muomni.stages.thinker import Rows
from muomni.stages.thinker import collate as collate_rows
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.train.loop import Fitted
from muomni.train.objectives.language import LanguageBatch, NextToken, collate
from muomni.train.optim import freeze


class OmniSettings(StageSettings):
    """Settings of stage omni.

    grid, audio_pool   how many tokens a picture and a second of sound become (see ProjectorsConfig)
    max_audio_tokens   None: a quarter of the context (SPEC M-E)
    dropout            of the Thinker while it learns here; None: as it was trained. What it knows by heart about the training pictures
                       (no star was ever red) it would else believe over its eyes
    augment            changes of training pictures
    prompts            what is asked of a lone "image" or "audio"
    """

    grid: int = Field(0, ge=0)
    audio_pool: int = Field(1, ge=1, le=4)
    max_audio_tokens: int | None = Field(None, ge=1)
    dropout: float | None = Field(None, ge=0, lt=1)
    augment: PictureAugment = PictureAugment()
    prompts: dict[str, str] = {"image": "what is in the picture?", "audio": "what did you hear?"}
    train: list[str] = ["omni.decoder.*", "omni.projectors.*"]


def build(settings: OmniSettings, inputs: Inputs) -> Plan:
    """Frozen towers, projectors as loud as the embeddings, typed samples through the chat template; answers and ablations at the end."""
    tokenizer = Tokenizer.load(inputs.needed["thinker"])
    decoder = Decoder.open(inputs.needed["thinker"])
    for part in decoder.modules():
        if isinstance(part, torch.nn.Dropout) and settings.dropout is not None:
            part.p = settings.dropout
    vision, audio = store.load(inputs.needed["vision"]), store.load(inputs.needed["hearing"])
    shape = ProjectorsConfig(
        width=decoder.config.width,
        vision_width=vision.config.width,
        audio_width=audio.config.width,
        grid=settings.grid,
        audio_pool=settings.audio_pool,
    )
    omni = Omni(decoder, freeze(vision), freeze(audio), Projectors(shape).start_at(decoder.embedding_rms))  # type: ignore[arg-type]
    spec = MediaSpec(
        image_size=vision.config.image_size,
        image_tokens=shape.image_tokens,
        mel=audio.config.mel,
        downsample=audio.config.downsample,
        audio_pool=settings.audio_pool,
        max_audio_tokens=settings.max_audio_tokens or decoder.config.ctx_len // 4,
        pad_s=store.extra_of(inputs.needed["hearing"]).get("pad_s", 0.1),
    )
    corpus = inputs.corpus(settings)
    training = Conversations(corpus.train, tokenizer, spec, decoder.config.ctx_len, changes=settings.augment)
    held_out = Conversations(corpus.valid, tokenizer, spec, decoder.config.ctx_len)
    train, valid = loaders(training, held_out, collate, settings, weights=corpus.weights, lengths=Conversations.lengths)  # type: ignore[arg-type]
    objective = NextToken(decoder, omni)
    replay = _Replay(objective, corpus.valid, tokenizer, inputs)

    def save(folder: Path) -> None:
        store.save(decoder, folder / "thinker")
        tokenizer.save(folder / "thinker")
        store.save(vision, folder / "vision")
        store.save(audio, folder / "hearing")
        store.save(omni.projectors, folder / "projectors")
        media = {**dataclasses.asdict(spec), "mel": spec.mel.model_dump()}
        files.write_json(folder / "omni.json", {"media": media, "prompts": settings.prompts})

    def measure(_: Fitted) -> dict[str, Fact]:
        omni.eval()
        examiner = Examiner(omni, tokenizer, spec, settings.eval_items, inputs)
        return {**examiner.answers(corpus.valid), **examiner.ablations(held_out), **replay.facts()}

    return Plan(objective, train, valid, save, measure, corpus, replay.before())


class _Replay:
    """Held-out text that the Thinker knew before: bits per byte before and after this stage (the forgetting meter)."""

    def __init__(self, objective: NextToken, samples: list[Sample], tokenizer: Tokenizer, inputs: Inputs) -> None:
        texts = [sample for sample in samples if not sample.media]
        self.objective, self.run = objective, inputs.run
        self.corpus = TokenCorpus.build(inputs.folder / "tokens", texts, tokenizer) if texts else None
        self.start = self.measure() if self.corpus is not None else None

    @torch.inference_mode()
    def measure(self) -> float:
        """Bits per byte now."""
        assert self.corpus is not None
        self.objective.to(self.run.device).eval()
        rows = Rows(self.corpus.pack(self.objective.trunk.config.ctx_len // 4))
        nats = 0.0
        for first in range(0, len(rows), 16):
            batch = collate_rows([rows.item(i, np.random.default_rng(0)) for i in range(first, min(first + 16, len(rows)))])
            with self.run.autocast():
                nats += float(self.objective(batch.to(self.run.device))["text"].total)
        return bits_per_byte(nats, self.corpus.num_bytes)

    def before(self) -> dict[str, Fact]:
        """The fact before training."""
        return {} if self.start is None else {"text_bits_per_byte_before": Fact(self.start)}

    def facts(self) -> dict[str, Fact]:
        """The facts after training."""
        if self.start is None:
            return {}
        now = self.measure()
        return {"text_bits_per_byte": Fact(now), "forgetting_bits_per_byte": Fact(now - self.start)}


class Examiner:
    """Asks held-out questions, one turn each, and measures what swapped, blank and noisy media do to the answers."""

    def __init__(self, omni: Omni, tokenizer: Tokenizer, spec: MediaSpec, items: int, inputs: Inputs) -> None:
        self.omni, self.tokenizer, self.spec, self.items, self.run = omni, tokenizer, spec, items, inputs.run

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


STAGE = Stage(
    "omni",
    "answers about pictures and sounds",
    OmniSettings,
    build,
    needs=("thinker", "hearing", "vision"),
    gates=(
        Gate("image_swap_gap", "image_swap_gap_nats", "answers ignore the picture: probe the eyes, train projectors longer", at_least=0.1),
        Gate("image_swap_wins", "image_swap_win_rate", "answers ignore the picture", at_least=0.8),
        Gate("audio_swap_gap", "audio_swap_gap_nats", "answers ignore the sound: check the ears, train projectors longer", at_least=0.1),
        Gate("audio_swap_wins", "audio_swap_win_rate", "answers ignore the sound", at_least=0.8),
        Gate("forgetting", "forgetting_bits_per_byte", "the Thinker forgot its language: more text replay, lower lr", at_most=0.15),
    ),
)
