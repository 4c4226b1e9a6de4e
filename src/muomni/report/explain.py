"""`muomni data explain`: show one sample exactly as a stage trains on it.

The stage is built as for training, with its real dataset and collate function, and with a checkpoint's
weights if one is given.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from muomni import plugins
from muomni.data import readers
from muomni.data.conversation import Conversations, MediaSpec, read_wave
from muomni.data.loader import Loader
from muomni.data.quarantine import Quarantine
from muomni.data.sample import ImagePart, Sample, inline_bytes
from muomni.data.source import Source
from muomni.data.token_rows import TokenRows
from muomni.data.tokenized.index import ABOUT
from muomni.errors import ConfigError, DataError
from muomni.execution import recipe as recipes
from muomni.models import integrity
from muomni.report import anatomy, media
from muomni.report.anatomy import Blocks, Subject
from muomni.report.html import Html, h, join, words
from muomni.report.page import page
from muomni.runtime import Runtime
from muomni.stages.stage import Entry, Stage, Training, build
from muomni.tokens.bpe import Tokenizer
from muomni.train import loop
from muomni.train.objectives.language import collate


@dataclass(frozen=True)
class SampleChoice:
    """Which sample: its id, or else its number in one split."""

    sample: str | None = None
    index: int = 0
    split: str = "train"


def of_stage(source: str, stage: str, choice: SampleChoice, *, checkpoint: Path | None = None) -> str:
    """The page of one sample of a stage of a recipe, or of a finished run's folder (which is then its own
    checkpoint).

    Raises  ConfigError for an unknown stage or sample; CheckpointError where a run lacks what the stage
            needs; DataError for a bad sample.
    """
    run = (
        checkpoint
        if checkpoint is not None
        else Path(source)
        if (Path(source) / "recipe.json").is_file()
        else None
    )
    entry, base = _entry(source, stage, run)
    with tempfile.TemporaryDirectory() as scratch:
        training = _training(entry, base, Path(scratch) / stage, run, choice)
        own = run / stage if run is not None else None
        is_trained = own is not None and any(own.glob("step_*"))
        if is_trained and own is not None:
            loop.restore(training.objective, None, entry.settings, _machine(), own, export=training.export)
        training.objective.eval()
        loader, index = _find(training, choice, entry)
        item = loader.dataset.item(index, np.random.default_rng(0))
        subject = Subject(
            loader.collate([item]), training.objective, getattr(training, "tokenizer", None), is_trained
        )
        return _page(
            stage,
            loader.dataset.name(index),
            _sample(training, loader, index),
            plugins.load(entry.stage.anatomy)(subject),
            own if is_trained else None,
        )


def of_manifest(manifest: Path, tokenizer: Path, choice: SampleChoice, *, ctx_len: int = 512) -> str:
    """The page of one row of a manifest, as a conversation in this tokenizer; a picture fills one position.

    Raises  ConfigError for an unknown sample; DataError for a manifest or media that can't be read.
    """
    samples = list(readers.read(Source(path=str(manifest.absolute())), Path(), Quarantine(None, 1.0)))
    dataset = Conversations(samples, Tokenizer.load(tokenizer), MediaSpec(), ctx_len)
    index = _place(samples, choice, str(manifest))
    subject = Subject(
        collate([dataset.item(index, np.random.default_rng(0))]), None, dataset.tokenizer, False
    )
    return _page(manifest.name, dataset.name(index), samples[index], anatomy.language(subject), None)


def _machine() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32)


def _entry(source: str, stage: str, run: Path | None) -> tuple[Entry, Path]:
    """The stage and where its paths start: as it lies in a run's folder, where it does, else as the recipe
    has it."""
    if run is not None and (run / stage / "config.yaml").is_file():
        entry, base = recipes.stored(run, stage), Path(recipes.origin(run, "base")["base"])
    else:
        recipe = recipes.read(source, out=run)
        entry, base = recipe.entry(stage), recipe.base
    if entry.points:
        raise ConfigError(
            f"{stage} learns nothing itself, its points do", hint=f"one of {', '.join(entry.points)}"
        )
    return entry, base


def _only(corpus: readers.Corpus, choice: SampleChoice, where: str) -> readers.Corpus:
    """The corpus with the wanted sample alone, on both sides."""
    sides = [corpus.train, corpus.valid]
    if choice.sample is None:
        side = sides[choice.split == "valid"]
        kept = [side[_place(side, choice, where)]]
    else:
        kept = [sample for side in sides for sample in side if sample.id == choice.sample][:1]
        if not kept:
            raise _unknown(choice, where)
    return dataclasses.replace(corpus, train=kept, valid=kept, weights=[1.0])


def _training(
    entry: Entry, base: Path, folder: Path, run: Path | None, choice: SampleChoice
) -> Training[Any]:
    """The stage, built as for training; what it caches goes to `folder`."""
    settings, declared = entry.settings, entry.stage
    if entry.needs and run is None:
        raise ConfigError(
            f"{entry.name} is built on {', '.join(entry.needs)}",
            hint="--checkpoint RUN_DIR says where these are",
        )
    if run is not None and (run / entry.name / "final" / "tokenizer.json").is_file():
        settings = settings.model_copy(
            update={"init_from": (run / entry.name).resolve()}
        )  # its tokenizer, not one trained anew
    for final in entry.needed.values():
        integrity.verify(final)
    if run is not None:
        for made in (run / entry.name / "shards").glob(
            f"*/{ABOUT}"
        ):  # of the same samples and token space: not made again
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            (folder / "shards" / made.parent.name).symlink_to(made.parent.resolve())

    def part(corpus: readers.Corpus) -> readers.Corpus:
        return _only(corpus, choice, settings.data[0].path) if _is_alone(declared) else corpus

    return build(declared, settings, folder, entry.needed, base, _machine(), part=part)


def _is_alone(stage: Stage) -> bool:
    """Whether a stage is built on the wanted sample alone: one that would encode all others too, before it
    begins."""
    return stage.enough is not None and stage.is_row_a_sample


def _find(training: Training[Any], choice: SampleChoice, entry: Entry) -> tuple[Loader[Any, Any], int]:
    """The loader and the number of the wanted sample."""
    if _is_alone(entry.stage):
        return training.train, 0
    sides = (
        {"train": training.train}
        if training.valid is None
        else {"train": training.train, "valid": training.valid}
    )
    if choice.sample is not None:
        for loader in sides.values():
            for index in range(len(loader.dataset)):
                if choice.sample == loader.dataset.name(index) or _is_of(
                    training, loader, index, choice.sample
                ):
                    return loader, index
        raise _unknown(choice, entry.name)
    size = len(sides[choice.split].dataset) if choice.split in sides else 0
    if not 0 <= choice.index < size:
        raise ConfigError(
            f"{entry.name}: expected a number below {size} of split {choice.split}, got {choice.index}"
        )
    return sides[choice.split], choice.index


def _is_of(training: Training[Any], loader: Loader[Any, Any], index: int, sample: str) -> bool:
    """Whether a row of tokens, which goes by its task and number, is made of the sample of this id."""
    if not isinstance(loader.dataset, TokenRows):
        return False
    found = _sample(training, loader, index)
    return found is not None and found.id == sample


def _place(samples: Sequence[Sample], choice: SampleChoice, where: str) -> int:
    if choice.sample is None:
        if 0 <= choice.index < len(samples):
            return choice.index
        raise ConfigError(f"{where}: expected a number below {len(samples)}, got {choice.index}")
    place = next((i for i, sample in enumerate(samples) if sample.id == choice.sample), None)
    if place is None:
        raise _unknown(choice, where)
    return place


def _unknown(choice: SampleChoice, where: str) -> ConfigError:
    return ConfigError(f"{where}: no sample {choice.sample!r}", hint="--index N takes one by its number")


def _sample(training: Training[Any], loader: Loader[Any, Any], index: int) -> Sample | None:
    """The sample behind an item, None for a packed row or a replayed text."""
    dataset = loader.dataset
    if isinstance(dataset, TokenRows):
        if index >= len(dataset.places):
            return None
        side = training.corpus.train if loader is training.train else training.corpus.valid
        return side[dataset.sample(index)]
    inside = getattr(dataset, "utterances", dataset)
    samples = getattr(inside, "samples", None)
    return samples[index] if samples is not None else None


def _page(where: str, name: str, sample: Sample | None, blocks: Blocks, checkpoint: Path | None) -> str:
    head = [
        ("of", where),
        ("checkpoint", str(checkpoint) if checkpoint else "none: no losses"),
        ("task", words(sample.task) if sample else ""),
    ]
    meta = h("div", [h("span", h("small", label), value) for label, value in head if value], cls="meta")
    parts = [("The sample", _shown(sample)), *blocks] if sample is not None else blocks
    sections = [h("section", h("h3", title), block, id=f"part{n}") for n, (title, block) in enumerate(parts)]
    links = [(f"part{n}", title.split(":")[0].split(",")[0], "") for n, (title, _) in enumerate(parts)]
    return page(f"{name} of {where}", join(h("header", h("h1", name), meta, cls="head"), sections), links)


def _shown(sample: Sample) -> Html:
    """Text, pictures and sounds of a sample as they are on disk."""
    if sample.text is not None:
        return h("p", sample.text)
    turns = []
    for message in sample.messages:
        parts = [h("p", message.text)] if message.text else []
        for part in message.media:
            parts.append(_medium(part))
        turns.append(
            h("article", h("small", message.role, cls=f"tag role-{message.role}"), parts, cls="card")
        )
    extra = {
        key: value
        for key, value in {**sample.extra, "negatives": [n.text for n in sample.negatives]}.items()
        if value
    }
    more = h(
        "details",
        h("summary", "beside it"),
        h("pre", "\n".join(f"{key}: {value}" for key, value in extra.items())),
        cls="fold",
    )
    return join(h("div", turns, cls="cards text"), more if extra else None)


def _medium(part: Any) -> Html:
    """A medium, or why it can't be shown."""
    try:
        return ON_DISK[part.type](part)
    except (DataError, OSError) as error:
        return h("p", str(error), cls="quiet")


def _picture(part: ImagePart) -> Html:
    content = inline_bytes(part.path) or Path(part.path).read_bytes()
    return h(
        "img",
        src=media.uri(content, "image/png"),
        alt=Path(part.path).name[:60],
        style="max-width:100%;max-height:224px",
    )


ON_DISK: dict[str, Callable[[Any], Html]] = {  # a medium of a sample as it lies on disk, by modality
    "image": _picture,
    "audio": lambda part: media.player(read_wave(part, 16_000), 16_000),
}
