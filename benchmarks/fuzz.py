"""Hostile bytes for the readers: every format of manifest and every kind of media file, mutated by a seed.

    python -m benchmarks.fuzz --inputs 10000 [--seed 0] [--kind wav]

An input may be read or refused with a UserError; anything else that comes out is a crash, more than 10 s of
work a hang. It all runs in one process whose memory may grow by 2 GiB. Prints what came of each kind, the
slowest input and the traceback of every crash; exit 1 if there was one. tests/data/test_fuzz.py runs a few
hundred of the same inputs.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from muomni.data import readers
from muomni.data.check import media_stats
from muomni.data.check.checker import check
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, ImagePart
from muomni.data.source import Source
from muomni.errors import UserError
from muomni.media import audio, image

HANG_S = 10  # of the processor, so that a busy machine makes no hang
DEAD_S = 60  # a hang inside of a C library, which no alarm ends: all stacks are printed and the process ends
GROWTH_BYTES = 2 << 30
SOUNDS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
}
SOUNDS |= {
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "gsm": ("WAV", "GSM610"),
}
SOUNDS |= {name: (name.upper(), "PCM_16") for name in ("aiff", "au", "w64", "rf64", "caf")}
PICTURES = {
    "png": "PNG",
    "jpg": "JPEG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "avif": "AVIF",
    "jp2": "JPEG2000",
}
Run = Callable[[random.Random, Path], None]


class Hang(BaseException):
    """An input that took too long. No Exception, so that nothing on the way catches it."""


# 1. Bytes


def mutate(rng: random.Random, content: bytes) -> bytes:
    """One to four damages: flipped bits, a cut, a splice, a field of the header at its limits, noise."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data)) if data else 0
        way = rng.randrange(7)
        if way == 0:
            for _ in range(rng.randint(1, 20)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 1:
            del data[at:]
        elif way == 2:
            other = rng.randrange(len(data)) if data else 0
            data[at:at] = data[other : other + rng.randrange(200)]
        elif way == 3:
            del data[at : at + rng.randrange(100)]
        elif way == 4:
            at = rng.randrange(min(96, len(data))) if data else 0
            data[at : at + 4] = rng.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0"]
            )
        elif way == 5:
            at = rng.randrange(min(64, len(data))) if data else 0
            data[at : at + 1] = rng.randbytes(1)
        else:
            data[at:at] = rng.randbytes(rng.randrange(50))
    return bytes(data)


@cache
def sound(kind: str) -> bytes:
    """A good sound file of a third of a second."""
    form, subtype = SOUNDS[kind]
    times = np.arange(5000) / 16000
    stream = io.BytesIO()
    soundfile.write(
        stream, 0.4 * np.sin(2 * np.pi * 300 * times * (1 + times)), 16000, format=form, subtype=subtype
    )
    return stream.getvalue()


@cache
def picture(kind: str, mode: str) -> bytes:
    """A good picture file of 40 x 30 pixels."""
    rough = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    drawn = Image.fromarray(rough).convert(mode)
    stream = io.BytesIO()
    drawn.save(stream, PICTURES[kind])
    return stream.getvalue()


def mended(content: bytes) -> bytes:
    """A PNG with the checksums of its damaged chunks made right, so that the decoder gets to see them."""
    out, at = bytearray(content), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def run_sound(kind: str) -> Run:
    """Read a damaged sound, whole and by a window, from memory and from a file."""

    def run(rng: random.Random, folder: Path) -> None:
        content = mutate(rng, sound(kind))
        file = folder / f"a.{kind}"
        file.write_bytes(content)
        window = (rng.choice([None, 0.0, 0.1, 5.0, 1e300]), rng.choice([None, 0.2, 1e300]))
        _refused(lambda: audio.read(content, rng.choice([8000, 16000, 24000])))
        _refused(lambda: audio.read(file, start_s=window[0], end_s=window[1]))
        media_stats.examine(AudioPart(path=str(file)))

    return run


def run_picture(kind: str) -> Run:
    """Read a damaged picture from memory and from a file."""

    def run(rng: random.Random, folder: Path) -> None:
        modes = {
            "jpg": ["RGB", "L", "CMYK"],
            "png": ["RGB", "RGBA", "P", "L", "1"],
            "webp": ["RGB", "RGBA"],
            "gif": ["P"],
            "jp2": ["RGB", "L"],
        }
        content = mutate(rng, picture(kind, rng.choice(modes.get(kind, ["RGB", "L", "P"]))))
        content = mended(content) if kind == "png" and rng.random() < 0.7 else content
        file = folder / f"a.{kind}"
        file.write_bytes(content)
        _refused(
            lambda: image.to_pixels(image.to_array(image.read(content), 32, rng.choice(["squash", "pad"])))
        )
        media_stats.examine(ImagePart(path=str(file)))

    return run


