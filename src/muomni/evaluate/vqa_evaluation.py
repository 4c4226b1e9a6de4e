"""VQA evaluation: answers to held-out questions, and ablations with swapped, blank and noisy media."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from muomni.data import stratify
from muomni.data.conversation import Conversations, Item, input_media, questions
from muomni.data.sample import Sample
from muomni.errors import ContextError, DataError
from muomni.evaluate import open_set_classes, question_only, sample_writers
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import bootstrap, paired
from muomni.evaluate.question_only import QuestionOnly
from muomni.evaluate.samples import MOST, StageSamples
from muomni.infer.engine import Engine
from muomni.infer.prompt import Prompt
from muomni.media.modality import MODALITIES, Array
from muomni.runtime import Runtime
from muomni.tokens.chat import IGNORE
from muomni.train.objectives.language import NextToken, collate

ITEMS_AT_ONCE = 16
Asked = TypeVar("Asked", Item, Prompt)


class VqaEvaluation:
    """Asks held-out questions, one turn each, and measures what swapped, blank and noisy media do to the
    answers."""

    def __init__(self, engine: Engine, items: int, run: Runtime, max_new: int = 32) -> None:
        assert engine.parts.omni is not None
        self.engine, self.items, self.run, self.max_new = engine, items, run, max_new
        self._objective = NextToken(engine.parts.thinker, engine.parts.omni)

    def answers(
        self,
        samples: Sequence[Sample],
        stage_samples: StageSamples | None = None,
        *,
        taught: Sequence[Sample] = (),
        exact: Collection[str] = (),
    ) -> dict[str, Fact]:
        """Exact answers by task and by kind of question, classes that were named, and both with another
        sample's picture in place.

        Takes   taught: what was learned from, by which questions alone are answered for comparison, in the
                tasks `exact`.
        """
        facts: dict[str, Fact] = {}
        blind = QuestionOnly.fit(sample for sample in taught if sample.task in exact) if exact else None
        gains: list[float] = []
        by_task: dict[str, list[tuple[int, int]]] = defaultdict(
            list
        )  # (sample, question of it): few of all are asked
        for index, sample in enumerate(samples):
            if sample.media:
                by_task[sample.task] += [(index, number) for number in range(len(questions(sample)))]
        for task, singles in sorted(by_task.items()):
            places = [
                singles[i]
                for i in np.linspace(0, len(singles) - 1, min(self.items, len(singles))).astype(int)
            ]
            chosen = [questions(samples[index])[number] for index, number in places]
            asked_samples, prompts = readable(self.engine, chosen)
            if not asked_samples:
                continue
            answers_text = self.ask(prompts)
            truths = [sample.answer for sample in asked_samples]
            commonest = Counter(truths).most_common(1)[0][1] / len(truths)
            facts[f"{task}_exact"] = share(
                sum(s == t for s, t in zip(answers_text, truths, strict=True)), len(truths), floor=commonest
            )
            if any("names" in sample.extra for sample in asked_samples):
                facts |= open_set_classes.facts(task, answers_text, asked_samples)
            if blind is not None and task in exact:
                way, guessed = blind.strongest(asked_samples)
                right = sum(guess == truth for guess, truth in zip(guessed, truths, strict=True))
                facts[f"{task}_question_only"] = dataclasses.replace(
                    share(right, len(truths)), note=f"by {way}"
                )
                gains += question_only.gains(answers_text, guessed, truths)
            kinds = defaultdict(list)
            for sample, guess in zip(asked_samples, answers_text, strict=True):
                kinds[str(sample.extra.get("kind", ""))].append(guess == sample.answer)
            facts |= {
                f"{task}_exact_{kind.replace(' ', '_')}": share(sum(hits), len(hits))
                for kind, hits in sorted(kinds.items())
                if kind
            }
            swapped, others = list[str](), list[Prompt]()
            if any(sample.images for sample in asked_samples):
                partners = [prompts[_partner(asked_samples, i)] for i in range(len(asked_samples))]
                others = [_swapped(own, other, "image") for own, other in zip(prompts, partners)]
                swapped = self.ask(others)
                facts[f"{task}_exact_swapped_image"] = share(
                    sum(s == t for s, t in zip(swapped, truths, strict=True)), len(truths)
                )
            if stage_samples is not None:
                most = max(1, MOST // len(by_task))
                sample_writers.answers(
                    stage_samples,
                    self.engine,
                    asked_samples,
                    prompts,
                    answers_text,
                    list(zip(others, swapped)),
                    most=most,
                )
        if gains:
            facts["above_question_only"] = question_only.above(gains)
        named = {name: fact for name, fact in facts.items() if name.endswith("_names")}
        if named:
            margins = {name: open_set_classes.margin(fact) for name, fact in named.items()}
            least = min(margins, key=lambda name: margins[name])
            facts["names_least"] = Fact(margins[least], named[least].n, note=least)
        return facts

    def ask(self, prompts: list[Prompt]) -> list[str]:
        """Greedy answers."""
        return [answer.text for answer in self.engine.answer_many(prompts, max_new=self.max_new)]

    @torch.inference_mode()
    def ablations(self, held_out: Conversations, proof: Sequence[str] = ()) -> dict[str, Fact]:
        """Nats of the answers with the right media, with another sample's, with none (zeros) and with noise,
        for each modality; by how much another's cost more than the right ones, than none and than noise, in
        pairs.

        `proof` names the tasks that count, none: all. The win rate over swapped media is given for each task
        beside.
        """
        facts: dict[str, Fact] = {}
        rng = np.random.default_rng(0)
        for kind, row in MODALITIES.items():
            chosen = [i for i, sample in enumerate(held_out.samples) if kind in input_media(sample)]
            chosen = (
                [chosen[i] for i in np.linspace(0, len(chosen) - 1, min(self.items, len(chosen))).astype(int)]
                if chosen
                else []
            )
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
            nats = {"correct": self.nats(items)}
            nats["swapped"] = self.nats([_swapped(item, items[p], kind) for item, p in zip(items, partners)])
            nats["zero"] = self.nats([_with(item, kind, row.blank) for item in items])
            nats["noise"] = self.nats([_with(item, kind, row.noise, rng) for item in items])
            tasks = np.array([item.task for item in items])
            gaps = np.array(nats["swapped"]) - np.array(nats["correct"])
            for task in sorted(set(tasks)):
                won = gaps[tasks == task] > 0
                facts[f"{kind}_swap_win_rate_{task}"] = share(int(won.sum()), len(won), floor=0.5)
            counted = np.isin(tasks, proof) if proof else np.ones(len(tasks), dtype=bool)
            if not counted.any():
                continue
            for name, values in nats.items():
                facts[f"{kind}_nats_{name}"] = Fact(
                    float(np.array(values)[counted].mean()), int(counted.sum())
                )
            right, won = np.array(nats["correct"])[counted], gaps[counted] > 0
            for name, values in (("swap", nats["swapped"]), ("zero", nats["zero"]), ("noise", nats["noise"])):
                gap = np.array(values)[counted] - right
                facts[f"{kind}_{name}_gap_nats"] = Fact(float(gap.mean()), len(gap), paired(gap.tolist()))
            for name in (
                "zero",
                "noise",
            ):  # the sources' order, which is the data's: told and never judged (docs/gates.md)
                over = np.array(nats["swapped"])[counted] - np.array(nats[name])[counted]
                facts[f"{kind}_swap_over_{name}_nats"] = Fact(
                    float(over.mean()), len(over), bootstrap(over.tolist())
                )
            facts[f"{kind}_swap_gap_share"] = Fact(
                facts[f"{kind}_swap_gap_nats"].value / max(1e-9, float(right.mean())), len(won)
            )
            facts[f"{kind}_swap_win_rate"] = share(int(won.sum()), len(won), floor=0.5)
            facts[f"{kind}_swap_pairs"] = Fact(float(len(won)))
        return facts

    def nats(self, items: list[Item]) -> list[float]:
        """Mean nats per labelled token of each item."""
        order = sorted(range(len(items)), key=lambda i: len(items[i].ids))
        nats = [0.0] * len(items)
        for first in range(0, len(order), ITEMS_AT_ONCE):
            some = order[first : first + ITEMS_AT_ONCE]
            batch = collate([items[i] for i in some]).to(self.run.device)
            with self.run.autocast():
                for index, value in zip(some, self._objective.nats(batch).tolist(), strict=True):
                    nats[index] = value
        return nats


def readable(engine: Engine, samples: Sequence[Sample]) -> tuple[list[Sample], list[Prompt]]:
    """The samples whose question can be put, with the question; a fact's n tells how many were left."""
    samples_read, prompts = [], []
    for sample in samples:
        with contextlib.suppress(DataError, ContextError):
            prompts.append(engine.prepare(sample, cut=False))
            samples_read.append(sample)
    return samples_read, prompts


