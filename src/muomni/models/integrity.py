"""A `final/` and the certificate that speaks of it: the sha256 of every file, compared whenever it is
opened."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from muomni import files
from muomni.errors import CheckpointError

CERTIFICATE = "certificate.json"
FINAL = "final"
BEST, KEPT = (
    "best",
    "best.json",
)  # what a run keeps of its best validation, and the note that says which it was
SHOWN = 4  # changed files that a message names


def read(folder: Path) -> dict[str, Any] | None:
    """A stage's certificate, or None where there is none that can be read."""
    try:
        certificate = files.read_json(folder / CERTIFICATE)
    except (OSError, ValueError, RecursionError):
        return None
    return certificate if _is_certificate(certificate) else None


def _is_certificate(content: Any) -> bool:
    """Whether a JSON value has the parts of a certificate: one that has not says nothing, neither green nor
    red."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("stage"), str)
        and content.get("verdict") in ("green", "red", "waived")
        and isinstance(content.get("gates"), list)
        and all(
            isinstance(gate, dict) and {"name", "verdict", "value", "threshold", "why"} <= gate.keys()
            for gate in content["gates"]
        )
        and isinstance(content.get("facts"), dict)
        and all(isinstance(fact, dict) and "value" in fact for fact in content["facts"].values())
    )


def digests(final: Path) -> dict[str, str]:
    """sha256 of every file of a `final/` or an exported folder, by its path therein; its own certificate is
    left out."""
    paths = [path for path in sorted(final.rglob("*")) if path.is_symlink() or not path.is_dir()]
    named = {path.relative_to(final).as_posix(): path for path in paths}
    named.pop(CERTIFICATE, None)
    return {name: files.sha256_once(path) if path.is_file() else "no file" for name, path in named.items()}


def differences(digests_found: Mapping[str, str], named: Mapping[str, str]) -> list[str]:
    """A line for each file that is missing, extra, or holds other bytes than a certificate names."""
    missing = [f"{name} is missing" for name in sorted(named.keys() - digests_found.keys())]
    extra = [f"{name} is extra" for name in sorted(digests_found.keys() - named.keys())]
    both = sorted(digests_found.keys() & named.keys())
    changed = [
        f"{name}: expected {named[name][:12]}, got {digests_found[name][:12]}"
        for name in both
        if digests_found[name] != named[name]
    ]
    return [*missing, *extra, *changed]


def shown(lines: list[str]) -> str:
    """The first differences, and how many more there are."""
    return "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def locate(folder: Path) -> tuple[Path, Path] | None:
    """The whole that a certificate speaks of and the place of that certificate, for a `final/`, an exported
    folder, or a part of one.

    None where no certificate lies there.
    """
    for place in dict.fromkeys(
        (folder.absolute(), folder.resolve())
    ):  # a link's own surroundings, then those of what it names
        for root in (place, *place.parents[:2]):
            if (root / CERTIFICATE).is_file() and not (root / FINAL).exists():
                return root, root
            if root.name == FINAL:
                if (root.parent / CERTIFICATE).is_file():
                    return root, root.parent
                break
    return None


def names_files(certificate: Mapping[str, Any]) -> bool:
    """Whether a certificate is tied to files; those of older versions are not."""
    return isinstance(certificate.get("files"), dict) and bool(certificate["files"])


def changed(folder: Path) -> list[str]:
    """How the files of a `final/`, an exported folder or a part of one differ from what its certificate
    names; empty without one."""
    files.settle(folder)
    if (located := locate(folder)) is None:
        return []
    root, place = located
    certificate = read(place)
    if certificate is None or not names_files(certificate):
        return []
    inside = next(
        each.relative_to(root) for each in (folder.absolute(), folder.resolve()) if each.is_relative_to(root)
    )
    prefix = "" if inside == Path(".") else f"{inside.as_posix()}/"
    named = {
        name.removeprefix(prefix): digest
        for name, digest in certificate["files"].items()
        if name.startswith(prefix)
    }
    return differences(digests(folder), named)


def verify(folder: Path) -> dict[str, Any] | None:
    """The certificate of a `final/`, an exported folder or a part of one, once its files are seen to be those
    that it names.

    None where no certificate lies there.
    Raises  CheckpointError naming files that are missing, extra or changed.
    """
    if lines := changed(folder):
        raise CheckpointError(
            f"{folder} is not what its certificate speaks of: {shown(lines)}", hint=way_out(folder)
        )
    located = locate(folder)
    return None if located is None else read(located[1])


def way_out(folder: Path) -> str:
    """What to do about files that were changed."""
    located = locate(folder)
    place = located[1] / CERTIFICATE if located is not None else folder / CERTIFICATE
    return f"put the files back; or delete {place} and run the stage again, which makes them anew from its last checkpoint"


def caveat(certificate: Mapping[str, Any] | None) -> str:
    """Why what lies there is not proven, in a line; empty where a certificate says that it is, or that it was
    waived."""
    if certificate is None:
        return "it has no certificate: nothing says what it learned"
    if not names_files(certificate) and certificate["verdict"] != "red":
        return "its certificate names no files (it is of an older version): run its stage again, which measures it anew"
    if certificate["verdict"] == "red":
        names = [gate["name"] for gate in certificate["gates"] if gate["verdict"] == "red"]
        return f"stage {certificate['stage']} is red ({', '.join(names)}): what it says is not proven"
    return ""


def unproven(folder: Path) -> str:
    """As `caveat`, of the folder itself once its files are verified; `best/` says at which step and with
    which loss it was kept.

    Raises  CheckpointError as `verify`.
    """
    stored = verify(folder)
    try:
        note = files.read_json(folder / KEPT) if stored is None else {}
        return f"the weights of the best validation (step {note['step']}, loss {note['loss']:.4g}), which no gate has judged"
    except (OSError, ValueError, KeyError, TypeError):
        return caveat(stored)


def waivers(certificate: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was waived of a stage and of all that it stands on: {"stage", "gate", "why"}, each once."""
    own = [
        {"stage": str(certificate["stage"]), "gate": str(gate["name"]), "why": str(gate["why"])}
        for gate in certificate["gates"]
        if gate["verdict"] == "waived"
    ]
    return merged(own, certificate.get("inherited", []))


def merged(*lists: list[dict[str, str]]) -> list[dict[str, str]]:
    """Waivers of several certificates, each stage's gate once, in their order."""
    every: dict[tuple[str, str], dict[str, str]] = {}
    for row in chain(*lists):
        every.setdefault((row["stage"], row["gate"]), row)
    return list(every.values())
