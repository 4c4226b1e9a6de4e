"""Tiny files in the layouts that the heads of the shipped recipes describe, and what cuts a recipe down to
seconds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from muomni import cli
from muomni.data.world import formant
from muomni.execution import recipe as recipes
from muomni.selftest import voices

PHRASES = (
    "the star is red",
    "it is blue",
    "a green leaf",
    "two white doors",
    "the sea is black",
    "yes it is",
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STEPS = 3
ROWS = 24


def speech(folder: Path, name: str, words: str, voice: int) -> str:
    """A spoken phrase of a voice as folder/name; the name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        folder / name,
        formant.say(words, f"voice {voice}", 160, 50, seed=voice),
        formant.RATE_HZ,
        format="WAV",
    )
    return name


def picture(folder: Path, name: str, seed: int, size: int = 32) -> str:
    """Coloured squares as folder/name; the name."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.kron(
        np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8),
        np.ones((size // 4, size // 4, 1), np.uint8),
    )
    Image.fromarray(pixels).save(folder / name)
    return name


def texts(path: Path, count: int = 60) -> Path:
    """Prose, a document a line and a blank one behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "\n\n".join(
            f"{PHRASES[n % 6]} and {PHRASES[(n + n // 6) % 6]}, said the number {n}." for n in range(count)
        )
        + "\n"
    )
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_12gb(data: Path) -> Path:
    """What the head of muomni_12gb.yaml says that DATA must hold."""
    texts(data / "text" / "corpus.txt")
    heard = [
        f"{speech(data / 'audio', f'asr/{n}.wav', PHRASES[n % 6], n)},{PHRASES[n % 6]}" for n in range(ROWS)
    ]
    (data / "audio" / "asr.csv").write_text("\n".join(["wav,text", *heard]) + "\n")
    said = [
        f"{PHRASES[n % 6]},{speech(data / 'audio', f'tts/{n}.wav', PHRASES[n % 6], 100 + n)}"
        for n in range(ROWS)
    ]
    (data / "audio" / "tts.csv").write_text("\n".join(["text,wav", *said]) + "\n")
    shown = [
        {"image": picture(data / "images", f"{n}.png", n), "caption": f"{PHRASES[n % 6]} {n}"}
        for n in range(ROWS)
    ]
    (data / "images" / "captions.json").write_text(json.dumps(shown))
    jsonl(data / "sft" / "train.jsonl", [_taught(n) for n in range(2 * ROWS)])
    return data


def _taught(number: int) -> dict[str, Any]:
    """A question about a picture, or a transcript."""
    n = number // 2
    asked: list[dict[str, str]] = [{"type": "audio", "path": f"../audio/asr/{n}.wav"}]
    if number % 2:
        asked = [{"type": "image", "path": f"../images/{n}.png"}, {"type": "text", "text": "what is it?"}]
    return {
        "id": f"r{number}",
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": PHRASES[n % 6]}],
    }


def of_llava(data: Path) -> Path:
    """What the heads of the recipes upon Qwen3 say that DATA must hold."""
    words = (
        "a kite",
        "a man on a wave and two dogs",
        "a child near a street sign in the park, and a dog that runs along the beach by the sea",
    )
    pretrain, instruct = [], []
    for n in range(ROWS):
        name = f"{n:09d}.jpg"
        picture(data / "llava_pretrain" / "images" / "00000", name, n)
        picture(data / "coco" / "train2017", name, 1000 + n)
        turns = [
            {"from": "human", "value": "describe it.\n<image>"},
            {"from": "gpt", "value": f"{words[n % 3]} {n}"},
        ]
        pretrain.append({"id": f"{n:09d}", "image": f"00000/{name}", "conversations": turns})
        more = [{"from": "human", "value": "what else?"}, {"from": "gpt", "value": f"a street sign {n}"}] * (
            n % 3
        )
        instruct.append({"id": f"{n:09d}", "image": name, "conversations": [*turns, *more]})
    (data / "llava_pretrain" / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(pretrain))
    (data / "llava_instruct").mkdir()
    (data / "llava_instruct" / "llava_instruct_150k.json").write_text(json.dumps(instruct))
    texts(data / "text" / "held_out.txt")
    return data


def of_tokens(data: Path) -> Path:
    """What the heads of the recipes of tokens upon Qwen3 say that DATA must hold."""
    of_llava(data)
    texts(data / "text" / "replay.txt")
    for number, name in enumerate(("wavcaps", "audiocaps", "clotho")):
        rows = []
        for n in range(ROWS):
            voice = 200 + 40 * number + n
            sound = speech(data / "audio", f"clips/{name}-{n}.wav", PHRASES[n % 6], voice)
            rows.append({"audio": sound, "text": f"a voice, {PHRASES[n % 6]}", "start": 0.1, "duration": 0.2})
        jsonl(data / "audio" / f"{name}.jsonl", rows)
    return data


