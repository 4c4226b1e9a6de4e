"""The whole curriculum at a size that trains in seconds, and a run that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import yaml

STEPS = 6
ABLATION = ("swap_gap", "swap_share", "swap_sure", "swap_wins", "zero_sure", "noise_sure", "pairs")
READING = {
    f"{task}_{gate}": -9.0 for task in ("i2t", "a2t") for gate in ("swap_gap", "swap_wins", "noise_wins")
}
WRITING = {
    f"{task}_{gate}": -9.0 for task in ("t2i", "t2a") for gate in ("swap_wins", "swap_sure", "empty_wins")
}
STAGES = ("thinker", "hearing", "vision", "codec", "image_codec", "rows", "mmpt", "talker", "omni")


def recipe(world: Path) -> dict[str, Any]:
    """All stages of one network on a tiny toy world; bounds that six updates can meet."""
    common = {
        "batch_size": 4,
        "max_steps": STEPS,
        "warmup_steps": 2,
        "checkpoint_freq": 2,
        "val_freq": 3,
        "print_freq": 1,
    }

    def data(*names: str) -> list[dict[str, Any]]:
        return [{"path": str(world / f"{name}.jsonl")} for name in names]

    small = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32}
    return {
        "seed": 3,
        "threads": 1,
        "device": "cpu",
        "thinker": {
            **common,
            "data": data("text"),
            "tokenizer_data": data("questions", "speak", "transcripts"),
            "model": {
                "vocab_size": 700,
                "width": 32,
                "layers": 2,
                "heads": 2,
                "ffn_width": 64,
                "ctx_len": 256,
                "dropout": 0.1,
            },
            "row_len": 128,
            "ema_decay": 0.8,
            "gates": {"overfits": 9.0, "floor": 9.0, "held_out_gap": 9.0},
        },
        "hearing": {
            **common,
            "data": data("transcripts", "digits"),
            "model": {**small, "channels": 4},
            "augment": {"time_masks": 1, "gain_db": [-3.0, 3.0]},
            "optimizer": "muon",
            "num_workers": 2,
            "quarantine_limit": 0.5,
            "gates": {"overfits": 9.0, "cer": 9.0},
        },
        "vision": {
            **common,
            "data": data("captions"),
            "probe_data": data("probe"),
            "model": {**small, "image_size": 112, "patch_size": 16, "embed_dim": 8, "stem": "conv"},
            "text": {**small, "kind": "transformer", "embed_dim": 8},
            "vocab_size": 400,
            "num_negatives": 2,
            "augment": {"shift": 2},
            "gradient_accumulation_steps": 2,
            "gates": {"overfits": 9.0, "retrieval": -1.0, "changed": -1.0, "probes": -1.0},
        },
        "codec": {
            **common,
            "data": data("speak"),
            "model": {
                "codebook_size": 8,
                "width": 16,
                "latent_width": 4,
                "blocks": 1,
                "fine_width": 8,
                "fine_blocks": 1,
            },
            "crop_frames": 64,
            "quantise_after": 3,
            "gates": {"overfits": 9.0, "round_trip": 9.0, "usage": 0.0},
        },
        "image_codec": {
            **common,
            "data": data("captions", "probe"),
            "checked_tasks": ["probe"],
            "model": {"image_size": 64, "width": 16, "fine_width": 8},
            "augment": {"shift": 2},
            "eval_items": 16,
            "gates": {
                "overfits": 9.0,
                "round_trip": -99.0,
                "structure": -9.0,
                "codes_used": 0.0,
                "entropy": 0.0,
                "colour_kept": 0.0,
                "shape_kept": 0.0,
            },
        },
        "rows": {
            **common,
            "data": data("captions", "speak"),
            "tasks": {"i2t": 1.0, "a2t": 1.0, "t2i": 0.2, "t2a": 0.2},
            "eval_items": 8,
            "gates": {"overfits": 9.0, **READING, "head_learns": 9.0, "text_kept": 9.0},
        },
        "mmpt": {
            **common,
            "data": data("captions", "speak", "probe"),
            "tasks": {"i2t": 0.5, "a2t": 0.5, "t2i": 1.0, "t2a": 1.0, "text": 0.5},
            "replay": data("text"),
            "ramp_steps": 2,
            "checked_tasks": ["probe"],
            "judge": "hearing",
            "spoken_tasks": ["speak"],
            "eval_items": 8,
            "gates": {
                "overfits": 9.0,
                **READING,
                **WRITING,
                "text_kept": 9.0,
                "reading_kept": 9.0,
                "drawn_right": 0.0,
                "spoken_right": 0.0,
            },
        },
        "talker": {
            **common,
            "data": data("speak"),
            "model": {**small, "text_vocab": 1},
            "eval_items": 4,
            "gates": {
                "text_matters": -9.0,
                "text_sure": -9.0,
                "text_wins": 0.0,
                "own_cer": 99.0,
                "own_cer_cost": 99.0,
                "stops": 0.0,
                "ends": 0.0,
            },
        },
        "omni": {
            **common,
            "data": [*data("questions", "spoken_questions", "digits"), {**data("text")[0], "weight": 0.2}],
            "projectors": {"pool_grid": 2, "audio_pool": 2},
            "separate_questions": True,
            "optimizer": "muon",
            "max_audio_tokens": 128,
            "eval_items": 8,
            "gates": {
                "overfits": 9.0,
                **{f"{kind}_{gate}": -9.0 for kind in ("image", "audio") for gate in ABLATION},
                "forgetting": 99.0,
            },
        },
    }


def write(path: Path, content: dict[str, Any]) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def die(recipe: str, out: Path, stage: str, at: int) -> None:
    """Run one stage in a process of its own, which is killed by -9 in update `at`."""
    from muomni.execution import runner
    from muomni.train import loop

    update, count = loop.update, 0

    def dies(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*args, **more)

    loop.update = dies
    runner.run(recipe, stages=[stage], out=out)
