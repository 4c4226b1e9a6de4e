"""Open-set classes: whether a free-form answer names the right class, and no other."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from muomni.data.sample import Sample
from muomni.errors import ShapeError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import clopper_pearson


def named(answers: Sequence[str], truths: Sequence[str], classes: Iterable[str]) -> tuple[list[bool], Fact]:
    """Which answers name their truth's class as whole words, and name no other class.

    Case and a plural's `s` don't count; of classes within each other the longest is named: "traffic light" is
    no "light".
    Gives   a hit for each answer, and their share over the floor of always naming the commonest truth.
    Raises  ShapeError if answers and truths differ in number.
    """
    if len(answers) != len(truths):
        raise ShapeError(f"naming: {len(answers)} answers for {len(truths)} truths")
    class_names = sorted(
        {_plain(name) for name in (*classes, *truths)} - {""}, key=lambda name: (-len(name), name)
    )
    spelled = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in class_names)
    pattern = re.compile(rf"(?<!\w)({spelled})s?(?!\w)") if class_names else re.compile(r"(?!)")
    hits = [
        {_plain(class_found) for class_found in pattern.findall(answer.casefold().replace("_", " "))}
        == {_plain(truth)}
        for answer, truth in zip(answers, truths, strict=True)
    ]
    commonest = max(Counter(map(_plain, truths)).values(), default=0)
    return hits, share(sum(hits), len(hits), floor=commonest / max(1, len(hits)))


def facts(task: str, answers: Sequence[str], samples: Sequence[Sample]) -> dict[str, Fact]:
    """`{task}_names` of answers to samples that say in extra what they must name; nothing where none says
    it."""
    named_answers = [
        (answer, name)
        for answer, sample in zip(answers, samples, strict=True)
        if isinstance(name := sample.extra.get("names"), str)
    ]
    if not named_answers:
        return {}
    truths = [name for _, name in named_answers]
    return {f"{task}_names": named([answer for answer, _ in named_answers], truths, set(truths))[1]}


def margin(fact: Fact) -> float:
    """By how much a share of named classes lies above its floor at the low end of its exact 95 % interval;
    nan without either."""
    if not fact.n or fact.floor is None:
        return math.nan
    return clopper_pearson(round(fact.value * fact.n), fact.n)[0] - fact.floor


def _plain(name: str) -> str:
    """A class as it is compared: small letters, single blanks."""
    return " ".join(name.casefold().replace("_", " ").split())
