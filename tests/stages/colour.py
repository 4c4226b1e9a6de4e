"""A stage as another package brings it: it names the colour of a picture. docs/architecture.md shows it to
newcomers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from muomni.data.conversation import read_picture
from muomni.data.loader import Loader
from muomni.data.sample import Sample
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.report.anatomy import Blocks, Subject
from muomni.report.html import h
from muomni.stages import assumed
from muomni.stages.stage import BoardRow, Stage, StageSettings, Training, loaders
from muomni.train.loop import Fitted
from muomni.train.objective import Objective, Term

SIZE = 8  # pixels of a side


class ColourSettings(StageSettings):
    """Settings of stage colour; hidden: width of its one layer."""

    hidden: int = 16


class Shape(BaseModel):
    """Sizes of the network."""

    hidden: int
    names: list[str]


class Namer(nn.Module):
    """The mean colour of a picture -> logits of names."""

    model_type = "colour"
    trained_by = "colour"

    def __init__(self, config: Shape) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Sequential(
            nn.Linear(3, config.hidden), nn.Tanh(), nn.Linear(config.hidden, len(config.names))
        )

    def forward(self, pixels_BHW3: Tensor) -> Tensor:
        logits_BC: Tensor = self.body(pixels_BHW3.float().mean((1, 2)) / 255 - 0.5)
        return logits_BC


@dataclass
class ColourBatch:
    """pixels_BHW3 bytes; names_B the numbers of their colours."""

    sample_ids: list[str]
    pixels_BHW3: Tensor
    names_B: Tensor

    def to(self, device: torch.device) -> ColourBatch:
        return replace(self, pixels_BHW3=self.pixels_BHW3.to(device), names_B=self.names_B.to(device))


class Naming(Objective):
    """Nats of the right name."""

    def __init__(self, namer: Namer) -> None:
        super().__init__()
        self.namer = namer

    def counts(self, batch: ColourBatch) -> dict[str, int]:
        return {"name": len(batch.sample_ids)}

    def forward(self, batch: ColourBatch) -> dict[str, Term]:
        nats = nn.functional.cross_entropy(self.namer(batch.pixels_BHW3), batch.names_B, reduction="sum")
        return {"name": Term(nats, len(batch.sample_ids))}

    def by_hand(self, batch: ColourBatch) -> tuple[dict[str, float], dict[str, float]]:
        rows = float(sum(1 for _ in batch.names_B.tolist()))
        return {"name": rows}, {"samples": rows}


@dataclass
class Coloured:
    """Pictures with the number of the last word of their captions."""

    samples: Any
    names: list[str]

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return str(self.samples[index].id)

    def item(self, index: int, rng: np.random.Generator) -> tuple[str, np.ndarray, int]:
        sample = self.samples[index]
        return sample.id, read_picture(sample.images[0], SIZE, "bilinear"), self.names.index(_colour(sample))


def _colour(sample: Sample) -> str:
    return sample.answer.split()[-1]


def collate(items: list[tuple[str, np.ndarray, int]]) -> ColourBatch:
    ids, pixels, names = zip(*items, strict=True)
    return ColourBatch(list(ids), torch.from_numpy(np.stack(pixels)), torch.tensor(names))


class ColourTraining(Training[ColourSettings]):
    """A small network upon pictures and their captions; how many held-out pictures it names rightly."""

    def vocabulary(self) -> None:
        self.names = sorted(
            {_colour(sample) for side in (self.corpus.train, self.corpus.valid) for sample in side}
        )

    def wire(self) -> tuple[Objective, dict[str, nn.Module]]:
        self.namer = self.inputs.place(Namer(Shape(hidden=self.settings.hidden, names=self.names)))
        return Naming(self.namer), {".": self.namer}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        self.held_out = Coloured(self.corpus.valid, self.names)
        return loaders(Coloured(self.corpus.train, self.names), self.held_out, collate, self.settings)

    def measure(self, fitted: Fitted, album: StageSamples) -> dict[str, Fact]:
        rows = [self.held_out.item(index, np.random.default_rng(0)) for index in range(len(self.held_out))]
        batch = collate(rows).to(self.inputs.run.device)
        right = int((self.namer(batch.pixels_BHW3).argmax(-1) == batch.names_B).sum())
        return {"named": share(right, len(rows), floor=1 / len(self.names))}


def assume(settings: ColourSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    pictures = assumed.pictures(folder, SIZE)
    ask = [
        [assumed.part("image", pictures[number % assumed.KINDS])] for number in range(4 * settings.batch_size)
    ]
    return [assumed.turns(question, words[number % 4]) for number, question in enumerate(ask)]


def page(subject: Subject) -> Blocks:
    """What is shown of one row: the mean colour of its picture, which is all that the network reads."""
    red, green, blue = subject.batch.pixels_BHW3[0].float().mean((0, 1)).round().int().tolist()
    return [("All that it reads", h("p", f"red {red}, green {green}, blue {blue}"))]


STAGE = Stage(
    "colour",
    "the names of colours",
    ColourSettings,
    ColourTraining,
    gates=(
        Gate("named", "named", "it names colours no better than by chance: train longer", above_floor=0.2),
    ),
    board=(BoardRow("colour.named", "named", 0.5),),
    assume=assume,
    anatomy="colour:page",
)
