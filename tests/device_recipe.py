"""Every stage at a size of seconds, on the self-test's world: the run that is made on a second device,
imitated or real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from muomni.evaluate import thresholds
from muomni.execution import recipe as recipes
from muomni.selftest import world

STEPS = 4
NEEDS: dict[str, tuple[str, ...]] = {  # what a stage stands on here, in order
    "thinker": (),
    "hearing": (),
    "vision": ("thinker",),
    "codec": (),
    "image_codec": (),
    "talker": ("thinker", "hearing", "codec"),
    "omni": ("thinker", "hearing", "vision"),
    "align": ("thinker", "vision"),
    "sweep": ("thinker", "vision"),
    "instruct": ("thinker", "vision", "align"),
    "rows": ("thinker", "image_codec", "codec"),
    "mmpt": ("thinker", "image_codec", "codec", "rows"),
}
ORDER = (
    "thinker",
    "hearing",
    "vision",
    "codec",
    "image_codec",
    "talker",
    "omni",
    "align",
    "sweep",
    "instruct",
    "rows",
    "mmpt",
)


def recipe(folder: Path) -> dict[str, Any]:
    """All stages; the data are written into the folder."""
    data = folder / "world"
    world.build(data)
    common = {
        "batch_size": 4,
        "max_steps": STEPS,
        "warmup_steps": 1,
        "checkpoint_freq": 2,
        "val_freq": 3,
        "print_freq": 1,
        "val_split": 0.25,
        "use_amp": False,
    }
    small = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32}

    def of(*names: str) -> list[dict[str, Any]]:
        return [{"path": str(data / f"{name}.jsonl")} for name in names]

    seeing = {
        **common,
        "eval_items": 6,
        "watched_items": 2,
        "max_new_tokens": 4,
        "max_seq_len": 96,
        "regression_texts": of("text"),
    }
    tasks = {"i2t": 1.0, "a2t": 1.0, "t2i": 0.5, "t2a": 0.5}
    return {
        "seed": 3,
        "threads": 1,
        "device": "cuda",
        "thinker": {
            **common,
            "data": of("text"),
            "model": {
                "vocab_size": 330,
                "width": 32,
                "layers": 2,
                "heads": 2,
                "ffn_width": 64,
                "ctx_len": 128,
                "dropout": 0.1,
            },
            "row_len": 96,
            "ema_decay": 0.8,
            "final": "best",
        },
        "hearing": {
            **common,
            "data": of("speech"),
            "model": {**small, "channels": 4},
            "optimizer": "muon",
            "quarantine_limit": 0.5,
        },
        "vision": {
            **common,
            "data": of("captions"),
            "model": {**small, "image_size": 32, "patch_size": 8, "stem": "conv", "embed_dim": 8},
            "text": {"kind": "thinker", "embed_dim": 8},
            "word_loss_weight": 0.1,
            "gradient_accumulation_steps": 2,
        },
        "codec": {
            **common,
            "data": of("speech"),
            "model": {
                "codebook_size": 8,
                "width": 16,
                "latent_width": 4,
                "blocks": 1,
                "fine_width": 8,
                "fine_blocks": 1,
            },
            "crop_frames": 64,
            "quantise_after": 2,
        },
        "image_codec": {
            **common,
            "data": of("captions"),
            "model": {"image_size": 32, "width": 16, "fine_width": 8, "blocks": 1},
            "gradient_accumulation_steps": 2,
        },
        "talker": {
            **common,
            "data": of("speech"),
            "model": {**small, "text_vocab": 1, "guard_frames_per_token": 2},
            "eval_items": 2,
        },
        "omni": {
            **common,
            "data": [*of("questions", "speech"), {**of("text")[0], "weight": 0.2}],
            "projectors": {"pool_grid": 2},
            "separate_questions": True,
            "max_audio_tokens": 64,
            "eval_items": 6,
            "quarantine_limit": 0.5,
        },
        "align": {
            **seeing,
            "data": of("captions"),
            "connector": {
                "tokens": 4,
                "width": 16,
                "heads": 2,
                "depth": 1,
                "mlp_ratio": 1.0,
                "vision_ln": "trained",
            },
            "lr": 1e-3,
        },
        "sweep": {"grid": {"lr": [1e-3]}},
        "instruct": {
            **seeing,
            "data": of("questions"),
            "regression_texts": [],  # measured on what stage thinker held out
            "connector": "align",
            "lora": {"r": 2, "alpha": 4, "dropout": 0.05},
            "gradient_checkpointing": True,
        },
        "rows": {
            **common,
            "data": of("captions", "speech"),
            "eval_items": 4,
            "quarantine_limit": 0.5,
            "tasks": tasks,
            "lr": 1e-2,
        },
        "mmpt": {
            **common,
            "data": of("captions", "speech"),
            "eval_items": 4,
            "quarantine_limit": 0.5,
            "tasks": {**tasks, "text": 0.5},
            "replay": of("text"),
            "ramp_steps": 2,
            "lora": {"r": 2, "alpha": 4, "dropout": 0.05},
        },
    }


def read(path: Path) -> dict[str, Any]:
    """A recipe that was written."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def write(path: Path, content: dict[str, Any]) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def learned(stage: str) -> list[str]:
    """The gates on what a stage has learned, which so few steps can't pass; structure keeps its own."""
    every = (*thresholds.SOUND, *recipes.stage(stage).gates)
    return [gate.name for gate in every if gate.name not in thresholds.STRUCTURE or gate.name == "overfits"]
