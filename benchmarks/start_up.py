"""How long a stage takes from its command to its first step on many rows: `python -m benchmarks.start_up
[--old CHECKOUT] [--rows N]`.

Rows: text (thinker), speech (hearing) and captions (vision), as JSONL in our own schema, over a few hundred
small sounds and pictures. The old build and this one run the same recipe, one after the other, and are
stopped when they tell their first step: reading, splitting, checking for leaks, vocabulary, packing, the
trials before the first step and the step itself are in it. A row is printed as soon as it is known: seconds,
seconds of the processor (which neighbours lengthen less), the largest resident size; the ratios at the end.
`--old` is a checkout of an earlier commit with a virtual environment of its own in `.venv`.

`--stages talker` starts stage talker twice on `--spoken` sounds, upon stages of a few updates with waived
gates: at the first start all speech is encoded and the Thinker listened to, at the second what the first kept
is found.
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
# Keys by the first names that they had: old builds read them too (muomni.renamed).
MODEL = {
    "thinker": {
        "model": {"vocab_size": 400, "width": 64, "layers": 2, "heads": 2, "hidden": 128, "ctx_len": 128},
        "row_len": 64,
    },
    "hearing": {
        "model": {"width": 64, "layers": 2, "heads": 2, "hidden": 128, "channels": 8},
        "max_text_len": 200,
    },
    "vision": {"model": {"width": 64, "layers": 2, "heads": 2, "hidden": 128, "image_size": 32, "patch": 8}},
}


VOICE = {
    "thinker": {"max_steps": 4, **MODEL["thinker"]},
    "hearing": {"max_steps": 4, **MODEL["hearing"]},
    "codec": {"max_steps": 4},
    "talker": {
        "max_steps": 4,
        "model": {"text_vocab": 1, "width": 64, "layers": 2, "heads": 2, "hidden": 128},
    },
}


@dataclass
class Start:
    """What one start took: seconds, seconds of the processor, the largest resident size in bytes; None where
    no step was told."""

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
        audio.write(
            folder / f"media/{number}.wav",
            rng.normal(0, 0.05, 4 * 16000 + int(rng.integers(16000))).astype(np.float32),
            16000,
        )
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


COMMON = {"batch_size": 8, "max_steps": 4, "warmup_steps": 0, "print_freq": 1, "val_split": 0.02}


def start(checkout: Path, stage: str, data: Path) -> Start:
    """A stage's run until its first step, in a new folder."""
    with tempfile.TemporaryDirectory(prefix="muomni-start-") as temporary:
        settings = {**COMMON, "data": [{"path": str(data / f"{stage}.jsonl")}], **MODEL[stage]}
        return first_step(checkout, _written(Path(temporary), {stage: settings}), Path(temporary) / "run")


def voice(checkout: Path, data: Path, spoken: int) -> tuple[Start, Start]:
    """The first and the second start of stage talker.

    Raises  SystemExit where a stage before it doesn't come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="muomni-start-") as temporary:
        speech = {"path": str(data / "hearing.jsonl"), "limit": spoken}
        sources = {"thinker": {"path": str(data / "thinker.jsonl"), "limit": 2000}, "talker": speech}
        sources |= {name: {**speech, "limit": 200} for name in ("hearing", "codec")}
        recipe = _written(
            Path(temporary),
            {name: {**COMMON, "data": [sources[name]], **more} for name, more in VOICE.items()},
        )
        out = Path(temporary) / "run"
        for stage in ("thinker", "hearing", "codec"):
            waived: list[str] = []
            for _ in range(
                4
            ):  # what is red is known when it was judged; a gate that is waived may hide another
                child = subprocess.run(
                    [*_command(checkout, recipe, out), stage, *waived], **_how(checkout), check=False
                )  # type: ignore[call-overload]
                if child.returncode == 0:
                    break
                certificate = out / stage / "certificate.json"
                if not certificate.exists():
                    raise SystemExit(f"{checkout}: {stage}: {child.stdout[-2000:]}")
                red = [
                    row["name"]
                    for row in json.loads(certificate.read_text())["gates"]
                    if row["verdict"] == "red"
                ]
                waived += [word for name in red for word in ("--waive", name)] + (
                    [] if waived else ["--reason", "only started"]
                )
            else:
                raise SystemExit(f"{checkout}: {stage} stays red: {child.stdout[-2000:]}")
        return tuple(first_step(checkout, recipe, out) for _ in range(2))  # type: ignore[return-value]


def _written(folder: Path, stages: dict[str, object]) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"threads": 1, "device": "cpu", **stages}))
    return recipe


def _command(checkout: Path, recipe: Path, out: Path) -> list[str]:
    return [python(checkout), "-m", "muomni", "run", str(recipe), "--out", str(out)]


def _how(checkout: Path) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "MUOMNI_PLAIN": "1"}
    return {
        "cwd": checkout,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }


def first_step(checkout: Path, recipe: Path, out: Path, *more: str) -> Start:
    """A run until it tells a first step.

    Raises  SystemExit with its last lines where it ends before.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    child = subprocess.Popen([*_command(checkout, recipe, out), *more], **_how(checkout))  # type: ignore[call-overload]
    assert child.stdout is not None
    told = []
    for line in child.stdout:
        told.append(line)
        if " step 1/" in line:
            break
    seconds = time.perf_counter() - begin
    peak = _peak(child.pid)
    child.kill()
    child.wait()
    if " step 1/" not in "".join(told[-1:]):
        raise SystemExit(f"{checkout}: told no step:\n{''.join(told[-8:])}")
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stages", nargs="*", default=list(MODEL), choices=[*MODEL, "talker"])
    parser.add_argument("--spoken", type=int, default=400, help="sounds of stage talker")
    given = parser.parse_args()
    builds = {"old": given.old} if given.old else {}
    builds["new"] = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="muomni-rows-") as temporary:
        make(Path(temporary), given.rows)
        for stage in given.stages:
            took: dict[str, tuple[Start, ...]] = {}
            for name, checkout in builds.items():
                checkout, data = checkout.resolve(), Path(temporary)
                found = (
                    voice(checkout, data, given.spoken)
                    if stage == "talker"
                    else (start(checkout, stage, data),)
                )
                took[name] = found
                for number, each in enumerate(found, 1):
                    what = (
                        f"{given.spoken} sounds, start {number}"
                        if stage == "talker"
                        else f"{given.rows} rows"
                    )
                    told = f"{each.seconds:7.1f} s, {each.processor:7.1f} s of the processor, {each.peak / 1e6:6.0f} MB"
                    print(f"{stage:8} {name:4} {what}: {told}", flush=True)
            for old, new in zip(took.get("old", ()), took["new"], strict="old" in took):
                memory = new.peak / max(1, old.peak)
                print(
                    f"{stage:8} ratio {new.seconds / old.seconds:.2f} in seconds, {new.processor / old.processor:.2f} of the processor, "
                    f"{memory:.2f} in memory",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