# 2. Rows


def odd(rng: random.Random) -> Any:
    """A value that no row should hold."""
    deep: Any = "x"
    for _ in range(rng.choice([3, 50, 400, rng.randint(850, 1000), 3000])):
        deep = rng.choice([[deep], {"type": deep}])
    plain = [
        None,
        True,
        0,
        -1,
        1e308,
        float("nan"),
        float("inf"),
        10**30,
        10**400,
        -(10**4000),
        "",
        " ",
        "\ud800",
        "\0",
        "\x1b[2J",
        "x" * 5000,
        [],
        {},
        deep,
    ]
    paths = [
        "../../etc/passwd",
        "/dev/zero",
        "/proc/self/mem",
        ".",
        "/",
        "data:",
        "data:image/png;base64,!",
        "http://a/b.png",
        "a" * 300,
    ]
    good = [
        "data:audio/wav;base64,UklGRg==",
        "a.wav",
        "a.png",
        "train",
        "valid",
        "user",
        "audio",
        {"type": "image", "path": "a.png"},
    ]
    return rng.choice(plain + paths + good)


def dumps(value: Any) -> str:
    """JSON of any depth."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return json.dumps(value)
    finally:
        sys.setrecursionlimit(limit)


def words(value: Any) -> str:
    """The value as it would stand in a text."""
    return value if isinstance(value, str) else dumps(value)


def twist(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with some of its parts replaced, renamed, doubled or left out."""
    if rng.random() < 0.12:
        return odd(rng)
    if isinstance(value, dict):
        out = {
            key if rng.random() > 0.04 else words(odd(rng))[:50]: twist(rng, one, depth + 1)
            for key, one in value.items()
        }
        if rng.random() < 0.08:
            out.pop(rng.choice(list(out)), None) if out else None
        if rng.random() < 0.1:
            out[
                rng.choice(
                    ["extra", "split", "group", "id", "text", "task", "negatives", "start", "end", "odd", ""]
                )
            ] = odd(rng)
        return out
    if isinstance(value, list):
        out_list = [twist(rng, one, depth + 1) for one in value]
        return out_list * 2 if rng.random() < 0.05 else out_list
    return value


CHAT = {
    "id": "a",
    "group": "g",
    "task": "t",
    "split": "train",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "audio", "path": "a.wav", "start": 0.0, "end": 0.2},
                {"type": "text", "text": "what?"},
            ],
        },
        {"role": "assistant", "content": "a cat"},
    ],
    "negatives": [{"kind": "x", "text": "a dog"}],
    "extra": {"k": 1},
}
OPENAI = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "a.png"}},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                {"type": "audio", "audio_url": "a.wav", "offset": 0.1, "duration": 0.1},
            ],
        },
        {"role": "assistant", "content": "x"},
    ]
}
LLAVA = {
    "id": "a",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "what?\n<image>"}, {"from": "gpt", "value": "a cat"}],
}
FLAT = {
    "id": "a",
    "path": "a.wav",
    "text": "hello",
    "speaker": "s",
    "split": "train",
    "start": 0.0,
    "end": 0.2,
    "captions": ["one", "two"],
}
TEMPLATE = [
    {"user": [{"audio": "{path}", "start": "{start}", "end": "{end}"}, "{speaker}"]},
    {"assistant": "{item}"},
]
BESIDE = {  # media in a list beside the turns: LLaMA-Factory, ms-swift
    "messages": [
        {"role": "user", "content": "<image>what is it?<audio>"},
        {"role": "assistant", "content": "a cat"},
    ],
    "images": ["a.png"],
    "audios": ["a.wav"],
    "system": "be brief",
    "license": "none",
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a cat"}],
    "images": ["a.png"],
    "tools": "",
}
ALPACA = {
    "instruction": "add",
    "input": "1 and 1",
    "output": "2",
    "system": "be brief",
    "history": [["a", "b"]],
}
NEMO = {"audio_filepath": "a.wav", "offset": 0.1, "duration": 0.1, "text": "hello", "speaker": 3}
CUT = {
    "id": "c",
    "type": "MonoCut",
    "start": 0.0,
    "duration": 0.2,
    "channel": 0,
    "supervisions": [
        {
            "id": "s",
            "recording_id": "r",
            "start": 0.0,
            "duration": 0.2,
            "channel": 0,
            "text": "hello",
            "speaker": "s",
        }
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 5000,
        "duration": 0.3125,
    },
}
DOCUMENT = {"text": "a document of some words", "id": 3}
ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "samples": ([CHAT, OPENAI, DOCUMENT, {"question": "1+1?", "answer": "2"}], {}),
    "flat": (
        [
            FLAT,
            {"image": "a.png", "question": "what?", "answer": "x"},
            {"file_name": "a.png", "label": "cat"},
        ],
        {},
    ),
    "rows": ([FLAT], {"messages": TEMPLATE, "expand": "captions", "group": "{speaker}", "id": "{id}"}),
    "llava": (
        [LLAVA, {**LLAVA, "image": ["a.png", "a.png"]}, {"image": "a.png", "caption": "a cat"}],
        {"format": "llava"},
    ),
    "captions_as_text": ([LLAVA, CHAT], {"captions_as_text": True}),
    "beside": ([BESIDE, SHAREGPT], {}),
    "alpaca": (
        [ALPACA, {"query": "a", "response": "b", "history": []}, {"prompt": "a", "completion": "b"}],
        {},
    ),
    "nemo": (
        [
            NEMO,
            {**FLAT, "start_ms": 10, "end_ms": 200},
            {"wav_path": "a.wav", "sentence": "hi", "client_id": "x"},
        ],
        {},
    ),
    "lhotse": ([CUT], {}),
    "captions": ([{"image": "a.png", "caption": "a cat"}], {"format": "captions"}),
}
TABLES = {
    "asr_csv": "wav,text",
    "tts_csv": "text,wav",
    "ocr_csv": "image,text",
    "captions_csv": "image,caption",
    "odd_csv": "path,label,start",
    "voice_csv": "client_id,path,sentence,up_votes",
    "cut_csv": "audio_filepath,offset,duration,text",
}


