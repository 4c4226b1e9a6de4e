"""The score board of a finished recipe: facts of its certificates under public names, and spoken questions to
spoken answers."""

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
from muomni.execution.recipe import Recipe
from muomni.infer.engine import Engine
from muomni.stages import registry
from muomni.stages.stage import StageSettings

SPEECH_TO_SPEECH_ITEMS = 200


def least_values(recipe: Recipe) -> dict[str, float | None]:
    """The least value of each row: what the recipe's header says, else the stage's `extra_gates`, else the
    row's own."""
    header = recipe.header.scoreboard if isinstance(recipe.header.scoreboard, dict) else {}
    rows = registry.board()
    unknown = ", ".join(sorted(set(header) - set(rows)))
    if unknown:
        raise ConfigError(f"scoreboard: no row {unknown}", hint=f"the rows are {', '.join(rows)}")
    least: dict[str, float | None] = {}
    for name, (stage, row) in rows.items():
        entry = recipe.stages.get(stage)
        demanded = gates.demanded(entry.settings.extra_gates if entry is not None else {})
        demanded_gate = next((gate for gate in demanded if gate.fact == row.fact), None)
        least[name] = (
            row.least
            if demanded_gate is None
            else demanded_gate.at_least
            if demanded_gate.at_least is not None
            else demanded_gate.at_most
        )
    return least | header


def missed(board: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What rows that the recipe's header gives a least value lack of it, in words; a value that is none or
    not a number lacks all."""
    lacking, rows = [], registry.board()
    for name, least in (
        recipe.header.scoreboard if isinstance(recipe.header.scoreboard, dict) else {}
    ).items():
        value, more = board["metrics"].get(name), rows[name][1].more_is_better
        if value is None or not (value >= least if more else value <= least):
            lacking.append(
                f"{name} is {'not there' if value is None else format(value, '.4g')}, {'>=' if more else '<='} {least:g} asked"
            )
    return lacking


def write(folder: Path, recipe: Recipe, wall_s: float) -> dict[str, Any]:
    """Collect, measure what spans stages, and store `scoreboard.json` {"wall_s", "metrics": {name: value},
    "least": {name: value}}."""
    metrics: dict[str, float | None] = {}
    rows = registry.board()
    for name, (stage, row) in rows.items():
        stored = certificate.read(folder / stage) if row.fact else None
        if stored is not None and row.fact in stored["facts"]:
            metrics[name] = stored["facts"][row.fact]["value"]
    if {"omni", "talker", "hearing"} <= set(recipe.stages):
        metrics["omni.speech_to_speech_exact"] = speech_to_speech(
            folder, recipe.stages["omni"].settings, recipe.base, recipe.header.device
        )
    least = least_values(recipe)
    reported = [name for name in rows if name in metrics]
    board = {
        "wall_s": wall_s,
        "metrics": {name: metrics[name] for name in reported},
        "least": {name: least[name] for name in reported},
    }
    files.write_json(folder / "scoreboard.json", board)
    return board


def speech_to_speech(folder: Path, settings: StageSettings, base: Path, device: str = "auto") -> float:
    """Share of held-out spoken questions about a picture whose spoken answer our own ears write down
    exactly."""
    corpus = readers.load(
        settings.data,
        base=base,
        val_split=settings.val_split,
        seed=settings.seed,
        quarantine=Quarantine(None, 1.0),
    )
    questions = indexed.where(corpus.valid, lambda sample: sample.task == "spoken_question")
    questions = [
        questions[i]
        for i in np.linspace(0, len(questions) - 1, min(SPEECH_TO_SPEECH_ITEMS, len(questions))).astype(int)
    ]
    if not questions:
        return float("nan")
    engine = Engine.load(folder, device)
    answers = engine.answer_many([_question(sample) for sample in questions])
    texts = [answer.text.strip() or "nothing" for answer in answers]
    spoken = engine.speak(texts)
    heard = engine.transcribe([wave for wave, _ in spoken])
    return sum(h == s.answer for h, s in zip(heard, questions, strict=True)) / len(questions)


def _question(sample: Sample) -> Sample:
    return sample.model_copy(update={"messages": sample.messages[:-1]})


def lines(board: dict[str, Any]) -> list[str]:
    """The board for a terminal: name, value, the least that is accepted, and whether it holds."""
    out, rows = [], registry.board()
    for name, value in board["metrics"].items():
        more, least = rows[name][1].more_is_better, board["least"][name]
        if value is None:
            verdict = "no value"
        elif least is None:
            verdict = ""
        else:
            verdict = (
                "ok" if (value >= least if more else value <= least) else "MISSED"
            ) + f" ({'>=' if more else '<='} {least:g})"
        out.append(f"{name:34} {'-' if value is None else format(value, '8.4f')}  {verdict}")
    return out