def of_voice(data: Path) -> Path:
    """What the head of voice_higgs_3b.yaml says that DATA must hold."""
    voices.write(data / "voice", lines=True, takes=range(2)).rename(data / "voice" / "train.jsonl")
    return data


def of_base(folder: Path) -> Path:
    """A tiny Higgs Audio v2, and in `codec` a codec of its books."""
    voices.saved(folder)
    voices.codec(folder / "codec")
    return folder


def of_pack(data: Path) -> Path:
    """The pack of real data that real_cpu.yaml and vlm_cpu.yaml name by MUOMNI_DATA."""
    for name in ("alice", "shakespeare", "librispeech_books"):
        texts(data / "text" / f"{name}.txt", 30)
    jsonl(
        data / "text" / "gsm8k.jsonl",
        [{"question": f"{n} and {n}?", "answer": f"{2 * n}"} for n in range(20)],
    )
    digits = []
    for n in range(ROWS):
        word, speaker = DIGITS[n % 10], ("fsdd_theo", "fsdd_jackson", "fsdd_lucas")[n % 3]
        sound = speech(data, f"digits/{n}.wav", word, n % 3)
        row = {
            "id": f"d{n}",
            "audio": sound,
            "image": picture(data, f"digits/{n}.png", n),
            "text": word,
            "digit": n % 10,
        }
        digits.append({**row, "speaker": speaker})
    jsonl(data / "digits.jsonl", digits)
    said = [
        {
            "id": f"s{n}",
            "path": speech(data, f"speech/{n}.wav", PHRASES[n % 6], 50 + n),
            "text": PHRASES[n % 6],
        }
        for n in range(ROWS)
    ]
    jsonl(
        data / "speech.jsonl",
        [
            {**row, "speaker": f"v{n % 3}", "lang": "en" if n % 6 else "de", "set": "libri_phrases"}
            for n, row in enumerate(said)
        ],
    )
    kinds = ("rose", "tulip", "daisy", "dandelion")
    shown = [
        {"id": f"f{n}", "path": picture(data, f"flowers/{n}.png", 200 + n), "label": kinds[n % 4]}
        for n in range(ROWS)
    ]
    jsonl(data / "flowers.jsonl", [{**row, "caption": f"a photo of a {row['label']}"} for row in shown])
    drawn = [
        {
            "id": f"e{n}",
            "path": picture(data, f"emoji/{n}.png", 300 + n),
            "name": f"face {n}",
            "group": kinds[n % 3],
        }
        for n in range(ROWS)
    ]
    jsonl(data / "emoji.jsonl", [{**row, "caption": f"a face {n}"} for n, row in enumerate(drawn)])
    photos = [
        {
            "id": f"c{n}",
            "path": picture(data, f"coco/{n}.png", 400 + n),
            "captions": [f"a dog {n}", f"a cat {n}"],
        }
        for n in range(12)
    ]
    jsonl(data / "captions.jsonl", photos)
    asked = [
        {
            "image_id": f"c{n % 12}",
            "image": f"coco/{n % 12}.png",
            "question": f"is there a dog {n}?",
            "answer": "yes",
        }
        for n in range(ROWS)
    ]
    jsonl(data / "vqa.jsonl", asked)
    return data


def of_voices(data: Path) -> Path:
    """The pack, and `rows/` beside it, as the commands in the head of voice_tiny.yaml write them."""
    of_pack(data)
    head = (recipes.SHIPPED / "voice_tiny.yaml").read_text().split("name: voice_tiny")[0]
    said = " ".join(line.lstrip("# ") for line in head.splitlines())
    for command in said.split("muomni data chatml ")[1:]:
        asked = command.split(" muomni ")[0].split(" MUOMNI_DATA=")[0].replace("$D/", f"{data}/")
        assert cli._exit_code(["data", "chatml", *shlex.split(asked.replace("rows/", f"{data}/rows/"))]) == 0
    return data


