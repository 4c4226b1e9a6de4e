"""A tiny Qwen3 and SigLIP learn to see: LLaVA's two files over real photos where there are any, and a recipe
of seconds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tiny_recipe import ABLATION

import qwen

STEPS = 6
LIFTED = {
    "overfits": 9.0,
    "held_out_gap": 9.0,
    "names": -9.0,
    **{f"image_{gate}": -99.0 for gate in ABLATION},
}
SYSTEM = "you are a helpful assistant. "


def photos(folder: Path, count: int = 40) -> list[str]:
    """Names of `count` pictures in a folder, real ones where MUOMNI_DATA has them."""
    folder.mkdir(parents=True)
    real = sorted((Path(os.environ.get("MUOMNI_DATA", "nowhere")) / "coco").glob("*.jpg"))[:count]
    rng = np.random.default_rng(4)
    for number in range(count):
        if number < len(real):
            (folder / real[number].name).symlink_to(real[number])
        else:
            pixels = np.kron(
                rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((16, 16, 1), dtype=np.uint8)
            )
            Image.fromarray(pixels).save(folder / f"{number:012d}.jpg")
    return sorted(path.name for path in folder.iterdir())


def llava(folder: Path) -> tuple[Path, Path]:
    """blip_laion_cc_sbu_558k.json and llava_instruct_150k.json, in the shapes and layouts of the real ones,
    and their pictures."""
    names = photos(folder / "train2017")
    words = [
        "a kite",
        "a man on a wave and two dogs run along the beach",
        "a child is flying a kite near a street sign" + " in the park" * 5,
    ]
    captions, talks = [], []
    for number, name in enumerate(names):
        said = f"{words[number % 3]} {number}"
        place = (
            "<image>\nprovide a brief description of the given image.",
            "describe the image concisely.\n<image>",
        )[number % 2]
        turns = [{"from": "human", "value": place}, {"from": "gpt", "value": said}]
        captions.append({"id": f"{number:09d}", "image": f"train2017/{name}", "conversations": turns})
        more = [
            {"from": "human", "value": "what else?"},
            {"from": "gpt", "value": f"a street sign {number}"},
        ] * (number % 3)
        talks.append({"id": name[:-4], "image": name, "conversations": [*turns, *more]})
    paths = folder / "blip_laion_cc_sbu_558k.json", folder / "llava_instruct_150k.json"
    for path, rows in zip(paths, (captions, talks), strict=True):
        path.write_text(json.dumps(rows))
    return paths


def texts(folder: Path) -> Path:
    """Texts that the language model is told by."""
    path = folder / "texts.txt"
    path.write_text("\n".join(f"a street sign near the park number {number}" for number in range(24)))
    return path


WORDS = 1_200  # of the vocabulary, before the added tokens


def recipe(folder: Path, kind: str = "siglip2", dtype: str = "fp32", words: int = WORDS) -> dict[str, Any]:
    """Align and instruct, over a language model and eyes that are written into the folder too."""
    folder.mkdir(parents=True, exist_ok=True)
    pretrain, instruct = llava(folder / "data")
    shard = "5GB" if dtype == "fp32" else "60KB"
    qwen.llm(folder / "qwen3", dtype=dtype, tied=dtype == "fp32", shard=shard, words=words)
    qwen.eyes(folder / "eyes", kind)
    common = {
        "batch_size": 4,
        "max_steps": STEPS,
        "warmup_steps": 2,
        "checkpoint_freq": 2,
        "val_freq": 3,
        "print_freq": 1,
        "val_split": 0.25,
        "eval_items": 6,
        "watched_items": 4,
        "max_new_tokens": 6,
        "regression_texts": [{"path": str(texts(folder / "data"))}],
        "gates": {**LIFTED, "language": 99.0},
    }
    return {
        "seed": 3,
        "threads": 1,
        "device": "cpu",
        "align": {
            **common,
            "data": [{"path": str(pretrain), "format": "llava"}],
            "llm": str(folder / "qwen3"),
            "vision_tower": str(folder / "eyes"),
            "connector": {"tokens": 4, "width": 16, "heads": 2, "depth": 1, "mlp_ratio": 1.0},
            "max_seq_len": 192,
            "lr": 1e-3,
        },
        "instruct": {
            **common,
            "data": [{"path": str(instruct), "format": "llava", "root": str(folder / "data" / "train2017")}],
            "connector": "align",
            "max_seq_len": 384,
            "lora": {"r": 2, "alpha": 4, "dropout": 0.05},
            "gradient_checkpointing": True,
        },
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