def run_rows(kind: str) -> Run:
    """Read and check a manifest of twisted rows, in JSON lines or as an array, its bytes damaged too now and
    then."""

    def run(rng: random.Random, folder: Path) -> None:
        seeds, settings = ROWS[kind]
        rows = [twist(rng, rng.choice(seeds)) for _ in range(rng.randint(1, 5))]
        is_array = rng.random() < 0.3
        text = f"[{', '.join(map(dumps, rows))}]" if is_array else "\n".join(map(dumps, rows))
        _manifest(rng, folder, "m.json" if is_array else "m.jsonl", text.encode(), settings)

    return run


def run_table(kind: str) -> Run:
    """Read and check a table of twisted cells."""

    def run(rng: random.Random, folder: Path) -> None:
        lines = [TABLES[kind]]
        for _ in range(rng.randint(1, 5)):
            cells = [
                words(odd(rng))[:300]
                if rng.random() < 0.3
                else rng.choice(["a.wav", "a.png", "hello", "0.1"])
                for _ in range(TABLES[kind].count(",") + rng.choice([0, 1, 1, 1, 2]))
            ]
            lines.append(rng.choice([",", ",", ",", "\t", '","']).join(cells))
        content = rng.choice(["\n", "\r\n", "\r"]).join(lines).encode(errors="surrogatepass")
        _manifest(rng, folder, rng.choice(["m.csv", "m.csv", "m.tsv"]), content, {})

    return run


def run_text(rng: random.Random, folder: Path) -> None:
    """Read and check a text of odd lines."""
    content = "\n".join(words(odd(rng)) for _ in range(rng.randint(0, 20))).encode(errors="surrogatepass")
    _manifest(rng, folder, "m.txt", content, {"paragraphs": rng.random() < 0.5})


def run_packed(rng: random.Random, folder: Path) -> None:
    """Read and check JSON lines, an array or a table, packed, and the packed bytes damaged now and then."""
    rows = [twist(rng, rng.choice([CHAT, DOCUMENT, FLAT])) for _ in range(rng.randint(1, 5))]
    name, text = rng.choice(
        [
            ("m.jsonl.gz", "\n".join(map(dumps, rows))),
            ("m.json.gz", f"[{', '.join(map(dumps, rows))}]"),
            ("m.json.gz", dumps({"data": rows, "version": 1})),
            ("m.json.gz", "\n".join(dumps(row).replace("{", "{\n") for row in rows)),
            ("m.csv.gz", 'wav,text\na.wav,"one, two"\na.wav,three\n'),
        ]
    )
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"])
    _manifest(rng, folder, name, gzip.compress(text.encode(encoding, "surrogatepass")), {})


