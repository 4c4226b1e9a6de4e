"""A folder of several manifests with 32 planted faults of 18 reasons: each is reported at its row, and the
clean twin is green."""

import json
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from muomni.data.check.checker import check
from muomni.data.sample import Source

RATE_HZ = 16000


def voice(path, seed, seconds=1.0, gain=0.2):
    """Five syllables of drawn pitch, so that no two seeds sound alike."""
    rng = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE_HZ / 5)) / RATE_HZ
    parts = [
        sum(np.sin(2 * np.pi * f * times) * g for f, g in zip(rng.uniform(150, 3300, 4), rng.random(4)))
        for _ in range(5)
    ]
    soundfile.write(path, np.concatenate([part * np.hanning(len(times)) for part in parts]) * gain, RATE_HZ)


def photo(path, seed):
    rough = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((240, 180), Image.Resampling.BICUBIC).save(path)


def bomb(path):
    """A PNG whose header announces 60000 x 60000 pixels."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def hear(path, text, **more):
    sound = {"type": "audio", "path": path, **more.pop("window", {})}
    return {
        "messages": [{"role": "user", "content": [sound]}, {"role": "assistant", "content": text}],
        **more,
    }


def see(path, text, **more):
    return {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": path}]},
            {"role": "assistant", "content": text},
        ],
        **more,
    }


def chat(question, answer, **more):
    answers = [{"role": "assistant", "content": answer}] if answer is not None else []
    return {"messages": [{"role": "user", "content": question}, *answers], **more}


class Folder:
    """Writes manifests line by line; a fault is remembered with the line on which it stands."""

    def __init__(self, path, is_clean):
        self.path, self.is_clean = path, is_clean
        self.lines: dict[str, list[bytes]] = {}
        self.planted: list[tuple[str, str]] = []

    def good(self, name, line):
        self.lines.setdefault(name, []).append(self._bytes(line))

    def fault(self, reason, name, line):
        """A bad line, left out of the clean twin."""
        if not self.is_clean:
            self.good(name, line)
            self.planted.append((reason, f"{name}:{len(self.lines[name])}"))

    def write(self):
        for name, lines in self.lines.items():
            (self.path / name).write_bytes(b"\n".join(lines) + b"\n")

    @staticmethod
    def _bytes(line):
        return (
            line
            if isinstance(line, bytes)
            else (line if isinstance(line, str) else json.dumps(line)).encode()
        )


def make(path, is_clean):
    """The folder, with or without its faults."""
    folder = Folder(path, is_clean)
    for i in range(8):
        voice(path / f"s{i}.wav", i)
        photo(path / f"p{i}.png", i)
    if not is_clean:
        spoil(path)

    for i, speaker in enumerate(["ann", "ann", "ben", "cat"]):
        folder.good(
            "speech.jsonl",
            hear(
                f"s{i}.wav",
                f"hello {i}",
                id=f"s{i}",
                group=speaker,
                split="valid" if speaker == "cat" else "train",
            ),
        )
    fault = folder.fault
    for name, reason in (
        ("torn.wav", "undecodable"),
        ("text.wav", "undecodable"),
        ("zero.wav", "empty"),
        ("silent.wav", "silent"),
    ):
        fault(reason, "speech.jsonl", hear(name, "hello", group="ann", split="train"))
    fault("missing", "speech.jsonl", hear("gone.wav", "hello", group="ann", split="train"))
    fault("missing", "speech.jsonl", hear("s\0.wav", "hello", group="ann", split="train"))
    fault("infeasible", "speech.jsonl", hear("s0.wav", "look " * 20, id="long", group="ann", split="train"))
    fault(
        "bad_row",
        "speech.jsonl",
        hear("s0.wav", "x", group="ann", split="train", window={"start": 0.8, "end": 0.2}),
    )
    fault("bad_row", "speech.jsonl", hear("s0.wav", "x", group="ann", split="train", window={"start": -1.0}))
    fault(
        "bad_row",
        "speech.jsonl",
        hear("s0.wav", "x", group="ann", split="train", window={"start": float("nan")}),
    )
    fault(
        "end_beyond",
        "speech.jsonl",
        hear("s0.wav", "beyond", group="ann", split="train", window={"start": 0.5, "end": 9.0}),
    )
    fault("near_duplicate", "speech.jsonl", hear("louder.ogg", "hello again", group="ann", split="train"))
    fault("clipped", "speech.jsonl", hear("clipped.wav", "loud", group="ann", split="train"))
    fault("leak_group", "speech.jsonl", hear("s4.wav", "ho", group="ben", split="valid"))
    fault("duplicate_id", "speech.jsonl", hear("s5.wav", "hm", id="s0", group="ann", split="train"))

    for i in range(4):
        folder.good("pictures.jsonl", see(f"p{i}.png", f"picture {i}", split="valid" if i == 3 else "train"))
    fault("too_large", "pictures.jsonl", see("bomb.png", "huge"))
    fault("leak_near", "pictures.jsonl", see("smaller.jpg", "again", split="valid"))
    fault("leak_content", "pictures.jsonl", see("copy.png", "another", split="valid"))
    fault("blank_picture", "pictures.jsonl", see("blank.png", "nothing", split="train"))

    folder.good("chats.jsonl", chat("one and one?", "two", group="a", split="train"))
    folder.good("chats.jsonl", chat("two and two?", "four", group="b", split="train"))
    fault("bad_row", "chats.jsonl", b'{"messages": [')
    fault("undecodable", "chats.jsonl", b'{"text": "\xff\xfe"}')
    fault("bad_row", "chats.jsonl", {"mesages": []})
    fault("bad_row", "chats.jsonl", chat("?", "!", split="both"))
    fault("bad_row", "chats.jsonl", {"messages": [{"role": "robot", "content": "hi"}]})
    fault("empty", "chats.jsonl", chat("three and three?", " "))
    fault("zero_label", "chats.jsonl", chat("nobody answers", None, split="train"))
    fault("truncated", "chats.jsonl", chat("word " * 900, "long", split="train"))
    fault("duplicate", "chats.jsonl", chat("one and one?", "two", group="a", split="train"))

    folder.good("words.csv", "wav,text,split")
    folder.good("words.csv", "s6.wav,six,train")
    folder.good("words.csv", "s7.wav,seven,train")
    fault("bad_row", "words.csv", "s6.wav")
    fault("bad_row", "words.csv", "s6.wav,a,b,c")

    folder.good("flat.jsonl", {"path": "p4.png", "label": "four"})
    folder.good("flat.jsonl", {"path": "p5.png", "label": "five"})
    fault("missing", "flat.jsonl", {"path": "gone.png", "label": "six"})
    fault("bad_row", "flat.jsonl", {"path": "p6.png"})
    folder.good("flat.jsonl", {"path": "p6.png", "label": "six"})
    folder.good("flat.jsonl", {"path": "p7.png", "label": "seven"})
    for i in range(4, 6):
        if is_clean:
            folder.good("words.csv", f"s{i}.wav,number {i},train")
    folder.write()
    return folder


def spoil(path):
    """The faulty media."""
    wave, _ = soundfile.read(path / "s0.wav")
    (path / "torn.wav").write_bytes((path / "s0.wav").read_bytes()[:9000])
    (path / "text.wav").write_text("this is no sound at all")
    (path / "zero.wav").write_bytes(b"")
    soundfile.write(path / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    soundfile.write(
        path / "clipped.wav", np.clip(soundfile.read(path / "s7.wav")[0][::-1] * 20, -1, 1), RATE_HZ
    )
    soundfile.write(path / "louder.ogg", wave * 1.5, RATE_HZ, format="OGG", subtype="VORBIS")
    bomb(path / "bomb.png")
    Image.open(path / "p0.png").resize((160, 120)).save(path / "smaller.jpg", quality=80)
    (path / "copy.png").write_bytes((path / "p1.png").read_bytes())
    Image.new("RGB", (64, 64), (30, 30, 30)).save(path / "blank.png")
    photo(path / "orphan.png", 99)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("faults"), is_clean=False)
    return folder, check(Source(path=str(folder.path)), Path())


def test_each_planted_fault_is_found_at_its_row(report):
    folder, found = report
    told = {(finding.reason, str(Path(finding.where).relative_to(folder.path))) for finding in found.findings}
    assert [fault for fault in folder.planted if fault not in told] == []
    assert len(folder.planted) >= 32
    assert len({reason for reason, _ in folder.planted}) >= 18


def test_nothing_else_is_found(report):
    folder, found = report
    told = Counter(
        (f.reason, str(Path(f.where).relative_to(folder.path)))
        for f in found.findings
        if f.severity != "note" and f.reason != "no_validation"
    )
    consequences = {("orphan", "orphan.png")}
    assert set(told) - set(folder.planted) - consequences == set()
    assert max(told.values()) == 1


def test_findings_that_need_two_rows_name_both(report):
    folder, found = report
    others = {f.reason: str(Path(f.other).relative_to(folder.path)) for f in found.findings if f.other}
    assert others == {
        "near_duplicate": "speech.jsonl:1",
        "leak_group": "speech.jsonl:3",
        "duplicate_id": "speech.jsonl:1",
        "leak_near": "pictures.jsonl:1",
        "leak_content": "pictures.jsonl:2",
        "duplicate": "chats.jsonl:1",
    }


def test_the_clean_twin_is_green(tmp_path):
    make(tmp_path, is_clean=True)
    found = check(Source(path=str(tmp_path)), Path())
    assert (found.errors, found.warnings) == ([], [])
    assert (found.rows, found.samples) == (18, 18)
