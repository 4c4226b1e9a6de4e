"""What token shards cost: `python -m benchmarks.shards [--quick] [--codec DIR[:BOOKS]]`.

Rows, each printed as soon as it is known: samples a second of the source's way (one clip at a time, one
process, encode, then write;
each clip filled up to 10 s, encoded again for every caption) and of ours, with one lever added at a time,
same codec, same clips, same
machine; two processes against one; memory of a run at 1,000 and at 100,000 samples, each in a process of its
own; milliseconds of a
random access into the larger set. Without `--codec`, our speech codec at its usual size with random weights.
`--quick` takes a tenth.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLIPS, CAPTIONS, SHARD = 400, 5, 500
SHORTEST_S, LONGEST_S, FILLED_S, RATE_HZ = 0.5, 2.5, 10.0, 16_000
FEW, MANY = 1_000, 100_000


def codec_folder(folder: Path) -> str:
    """Our speech codec at its usual size, weights random."""
    from muomni.models import store
    from muomni.models.codec import Codec, CodecConfig

    torch.manual_seed(0)
    store.save(Codec(CodecConfig()).eval(), folder / "codec")
    return str(folder / "codec")


def tokenizer_folder(folder: Path) -> str:
    """A small text tokenizer."""
    from muomni.tokens.bpe import Tokenizer

    Tokenizer.train(["a clip of sound number 0123456789"] * 4, 300).save(folder / "text")
    return str(folder / "text")


def clips(folder: Path, count: int) -> list[Path]:
    """Sounds of 0.5 to 2.5 s, uniform."""
    from muomni.media import audio

    rng, made = np.random.default_rng(0), []
    (folder / "media").mkdir()
    for number in range(count):
        wave = rng.normal(0, 0.1, int(RATE_HZ * rng.uniform(SHORTEST_S, LONGEST_S))).astype(np.float32)
        made.append(folder / f"media/{number}.wav")
        audio.write(made[-1], wave, RATE_HZ)
    return made


def manifest(folder: Path, media: list[Path], captions: int, rows: int | None = None) -> Path:
    """Rows that caption the clips, so many times each, or `rows` in all."""
    path = folder / f"rows-{captions}-{rows}.jsonl"
    with path.open("w") as stream:
        for number in range(len(media) * captions if rows is None else rows):
            clip = media[number // captions % len(media)]
            shown = {"role": "user", "content": [{"type": "audio", "path": str(clip)}]}
            turns = [shown, {"role": "assistant", "content": f"a clip number {number}"}]
            stream.write(
                json.dumps({"id": f"s{number}", "group": clip.stem, "task": "caption", "messages": turns})
                + "\n"
            )
    return path


def source_way(opened: Any, media: list[Path], captions: int, out: Path, *, filled: bool) -> float:
    """Seconds of the source's loop: a clip is opened, encoded and written before the next one is (lumo.md
    B14, B27, B30)."""
    from muomni.media import audio

    codec, begin = opened.codecs["audio"], time.perf_counter()
    with tarfile.open(out, "w") as tar, torch.inference_mode():
        for number, clip in enumerate(each for each in media for _ in range(captions)):
            wave = audio.read(clip, codec.sample_rate_hz)
            if filled:
                wave = np.pad(wave, (0, int(FILLED_S * codec.sample_rate_hz) - len(wave)))
            ids = (
                opened.space.ids_of("audio", codec.encode(torch.from_numpy(wave)[None])[0])
                .numpy()
                .astype(np.int32)
            )
            text = np.array(opened.encode_text(f"a clip number {number}"), np.int32)
            about = json.dumps({"id": f"s{number}", "task": "a2t"}).encode()
            for name, held in (("json", about), ("text_out.npy", _npy(text)), ("audio.npy", _npy(ids))):
                member = tarfile.TarInfo(f"{number:08d}.{name}")
                member.size = len(held)
                tar.addfile(member, io.BytesIO(held))
    return time.perf_counter() - begin


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def ours(
    path: Path, opener: Any, out: Path, processes: int = 1, *, audit: bool = False, shard: int = SHARD
) -> list[tuple[float, int]]:
    """When each shard was there, in seconds since the work began, and its samples; the split is read
    before."""
    from muomni.data.source import Source
    from muomni.data.tokenized import engines, make

    marks: list[tuple[float, int]] = []
    real = engines.local

    def timed(work: Any, jobs: Any, count: int) -> Any:
        begin = time.perf_counter()
        for piece in real(work, jobs, count):
            marks.append((time.perf_counter() - begin, len(piece.rows)))
            yield piece

    engines.local = timed
    try:
        settings = make.ShardSettings(shard, 0.0, audit=audit)
        make.shard([Source(path=str(path))], out, opener, settings, processes=processes)
    finally:
        engines.local = real
    return marks


def steady(marks: list[tuple[float, int]], processes: int) -> float:
    """Samples a second once every process is at work: from the first shard of each on."""
    first = marks[2 * processes - 1][0]
    return sum(samples for _, samples in marks[2 * processes :]) / (marks[-1][0] - first)


def memory(path: Path, tokenizer: str, codec: str, out: Path) -> dict[str, float]:
    """A run of one process in a process of its own: its largest resident size, and an access into what it
    made."""
    command = [sys.executable, "-m", "benchmarks.shards", "--child", str(path), tokenizer, codec, str(out)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(child.stderr[-2000:])
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def child(path: str, tokenizer: str, codec: str, out: str) -> None:
    """What `memory` starts."""
    import resource

    from muomni.data.tokenized.index import ShardSet
    from muomni.models import unified

    opener = partial(unified.open_unified, tokenizer, [unified.CodecReference.parse(codec)])
    seconds = ours(Path(path), opener, Path(out))[-1][0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    opened = ShardSet(Path(out), "train")
    places = np.random.default_rng(0).integers(0, len(opened), 2000).tolist()
    for place in places:  # warm
        opened[place]
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for place in places:
        opened[place]
    wall, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    found = {
        "seconds": seconds,
        "peak": peak,
        "samples": len(opened),
        "ms": wall / len(places) * 1e3,
        "cpu_ms": cpu / len(places) * 1e3,
    }
    print(json.dumps(found))


def main() -> int:
    """Make clips, measure, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--codec")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        child(*given.child)
        return 0
    from muomni.models import unified

    count, many = (CLIPS // 4, MANY // 10) if given.quick else (CLIPS, MANY)
    with tempfile.TemporaryDirectory(prefix="muomni-shards-") as temporary:
        folder = Path(temporary)
        text, codec = tokenizer_folder(folder), given.codec or codec_folder(folder)
        opener = partial(unified.open_unified, text, [unified.CodecReference.parse(codec)])
        opened, media = opener(), clips(folder, count)
        once, often = manifest(folder, media, 1), manifest(folder, media, CAPTIONS)
        source_way(opened, media[:5], 1, folder / "warm.tar", filled=False)
        base = source_way(opened, media[: count // 4], CAPTIONS, folder / "a.tar", filled=True) / (
            count // 4 * CAPTIONS
        )
        said("source's way: 10 s a clip, each caption encodes it again", base, base)
        plain = source_way(opened, media, 1, folder / "b.tar", filled=False) / count
        said("the same, clips as long as they are, one caption each", plain, base)
        said(
            "ours, audit (each clip alone), one caption each",
            ours(once, opener, folder / "audit", audit=True)[-1][0] / count,
            base,
        )
        alone = ours(once, opener, folder / "one")[-1][0] / count
        said("ours, one process, one caption each", alone, base, plain)
        both = ours(often, opener, folder / "five")[-1][0] / (count * CAPTIONS)
        said(f"ours, one process, {CAPTIONS} captions each", both, base)
        longer, cores = manifest(folder, media, 1, rows=count * 40), len(os.sched_getaffinity(0))
        runs = {
            processes: ours(longer, opener, folder / f"p{processes}", processes, shard=count)
            for processes in (1, 2)
        }
        paces = {processes: steady(marks, processes) for processes, marks in runs.items()}
        print(
            f"two processes at work: {paces[1]:.0f} -> {paces[2]:.0f} samples a second, factor {paces[2] / paces[1]:.2f} "
            f"on {cores} cores; with their start {runs[1][-1][0]:.1f} -> {runs[2][-1][0]:.1f} s",
            flush=True,
        )
        sizes = [
            memory(manifest(folder, media, 1, rows=rows), text, codec, folder / f"m{rows}")
            for rows in (FEW, many)
        ]
        slope = (sizes[1]["peak"] - sizes[0]["peak"]) / (sizes[1]["samples"] - sizes[0]["samples"])
        for found in sizes:
            print(
                f"{found['samples']:>8,.0f} samples: {found['seconds']:.1f} s, {found['peak'] / 1e6:.0f} MB at most",
                flush=True,
            )
        print(f"memory: {slope:.0f} bytes a sample more", flush=True)
        told = f"{sizes[1]['ms']:.2f} ms ({sizes[1]['cpu_ms']:.2f} ms of the processor)"
        print(f"random access at {sizes[1]['samples']:,.0f} samples, warm: {told}", flush=True)
    return 0


def said(what: str, seconds: float, base: float, plain: float | None = None) -> None:
    """A row: samples a second, and how many times the source's."""
    more = "" if plain is None else f", {plain / seconds:.1f} times the same clips one at a time"
    print(
        f"{what}: {1 / seconds:.1f} samples a second, {base / seconds:.1f} times the source's way{more}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
