"""The certificate of a stage: facts, verdicts, and what they were measured on; the next stage looks at it before it builds."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from muomni import files
from muomni.errors import GateRed
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Judged

NAME = "certificate.json"


def overall(judged: Sequence[Judged]) -> str:
    """red if any gate is red, else waived if any is, else green."""
    verdicts = {row.verdict for row in judged}
    return "red" if "red" in verdicts or not judged else "waived" if "waived" in verdicts else "green"


def write(
    folder: Path,
    stage: str,
    facts: Mapping[str, Fact],
    judged: Sequence[Judged],
    *,
    weights: str,
    data: str,
    settings: str,
    modalities: Collection[str] = (),
    seed: int | None = None,
) -> dict[str, Any]:
    """Store a stage's certificate; `weights`, `data` and `settings` are the digests that it speaks of, `modalities` what the data hold."""
    certificate = {
        "stage": stage,
        "verdict": overall(judged),
        "facts": {name: fact.to_json() for name, fact in facts.items()},
        "gates": [row.to_json() for row in judged],
        "weights": weights,
        "data": data,
        "settings": settings,
        "modalities": sorted(modalities),
        "seed": seed,
        "code": version("muomni"),
        "machine": {"torch": torch.__version__, "threads": torch.get_num_threads(), "system": platform.platform()},
    }
    files.write_json(folder / NAME, certificate)
    return certificate


def read(folder: Path) -> dict[str, Any] | None:
    """A stage's certificate, or None where there is none that can be read."""
    try:
        certificate = files.read_json(folder / NAME)
    except (OSError, ValueError):
        return None
    return certificate if isinstance(certificate, dict) and {"stage", "verdict", "gates", "facts"} <= set(certificate) else None


def demand(folder: Path, for_stage: str) -> dict[str, Any]:
    """The certificate of a stage that another builds upon.

    Raises  GateRed where it is missing or red.
    """
    certificate = read(folder)
    if certificate is None:
        raise GateRed(f"stage {for_stage} builds on {folder.name}, which has no certificate", hint=f"run stage {folder.name} first")
    if certificate["verdict"] == "red":
        raise GateRed(
            f"stage {for_stage} refuses to build on {folder.name}: {reasons(certificate)}",
            hint=f'mend it and run again, or --waive {red(certificate)[0]} --reason "..."',
        )
    return certificate


def red(certificate: Mapping[str, Any]) -> list[str]:
    """The names of the red gates."""
    return [gate["name"] for gate in certificate["gates"] if gate["verdict"] == "red"]


def reasons(certificate: Mapping[str, Any]) -> str:
    """The red gates with values, bounds and meanings, in one line."""
    return "; ".join(
        f"gate {gate['name']} is red: {'no value' if gate['value'] is None else format(gate['value'], '.4g')} should be {gate['threshold']}"
        f" ({gate['why']})"
        for gate in certificate["gates"]
        if gate["verdict"] == "red"
    )
