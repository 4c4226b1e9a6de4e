"""What README and the pages on stages, formats and flat configs name is there, and the numbers that they tell
are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from muomni.execution import recipe as recipes
from muomni.media import mel
from muomni.models.codec import CodecConfig
from muomni.stages import registry
from muomni.stages.codec import CodecSettings
from muomni.tokens.alphabet import Alphabet
from muomni.train import settings as training
from muomni.train import step
from muomni.train.settings import TrainSettings

ROOT = Path(__file__).parents[1]
WORD = re.compile(r"`([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)`")
DEFAULTS = TrainSettings.model_fields
PAGES = ("README.md", "docs/stages.md", "docs/formats.md", "docs/flat.md")


def options(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """The names of all options of a stage's settings, those of its parts too."""
    seen.add(model)
    for name, field in model.model_fields.items():
        yield name
        yield from (
            word for part in models(field.annotation) if part not in seen for word in options(part, seen)
        )


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)


@pytest.mark.parametrize("page", PAGES)
def test_every_word_in_backticks_is_an_option_a_name_of_the_code_or_a_file(page: str) -> None:
    known = {word for name in registry.OURS for word in options(recipes.stage(name).settings, set())}
    files = [
        *(ROOT / "src").rglob("*.py"),
        ROOT / "tests" / "data" / "test_layouts.py",
    ]  # where the columns of others are read
    names = set(re.findall(r"[a-z][a-z0-9_]*", " ".join(path.read_text() for path in files)))
    found = set(WORD.findall((ROOT / page).read_text()))
    assert len(found) > 5
    strangers = {
        word
        for word in found
        if word.split(".")[-1] not in known
        and not set(word.removesuffix("_per_s").split(".")) <= names
        and not any((ROOT / place / word).exists() for place in (".", "recipes", "docs"))
    }
    assert strangers == set()


def bound(gate: str) -> float:
    """Where a gate of the table has its bound."""
    found = next(each for name in registry.OURS for each in registry.find(name).gates if each.name == gate)
    return next(each for each in (found.below_floor, found.at_most, found.at_least) if each is not None)


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        (
            r"(\d+),(\d+) steps where neither is",
            lambda: [training.DEFAULT_STEPS // 1000, training.DEFAULT_STEPS % 1000],
        ),
        (
            r"the loss is beyond (1e6) or the norm beyond (\d+)",
            lambda: [step.LOSS_BOUND, TrainSettings.model_fields["explosion_norm"].default],
        ),
        (r"at most (0\.\d) of the unigram entropy", lambda: [bound("floor")]),
        (r"gate `experts` asks at least (0\.\d+)", lambda: [bound("experts")]),
        (r"CTC over (\d+) symbols", lambda: [len(Alphabet())]),
        (r"Log-mel at 100 Hz \((\d+) bins\)", lambda: [mel.MelSpec().num_mels]),
        (r"Log-mel \((\d+) HTK mels\) to K codebooks", lambda: [CodecConfig().mel.num_mels]),
        (
            r"The first (\d+) updates run without a quantiser",
            lambda: [CodecSettings.model_fields["quantise_after"].default],
        ),
    ],
)
def test_a_number_in_the_docs_is_that_of_the_code(sentence: str, numbers: Any) -> None:
    found = re.search(sentence, " ".join((ROOT / "docs" / "stages.md").read_text().split()))
    assert found is not None, "the sentence was changed: change this list"
    assert [float(each) for each in found.groups()] == [float(each) for each in numbers()]
