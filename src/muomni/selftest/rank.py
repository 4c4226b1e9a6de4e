"""A mutated run in a process of its own: `python -m muomni.selftest.rank NUMBER FOLDER STAGE`, a rank with
torchrun's variables set."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from muomni.errors import GateRed, InternalError
from muomni.execution import runner
from muomni.selftest.mutants import MUTANTS
from muomni.selftest.run import RECIPE, short


def main() -> None:
    """Plant the mutant (0: none) and run the stage."""
    run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])


def run(number: int, folder: Path, stage: str) -> None:
    """The stage with a mutant planted.

    Raises  SystemExit with the code of GateRed where a gate is red, with that of InternalError where anything
            else goes wrong: a process that falls by itself ends with 1, which is a red gate's code.
    """
    plant = next((mutant.plants[0][0] for mutant in MUTANTS if mutant.number == number), nullcontext)
    try:
        with plant():
            runner.run(str(RECIPE), stages=[stage], out=folder, overrides=short(stage))
    except GateRed as error:
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(InternalError.exit_code)


def as_rank(number: int, folder: Path, stage: str, rank: int, port: int) -> None:
    """The same as this rank of two that meet at a port; what is said goes to `<stage>-rank-<rank>` in the
    folder."""
    os.environ.update(
        WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank)
    )
    with (folder / f"{stage}-rank-{rank}").open("w", encoding="utf-8") as stream, redirect_stderr(stream):
        os.dup2(stream.fileno(), 2)  # what torch says goes past Python's stream
        run(number, folder, stage)


if __name__ == "__main__":
    main()
