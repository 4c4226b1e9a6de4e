"""`muomni export`: write a trained model as a folder of its own, if its certificate allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from muomni.commands import console
from muomni.errors import ConfigError, GateRed


def export(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="a run's folder (its last stage that answers), a stage's, or a final/"
        ),
    ],
    to: Annotated[
        Literal["hf", "omni", "uti", "boson"],
        typer.Option(
            help="omni: all parts, for muomni; hf: the language model, for transformers; "
            "uti: rows of media tokens alone, as uti_v1 has them; boson: a voice of Higgs Audio v2 as its makers "
            "store it"
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="D", help="where it goes: a new or an empty folder")],
    waive: Annotated[
        list[str] | None,
        typer.Option(metavar="GATE", help="let this gate be red; may be given several times"),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="why the gate is waived; it goes along in the certificate")
    ] = None,
) -> None:
    """Write a trained model as a folder that stands alone; a red one is refused."""
    if waive and not (reason or "").strip():
        raise ConfigError("--waive needs --reason", hint='--waive GATE --reason "why this is acceptable"')
    from muomni.infer import export as work
    from muomni.infer import voice as voices

    if (spoken := voices.find(folder)) is not None:
        if to not in ("hf", "boson"):
            raise ConfigError(
                f"--to {to}: a voice is exported merged, for transformers or in its makers' layout",
                hint="--to hf, or --to boson",
            )
        work.demand_room(out, spoken)
        certificate = _certificate(spoken)
        _waive([certificate], waive or [], reason or "")
        _demand_proven(certificate)
        voices.export_merged(spoken, out, certificate, to)
        console.result(str(out))
        return
    if to == "boson":
        raise ConfigError(
            f"--to boson: {folder} holds no voice of Higgs Audio v2", hint="it is for stage voice; --to hf"
        )
    final = work.answering(folder)
    work.demand_room(out, final)
    speaks = work.speaking(folder, to)
    certificates = [_certificate(final)]
    if speaks is not None:
        certificates.append(
            _certificate(speaks, f"; or export {final.parent}, the answers without the voice")
        )
    _waive(certificates, waive or [], reason or "")
    _demand_proven(certificates[0])
    if speaks is None:
        work.export(final, out, to, certificates[0])
    else:
        _demand_proven(certificates[1], f"; or export {final.parent}, the answers without the voice")
        work.export(final, out, to, certificates[0], work.Spoken(speaks, certificates[1]))
    console.result(str(out))


def _certificate(final: Path, otherwise: str = "") -> dict[str, Any]:
    """The certificate of a `final/`, which is exported with it.

    Raises  GateRed where there is none; CheckpointError where a file is not what it names.
    """
    from muomni.models import integrity

    certificate = integrity.verify(final)
    if certificate is None:
        raise GateRed(
            f"{final} has no certificate: it is not known whether it learned",
            hint=f"run its stage to the end first{otherwise}",
        )
    return certificate


def _waive(certificates: list[dict[str, Any]], waive: list[str], reason: str) -> None:
    """Waive the red gates that are named, in all certificates.

    Raises  ConfigError for a gate that none has.
    """
    names = {gate["name"] for certificate in certificates for gate in certificate["gates"]}
    if unknown := [name for name in waive if name not in names]:
        stages = " and ".join(str(certificate["stage"]) for certificate in certificates)
        raise ConfigError(
            f"--waive {unknown[0]}: no such gate of {stages}",
            hint=f"the gates are {', '.join(sorted(names))}",
        )
    for certificate in certificates:
        for gate in certificate["gates"]:
            if gate["verdict"] == "red" and gate["name"] in waive:
                gate["verdict"], gate["why"] = "waived", reason
        verdicts = {gate["verdict"] for gate in certificate["gates"]}
        verdicts |= {"waived"} if certificate.get("inherited") else set()
        certificate["verdict"] = next(
            (each for each in ("red", "waived") if each in verdicts), certificate["verdict"]
        )


def _demand_proven(certificate_json: dict[str, Any], otherwise: str = "") -> None:
    """Raises GateRed for a certificate that is red, or names no files."""
    from muomni.evaluate import certificate
    from muomni.models import integrity

    if certificate_json["verdict"] == "red":
        hint = f'fix it and run again, or --waive {(certificate.red(certificate_json) or ["GATE"])[0]} --reason "..."{otherwise}'
        raise GateRed(
            f"{certificate_json['stage']} is not exported: {certificate.reasons(certificate_json) or 'it is red'}",
            hint=hint,
        )
    if not integrity.names_files(certificate_json):
        raise GateRed(
            f"{certificate_json['stage']}: {integrity.caveat(certificate_json)}",
            hint=f"muomni run RECIPE STAGE{otherwise}",
        )