@torch.inference_mode()
def by_length(
    vqa: VqaEvaluation, held_out: Conversations, buckets: Sequence[int], edges: Sequence[int]
) -> dict[str, Fact]:
    """Mean nats per label of held-out samples, by the length of their answers."""
    items, numbers = [], []
    for index, bucket in enumerate(buckets):
        with contextlib.suppress(DataError):
            items.append(held_out.item(index, np.random.default_rng(0)))
            numbers.append(bucket)
    labels = np.array([sum(label != IGNORE for label in item.labels) for item in items])
    nats = np.array(vqa.nats(items)) * labels
    facts = {}
    for bucket, name in enumerate(stratify.names(edges)):
        here = np.array(numbers) == bucket
        if here.any():
            facts[f"nats_{name}"] = Fact(
                float(nats[here].sum() / max(1, labels[here].sum())), int(here.sum())
            )
    return facts


def _partner(samples: list[Sample], index: int) -> int:
    """The next sample of the task whose answer, and whose media, are others': a swap with an equal answer
    would prove nothing.

    Another task's picture is so unlike that it would prove little; it is taken where the task has no other
    answer.
    """
    own = samples[index]
    others = [(index + step) % len(samples) for step in range(1, len(samples))]
    unlike = [
        other for other in others if samples[other].answer != own.answer and samples[other].group != own.group
    ]
    alike = [other for other in unlike if samples[other].task == own.task]
    return [*alike, *unlike, *others, index][0]


def _swapped(own: Asked, other: Asked, kind: str) -> Asked:
    """The item with the other's first medium in the place of each of its own, if the other has one."""
    theirs = other.media.get(kind)
    return _with(own, kind, MODALITIES[kind].swap, theirs[0]) if theirs else own


def _with(item: Asked, kind: str, change: Callable[..., Array], *how: Any) -> Asked:
    """The item with its media of a modality changed, one after another."""
    changed = [change(array, *how) for array in item.media.get(kind, ())]
    return dataclasses.replace(item, media={**item.media, kind: changed})
