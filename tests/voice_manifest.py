"""Manifests of two voices in Higgs' ChatML: harmonic tones whose words decide their lengths and pitches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from muomni.media import audio

RATE_HZ = 24_000
WORDS = ("one", "two", "three", "four")


def wave(word: str, voice: int, take: int = 0) -> Any:
    """A word in a voice: its length and pitch are the word's, its overtones the voice's; takes differ a
    little."""
    number = WORDS.index(word)
    length = RATE_HZ // 25 * (6 + 2 * number)
    t = np.arange(length) / RATE_HZ
    pitch_hz = 110 * (1 + 0.25 * number) * (1 + voice) * (1 + 0.001 * take)
    tones = [np.sin(2 * np.pi * pitch_hz * k * t) / k for k in ((1, 2, 3) if voice else (1, 3, 5))]
    return (0.2 * sum(tones)).astype(np.float32)


def row(word: str, voice: int, side: str) -> dict[str, Any]:
    """The documented example's form: the reference stands in an earlier turn, and is only heard."""
    other = WORDS[(WORDS.index(word) + 1) % len(WORDS)]
    return {
        "id": f"{side}-{word}{voice}",
        "group": f"{side}{voice}",
        "split": side,
        "messages": [
            {"role": "system", "content": "Generate speech in the voice of the reference."},
            {"role": "user", "content": other},
            {"role": "assistant", "content": {"type": "audio", "audio_url": f"{side}-{other}{voice}.wav"}},
            {"role": "user", "content": [{"type": "text", "text": word}]},
            {"role": "assistant", "content": [{"type": "audio", "audio_url": f"{side}-{word}{voice}.wav"}]},
        ],
        "start_index": 3,
        "speaker": f"voice{voice}",
        "misc": {"duration": 1.0},
    }


def write(folder: Path, *, lines: bool = False) -> Path:
    """The wavs and a manifest of 8 rows to learn from and 8 held out, as one JSON array or as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for take, side in enumerate(("train", "valid")):
        for voice in (0, 1):
            for word in WORDS:
                audio.write(folder / f"{side}-{word}{voice}.wav", wave(word, voice, take), RATE_HZ)
                rows.append(row(word, voice, side))
    path = folder / ("manifest.jsonl" if lines else "manifest.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path
