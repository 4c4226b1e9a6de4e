"""Ranks of the toy's loop as processes, told what to do and how to fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from toy_training import Rows, Toy, collate, settings

from muomni import runtime
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.errors import MuomniError, UserError
from muomni.train import distributed, flops, loop
from shared import LOADED

FORKS = multiprocessing.get_context("forkserver")  # a rank starts in no time: torch is imported once
FORKS.set_forkserver_preload(LOADED)


def run_ranks(world: int, folder: Path, timeout_s: float = 900, **told: Any) -> list[tuple[int, str]]:
    """Exit code and standard error of each rank; those that hang are ended by the clock."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **told.pop("environment", {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    told["folder"] = str(folder)
    ranks = [
        FORKS.Process(target=work, args=({**shared, "RANK": str(n), "LOCAL_RANK": str(n)}, told), daemon=True)
        for n in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout_s)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    said = [(folder / f"stderr-{n}").read_text() for n in range(world)]
    assert None not in codes, f"a rank hangs: {codes}\n" + "\n".join(said)[-4000:]
    return list(zip(codes, said, strict=True))  # type: ignore[arg-type]


class Failing(Rows):
    """Rows of which one can't even be tried: not bad data, but a broken program."""

    def item(self, index: int, rng: Any) -> Any:
        if index == 5:
            raise UserError("the disk that holds row 5 is not mounted", hint="mount it")
        return super().item(index, rng)


class Failure(Toy):
    """Fails on one rank, after so many forwards in training."""

    def __init__(self, how: str, rank: int, step: int) -> None:
        super().__init__()
        self.how, self.rank, self.step, self.forwards = how, rank, step, 0

    def forward(self, batch: Any) -> Any:
        self.forwards += self.training
        if self.training and self.forwards == self.step and int(os.environ["RANK"]) == self.rank:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                time.sleep(20)  # longer than the others wait
            if self.how == "raise":
                raise RuntimeError("a kernel of this rank is broken")
        return super().forward(batch)


def work(environment: dict[str, str], told: dict[str, Any]) -> None:
    """One rank. told: folder, values (settings), stop_before (updates), fail [how, rank, forward], rows (bad,
    failing), slow_s (saving)."""
    os.environ.update(environment)
    folder = Path(told["folder"])
    error = os.open(folder / f"stderr-{environment['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(error, 2)
    flops.peak = lambda run: (
        1e9
    )  # what the chip can do takes seconds to measure, and is nothing to these tests
    run = runtime.start(precision="fp32", device="cpu", threads=1)
    chosen = settings(**{"print_freq": 1, "quarantine_limit": 1.0, **told.get("values", {})})
    rows = {"bad": Rows(bad=tuple(range(1, 13))), "failing": Failing()}.get(
        told.get("rows", ""), Rows(bad=(7,))
    )
    train = Loader(rows, Order([len(rows)], batch_size=chosen.batch_size, seed=chosen.seed), collate)
    valid = Loader(Rows(10), Order([10], batch_size=4, seed=0, shuffle=False), collate)
    objective = Failure(*told["fail"]) if "fail" in told else Toy()
    steps = iter(range(10**9))
    loop.asked = lambda stop: (
        next(steps) == told.get("stop_before", -1)
    )  # counted from where this process begins
    saved = (lambda step: time.sleep(told["slow_s"])) if "slow_s" in told else (lambda step: None)
    try:
        with distributed.together(run, alike=(loop.Interrupted,)):
            fitted = loop.fit(objective, train, valid, chosen, run, folder, name="toy", saved=saved)
            if run.is_main:
                (folder / "drawn.json").write_text(
                    json.dumps([fitted.drawn.counts_N.tolist(), fitted.drawn.state, vars(fitted.progress)])
                )
    except loop.Interrupted:
        pass
    except MuomniError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        sys.exit(problem.exit_code)
    distributed.leave()
