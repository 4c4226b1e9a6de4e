"""References to pretrained networks (stage, folder or hub id), with the digest of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from muomni import files
from muomni.config import Strict
from muomni.errors import CheckpointError, ConfigError
from muomni.models import integrity, pretrained
from muomni.runtime import has_bf16

TOKENIZER = "tokenizer.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def as_stored(device: torch.device) -> torch.dtype | None:
    """The format for opening a network that was stored elsewhere: None, as it is stored, on a GPU that has
    bf16; else float32.

    A CPU multiplies single rows no faster in bf16 even where it has it, and many times slower where it
    emulates it, or fp16 (0.25 against 5 updates a second). Opening tells it (`pretrained.tell_widened`).
    """
    return None if device.type != "cpu" and has_bf16(device) else torch.float32


class NetworkReference(Strict):
    """A network by name: a stage of the recipe, a folder, or a hub id; a lone string is its name.

    subfolder  where in the folder, or in the hub's repository, it lies
    dtype  auto: bf16 on a GPU that has it; float32 on a CPU, whatever it is stored in (twice the memory of
           bf16, 50 times the speed on a chip that only emulates it). bf16 and fp32 are taken by their word
    """

    name: str = Field(min_length=1)
    revision: str | None = None
    subfolder: str | None = None
    dtype: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def dtype_on(self, device: torch.device) -> torch.dtype | None:
        """The number format that it is opened in; None: as it is stored."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        if device.type == "cuda":
            # Where no GPU is at hand, one is planned for: it is taken to have bf16.
            return torch.bfloat16 if has_bf16(device) or not torch.cuda.is_available() else torch.float32
        return as_stored(device)

    def locate(self, needed: dict[str, Path], base: Path) -> Path:
        """Its folder: a needed stage's `final/`, a folder, or where the hub keeps it.

        Raises  ConfigError where nothing is found.
        """
        if self.name in needed:
            folder, kind = needed[self.name], "a stage"
        else:
            folder, kind = pretrained.locate(self.name, self.revision, base), "a folder"
        if self.revision is not None and (
            self.name in needed or folder in pretrained.folders(self.name, base)
        ):
            raise ConfigError(
                f"{self.name}: revision has no effect: it is {kind}",
                hint="leave it out: it chooses among a hub's versions",
            )
        return self._inside(folder)

    def _inside(self, folder: Path) -> Path:
        """The subfolder of what the name means, where one is named.

        Raises  ConfigError where it is none, or lies outside.
        """
        if self.subfolder is None:
            return folder
        inside = folder / self.subfolder
        if not inside.is_dir() or not inside.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{self.name}: subfolder {self.subfolder!r} is no folder in {folder}",
                hint="leave it out where the network lies at the top",
            )
        return inside

    def describe(self, folder: Path, *, is_stage: bool) -> dict[str, Any]:
        """What a model that is built on it writes down: how it is found again, and what it must then be."""
        place = {} if is_stage else {"folder": str(folder.resolve())}
        return {
            **self.model_dump(),
            **place,
            "stage": is_stage,
            "digest": pretrained.digest(folder),
            "words": _words(folder),
        }


def _words(folder: Path) -> str:
    """sha256 of a folder's tokenizer, empty where it has none: other words would mean the same ids."""
    return files.sha256_once(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else ""


def find(recorded: dict[str, Any], final: Path) -> tuple[NetworkReference, Path]:
    """What `told` wrote down, found again from the folder that it stands in: a stage of the same run, its
    folder, or the hub.

    Raises  CheckpointError where it lies nowhere, or is another.
    """
    base = NetworkReference(
        name=recorded["name"],
        revision=recorded.get("revision"),
        subfolder=recorded.get("subfolder"),
        dtype=recorded.get("dtype", "auto"),
    )
    if recorded["stage"]:
        places = [parent / base.name / "final" for parent in final.resolve().parents][:4]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise CheckpointError(
                f"{final} is built on stage {base.name}, which is not in its run",
                hint="muomni export DIR --to omni takes all along",
            )
    else:
        folder = final / recorded["folder"]  # absolute, or within what was exported
        folder = folder if folder.is_dir() else base.locate({}, Path("."))
    if (digest := pretrained.digest(folder)) != recorded["digest"]:
        raise CheckpointError(
            f"{folder}: {final} was trained on other weights: expected {recorded['digest'][:12]}, got {digest[:12]}"
        )
    if (words := _words(folder)) != recorded.get("words", words):
        raise CheckpointError(
            f"{folder / TOKENIZER}: {final} was trained on another one: expected {recorded['words'][:12]}, got {words[:12]}"
        )
    integrity.verify(folder)
    return base, folder
