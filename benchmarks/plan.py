"""How far `muomni plan` is off: `python -m benchmarks.plan [--world DIR] [--large] [--json]`.

For each stage the estimated and the measured peak memory, each in processes of their own. Measured is what
the operating system says of a real `muomni run` of the stage (its largest resident size), from its imports to
its certificate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from muomni.evaluate import thresholds
from muomni.execution import recipe as recipes

STEPS = 40  # enough for the largest batch of an epoch of the tiny world to come
BOUND = 0.20


def recipe(world: Path, *, large: bool) -> dict[str, Any]:
    """The quickstart's networks on the tiny world, or larger batches and networks; bounds that untrained
    networks meet."""
    common = {
        "max_steps": STEPS,
        "warmup_steps": 2,
        "val_freq": 20,
        "checkpoint_freq": 20,
        "quarantine_limit": 0.5,
    }

    def data(*names: str) -> list[dict[str, Any]]:
        return [{"path": str(world / f"{name}.jsonl")} for name in names]

    stages: dict[str, Any] = {
        "thinker": {
            "data": data("text"),
            "model": {
                "vocab_size": 2048,
                "width": 256,
                "layers": 4,
                "heads": 4,
                "ffn_width": 1024,
                "ctx_len": 512,
                "dropout": 0.0,
            },
            "row_len": 128,
            "batch_size": 16,
            "gates": {"floor": 9.0, "held_out_gap": 9.0},
        },
        "hearing": {
            "data": data("transcripts", "digits"),
            "optimizer": "muon",
            "batch_size": 32,
            "gates": {"cer": 9.0, "refused": 1.0},
        },
        "vision": {
            "data": data("captions"),
            "probe_data": data("probe"),
            "model": {"image_size": 112, "patch_size": 16, "stem": "conv"},
            "precision": "bf16",
            "word_loss_weight": 4.4,
            "num_negatives": 2,
            "batch_size": 48,
            "optimizer": "muon",
            "gates": {"retrieval": -1.0},
        },
        "codec": {
            "data": data("speak"),
            "precision": "fp32",
            "batch_size": 32,
            "gates": {"round_trip": 9.0, "usage": 0.0},
        },
        "talker": {
            "data": data("speak"),
            "batch_size": 16,
            "eval_items": 8,
            "gates": {"text_matters": -9.0, "own_cer": 99.0, "stops": 0.0},
        },
        "omni": {
            "data": [*data("questions", "spoken_questions", "digits"), {**data("text")[0], "weight": 0.2}],
            "projectors": {"pool_grid": 7, "feature_layers": [0, 4], "audio_pool": 2},
            "separate_questions": True,
            "batch_size": 16,
            "eval_items": 8,
            "optimizer": "muon",
            "gates": {
                "image_swap_gap": -9.0,
                "image_swap_wins": 0.0,
                "audio_swap_gap": -9.0,
                "audio_swap_wins": 0.0,
                "forgetting": 99.0,
            },
        },
    }
    if large:
        # ten times the activations, or the weights
        stages["thinker"].update(row_len=512, batch_size=12)
        stages["thinker"]["model"].update(width=768, layers=8, heads=12, ffn_width=3072, dropout=0.1)
        stages["hearing"].update(
            batch_size=128,
            optimizer="adamw",
            model={"width": 384, "heads": 6, "ffn_width": 1536, "dropout": 0.1},
        )
        stages["vision"].update(batch_size=32, gradient_accumulation_steps=2, optimizer="adamw")
        stages["vision"]["model"] = {
            "image_size": 224,
            "patch_size": 16,
            "width": 256,
            "layers": 6,
            "heads": 4,
            "ffn_width": 1024,
        }
        stages["codec"].update(batch_size=256, model={"width": 512, "fine_width": 192})
        stages["talker"].update(
            batch_size=64, model={"text_vocab": 1, "width": 384, "heads": 6, "ffn_width": 1536, "layers": 6}
        )
        stages["omni"].update(batch_size=32)
    stages = {name: {**common, **settings} for name, settings in stages.items()}
    if large:
        for settings in stages.values():
            settings.update(max_steps=8, val_freq=4, checkpoint_freq=4)
    return {"name": "plan", "seed": 3, "threads": 1, "device": "cpu", **stages}


def measured(path: Path, stage: str, out: Path) -> tuple[float, float]:
    """Largest resident size of a real run of a stage, in bytes: when its last update was logged, and at its
    end."""
    command = [sys.executable, "-m", "muomni", "run", str(path), stage, "--out", str(out)]
    for gate in (
        *thresholds.SOUND,
        *recipes.stage(stage).gates,
    ):  # forty updates prove nothing, and the next stage shall begin all the same
        command += ["--waive", gate.name]
    command += ["--reason", "a measure of memory"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):
        raise RuntimeError(told[-2000:])
    rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
    return max(row.get("peak_memory_mb", 0.0) for row in rows) * 1e6, usage.ru_maxrss * 1024


def compare(world: Path, *, large: bool, stages: list[str]) -> list[dict[str, Any]]:
    """Estimate and measurement of each stage."""
    from muomni.execution import recipe as recipes
    from muomni.planning import forecast
    from muomni.stages import registry

    found = []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(world, large=large), sort_keys=False))
        out = Path(temporary) / "run"
        needed = {other for stage in stages for other in recipes.stage(stage).needs}
        for stage in registry.OURS:
            if stage in stages:
                planned = forecast.plan(str(path), stages=[stage], out=out, probe=0)["stages"][0]
            if stage in stages or stage in needed:
                training, whole = measured(path, stage, out)
            if stage not in stages:
                continue
            estimate = planned["memory"]["process"]
            row = {
                "stage": stage,
                "large": large,
                "estimate": estimate,
                "training": training,
                "measured": whole,
            }
            found.append({**row, "ratio": estimate / whole, "memory": planned["memory"]})
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Compare, print a table or JSON, and fail where an estimate is off by more than a fifth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*")
    parser.add_argument(
        "--world", type=Path, help="a tiny world (muomni data world --size tiny); made if left out"
    )
    parser.add_argument("--large", action="store_true", help="larger networks and batches")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    stages = given.stages or ["thinker", "hearing", "vision", "codec", "talker", "omni"]
    with tempfile.TemporaryDirectory() as temporary:
        world = given.world
        if world is None:
            from muomni.data.world.build import build

            world = Path(temporary)
            build(world, seed=1, size="tiny")
        found = compare(world.resolve(), large=given.large, stages=stages)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{'stage':10}{'estimate':>10}{'measured':>10}{'ratio':>8}   (MB; measured while training)")
        for row in found:
            mb = [row[key] / 1e6 for key in ("estimate", "measured", "training")]
            print(f"{row['stage']:10}{mb[0]:10.0f}{mb[1]:10.0f}{row['ratio']:8.2f}   ({mb[2]:.0f})")
    if any(abs(row["ratio"] - 1) > BOUND for row in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
