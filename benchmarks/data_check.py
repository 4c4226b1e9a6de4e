"""What `data check` takes: `python -m benchmarks.data_check [--old CHECKOUT] [--rows N] [--media M] [--texts
N ...]`.

First rows of JSONL, half captions and half transcripts, over so many pictures (64 x 64, PNG) and sounds (2 s,
wav): the old build and this one check the same file, one after the other. Then rows without media, by this
build alone: the largest resident size at each number of rows, and what a row adds. `--old` is a checkout of
an earlier commit with a virtual environment of its own in `.venv`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.first_contact import python
from benchmarks.start_up import Start

WORDS = "a the red blue green small large circle square star heart ring left right under over two three seven birds".split()  # noqa: SIM905
SIDE, RATE_HZ, SECONDS = 64, 16_000, 2.0


def make(folder: Path, rows: int, media: int) -> Path:
    """The rows with media, and what they name."""
    from PIL import Image

    from muomni.media import audio

    rng = np.random.default_rng(0)
    (folder / "media").mkdir(parents=True)
    for number in range(media // 2):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / f"media/{number}.png")
        wave = np.cumsum(rng.normal(0, 0.02, int(SECONDS * RATE_HZ))).astype(np.float32)
        audio.write(folder / f"media/{number}.wav", 0.5 * wave / np.abs(wave).max(), RATE_HZ)
    path = folder / "rows.jsonl"
    with path.open("w") as stream:
        for number in range(rows):
            kind, end = (("image", "png"), ("audio", "wav"))[number % 2]
            name, said = number // 2 % (media // 2), " ".join(rng.choice(WORDS, 4))
            asked = {
                "role": "user",
                "content": [
                    {"type": kind, "path": f"media/{name}.{end}"},
                    {"type": "text", "text": f"say {number}"},
                ],
            }
            turns = [asked, {"role": "assistant", "content": said}]
            stream.write(
                json.dumps(
                    {"id": f"row-{number}", "group": f"{kind}-{name}", "task": "question", "messages": turns}
                )
                + "\n"
            )
    return path


def texts(folder: Path, rows: int) -> Path:
    """Rows without media: conversations of 20 words from 5,000."""
    rng = np.random.default_rng(1)
    known = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)) for _ in range(5000)]
    path = folder / f"texts-{rows}.jsonl"
    with path.open("w") as stream:
        for number in range(rows):
            asked, said = (" ".join(known[each] for each in rng.integers(0, 5000, 10)) for _ in range(2))
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            stream.write(json.dumps({"id": f"row-{number}", "messages": turns}) + "\n")
    return path


def check(checkout: Path, path: Path) -> Start:
    """One check of a file, as a command.

    Raises  SystemExit where it finds an error.
    """
    environment = {**os.environ, "PYTHONPATH": "", "MUOMNI_PLAIN": "1"}
    begin = time.perf_counter()
    child = subprocess.Popen(
        [python(checkout), "-m", "muomni", "data", "check", str(path)],
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{checkout}: {path}: status {status}")
    return Start(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def main() -> int:
    """Make the files, check them, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--media", type=int, default=10_000)
    parser.add_argument("--texts", type=int, nargs="*", default=[100_000, 1_000_000])
    given = parser.parse_args()
    builds = {"old": given.old.resolve()} if given.old else {}
    builds["new"] = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="muomni-check-") as temporary:
        took = {}
        path = make(Path(temporary), given.rows, given.media) if given.rows else None
        for name, checkout in builds.items() if path else ():
            found = took[name] = check(checkout, path)
            told = f"{found.seconds:7.1f} s, {found.processor:7.1f} s of the processor, {found.peak / 1e6:6.0f} MB"
            print(f"{name:4} {given.rows} rows, {given.media} media: {told}", flush=True)
        if "old" in took and "new" in took:
            old, new = took["old"], took["new"]
            print(
                f"ratio {new.seconds / old.seconds:.2f} in seconds, {new.processor / old.processor:.2f} of the processor, "
                f"{new.peak / old.peak:.2f} in memory",
                flush=True,
            )
        before: tuple[int, int] | None = None
        for rows in given.texts:
            found = check(builds["new"], texts(Path(temporary), rows))
            slope = (
                ""
                if before is None
                else f", {(found.peak - before[1]) / (rows - before[0]):.0f} bytes a row more"
            )
            print(
                f"new  {rows} rows without media: {found.seconds:7.1f} s, {found.peak / 1e6:6.0f} MB{slope}",
                flush=True,
            )
            before = rows, found.peak
    return 0


if __name__ == "__main__":
    sys.exit(main())