def cut(recipe: str, out: Path) -> list[str]:
    """Overrides that leave a recipe its paths, its sources and its kind of everything, and make it small."""
    small = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32}
    stages = recipes.read(recipe, out=out).stages
    omni: Any = stages.get("omni") or stages.get("align")
    read = omni and getattr(omni.settings, "projectors", omni.settings)
    levels = getattr(read, "feature_layers", ()) or (1,)
    models: dict[str, dict[str, Any]] = {
        "thinker": {"vocab_size": 500, "width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "ffn_width": 48},
        "hearing": {**small, "channels": 4},
        "vision": {**small, "layers": max(levels), "embed_dim": 8},
        "codec": {
            "codebook_size": 8,
            "width": 16,
            "latent_width": 4,
            "blocks": 1,
            "fine_width": 8,
            "fine_blocks": 1,
        },
        "image_codec": {"width": 16, "fine_width": 8},
        "talker": {**small, "text_vocab": 1, "guard_frames_per_token": 2},
        "voice_base": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn_width": 32},
    }
    common = {
        "batch_size": 4,
        "max_steps": STEPS,
        "warmup_steps": 1,
        "val_freq": STEPS,
        "checkpoint_freq": STEPS,
        "num_workers": 0,
    }
    common |= {"print_freq": 1, "precision": "fp32", "threads": 1}
    seeing = {
        "connector.width": 16,
        "connector.heads": 2,
        "connector.depth": 1,
        "connector.tokens": 4,
        "watched_items": 2,
        "max_new_tokens": 4,
    }
    own: dict[str, dict[str, Any]] = {
        "vision": {
            "text.width": 16,
            "text.layers": 1,
            "text.heads": 2,
            "text.ffn_width": 32,
            "text.embed_dim": 8,
            "vocab_size": 400,
        },
        "codec": {"crop_frames": 64, "quantise_after": 1},
        "align": seeing,
        "sweep": {"grid": {"lr": [1e-3]}},
        "instruct": {"watched_items": 2, "max_new_tokens": 4, "lora.r": 2, "lora.alpha": 4},
        "mmpt": {"ramp_steps": 1},
        "voice": {"lora.r": 2, "lora.alpha": 4, "max_seq_len": 512},
    }
    found = ["device=cpu", "jobs=1", "threads=1", "scoreboard=false"]
    for name, entry in stages.items():
        settings = entry.settings
        if entry.may_be_red:
            continue
        values = {
            **common,
            **{f"model.{key}": value for key, value in models.get(name, {}).items()},
            **own.get(name, {}),
        }
        if "eval_items" not in settings.idle():
            values["eval_items"] = 4
        if settings.gradient_accumulation_steps > 1:
            values["gradient_accumulation_steps"] = 2
        if settings.epoch_duration is not None:
            # A probe of an hour's updates is a test of its own; a hundredth of so few rows would be none.
            values |= {"epoch_duration": None, "val_split": 0.25}
        if name == "mmpt" and settings.lora is not None:  # type: ignore[attr-defined]
            values |= {"lora.r": 2, "lora.alpha": 4}
        if settings.max_epochs is not None:
            values["max_epochs"] = None
        if hasattr(settings, "row_len"):
            values["row_len"] = 64
        if name == "vision" and settings.model.image_size > 112:  # type: ignore[attr-defined]
            values["model.image_size"] = 112
        found += [f"{name}.{key}={json.dumps(value)}" for key, value in values.items()]
    return found


# --- a source of each format --------------------------------------------------------------------------------------------------------------


def _heard(folder: Path, *, is_wav_first: bool) -> None:
    cells = [(speech(folder, f"{n}.wav", PHRASES[n % 6], n), PHRASES[n % 6]) for n in range(ROWS // 2)]
    rows = [",".join(pair if is_wav_first else pair[::-1]) for pair in cells]
    (folder / "m.csv").write_text("\n".join(["wav,text" if is_wav_first else "text,wav", *rows]) + "\n")


def _instructions(folder: Path) -> None:
    rows = [
        {"instruction": f"say it again, {n}", "input": PHRASES[n % 6], "output": f"{PHRASES[n % 6]}, {n}"}
        for n in range(ROWS // 2)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.json").write_text(json.dumps(rows))


def _cuts(folder: Path) -> None:
    rows = []
    for n in range(ROWS // 2):
        name = speech(folder, f"{n}.wav", PHRASES[n % 6], n)
        length_s = soundfile.info(folder / name).duration
        known = {"start": 0.0, "duration": length_s, "channel": 0}
        sources = [{"type": "file", "channels": [0], "source": name}]
        said = {
            "id": f"s{n}",
            "recording_id": f"r{n}",
            **known,
            "text": PHRASES[n % 6],
            "speaker": f"p{n % 5}",
        }
        recording = {"id": f"r{n}", "sources": sources, "sampling_rate": 16000, "duration": length_s}
        rows.append(
            {"id": f"c{n}", **known, "supervisions": [said], "recording": recording, "type": "MonoCut"}
        )
    jsonl(folder / "cuts.jsonl", rows)


def _shown(folder: Path, *, is_table: bool) -> None:
    rows = [
        {"image": picture(folder, f"{n}.png", n), "caption": f"{PHRASES[n % 6]} {n}"}
        for n in range(ROWS // 2)
    ]
    if is_table:
        (folder / "m.csv").write_text(
            "\n".join(["image,text", *(f"{row['image']},{row['caption']}" for row in rows)]) + "\n"
        )
    else:
        (folder / "m.json").write_text(json.dumps(rows))


def _classes(folder: Path) -> None:
    for n in range(ROWS // 2):
        picture(folder / ("a_rose", "a_tulip", "a_daisy")[n % 3], f"{n}.png", n)


def _ljspeech(folder: Path) -> None:
    names = [f"LJ{1 + n // 3:03d}-{1 + n % 3:04d}" for n in range(ROWS // 2)]
    for n, name in enumerate(names):
        speech(folder, f"wavs/{name}.wav", PHRASES[n % 6], 7 + n)
    (folder / "metadata.csv").write_text(
        "".join(f"{name}|{PHRASES[n % 6]}|{PHRASES[n % 6]}\n" for n, name in enumerate(names))
    )


def _librispeech(folder: Path) -> None:
    for speaker in range(1, 5):
        inside, lines = folder / "train-clean-100" / str(speaker) / "10", []
        for n in range(3):
            name = f"{speaker}-10-{n:04d}"
            speech(inside, f"{name}.flac", PHRASES[n], speaker)
            lines.append(f"{name} {PHRASES[n].upper()}\n")
        (inside / f"{speaker}-10.trans.txt").write_text("".join(lines))


def _sounds(folder: Path) -> None:
    """As Hugging Face's audiofolder has it: a table in the folder of each split."""
    for side, numbers in (("train", range(ROWS // 2)), ("test", range(ROWS // 2, ROWS // 2 + 3))):
        lines = ["file_name,transcription"]
        lines += [f"{speech(folder / side, f'{n}.wav', PHRASES[n % 6], n)},{PHRASES[n % 6]}" for n in numbers]
        (folder / side / "metadata.csv").write_text("\n".join(lines) + "\n")


def _vctk(folder: Path) -> None:
    for speaker in range(225, 229):
        for n in range(3):
            name = f"p{speaker}_{n + 1:03d}"
            speech(folder / "wav48_silence_trimmed" / f"p{speaker}", f"{name}_mic1.flac", PHRASES[n], speaker)
            (folder / "txt" / f"p{speaker}").mkdir(parents=True, exist_ok=True)
            (folder / "txt" / f"p{speaker}" / f"{name}.txt").write_text(f"{PHRASES[n]}\n")


def _higgs(folder: Path) -> None:
    rows = []
    for speaker in range(4):
        for n in range(3):
            name = f"voice{speaker}_{n:06d}"
            speech(folder, f"{name}.wav", PHRASES[n], speaker)
            (folder / f"{name}.txt").write_text(f"{PHRASES[n]}\n")
            rows.append({"id": name, "audio_file": f"{name}.wav", "transcript_file": f"{name}.txt",
                         "duration": 1.0, "speaker_id": f"voice{speaker}", "scene": "quiet_room"})  # fmt: skip
    (folder / "metadata.json").write_text(
        json.dumps({"dataset_info": {"total_samples": 12}, "samples": rows})
    )


LLAVA = {"path": "llava_pretrain/blip_laion_cc_sbu_558k.json", "root": "llava_pretrain/images"}
SOURCES: dict[
    str, tuple[Callable[[Path], Any], dict[str, str]]
] = {  # what writes a folder, and the source in it
    "text": (lambda folder: texts(folder / "m.txt", 40), {"path": "m.txt"}),
    "asr_csv": (lambda folder: _heard(folder, is_wav_first=True), {"path": "m.csv"}),
    "tts_csv": (lambda folder: _heard(folder, is_wav_first=False), {"path": "m.csv"}),
    "ocr_csv": (lambda folder: _shown(folder, is_table=True), {"path": "m.csv"}),
    "captions": (lambda folder: _shown(folder, is_table=False), {"path": "m.json"}),
    "images": (_classes, {"path": "."}),
    "sounds": (_sounds, {"path": "."}),
    "llava": (of_llava, LLAVA),
    "alpaca": (_instructions, {"path": "m.json"}),
    "lhotse": (_cuts, {"path": "cuts.jsonl"}),
    "ljspeech": (_ljspeech, {"path": "."}),
    "librispeech": (_librispeech, {"path": "."}),
    "vctk": (_vctk, {"path": "."}),
    "higgs": (_higgs, {"path": "."}),
}
