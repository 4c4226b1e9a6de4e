"""A run folder made by hand: every kind of file and sample that a page shows, with hostile texts wherever
texts come from data."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from muomni import files
from muomni.evaluate.samples import Picture, Sound, StageSamples
from muomni.runtime import Runtime
from muomni.train import flops
from muomni.train.flops import UpdateFlops
from muomni.train.meter import Meter
from muomni.train.objective import Objective
from muomni.units import CONTENTS

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert('2')">&amp;'"\\"""


def fact(
    value: float | None,
    n: int | None = None,
    ci: tuple[float, float] | None = None,
    floor: float | None = None,
) -> dict[str, Any]:
    return {"value": value, "n": n, "ci": ci, "floor": floor}


def gate(name: str, verdict: str, value: float | None, threshold: str, why: str = "") -> dict[str, Any]:
    return {"name": name, "verdict": verdict, "value": value, "threshold": threshold, "why": why}


def certificate(stage: str, facts: dict[str, Any], gates: list[dict[str, Any]]) -> dict[str, Any]:
    verdicts = {each["verdict"] for each in gates}
    verdict = "red" if "red" in verdicts else "waived" if "waived" in verdicts else "green"
    common = {"steps": fact(30), "parameters": fact(4_300_000), "wall_s": fact(75.0), "finite": fact(1.0)}
    return {
        "stage": stage,
        "verdict": verdict,
        "facts": {**common, **facts},
        "gates": [gate("finite", "green", 1.0, ">= 1"), *gates],
        "weights": "ab" * 32,
        "data": "cd" * 32,
        "settings": "ef" * 32,
        "code": "0.1.0",
        "machine": {"torch": "2.13", "threads": 1, "system": HOSTILE},
    }


class Holds(Objective):
    """Of every unit its place in the table, from 1; 100 FLOP a batch."""

    def contents(self, batch: Any) -> dict[str, float]:
        return {unit: float(place) for place, unit in enumerate(CONTENTS, 1)}

    def sizes(self, batch: Any) -> tuple[float, ...]:
        return (1.0,)


@functools.lru_cache
def speed() -> dict[str, float]:
    """What the real meter tells of an update of half a second that waited for as long: two of a unit a second
    for each in a batch."""
    reckoner = UpdateFlops()
    for _ in range(2):
        reckoner.add((1.0,), 100.0)
    ticks = iter((0.0, 0.25))
    with patch.object(flops, "peak", lambda run, again=False: 1000.0):
        meter = Meter(
            Holds(),
            Runtime(torch.device("cpu"), torch.float32),
            reckoner=reckoner,
            counts=False,
            clock=lambda: next(ticks),
        )
        with meter.update([None], 0.25):
            pass
        return meter.read()


def metrics(terms: tuple[str, ...], scale: float = 1.0) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, 31):
        row = {
            "step": step,
            "loss": scale * 5.0 / step,
            **dict.fromkeys(terms, scale * 2.0 / step),
            "lr": 1e-3,
            "grad_norm": float("nan") if step == 5 else 1.0 / step,
        }
        rows.append({**row, **speed()})
    return [
        *rows,
        {
            "step": 30,
            "val_loss": scale * 0.3,
            **{f"val_{term}": scale * 0.2 for term in terms},
            "val_text@<=64": 1.0,
        },
    ]


def wave() -> Sound:
    return Sound((0.4 * np.sin(np.arange(8000) / 9)).astype(np.float32), 16_000)


def picture() -> Picture:
    return Picture(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))


