"""How long a stage takes from its command to its first step on many rows: `python -m benchmarks.start_up [--old CHECKOUT] [--rows N]`.

Rows: text (thinker), speech (hearing) and captions (vision), as JSONL in our own schema, over a few hundred small sounds and pictures. The
old build and this one run the same recipe, one after the other, and are stopped when they tell their first step: reading, splitting,
checking for leaks, vocabulary, packing, the trials before the first step and the step itself are in it. A row is printed as soon as it is
known: seconds, seconds of the processor (which neighbours lengthen less), the largest resident size; the ratios at the end. `--old` is a
checkout of an earlier commit with a virtual environment of its own in `.venv`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.first_contact import python

MEDIA = 400
WORDS = "a the red blue green small large circle square star heart ring left right under over two three seven birds".split()  # noqa: SIM905
MODEL = {
    "thinker": {"model": {"vocab_size": 400, "width": 64, "layers": 2, "heads": 2, "hidden": 128, "ctx_len": 128}, "row_len": 64},
    "hearing": {"model": {"width": 64, "layers": 2, "heads": 2, "hidden": 128, "channels": 8}, "max_text_len": 200},
    "vision": {"model": {"width": 64, "layers": 2, "heads": 2, "hidden": 128, "image_size": 32, "patch": 8}},
}


@dataclass
class Start:
    """What one start took: seconds, seconds of the processor, the largest resident size in bytes; None where no step was told."""

    seconds: float
    processor: float
    peak: int


def make(folder: Path, rows: int) -> None:
    """The files: rows of text, speech and captions, and what they name."""
    from PIL import Image

    from muomni.media import audio

    rng = np.random.default_rng(0)
    (folder / "media").mkdir(parents=True)
    for number in range(MEDIA):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"media/{number}.png")
        audio.write(folder / f"media/{number}.wav", rng.normal(0, 0.05, 4 * 16000).astype(np.float32), 16000)
    files = {stage: (folder / f"{stage}.jsonl").open("w") for stage in MODEL}
    for number in range(rows):
        said = " ".join(rng.choice(WORDS, 8))
        one = {"id": f"row-{number}", "group": f"group-{number % MEDIA}"}
        files["thinker"].write(json.dumps({**one, "task": "text", "text": f"{said} {number}"}) + "\n")
        for stage, kind, end in (("hearing", "audio", "wav"), ("vision", "image", "png")):
            asked = {"role": "user", "content": [{"type": kind, "path": f"media/{number % MEDIA}.{end}"}]}
            answer = {"role": "assistant", "content": [{"type": "text", "text": said}]}
            files[stage].write(json.dumps({**one, "task": "caption", "messages": [asked, answer]}) + "\n")
    for file in files.values():
        file.close()


def start(checkout: Path, stage: str, data: Path) -> Start:
    """A stage's run until its first step.

    Raises  SystemExit with its last lines where it ends before.
    """
    with tempfile.TemporaryDirectory(prefix="muomni-start-") as temporary:
        recipe = Path(temporary) / "recipe.yaml"
        common = {"data": [{"path": str(data / f"{stage}.jsonl")}], "batch_size": 8, "max_steps": 4, "warmup_steps": 0, "print_freq": 1}
        recipe.write_text(yaml.safe_dump({"threads": 1, "device": "cpu", stage: {**common, "val_split": 0.02, **MODEL[stage]}}))
        command = [python(checkout), "-m", "muomni", "run", str(recipe), "--out", str(Path(temporary) / "run")]
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "MUOMNI_PLAIN": "1"}
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        child = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert child.stdout is not None
        told = []
        for line in child.stdout:
            told.append(line)
            if " step 1/" in line:
                break
        seconds = time.perf_counter() - begin
        peak = _peak(child.pid)
        is_told = child.poll() is None
        child.kill()
        child.wait()
        if not is_told and " step 1/" not in told[-1]:
            raise SystemExit(f"{checkout}: {stage} told no step:\n{''.join(told[-8:])}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Start(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak)


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def main() -> int:
    """Make the files, start both builds at each stage, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stages", nargs="*", default=list(MODEL), choices=list(MODEL))
    given = parser.parse_args()
    builds = {"old": given.old} if given.old else {}
    builds["new"] = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="muomni-rows-") as temporary:
        make(Path(temporary), given.rows)
        for stage in given.stages:
            took = {}
            for name, checkout in builds.items():
                found = took[name] = start(checkout.resolve(), stage, Path(temporary))
                told = f"{found.seconds:7.1f} s, {found.processor:7.1f} s of the processor, {found.peak / 1e6:6.0f} MB"
                print(f"{stage:8} {name:4} {given.rows} rows: {told}", flush=True)
            if "old" in took:
                old, new = took["old"], took["new"]
                memory = new.peak / max(1, old.peak)
                print(
                    f"{stage:8} ratio {new.seconds / old.seconds:.2f} in seconds, {new.processor / old.processor:.2f} of the processor, "
                    f"{memory:.2f} in memory",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
