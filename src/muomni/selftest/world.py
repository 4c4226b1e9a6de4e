"""Data for runs of seconds: documents that fit several to a row, pictures of one colour, formant speech, rows
in groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from muomni import files
from muomni.data.world import formant

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
    "purple": (150, 40, 190),
    "orange": (250, 140, 20),
}
PICTURES = 400  # of which a fifth and some are held out: 64 pairs are asked of an ablation
THINGS = ("the sky", "a leaf", "the car", "my hat", "a door", "the sea")
SPOKEN = ("the star is red", "it is blue", "a green leaf", "two white doors", "the sea is black", "yes it is")
TOO_LONG = "the star is red and it is blue and the sea is black yes it is"  # twice the letters that CTC can spell in so short a sound
SIZE_PX = 32


def build(folder: Path, seed: int = 0) -> None:
    """Write `text.jsonl`, `speech.jsonl`, `captions.jsonl`, `questions.jsonl` and their media."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    colours = [names[int(i)] for i in rng.integers(len(names), size=PICTURES)]
    files.write_jsonl(folder / "text.jsonl", _texts(rng, names))
    files.write_jsonl(folder / "speech.jsonl", _speech(folder, rng))
    paths = [_picture(folder, number, COLOURS[colour], rng) for number, colour in enumerate(colours)]
    files.write_jsonl(
        folder / "captions.jsonl",
        [_captioned(n, path, c) for n, (path, c) in enumerate(zip(paths, colours, strict=True))],
    )
    files.write_jsonl(
        folder / "questions.jsonl",
        [_asked(n, path, c, rng) for n, (path, c) in enumerate(zip(paths, colours, strict=True))],
    )


def _texts(rng: np.random.Generator, names: list[str]) -> list[dict[str, Any]]:
    """Short documents, and conversations about them; two rows share a group."""
    rows: list[dict[str, Any]] = []
    for number in range(240):
        thing, colour = THINGS[int(rng.integers(len(THINGS)))], names[int(rng.integers(len(names)))]
        group = f"text-{number // 2}"
        if number % 3 == 0:
            turns = [
                ("user", f"{thing} is {colour}. what colour is it?"),
                ("assistant", colour),
                ("user", "sure?"),
                ("assistant", f"yes, {colour}"),
            ]
            messages = [{"role": role, "content": words} for role, words in turns]
            rows.append({"id": f"t{number}", "group": group, "task": "chat", "messages": messages})
        else:
            rows.append(
                {
                    "id": f"t{number}",
                    "group": group,
                    "text": f"{thing} is {colour}, and i like {colour} things.",
                }
            )
    return rows


def _speech(folder: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Utterances of several voices, each a group; one row in ten has more letters than its sound can hold."""
    rows = []
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for number in range(60):
        words = SPOKEN[number % len(SPOKEN)]
        path = f"audio/{number}.wav"
        wave_S = formant.say(words, f"voice {number % 10}", 160, 50, seed=number)
        soundfile.write(folder / path, wave_S, formant.RATE_HZ)
        words_said = words if number % 10 else TOO_LONG
        content = [{"type": "audio", "path": path}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": words_said}]
        rows.append(
            {
                "id": f"s{number}",
                "group": f"voice-{number % 10}-{number // 20}",
                "task": "transcribe",
                "messages": messages,
            }
        )
    return rows


def _picture(folder: Path, number: int, colour: tuple[int, int, int], rng: np.random.Generator) -> str:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    noise = rng.normal(0, 12, (SIZE_PX, SIZE_PX, 3))
    path = f"images/{number}.png"
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / path)
    return path


def _captioned(number: int, path: str, colour: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": [{"type": "image", "path": path}]},
        {"role": "assistant", "content": f"it is {colour}"},
    ]
    return {"id": f"c{number}", "group": f"picture-{number}", "task": "caption", "messages": messages}


def _asked(number: int, path: str, colour: str, rng: np.random.Generator) -> dict[str, Any]:
    """Two questions about one picture, the second of which could be answered from the first, were it seen."""
    other = [name for name in COLOURS if name != colour][int(rng.integers(len(COLOURS) - 1))]
    colour_asked, is_so = (colour, "yes") if rng.random() < 0.5 else (other, "no")
    content = [{"type": "image", "path": path}, {"type": "text", "text": "what colour is it?"}]
    turns = [
        ("user", content),
        ("assistant", colour),
        ("user", f"is it {colour_asked}?"),
        ("assistant", is_so),
    ]
    messages = [{"role": role, "content": words} for role, words in turns]
    return {"id": f"q{number}", "group": f"picture-{number}", "task": "question", "messages": messages}
