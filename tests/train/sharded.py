"""A small decoder trained by the real loop, sharded or not, on as many ranks as torchrun's variables say; it may kill
itself behind a step."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muomni import runtime
from muomni.data.batch import SequenceBatch
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.errors import DataError
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.runtime import Runtime
from muomni.train import loop, optim, sharding
from muomni.train.objectives.language import NextToken
from muomni.train.settings import TrainSettings

SIZES = DecoderConfig(
    vocab_size=60, ctx_len=32, dropout=0.1, width=32, layers=3, heads=2, kv_heads=2, ffn_width=64, tied=True
)
STEPS = 6


class Texts:
    """Rows of ids, of which some can't be read: one rank then has fewer micro-batches than the other."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 24

    def name(self, index: int) -> str:
        return f"row {index}"

    def item(self, index: int, rng: np.random.Generator) -> tuple[str, Tensor, int]:
        if index in self.bad:
            raise DataError("undecodable", f"row {index} is broken")
        draw = torch.Generator().manual_seed(index)
        return self.name(index), torch.randint(15, 60, (12,), generator=draw), index % 5


class Held(Texts):
    """Those that are held out."""

    def __len__(self) -> int:
        return 10


def collate(rows: list[tuple[str, Tensor, int]]) -> SequenceBatch:
    ids_BT = torch.stack([ids for _, ids, _ in rows])
    labels_BT = ids_BT.clone()
    for number, (_, _, hidden) in enumerate(rows):
        labels_BT[number, : 2 * hidden] = -100
    return SequenceBatch([name for name, _, _ in rows], ids_BT, labels_BT)


def objective(dies_at: int | None = None) -> NextToken:
    torch.manual_seed(3)
    made = NextToken(Decoder(SIZES))

    def after(step: int) -> None:
        made.last_step = step
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    made.after_step = after  # type: ignore[method-assign]
    return made


def fit(
    folder: Path, run: Runtime, *, bad: tuple[int, ...] = (), dies_at: int | None = None, **values: Any
) -> NextToken:
    """The objective after the run; `sizes-RANK.json` holds the numbers of weights and moments on this rank."""
    own = {
        "max_steps": STEPS, "batch_size": 2, "gradient_accumulation_steps": 4 // run.world, "lr": 3e-3,
        "warmup_steps": 2, "print_freq": 1, "val_freq": 2, "val_batches": 3, "checkpoint_freq": 2, "max_grad_norm": 0.2,
        "quarantine_limit": 1.0, "keep_checkpoints": 5,
    }  # fmt: skip
    settings = TrainSettings.model_validate({**own, **values})
    folder.mkdir(parents=True, exist_ok=True)
    optimizers: list[torch.optim.Optimizer] = []
    kept = optim.make_optimizer

    def noted(*args: Any) -> torch.optim.Optimizer:
        optimizer = kept(*args)
        optimizers.append(optimizer)
        return optimizer

    optim.make_optimizer = noted
    made = objective(dies_at)
    train = Loader(Texts(bad), Order([24], batch_size=settings.batch_size, seed=1), collate)
    valid = Loader(Held(), Order([10], batch_size=settings.batch_size, seed=1, shuffle=False), collate)
    try:
        loop.fit(made, train, valid, settings, run, folder, name="test")
    finally:
        optim.make_optimizer = kept
    (optimizer,) = optimizers
    held = [sharding.local(p) for group in optimizer.param_groups for p in group["params"]]
    moments = [sharding.local(v) for s in optimizer.state.values() for v in s.values() if v.ndim]
    sizes = {"weights": sum(t.numel() for t in held), "moments": sum(t.numel() for t in moments)}
    (folder / f"sizes-{run.rank}.json").write_text(json.dumps(sizes))
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--dies-at", type=int)
    parser.add_argument("--bad", type=int, nargs="*", default=[])
    parser.add_argument("--final", default="last")
    given = parser.parse_args()
    run = runtime.start(precision="fp32", device="cpu", threads=1)
    made = fit(
        given.folder, run, shard=given.shard, dies_at=given.dies_at, bad=tuple(given.bad), final=given.final
    )
    weights = {name: p.detach().clone() for name, p in made.named_parameters()}
    assert all(type(p) is torch.nn.Parameter for p in made.parameters())
    torch.save(weights, given.folder / f"after-{run.rank}.pt")


if __name__ == "__main__":
    main()
