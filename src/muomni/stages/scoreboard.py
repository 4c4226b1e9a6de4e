"""The score board of a finished recipe: facts of its certificates under public names, and spoken questions to spoken answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muomni import files
from muomni.data import indexed, readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.errors import ConfigError
from muomni.evaluate import certificate, gates
from muomni.infer.engine import Engine
from muomni.stages.recipe import Recipe
from muomni.stages.stage import StageSettings

# name -> (stage, fact, least value or None, whether more is better). The least values are SPEC 7's; a recipe may have its own.
ROWS: dict[str, tuple[str, str, float | None, bool]] = {
    "thinker.bits_per_byte": ("thinker", "bits_per_byte", None, False),
    "hearing.cer": ("hearing", "cer", 0.06, False),
    "hearing.digit_exact": ("hearing", "digit_exact", 0.93, True),
    "vision.retrieval_r1": ("vision", "retrieval_r1", 0.90, True),
    "vision.attribute_changed": ("vision", "attribute_changed", 0.85, True),
    "vision.shape_probe": ("vision", "shape_probe", 0.80, True),
    "codec.usage": ("codec", "usage", 0.80, True),
    "codec.own_cer": ("talker", "codec_own_cer", 0.03, False),
    "talker.own_cer": ("talker", "own_cer", 0.12, False),
    "talker.stop_within_20pct": ("talker", "stop_within_20pct", 0.95, True),
    "talker.rtf": ("talker", "rtf", 0.5, False),
    "omni.vqa_exact": ("omni", "question_exact", 0.65, True),
    "omni.vqa_exact_swapped_image": ("omni", "question_exact_swapped_image", None, False),
    "omni.spoken_vqa_exact": ("omni", "spoken_question_exact", 0.60, True),
    "omni.spoken_digit_exact": ("omni", "digit_exact", 0.95, True),
    "omni.speech_to_speech_exact": ("", "", 0.45, True),
    "omni.forgetting_bits_per_byte": ("omni", "forgetting_bits_per_byte", 0.15, False),
}
SPEECH_TO_SPEECH_ITEMS = 200


def least_values(plan: Recipe) -> dict[str, float | None]:
    """The least value of each row: what the recipe's header says, else the stage's `extra_gates`, else that of ROWS."""
    header = plan.header.scoreboard if isinstance(plan.header.scoreboard, dict) else {}
    unknown = ", ".join(sorted(set(header) - set(ROWS)))
    if unknown:
        raise ConfigError(f"scoreboard: no row {unknown}", hint=f"the rows are {', '.join(ROWS)}")
    found: dict[str, float | None] = {}
    for name, (stage, fact, bound, _) in ROWS.items():
        settings = plan.stages.get(stage)
        demanded = gates.demanded(settings.extra_gates if settings is not None else {})
        asked = next((gate for gate in demanded if gate.fact == fact), None)
        found[name] = bound if asked is None else asked.at_least if asked.at_least is not None else asked.at_most
    return found | header


def missed(board: Mapping[str, Any], plan: Recipe) -> list[str]:
    """What rows that the recipe's header gives a least value lack of it, in words; a value that is none or not a number lacks all."""
    lacking = []
    for name, least in (plan.header.scoreboard if isinstance(plan.header.scoreboard, dict) else {}).items():
        value, more = board["metrics"].get(name), ROWS[name][3]
        if value is None or not (value >= least if more else value <= least):
            lacking.append(f"{name} is {'not there' if value is None else format(value, '.4g')}, {'>=' if more else '<='} {least:g} asked")
    return lacking


def write(folder: Path, plan: Recipe, wall_s: float) -> dict[str, Any]:
    """Collect, measure what spans stages, and store `scoreboard.json` {"wall_s", "metrics": {name: value}, "least": {name: value}}."""
    metrics: dict[str, float | None] = {}
    for name, (stage, fact, _, _) in ROWS.items():
        found = certificate.read(folder / stage) if stage else None
        if found is not None and fact in found["facts"]:
            metrics[name] = found["facts"][fact]["value"]
    if {"omni", "talker", "hearing"} <= set(plan.stages):
        metrics["omni.speech_to_speech_exact"] = speech_to_speech(folder, plan.stages["omni"], plan.base, plan.header.device)
    least = least_values(plan)
    known = [name for name in ROWS if name in metrics]
    board = {"wall_s": wall_s, "metrics": {name: metrics[name] for name in known}, "least": {name: least[name] for name in known}}
    files.write_json(folder / "scoreboard.json", board)
    return board


def speech_to_speech(folder: Path, settings: StageSettings, base: Path, device: str = "auto") -> float:
    """Share of held-out spoken questions about a picture whose spoken answer our own ears write down exactly."""
    corpus = readers.load(settings.data, base=base, val_split=settings.val_split, seed=settings.seed, quarantine=Quarantine(None, 1.0))
    asked = indexed.where(corpus.valid, lambda sample: sample.task == "spoken_question")
    asked = [asked[i] for i in np.linspace(0, len(asked) - 1, min(SPEECH_TO_SPEECH_ITEMS, len(asked))).astype(int)]
    if not asked:
        return float("nan")
    engine = Engine.load(folder, device)
    answers = engine.answer_many([_question(sample) for sample in asked])
    texts = [answer.text.strip() or "nothing" for answer in answers]
    spoken = engine.speak(texts)
    heard = engine.transcribe([wave for wave, _ in spoken])
    return sum(h == s.answer for h, s in zip(heard, asked, strict=True)) / len(asked)


def _question(sample: Sample) -> Sample:
    return sample.model_copy(update={"messages": sample.messages[:-1]})


def lines(board: dict[str, Any]) -> list[str]:
    """The board for a terminal: name, value, the least that is accepted, and whether it holds."""
    out = []
    for name, value in board["metrics"].items():
        more, least = ROWS[name][3], board["least"][name]
        if value is None:
            verdict = "no value"
        elif least is None:
            verdict = ""
        else:
            verdict = ("ok" if (value >= least if more else value <= least) else "MISSED") + f" ({'>=' if more else '<='} {least:g})"
        out.append(f"{name:34} {'-' if value is None else format(value, '8.4f')}  {verdict}")
    return out