def stage(
    folder: Path, result: dict[str, Any], rows: list[dict[str, Any]], album: StageSamples | None = None
) -> None:
    files.write_json(folder / "certificate.json", result)
    files.write_text(
        folder / "config.yaml",
        f"max_steps: 30\nval_split: 0.1\ndata: [{{path: {json.dumps(HOSTILE)}, val_split: null}}]\n",
    )
    files.write_jsonl(folder / "metrics.jsonl", rows)
    account = [{"name": "a.b.weight", "shape": [2], "count": 9, "lr": 1e-3, "trains": True}]
    files.write_json(
        folder / "account.json",
        [*account, {"name": HOSTILE, "shape": [2], "count": 3, "lr": 0.0, "trains": False}],
    )
    files.write_jsonl(
        folder / "quarantine.jsonl", [{"path": "x", "row": 1, "reason": HOSTILE, "detail": HOSTILE}]
    )
    files.write_jsonl(
        folder / "skipped.jsonl", [{"step": 3, "reason": HOSTILE, "module": HOSTILE, "samples": []}]
    )
    if album is not None:
        album.write(folder / "samples")


def make(folder: Path, *, better: bool = False) -> Path:
    """A run of four stages: one green, one red, one waived, one unfinished."""
    good = 0.9 if better else 0.6
    files.write_json(
        folder / "recipe.json", {"recipe": f"/x/{HOSTILE}", "base": "/x", "device": "cpu", "threads": 1}
    )
    board = {
        "hearing.cer": 1 - good,
        "omni.vqa_exact": good,
        "omni.forgetting_bits_per_byte": 0.1,
        HOSTILE: None,
    }
    files.write_json(folder / "scoreboard.json", {"wall_s": 400.0, "metrics": board})

    album = StageSamples()
    row = {"id": HOSTILE, "task": HOSTILE, "why": "worst"}
    album.add("transcript", **row, truth="a red ring", guess=HOSTILE, greedy="x", error=0.5, audio=wave())
    album.add("transcript", **row, truth="one", guess="one", greedy="one", error=0.0, audio=wave())
    album.add(
        "confusion", task=HOSTILE, counts=[[HOSTILE, "one", 3], ["one", "one", 20], ["two", HOSTILE, 1]]
    )
    facts = {
        "cer": fact(1 - good, 300, (0.9 - good, 1.1 - good), 1.0),
        "digit_exact": fact(good, 250, (good - 0.1, 1.0), 0.1),
    }
    result = certificate(
        "hearing", facts, [gate("cer", "green" if better else "red", 1 - good, "<= 0.2", HOSTILE)]
    )
    stage(folder / "hearing", result, metrics(("ctc",), 0.5 if better else 1.0), album)

    album = StageSamples()
    maps = {"fits": [[0.1, 0.9], [0.2, 0.3]], "looks": [[0.1, 0.9], [0.2, 0.3]]}
    found = {
        "found": [[HOSTILE, 0.9], ["a star", 0.8]],
        "fooled": [{"kind": HOSTILE, "text": HOSTILE, "score": 0.9}],
        "changed": 2,
    }
    album.add(
        "picture", **row, picture=picture(), caption=HOSTILE, score=0.8, rank=2, among=9, **found, **maps
    )
    result = certificate(
        "vision",
        {"retrieval_r1": fact(0.4, 64, None, 0.02)},
        [gate("retrieval", "waived", 0.4, ">= 0.5", HOSTILE)],
    )
    stage(folder / "vision", result, metrics(("contrast", "words")), album)

    album = StageSamples()
    asked = {"question": HOSTILE, "truth": "red", "guess": HOSTILE, "asks": HOSTILE}
    album.add(
        "answer",
        **row,
        **asked,
        picture=picture(),
        audio=wave(),
        other_picture=picture(),
        other_guess=HOSTILE,
        looks=[[0.1, 0.2], [0.3, 0]],
    )
    album.add(
        "text", prompt=HOSTILE, truth=HOSTILE, continuation=HOSTILE, tokens=[[HOSTILE, 3.0], ["b", 0.1]]
    )
    spoken = {"text": HOSTILE, "heard": "b", "error": 1.0, "ended": False, "frames": 2, "true_frames": 3}
    album.add(
        "speech", why="best", **spoken, audio=wave(), pieces=[HOSTILE, "b"], looks=[[0.5, 0.5], [0.1, 0.9]]
    )
    album.add(
        "round_trip", **row, text=HOSTILE, error=0.1, codes=[[1, 2], [3, 4]], audio=wave(), rebuilt=wave()
    )
    album.add("codebooks", counts=[[5, 0, 3], [1, 1, 1]])
    album.add("answer", kind_of="another version")
    nats = {
        f"image_nats_{name}": fact(value, 40)
        for name, value in (("correct", 0.2), ("swapped", 2.0), ("zero", 1.5), ("noise", 1.4))
    }
    facts = {
        **nats,
        "image_swap_gap_nats": fact(1.8, 40, (1.5, 2.0)),
        "image_swap_win_rate": fact(0.9, 40, (0.8, 1.0), 0.5),
        "image_swap_win_rate_question": fact(0.9, 40, (0.8, 1.0), 0.5),
        "question_exact": fact(good, 40, (0.5, 0.7), 0.1),
        "question_exact_colour": fact(good, 10, (0.4, 0.8)),
        "text_bits_per_byte_before": fact(0.3),
        "text_bits_per_byte": fact(0.4),
        "forgetting_bits_per_byte": fact(0.1),
        "hearing_cer_after": fact(None),
    }
    missing = gate("audio_swap_gap", "waived", None, "audio_swap_gap_nats was not measured", HOSTILE)
    result = certificate("omni", facts, [gate("image_swap_gap", "green", 1.8, ">= 0.1"), missing])
    stage(folder / "omni", result, metrics(("text", "misses")), album)

    files.write_text(folder / "talker" / "config.yaml", "max_steps: 30\n")
    files.write_text(folder / "talker" / "metrics.jsonl", '{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
    return folder


def seeing_facts(scale: float, gap: float) -> dict[str, Any]:
    """What align and instruct measure; the worse, the larger the scale."""
    nats = {
        "correct": 0.9 * scale,
        "swapped": 0.9 * scale + gap,
        "zero": 1.2 * scale + gap,
        "noise": 1.3 * scale + gap,
    }
    return {
        "held_out_loss": fact(2.1 * scale, 256),
        **{f"image_nats_{name}": fact(value, 96) for name, value in nats.items()},
        "image_swap_gap_nats": fact(gap, 96, (gap - 0.15, gap + 0.15)),
        "image_swap_over_zero_nats": fact(-0.88, 96, (-1.1, -0.66)),
        "image_swap_over_noise_nats": fact(-1.26, 96),
        "image_zero_gap_nats": fact(gap + 0.1, 96, (gap - 0.05, gap + 0.25)),
        "image_noise_gap_nats": fact(gap + 0.2, 96, (gap + 0.1, gap + 0.3)),
        "image_swap_win_rate": fact(0.5 + gap / 2, 96, (0.4 + gap / 2, 0.6 + gap / 2), 0.5),
        "nats_short": fact(2.4 * scale, 85),
        "nats_medium": fact(2.0 * scale, 85),
        "nats_long": fact(1.8 * scale, 86),
        "caption_exact": fact(0.02, 256, (0.01, 0.05), 0.01),
        "caption_names": fact(0.62, 256, (0.56, 0.68), 0.21),
        "names_least": {**fact(0.35, 256), "note": "caption_names"},
        "truncated_share": {**fact(0.004, 2000, (0.002, 0.008)), "note": HOSTILE},
        "zero_label_rows": fact(0.0, 2000),
        "label_tokens_mean": fact(13.2, 2000),
        "label_coverage": fact(1.0, 4000),
        "taught_right": fact(1.0, 64),
        "ends_taught": fact(1.0, 64),
        "text_bits_per_byte_before": fact(1.21),
        "text_bits_per_byte": fact(1.21),
        "forgetting_bits_per_byte": fact(0.0),
    }


def watched(folder: Path, steps: tuple[int, ...]) -> None:
    """A golden set whose answers settle."""
    said = {
        "a": ["a a a", "a red bus", "a red bus"],
        "b": [HOSTILE, HOSTILE, "two dogs on the grass"],
        "c": ["a man", "a cat", "a dog"],
    }
    truth = {"a": "a red bus", "b": "two dogs on a lawn", "c": HOSTILE}
    prompt = [
        {
            "role": "user",
            "content": [{"type": "image", "path": "/nowhere.png"}, {"type": "text", "text": HOSTILE}],
        }
    ]
    for number, step in enumerate(steps):
        rows = [
            {
                "id": key,
                "bucket": 0,
                "prompt": prompt,
                "reference": truth[key],
                "prediction": texts[number],
                "hash": texts[number][:12],
            }
            for key, texts in said.items()
        ]
        files.write_jsonl(folder / "golden" / f"step_{step:06d}.jsonl", rows)


def answered() -> StageSamples:
    album = StageSamples()
    for truth, guess in (("a red bus", "a red bus"), ("two dogs", HOSTILE)):
        row = {
            "id": "x",
            "task": "caption",
            "why": "worst",
            "question": "what is in the picture?",
            "truth": truth,
            "guess": guess,
        }
        album.add(
            "answer",
            **row,
            picture=picture(),
            other_picture=picture(),
            other_guess="a plate of food and " * 12,
        )
    return album


def make_seeing(folder: Path) -> Path:
    """A run of align, sweep (one point wins, one does not look, one is cheaper and blind, one diverged) and
    instruct."""
    files.write_json(
        folder / "recipe.json", {"recipe": "/x/vlm.yaml", "base": "/x", "device": "cpu", "threads": 1}
    )
    files.write_text(folder / "thinker" / "config.yaml", "max_steps: 30\n")
    gap = gate("image_swap_sure", "green", 0.6, ">= 0")
    stage(
        folder / "align", certificate("align", seeing_facts(1.0, 0.7), [gap]), metrics(("text",)), answered()
    )
    watched(folder / "align", (10, 20, 30))
    rows = []
    grid = {
        "lr-0.0001_vision_ln-off": (1.0, 0.8),
        "lr-0.0001_vision_ln-trained": (1.05, 0.6),
        "lr-0.0002_vision_ln-off": (0.8, 0.05),
    }
    for name, (scale, gap_nats) in grid.items():
        looks = gap_nats > 0.15
        row = gate(
            "image_swap_sure",
            "green" if looks else "red",
            gap_nats - 0.15,
            ">= 0",
            "" if looks else "it does not look",
        )
        made = certificate(f"sweep/{name}", seeing_facts(scale, gap_nats), [row])
        stage(folder / "sweep" / name, made, metrics(("text",), scale), answered())
        told = {
            "loss": 2.1 * scale,
            "swap_gap": gap_nats,
            "swap_gap_low": gap_nats - 0.15,
            "zero_gap": gap_nats + 0.1,
            "noise_gap": None,
        }
        rows.append(
            {
                "point": name,
                "verdict": made["verdict"],
                **told,
                "win_rate": 0.8,
                "looks": looks,
                "wins": scale == 1.0,
            }
        )
    broken = {
        "loss": float("nan"),
        "swap_gap": float("nan"),
        "swap_gap_low": None,
        "zero_gap": None,
        "noise_gap": None,
        "win_rate": None,
    }
    rows.append({"point": HOSTILE, "verdict": HOSTILE, **broken, "looks": False, "wins": False})
    files.write_json(folder / "sweep" / "table.json", rows)
    facts = {**seeing_facts(1.0, 0.8), "eligible": fact(2.0, 4)}
    stage(folder / "sweep", certificate("sweep", facts, [gap, gate("winner", "green", 2.0, ">= 1")]), [])
    facts = {
        **seeing_facts(0.7, 1.1),
        "question_exact": fact(0.55, 200, (0.48, 0.62), 0.2),
        "question_exact_colour": fact(0.7, 90),
    }
    facts |= {
        "question_question_only": {**fact(0.31, 200, (0.25, 0.38)), "note": "by words"},
        "above_question_only": fact(0.24, 200, (0.2, 0.3)),
    }
    files.write_text(folder / "instruct" / "config.yaml", "connector: sweep\n")
    stage(
        folder / "instruct",
        certificate("instruct", facts, [gap, gate("above_question", "green", 0.2, ">= 0")]),
        metrics(("text",)),
        answered(),
    )
    watched(folder / "instruct", (10, 20, 30))
    return folder
