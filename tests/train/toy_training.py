"""A network of a few weights trained by the real loop, in this process or in one of its own that may be
killed."""

from __future__ import annotations

import argparse
import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.errors import DataError
from muomni.runtime import Runtime
from muomni.train import loop
from muomni.train.checkpoint import Identity
from muomni.train.objective import Objective, Term
from muomni.train.settings import TrainSettings
from muomni.units import METERS

CPU = Runtime(torch.device("cpu"), torch.float32)
CLASSES = 5


@dataclass
class RowBatch:
    """x_BD float; y_BT int64, -100 = no label."""

    sample_ids: list[str]
    x_BD: Tensor
    y_BT: Tensor

    def to(self, device: torch.device) -> RowBatch:
        return replace(self, x_BD=self.x_BD.to(device), y_BT=self.y_BT.to(device))


class Toy(Objective):
    """Three guesses a row, of which some are asked; `dies` is called with each step's number after its
    update."""

    def __init__(self, *, dropout: float = 0.2, dies: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(8, 3 * CLASSES)
        self.register_buffer("seen", torch.zeros(1))
        self.dies = dies

    def counts(self, batch: RowBatch) -> dict[str, int]:
        return {"nats": int((batch.y_BT >= 0).sum())}

    def forward(self, batch: RowBatch) -> dict[str, Term]:
        logits = self.head(self.body(batch.x_BD)).view(-1, CLASSES)
        total = F.cross_entropy(logits, batch.y_BT.flatten(), ignore_index=-100, reduction="sum")
        return {"nats": Term(total, self.counts(batch)["nats"])}

    def after_step(self, step: int) -> None:
        self.seen += 1
        if self.dies is not None:
            self.dies(step)


class Rows:
    """Rows with noise of their own generator; numbers in `bad` can't be read."""

    def __init__(self, count: int = 24, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"row {index}"

    def item(self, index: int, rng: np.random.Generator) -> tuple[str, np.ndarray, np.ndarray]:
        if index in self.bad:
            raise DataError("undecodable", f"row {index} is broken")
        fixed = np.random.default_rng(index)
        x, y = fixed.normal(size=4) + 0.1 * rng.normal(size=4), fixed.integers(0, CLASSES, 3)
        y[: index % 3] = -100  # rows count unequally
        return self.name(index), x.astype(np.float32), y


def collate(items: list[tuple[str, np.ndarray, np.ndarray]]) -> RowBatch:
    names, x, y = zip(*items, strict=True)
    return RowBatch(list(names), torch.from_numpy(np.stack(x)), torch.from_numpy(np.stack(y)))


def settings(**values: Any) -> TrainSettings:
    usual = {
        "max_steps": 8,
        "warmup_steps": 2,
        "batch_size": 4,
        "lr": 0.02,
        "checkpoint_freq": 3,
        "val_freq": 4,
        "print_freq": 1,
    }
    return TrainSettings(**{**usual, **values})


def fit(
    folder: Path,
    objective: Objective | None = None,
    *,
    rows: Rows | None = None,
    workers: int = 0,
    run: Runtime = CPU,
    identity: Identity | None = None,
    **values: Any,
) -> loop.Fitted:
    """The loop on 24 rows for training and 10 held out."""
    chosen, rows = settings(**values), rows or Rows()
    folder.mkdir(parents=True, exist_ok=True)
    train = Loader(
        rows, Order([len(rows)], batch_size=chosen.batch_size, seed=chosen.seed), collate, workers=workers
    )
    valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
    return loop.fit(objective or Toy(), train, valid, chosen, run, folder, name="toy", identity=identity)


def losses(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What metrics.jsonl says of each step, without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = {*METERS, "step"}
    return [(row["step"], {key: value for key, value in row.items() if key not in clock}) for row in rows]


def die_at(step: int) -> Any:
    """Kill -9 of this process after that update, before it is saved."""

    def dies(number: int) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return dies


def main() -> None:
    """python toy_training.py FOLDER '{"workers": 2, ...}' --die-at 5"""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("values")
    parser.add_argument("--die-at", type=int, default=-1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    fit(given.folder, Toy(dies=die_at(given.die_at)), **json.loads(given.values))


if __name__ == "__main__":
    main()
