"""The certificate of a stage: facts, verdicts, and what they were measured on; the next stage looks at it
before it builds."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from muomni import build_identity, files
from muomni.errors import GateRed
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Judged
from muomni.models import integrity
from muomni.models.integrity import read as read

NAME = integrity.CERTIFICATE
Waivers = list[dict[str, str]]


class BaseChanged(GateRed):
    """A stage is to be built on a `final/` that is not what its certificate speaks of; `lines` says in
    what."""

    lines: tuple[str, ...] = ()


def overall(judged: Sequence[Judged], inherited: Waivers | None = None) -> str:
    """red if any gate is red, else waived if any is, of this stage or of one that it stands on, else
    green."""
    verdicts = {row.verdict for row in judged}
    return (
        "red"
        if "red" in verdicts or not judged
        else "waived"
        if "waived" in verdicts or inherited
        else "green"
    )


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
    inherited: Waivers | None = None,
    init_from: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Store a stage's certificate, beside the `final/` whose files it names by their sha256, as they lie on
    the disk now.

    Takes   weights, data, settings: the digests that it speaks of; modalities: what the data hold;
            inherited: what was waived of the stages that this one stands on; init_from: the weights that it
            began from.
    """
    final = folder / integrity.FINAL
    certificate = {
        "stage": stage,
        "verdict": overall(judged, inherited),
        "facts": {name: fact.to_json() for name, fact in facts.items()},
        "gates": [row.to_json() for row in judged],
        "weights": weights,
        "data": data,
        "settings": settings,
        "modalities": sorted(modalities),
        "seed": seed,
        "files": integrity.digests(final) if final.is_dir() else {},
        "inherited": inherited or [],
        **({"init_from": dict(init_from)} if init_from else {}),
        "code": build_identity.identity(),
        "machine": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }
    files.write_json(folder / NAME, certificate)
    return certificate


def demand(folder: Path, for_stage: str) -> dict[str, Any]:
    """The certificate of a stage that another builds on, once the files of its `final/` are seen to be those
    that it names.

    Raises  GateRed where it is missing, red, or names no files; BaseChanged where files are missing, extra or
            others.
    """
    certificate = read(folder)
    if certificate is None:
        raise GateRed(
            f"stage {for_stage} builds on {folder.name}, which has no certificate",
            hint=f"run stage {folder.name} first",
        )
    if certificate["verdict"] == "red":
        raise GateRed(
            f"stage {for_stage} refuses to build on {folder.name}: {reasons(certificate)}",
            hint=f'mend it and run again, or --waive {red(certificate)[0]} --reason "..."',
        )
    if not integrity.names_files(certificate):
        raise GateRed(
            f"stage {for_stage} refuses to build on {folder.name}: its certificate names no files, so nothing ties it to these weights",
            hint=f"it is of an older version: run stage {folder.name} again, which measures it anew from its last checkpoint",
        )
    if lines := integrity.changed(folder / integrity.FINAL):
        error = BaseChanged(
            f"stage {for_stage} refuses to build on {folder.name}: gate bases is red: {folder / integrity.FINAL} is not what its"
            f" certificate speaks of: {integrity.shown(lines)}",
            hint=integrity.way_out(folder / integrity.FINAL),
        )
        error.lines = tuple(f"{folder.name}: {line}" for line in lines)
        raise error
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
