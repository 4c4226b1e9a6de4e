"""One of two ranks of a mutated run: `python -m muomni.selftest.rank NUMBER FOLDER STAGE`, with torchrun's variables set."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from muomni.errors import GateRed
from muomni.selftest.mutants import MUTANTS
from muomni.selftest.run import RECIPE, short
from muomni.stages import runner


def main() -> None:
    """Plant the mutant (0: none) and run the stage."""
    number, folder, stage = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    plant = next((mutant.plants[0][0] for mutant in MUTANTS if mutant.number == number), nullcontext)
    try:
        with plant():
            runner.run(str(RECIPE), stages=[stage], out=folder, overrides=short(stage))
    except GateRed as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
