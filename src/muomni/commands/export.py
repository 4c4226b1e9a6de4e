"""`muomni export`: hand a trained model on, if it has proven what it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from muomni.commands import console
from muomni.errors import ConfigError, GateRed


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder (its last stage that answers), a stage's, or a final/")],
    to: Annotated[Literal["hf", "omni"], typer.Option(help="omni: all parts, for muomni; hf: the language model, for transformers")],
    out: Annotated[Path, typer.Option(metavar="D", help="where it goes: a new or an empty folder")],
    waive: Annotated[list[str] | None, typer.Option(metavar="GATE", help="let this gate be red; may be given several times")] = None,
    reason: Annotated[str | None, typer.Option(help="why the gate is waived; it goes along in the certificate")] = None,
) -> None:
    """Write a trained model as a folder that stands alone; a red one is refused."""
    if waive and not (reason or "").strip():
        raise ConfigError("--waive needs --reason", hint='--waive GATE --reason "why this is acceptable"')
    from muomni.infer import export as work

    final = work.answering(folder)
    work.demand_room(out, final)
    work.export(final, out, to, _proven(final, waive or [], reason or ""))
    console.result(str(out))


def _proven(final: Path, waive: list[str], reason: str) -> dict[str, Any]:
    """The certificate that goes along, with red gates waived where that is asked.

    Raises  GateRed where there is none or it is red; CheckpointError where a file is not what it names; ConfigError for a waiver of
            no gate of the stage.
    """
    from muomni.evaluate import certificate
    from muomni.models import integrity

    found = integrity.verify(final)
    if found is None:
        raise GateRed(f"{final} has no certificate: nothing says that it learned", hint="run its stage to the end first")
    names = [gate["name"] for gate in found["gates"]]
    if unknown := [name for name in waive if name not in names]:
        raise ConfigError(f"--waive {unknown[0]}: no such gate of {found['stage']}", hint=f"the gates are {', '.join(sorted(names))}")
    for gate in found["gates"]:
        if gate["verdict"] == "red" and gate["name"] in waive:
            gate["verdict"], gate["why"] = "waived", reason
    verdicts = {gate["verdict"] for gate in found["gates"]}
    verdicts |= {"waived"} if found.get("inherited") else set()
    found["verdict"] = next((each for each in ("red", "waived") if each in verdicts), found["verdict"])
    if found["verdict"] == "red":
        hint = f'mend it and run again, or --waive {(certificate.red(found) or ["GATE"])[0]} --reason "..."'
        raise GateRed(f"{found['stage']} is not handed on: {certificate.reasons(found) or 'it is red'}", hint=hint)
    if not integrity.names_files(found):
        raise GateRed(f"{final}: {integrity.caveat(found)}", hint="muomni run RECIPE STAGE")
    return found
