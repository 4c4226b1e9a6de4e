"""How fast an old build and this one train and decode, in one run: `python -m benchmarks.old_new --old CHECKOUT
[--quick] [--json]`.

Training: an update of a Thinker of 4 blocks of 256 on 8 packed rows of 256 tokens, by `train.step`, with its
optimizer. Decoding: 256 tokens after a prompt of 16, one row, greedy, on the same weights. Each build works in a
process of its own, on one thread. They take turns, each second turn in the other order, and a ratio is the median
of the turns' ratios, so that a busy machine hurts both alike: above 1, this build is the slower one. Beside the
time, the processor's time is told, which neighbours lengthen less. A line is printed as soon as it is known. Losses
and ids are compared, too; the exit code is 1 where ids differ, or where a ratio of times is above `--most`.

`--quick` takes under three minutes: fewer turns, and none is begun later than 75 s after the start of
the run in training, 150 s in decoding (each part has one turn at least).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, LENGTH, DOCUMENTS, VOCABULARY, PROMPT = 8, 256, 4, 5000, 16
UPDATES, NEW_TOKENS = 1, 256  # of a turn
TURNS, QUICK_TURNS, QUICK_S = 25, 9, 75.0
MOST = 1.02  # issue 15
Work = Callable[[], list[Any]]


def main() -> None:
    """Measure, print a line each, and a JSON object where asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--quick", action="store_true", help="under three minutes")
    parser.add_argument("--most", type=float, default=MOST, help=f"largest ratio allowed (start: {MOST})")
    parser.add_argument("--json", action="store_true", help="print one JSON object behind the lines")
    parser.add_argument("--serve", choices=tuple(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(WORK[arguments.serve](arguments.model))
        return
    if arguments.old is None:
        parser.error("--old CHECKOUT is needed: what this build is compared with")
    found = measure(arguments.old, arguments.quick)
    if arguments.json:
        print(json.dumps(found, indent=2))
    is_good = found["decoding"]["equal"] and all(part["ratio"] <= arguments.most for part in found.values())
    sys.exit(0 if is_good else 1)


def measure(old: Path, is_quick: bool) -> dict[str, Any]:
    """Of training and decoding: what each build takes, the ratio new / old, and whether both gave the same."""
    import subprocess

    from benchmarks.short_answers import MAKE, REPOSITORY, Server, environment

    found, start = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, "-c", MAKE, folder, str(VOCABULARY)]
        subprocess.run(make, check=True, env=environment(REPOSITORY))
        for number, part in enumerate(WORK, start=1):
            builds = {"old": old.resolve(), "new": REPOSITORY}
            servers = {name: Server(part, checkout, folder, __file__) for name, checkout in builds.items()}
            found[part] = turns(servers, start + number * QUICK_S if is_quick else None)
            for server in servers.values():
                server.close()
            print(line(part, found[part]), flush=True)
    return found


def turns(servers: dict[str, Any], deadline: float | None) -> dict[str, Any]:
    """Seconds of each server's work by turns, after one to warm up."""
    results = {name: [server.turn()["result"]] for name, server in servers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    processor: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(TURNS if deadline is None else QUICK_TURNS):
        for name in sorted(servers, reverse=number % 2 == 1):
            told = servers[name].turn()
            seconds[name].append(told["seconds"])
            processor[name].append(told["processor"])
            results[name].append(told["result"])
        if deadline is not None and time.perf_counter() > deadline:
            break
    ratios, of_processor = (
        [new / old for new, old in zip(each["new"], each["old"], strict=True)]
        for each in (seconds, processor)
    )
    return {
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "processor_ratio": statistics.median(of_processor),
        "equal": results["old"] == results["new"],
    }


def line(part: str, found: dict[str, Any]) -> str:
    """What was found of a part."""
    old, new = (found["seconds"][name] for name in ("old", "new"))
    if part == "training":
        told = f"{old / UPDATES:.3f} s an update, now {new / UPDATES:.3f}; losses"
    else:
        told = f"{NEW_TOKENS / old:.0f} tokens/s, now {NEW_TOKENS / new:.0f}; ids"
    spread = f"{min(found['ratios']):.3f} to {max(found['ratios']):.3f} in {len(found['ratios'])} turns"
    same = "are equal" if found["equal"] else "DIFFER"
    ratio = f"time new / old {found['ratio']:.3f} ({spread}), processor's {found['processor_ratio']:.3f}"
    return f"{part:9} {told} {same}; {ratio}"


def serve(work: Work) -> None:
    """Work whenever a line comes, and print a line of JSON."""
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        result = work()
        took = {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}
        print(json.dumps({**took, "result": result}), flush=True)


# --- what a build does, in a process of its own: names that both builds have -----------------------------------


def training(folder: Path) -> Work:
    """The losses of a turn's updates."""
    import torch

    from muomni.models.decoder import Decoder
    from muomni.runtime import Runtime
    from muomni.train import optim, step
    from muomni.train.objectives import language
    from muomni.train.settings import TrainSettings

    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective = language.NextToken(Decoder.open(folder)).train()
    settings = TrainSettings(lr=1e-3)
    machine = Runtime(torch.device("cpu"), torch.float32)
    optimizer = optim.make_optimizer(objective, optim.select(objective, settings), settings)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    ids_BT = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    documents_BT = (torch.arange(LENGTH) * DOCUMENTS // LENGTH).expand(ROWS, LENGTH).contiguous()
    kind = getattr(language, "LanguageBatch", None) or language.SequenceBatch  # its older name
    names = [str(row) for row in range(ROWS)]
    batch = kind(names, ids_BT, ids_BT.clone(), documents_BT=documents_BT)

    def work() -> list[Any]:
        given = (objective, objective, optimizer, scaler, [batch], settings, machine)
        return [step.update(*given).losses["loss"] for _ in range(UPDATES)]

    return work


def decoding(folder: Path) -> Work:
    """The ids that follow a prompt."""
    import torch

    from muomni.infer.generate import generate
    from muomni.models.decoder import Decoder

    torch.set_num_threads(1)
    model = Decoder.open(folder).eval()
    prompt_BT = torch.randint(0, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    return lambda: generate(model, prompt_BT, max_new=NEW_TOKENS)[0]


WORK: dict[str, Callable[[Path], Work]] = {"training": training, "decoding": decoding}


if __name__ == "__main__":
    main()