def run_tar(rng: random.Random, folder: Path) -> None:
    """Read and check a WebDataset shard of odd members, its bytes damaged now and then."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        for number in range(rng.randint(0, 4)):
            kinds = rng.choices(
                ["png", "wav", "txt", "json", "cls", "left.png", "npy", ""], k=rng.randint(1, 3)
            )
            for kind in kinds:
                held = {
                    "png": picture("png", "RGB"),
                    "wav": sound("wav"),
                    "json": dumps(twist(rng, FLAT)).encode("utf-8", "replace"),
                }
                content = held.get(kind, words(odd(rng))[:300].encode("utf-8", "surrogatepass"))
                info = tarfile.TarInfo(
                    f"{rng.choice(['', 'd/', './', '._'])}{number}{'.' if kind else ''}{kind}"
                )
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    _manifest(rng, folder, "m.tar", stream.getvalue(), {})


def run_parquet(rng: random.Random, folder: Path) -> None:
    """Read and check a parquet file of pictures and words, its bytes damaged now and then."""
    import pyarrow
    import pyarrow.parquet

    media = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    count = rng.randint(0, 4)
    held = [
        rng.choice(
            [
                {"bytes": mutate(rng, picture("png", "RGB")), "path": "a.png"},
                {"bytes": None, "path": "a.png"},
                None,
            ]
        )
        for _ in range(count)
    ]
    said = [
        rng.choice([words(odd(rng))[:100].encode("utf-8", "replace").decode(), None]) for _ in range(count)
    ]
    stream = io.BytesIO()
    table = pyarrow.table(
        {
            "image": pyarrow.array(held, media),
            "text": pyarrow.array(said, pyarrow.string()),
            "n": list(range(count)),
        }
    )
    pyarrow.parquet.write_table(table, stream, row_group_size=2)
    _manifest(rng, folder, "m.parquet", stream.getvalue(), {})


def run_images(rng: random.Random, folder: Path) -> None:
    """Read and check a folder of images with odd metadata, or with none."""
    inside = folder / "images"
    (inside / "cat").mkdir(parents=True, exist_ok=True)
    for old in inside.rglob("*"):
        if old.is_file():
            old.unlink()
    for number in range(rng.randint(0, 3)):
        (inside / rng.choice(["", "cat"]) / f"{number}.png").write_bytes(mutate(rng, picture("png", "RGB")))
    if rng.random() < 0.6:
        rows = [twist(rng, {"file_name": "cat/1.png", "text": "a cat"}) for _ in range(3)]
        (inside / "metadata.jsonl").write_bytes(_damaged(rng, "\n".join(map(dumps, rows)).encode()))
    _read(Source(path="images"), folder)


def run_tree(rng: random.Random, folder: Path) -> None:
    """Read and check a tree of speech: VCTK's, LibriSpeech's, LJSpeech's or one with a table in it, a name or
    a file of it wrong."""
    inside = folder / "tree"
    shutil.rmtree(inside, ignore_errors=True)
    said = _damaged(rng, rng.choice(["hello there", words(odd(rng))[:100]]).encode(errors="surrogatepass"))
    trees: list[dict[str, bytes]] = [
        {
            "wav48_silence_trimmed/p225/p225_001_mic1.flac": sound("flac"),
            "txt/p225/p225_001.txt": said,
            "speaker-info.txt": b"ID AGE\n225 23",
        },
        {
            "train/84/121/84-121-0000.flac": sound("flac"),
            "train/84/121/84-121.trans.txt": b"84-121-0000 " + said,
        },
        {"wavs/LJ001-0001.wav": sound("wav"), "metadata.csv": b"LJ001-0001|" + said + b"|" + said},
        {
            "train/yes/a.wav": sound("wav"),
            "test/no/b.wav": sound("wav"),
            "train/.ipynb_checkpoints/c.wav": b"",
        },
        {
            "clips/a.mp3": sound("mp3"),
            "train.tsv": b"client_id\tpath\tsentence\nx\ta.mp3\t" + said,
            "validated.tsv": b"client_id\tpath\tsentence",
        },
        {"a.wav": sound("wav"), "metadata.csv": b"file_name,transcription\na.wav," + said},
    ]
    for name, content in rng.choice(trees).items():
        file = inside / (name if rng.random() > 0.05 else name.replace("1", "2"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_damaged(rng, content))
    if inside.exists():
        _read(Source(path="tree"), folder)


def run_folder(rng: random.Random, folder: Path) -> None:
    """Check a folder of several manifests."""
    inside = folder / "many"
    inside.mkdir(exist_ok=True)
    for old in inside.iterdir():
        old.unlink()
    (inside / "a.wav").write_bytes(mutate(rng, sound("wav")) if rng.random() < 0.5 else sound("wav"))
    for number in range(rng.randint(1, 3)):
        rows = [twist(rng, rng.choice([CHAT, DOCUMENT, FLAT])) for _ in range(3)]
        name = f"{number}{rng.choice(['.jsonl', '.json', '.csv', '.txt'])}"
        (inside / name).write_bytes(_damaged(rng, "\n".join(map(dumps, rows)).encode()))
    json.dumps(check(Source(path="many"), folder).to_json())


def _damaged(rng: random.Random, content: bytes) -> bytes:
    return mutate(rng, content) if rng.random() < 0.3 else content


def _manifest(rng: random.Random, folder: Path, name: str, content: bytes, settings: dict[str, Any]) -> None:
    (folder / "a.wav").write_bytes(sound("wav"))
    (folder / "a.png").write_bytes(picture("png", "RGB"))
    (folder / name).write_bytes(_damaged(rng, content))
    _read(Source(path=name, **settings), folder)


def _read(source: Source, folder: Path) -> None:
    """Check it, which never refuses; then read it as training does."""
    report = check(source, folder)
    json.dumps(report.to_json(), ensure_ascii=False).encode()
    readers.load([source], base=folder, val_split=0.3, seed=0, quarantine=Quarantine(limit=1.0))


def _refused(attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except UserError:
        return


# 3. The run

KINDS: dict[str, Run] = {kind: run_sound(kind) for kind in SOUNDS} | {
    kind: run_picture(kind) for kind in PICTURES
}
KINDS |= {kind: run_rows(kind) for kind in ROWS} | {kind: run_table(kind) for kind in TABLES}
KINDS |= {"packed": run_packed, "tar": run_tar, "parquet": run_parquet}
KINDS |= {"text": run_text, "images": run_images, "tree": run_tree, "folder": run_folder}


def once(kind: str, seed: int, folder: Path) -> tuple[str, str]:
    """What came of one input: "read", "refused", "crash" or "hang", and the traceback of the last two."""
    rng = random.Random(f"{kind} {seed}")
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        KINDS[kind](rng, folder)
    except UserError:
        return "refused", ""
    except Hang:
        return "hang", traceback.format_exc()
    except Exception:
        return "crash", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read", ""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


def main() -> int:
    """Run the inputs over all kinds in turn and print what came of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kind", choices=list(KINDS), action="append", help="only this kind; may be given several times"
    )
    args = parser.parse_args()
    faulthandler.enable()
    kinds = args.kind or list(KINDS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH_BYTES, resource.RLIM_INFINITY))
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    seconds: Counter[str] = Counter()
    failures: list[tuple[str, int, str]] = []
    slowest = (0.0, "", 0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.inputs):
            kind, seed = kinds[number % len(kinds)], args.seed + number // len(kinds)
            faulthandler.dump_traceback_later(DEAD_S, exit=True)
            begin = time.perf_counter()
            outcome, trace = once(kind, seed, Path(folder))
            took_s = time.perf_counter() - begin
            faulthandler.cancel_dump_traceback_later()
            outcomes[kind][outcome] += 1
            seconds[kind] += took_s  # type: ignore[assignment]  # a Counter adds floats as well
            slowest = max(slowest, (took_s, kind, seed))
            if trace:
                failures.append((kind, seed, trace))
    total: Counter[str] = Counter()
    print(f"{'kind':14} {'read':>6} {'refused':>8} {'crash':>6} {'hang':>5} {'s':>7}")
    for kind in kinds:
        found = outcomes[kind]
        total.update(found)
        print(
            f"{kind:14} {found['read']:6} {found['refused']:8} {found['crash']:6} {found['hang']:5} {seconds[kind]:7.1f}"
        )
    print(
        f"{'all':14} {total['read']:6} {total['refused']:8} {total['crash']:6} {total['hang']:5} {seconds.total():7.1f}"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{args.inputs} inputs; slowest {slowest[0]:.2f} s ({slowest[1]} {slowest[2]}); peak memory {peak:.0f} MiB"
    )
    for trace, (kind, seed) in {
        trace: (kind, seed) for kind, seed, trace in reversed(failures)
    }.items():  # each once
        print(f"\n{kind} {seed}:\n{trace}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
