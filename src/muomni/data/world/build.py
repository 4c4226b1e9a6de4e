"""The whole toy world in a folder: a pure function of (seed, size)."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from muomni import files
from muomni.data.world import picture_rows, render, speech_rows, text_rows, utterance, voices
from muomni.data.world.picture_rows import Mix
from muomni.data.world.vocabulary import FEW, WHOLE, Vocabulary
from muomni.errors import ConfigError

VERSION = 13
Size = Literal["tiny", "small", "tokens", "quick", "full"]
Split = dict[str, int]


@dataclass(frozen=True)
class Counts:
    """How much of everything, by split; `repeats` of every single word and the `least` times that a word is
    said, per voice set.

    scenes, asked  how many objects are shown by the pictures with captions, and by those with questions
    """

    side: int
    text: Split
    captions: Split
    questions: Split
    reading: Split
    probe: Split
    transcripts: Split
    digits: Split
    spoken_questions: Split
    speak: Split
    repeats: int
    least: int
    vocabulary: Vocabulary = WHOLE
    scenes: Mix = picture_rows.SCENES
    asked: Mix = picture_rows.QUESTIONS
    draw: Split = field(default_factory=dict)
    numbers: Split = field(default_factory=dict)
    sizes: tuple[str, ...] | None = None

    @property
    def pictured(self) -> Vocabulary:
        """The words of its pictures."""
        return self.vocabulary if self.sizes is None else replace(self.vocabulary, sizes=self.sizes)


def _split(train: int, valid: int) -> Split:
    return {"train": train, "valid": valid}


_QUICK = Counts(
    side=112,
    text=_split(24_000, 500),
    captions=_split(12_000, 640),
    questions=_split(10_000, 300),
    reading=_split(600, 60),
    probe=_split(1_500, 300),
    transcripts=_split(5_200, 300),
    digits=_split(1_200, 250),
    spoken_questions=_split(3_000, 250),
    speak=_split(2_000, 240),
    repeats=6,
    least=80,
)
_TINY = Counts(
    side=112,
    text=_split(60, 16),
    captions=_split(48, 16),
    questions=_split(32, 12),
    reading=_split(12, 4),
    probe=_split(24, 8),
    transcripts=_split(24, 10),
    digits=_split(22, 11),
    spoken_questions=_split(16, 10),
    speak=_split(24, 8),
    repeats=1,
    least=1,
    draw=_split(24, 8),
    numbers=_split(16, 8),
)
# For a quickstart of minutes: few words, two objects in a caption at most and one in a question, and no
# pictures of digits or words.
_SMALL = Counts(
    side=64,
    text=_split(3_000, 200),
    captions=_split(3_000, 256),
    questions=_split(2_000, 160),
    reading=_split(0, 0),
    probe=_split(400, 160),
    transcripts=_split(1_500, 120),
    digits=_split(400, 110),
    spoken_questions=_split(600, 160),
    speak=_split(600, 60),
    repeats=4,
    least=24,
    vocabulary=FEW,
    scenes=Mix((1, 2, 1), 0.5),
    asked=Mix((1,), 0.25),
)

# For models of image and audio tokens: all words, and prompts to draw one object. All objects are big: at 64
# px a token covers 8 x 8 pixels, and what 1,024 codes leave of a small star is a blot (docs/log.md).
_TOKENS = Counts(
    side=64,
    text=_split(6_000, 200),
    captions=_split(1_500, 160),
    questions=_split(0, 0),
    reading=_split(0, 0),
    probe=_split(0, 0),
    transcripts=_split(1_500, 120),
    digits=_split(400, 110),
    spoken_questions=_split(0, 0),
    speak=_split(600, 60),
    repeats=4,
    least=24,
    scenes=Mix((1,), 0.0),
    draw=_split(16_000, 300),
    numbers=_split(3_000, 120),
    sizes=("big",),
)


def counts(size: Size) -> Counts:
    """How much a size holds; full is five times quick in 224 px.

    Raises ConfigError on an unknown size.
    """
    if size == "tiny":
        return _TINY
    if size == "small":
        return _SMALL
    if size == "tokens":
        return _TOKENS
    if size == "quick":
        return _QUICK
    if size == "full":
        times: dict[str, Any] = {
            name: {split: 5 * count for split, count in value.items()}
            for name, value in vars(_QUICK).items()
            if isinstance(value, dict)
        }
        return replace(_QUICK, side=224, repeats=12, least=400, **times)
    raise ConfigError(f"size of the world: expected one of {', '.join(get_args(Size))}, got {size!r}")


def build(out: Path, *, seed: int, size: Size) -> dict[str, Any]:
    """Make the world in `out` and give its manifest; a world of the same seed, size and version there is
    given back at once.

    Raises ConfigError if `size` is unknown, `seed` is negative, or `out` holds something that is no world.
    """
    much = counts(size)
    if seed < 0:
        raise ConfigError(f"seed of the world: expected 0 or more, got {seed}")
    if (out / "manifest.json").exists():
        manifest: dict[str, Any] = files.read_json(out / "manifest.json")
        if (manifest.get("seed"), manifest.get("size"), manifest.get("version")) == (seed, size, VERSION):
            return manifest
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} exists and is no world (it has no manifest.json)", hint="give an empty or new folder"
        )
    with files.fresh_folder(out) as part:
        return _make(part, seed, size, much)


def _make(out: Path, seed: int, size: Size, much: Counts) -> dict[str, Any]:
    words, pictured = much.vocabulary, much.pictured
    shown = picture_rows.show(seed, "scene", 10, much.captions, much.scenes, pictured)
    questions = picture_rows.show(seed, "question", 11, much.questions, much.asked, words)
    probe = picture_rows.show(seed, "probe", 12, much.probe, picture_rows.PROBES, words)
    drawn = picture_rows.show_alone(seed, "draw", 13, much.draw, pictured)
    writing, writing_captions, writing_questions = picture_rows.reading_rows(seed, much.reading)
    rng = np.random.default_rng((seed, 40))
    speakers = speech_rows.Speakers(rng)
    rows = {
        "transcripts": speech_rows.transcript_rows(
            rng, speakers, much.transcripts, words, repeats=much.repeats, least=much.least
        ),
        "digits": speech_rows.digit_rows(speakers, much.digits),
        "spoken_questions": speech_rows.spoken_question_rows(
            rng, speakers, questions, much.spoken_questions, words
        ),
        "speak": speech_rows.speak_rows(
            rng, speakers, much.speak, words, repeats=much.repeats, least=much.least
        ),
    }
    if much.numbers:
        rows["numbers"] = speech_rows.number_rows(rng, speakers, much.numbers)
    with ThreadPoolExecutor(1) as beside:  # espeak's own process speaks while we write and draw
        speaking = beside.submit(utterance.speak, speakers.jobs, out)
        rows |= {
            "text": text_rows.text_rows(seed, much.text, words, max(much.scenes.objects)),
            "captions": picture_rows.caption_rows(seed, shown, pictured) + writing_captions,
            "questions": picture_rows.question_rows(seed, questions, words) + writing_questions,
            "probe": picture_rows.probe_rows(probe),
            **({"draw": picture_rows.draw_rows(drawn)} if drawn else {}),
        }
        pictures = {
            one.path: one
            for one in [
                *(one.picture for one in [*shown, *questions, *probe, *(each.shown for each in drawn)]),
                *writing,
            ]
        }
        (out / "images").mkdir(parents=True)
        for picture in pictures.values():
            (out / picture.path).write_bytes(render.png(picture.draw(much.side)))
        speech = speaking.result()
    for name, content in rows.items():
        files.write_jsonl(out / f"{name}.jsonl", content)
    files.write_text(out / "vocabulary.txt", "".join(f"{word}\n" for word in words.words))
    manifest = {
        "version": VERSION,
        "seed": seed,
        "size": size,
        "image_side": much.side,
        "voice": speech["voice"],
        "speech_s": speech["seconds"],
        "rows": {
            name: {split: sum(row["split"] == split for row in content) for split in ("train", "valid")}
            for name, content in rows.items()
        },
        "images": len(pictures),
        "utterances": speech["utterances"],
        "sha256": {f"{name}.jsonl": files.sha256_file(out / f"{name}.jsonl") for name in rows},
        "media_sha256": {folder: _digest(out / folder) for folder in ("images", "audio")},
        "voices": {
            "answer": voices.ANSWER_VOICE,
            "train": list(voices.TRAIN),
            "held_out": list(voices.HELD_OUT),
        },
        "held_out_pairs": [list(pair) for pair in words.held_out_pairs],
    }
    files.write_json(out / "manifest.json", manifest)
    return manifest


def _digest(folder: Path) -> str:
    """One sha256 of the names and contents of all files of a folder."""
    return files.sha256_json([[path.name, files.sha256_file(path)] for path in sorted(folder.iterdir())])


def main(arguments: list[str] | None = None) -> None:
    """`python -m muomni.data.world --out DIR --seed N --size tiny|small|tokens|quick|full`."""
    parser = argparse.ArgumentParser(prog="muomni.data.world", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", choices=get_args(Size), default="quick")
    args = parser.parse_args(arguments)
    manifest = build(args.out, seed=args.seed, size=args.size)
    print(
        f"{args.out}: {manifest['images']} images, {manifest['utterances']} utterances ({manifest['speech_s']:.0f} s, {manifest['voice']})"
    )
