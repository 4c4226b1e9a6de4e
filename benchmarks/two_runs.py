"""Two runs of one recipe, with other settings or the same, started into one folder at random moments: what is
certified must have trained.

    python -m benchmarks.two_runs --tries 10

A try starts a run, and at a random moment a second one: with another rate and --fresh, with another rate
alone, or as it was. In every third try the first is killed (-9) then. Afterwards a green certificate must
speak of the settings that lie beside it, of a checkpoint that was made by them, and of rates that the metrics
hold; anything else is a failure, and so is an ending of its own (a traceback).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

WORDS, THINGS = ("red", "green", "blue", "pink", "grey", "black"), ("cat", "dog", "owl", "fox", "hen", "cow")
RATES = (0.003, 0.001)  # of the first run and of the second
STEPS, LIMIT_S = 60, 240.0
SECOND = {
    "other rate, --fresh": ["--fresh", f"thinker.lr={RATES[1]}"],
    "other rate": [f"thinker.lr={RATES[1]}"],
    "the same": [],
}


def make(folder: Path, steps: int = STEPS) -> Path:
    """A recipe of seconds: a Thinker that learns to repeat two words."""
    rng, rows = random.Random(0), []
    for number in range(160):
        said = f"{rng.choice(WORDS)} {rng.choice(THINGS)}"
        turns = [{"role": "user", "content": f"say {said}"}, {"role": "assistant", "content": f"a {said}"}]
        rows.append({"id": f"r{number}", "messages": turns})
    folder.mkdir(parents=True)
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {
        "vocab_size": 320,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "ffn_width": 64,
        "ctx_len": 64,
        "dropout": 0.0,
    }
    often = {"val_freq": 20, "checkpoint_freq": 5, "print_freq": 5, "warmup_steps": 4}
    bounds = {"overfits": 99.0, "floor": 99.0, "held_out_gap": 99.0}
    thinker = {
        "data": [{"path": str(folder / "chat.jsonl")}],
        "model": sizes,
        "row_len": 48,
        "max_steps": steps,
        "lr": RATES[0],
    }
    thinker |= {"batch_size": 4, **often, "gates": bounds}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"seed": 3, "threads": 1, "device": "cpu", "thinker": thinker})
    )
    return folder / "recipe.yaml"


def start(recipe: Path, run: Path, more: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`muomni run` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MUOMNI_PLAIN": "1"}
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "muomni", "run", str(recipe), "--out", str(run), *more]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )


def wrong(run: Path) -> list[str]:
    """What a finished stage's certificate says that is not so; nothing where none lies, or it is red."""
    stage = run / "thinker"
    try:
        found = json.loads((stage / "certificate.json").read_text())
    except FileNotFoundError:
        return []
    if found["verdict"] == "red":
        return []
    rate = yaml.safe_load((stage / "config.yaml").read_text())["lr"]
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    newest = sorted(stage.glob("step_*"))[-1]
    progress = json.loads((newest / "progress.json").read_text())
    asked = json.loads((run / "recipe.json").read_text())["values"]["thinker"]["lr"]
    told = {
        "config.yaml": rate,
        "metrics.jsonl": max(row.get("lr", 0.0) for row in rows),
        "the updates": progress["rates"]["peak"],
        "the checkpoint": progress["settings"]["lr"],
    }
    lines = [
        f"{name} has a rate of {value}, config.yaml {rate}"
        for name, value in told.items()
        if abs(value - rate) > 1e-9
    ]
    lines += (
        []
        if progress["rates"]["updates"] == progress["step"]
        else [f"{progress['rates']['updates']} updates of {progress['step']} noted"]
    )
    made_by = json.loads((newest / "manifest.json").read_text()).get("settings")
    lines += (
        []
        if found["settings"] == made_by
        else [f"the certificate is of settings {found['settings'][:12]}, {newest.name} of {made_by}"]
    )
    return lines + ([] if asked in RATES else [f"recipe.json asks for {asked}"])


def one_try(folder: Path, moment: float, second: str, *, kills: bool) -> dict[str, Any]:
    """One try: the second run starts `moment` (0 .. 1) of the first's way through its steps, before them
    where that is below 0."""
    recipe, run = make(folder), folder / "run"
    first = start(recipe, run, [], folder / "first.log")
    seen = max(1, int(moment * STEPS))
    end = time.monotonic() + LIMIT_S
    while moment >= 0 and first.poll() is None and time.monotonic() < end:
        if any(
            f"step {step}/" in (folder / "first.log").read_text(errors="replace")
            for step in range(seen, seen + 5)
        ):
            break
        time.sleep(0.05)
    if kills:
        first.kill()
    other = start(recipe, run, SECOND[second], folder / "second.log")
    codes = [process.wait(LIMIT_S) for process in (first, other)]
    logs = [(folder / f"{name}.log").read_text(errors="replace") for name in ("first", "second")]
    problems = wrong(run)
    problems += [f"rc {code}" for code in codes if code not in (0, 2, -9)]
    problems += ["a traceback" for log in logs if "Traceback" in log or "our fault" in log]
    is_refused = second == "other rate" and codes[1] == 0
    problems += ["the second took what the first had made with another rate"] if is_refused else []
    last = logs[1].strip().splitlines()[-1] if codes[1] else ""
    return {
        "moment": round(moment, 2),
        "second": second,
        "kills": kills,
        "codes": codes,
        "problems": problems,
        "told": last,
    }


def main() -> None:
    """Make the tries, tell each in a line, and leave with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, failed = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory(prefix="muomni-two-runs-") as temporary:
        for number in range(asked.tries):
            second = [*SECOND][number % 3] if number % 2 else "other rate, --fresh"
            found = one_try(
                Path(temporary) / str(number), rng.uniform(-0.2, 1.0), second, kills=number % 3 == 2
            )
            failed += bool(found["problems"])
            print(json.dumps(found), flush=True)
    print(f"{asked.tries} tries, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
