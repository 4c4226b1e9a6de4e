"""How fast short answers come, asked one after the other: `python -m benchmarks.short_answers [--old
CHECKOUT] [--json]`.

Answers of 3 to 14 tokens to prompts of 8 to 24, greedy, by a Qwen3 of 4 blocks of 256, on one thread: by this
build, by transformers' generate on the same weights, and with `--old` by the build of an earlier commit. Each
works in a process of its own; they take turns, and a ratio is the median of the turns' ratios, so that a busy
machine hurts all alike. Answers must be equal, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
VOCABULARY = 5000
LENGTHS = range(3, 15)
TURNS = 15


def main() -> None:
    """Measure and print a line each, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--old", type=Path, help="a checkout of an earlier commit, to be measured beside this one"
    )
    parser.add_argument("--turns", type=int, default=TURNS, help=f"start: {TURNS}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", choices=["muomni", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.model)
        return
    found = measure(arguments.old, arguments.turns)
    print(json.dumps(found, indent=2) if arguments.json else report(found))
    sys.exit(0 if found["equal"] else 1)


def measure(old: Path | None, turns: int) -> dict[str, Any]:
    """Tokens a second of each, and the ratios of ours to the others."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", MAKE, folder, str(VOCABULARY)], check=True, env=environment(REPOSITORY)
        )
        servers = {
            "new": Server("muomni", REPOSITORY, folder),
            "transformers": Server("transformers", REPOSITORY, folder),
        }
        if old is not None:
            servers["old"] = Server("muomni", old, folder)
        answers = {name: server.turn()["ids"] for name, server in servers.items()}  # a turn to warm up
        times: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(turns):
            for name, server in servers.items():
                times[name].append(server.turn()["seconds"])
        for server in servers.values():
            server.close()
    ratios = {
        name: statistics.median(other / ours for ours, other in zip(times["new"], times[name], strict=True))
        for name in times
    }
    rates = {name: sum(LENGTHS) / statistics.median(each) for name, each in times.items()}
    return {
        "tokens_per_s": rates,
        "ratio_to": ratios,
        "equal": all(each == answers["new"] for each in answers.values()),
    }


def report(found: dict[str, Any]) -> str:
    """The findings as lines."""
    lines = [f"answers of {LENGTHS[0]} to {LENGTHS[-1]} tokens, one after the other, one thread"]
    for name, rate in found["tokens_per_s"].items():
        lines.append(
            f"{name:12} {rate:6.0f} tokens/s"
            + (f"   new is x {found['ratio_to'][name]:.2f}" if name != "new" else "")
        )
    lines.append("answers are equal" if found["equal"] else "answers DIFFER")
    return "\n".join(lines)


class Server:
    """A process that holds a model and does its work (here: answers all prompts) at a word.

    script  what it runs, whatever the checkout has of it; only the package is the checkout's
    """

    def __init__(self, kind: str, checkout: Path, folder: str, script: str = __file__) -> None:
        command = [sys.executable, str(Path(script).resolve()), "--serve", kind, "--model", folder]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(checkout)
        )

    def turn(self) -> dict[str, Any]:
        """What it tells of its work: seconds, and what came of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        turn: dict[str, Any] = json.loads(self.process.stdout.readline())
        return turn

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def environment(checkout: Path) -> dict[str, str]:
    """Of a process that runs a checkout's package on one thread."""
    return {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


MAKE = """
import sys, torch
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
torch.manual_seed(0)
model = Decoder(DecoderConfig(vocab_size=int(sys.argv[2]), dropout=0.0))
for parameter in model.parameters():
    parameter.data *= 3  # far from flat scores, so that rounding decides no id
store.save(model, sys.argv[1])
"""


def serve(kind: str, folder: Path) -> None:
    """Answer whenever a line comes, and print a line of JSON."""
    import torch

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(8, 25, (len(LENGTHS),), generator=draw).tolist()
    prompts = [torch.randint(0, VOCABULARY, (1, size), generator=draw) for size in sizes]
    answer = ours(folder) if kind == "muomni" else theirs(folder)
    for _ in sys.stdin:
        start = time.perf_counter()
        ids = [answer(prompt, length) for prompt, length in zip(prompts, LENGTHS, strict=True)]
        print(json.dumps({"seconds": time.perf_counter() - start, "ids": ids}), flush=True)


def ours(folder: Path) -> Callable[[Any, int], list[int]]:
    """Prompt (1,T) and a number of tokens -> these, by the package."""
    from muomni.infer.generate import generate
    from muomni.models.decoder import Decoder

    model = Decoder.open(folder).eval()
    return lambda prompt, length: generate(model, prompt, max_new=length)[0]


def theirs(folder: Path) -> Callable[[Any, int], list[int]]:
    """The same by transformers."""
    import transformers

    model: Any = transformers.Qwen3ForCausalLM.from_pretrained(folder)
    how = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def answer(prompt: Any, length: int) -> list[int]:
        out = model.generate(prompt, max_new_tokens=length, min_new_tokens=length, **how)
        ids: list[int] = out[0, prompt.shape[1] :].tolist()
        return ids

    return answer


if __name__ == "__main__":
    main()
