"""The whole state of a run as a folder that is either whole or absent; a torn one is named and passed over
for the one before."""

from __future__ import annotations

import errno
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from muomni import config, files
from muomni.errors import CheckpointError
from muomni.train import frozen_parts
from muomni.train.settings import TrainSettings

MANIFEST = "manifest.json"
WHOLE = frozenset(
    {"weights.safetensors", "train_state.pt", "drawn.npy", "progress.json"}
)  # files that each checkpoint has


@dataclass(frozen=True)
class Identity:
    """What a checkpoint was trained as, which it tells, so that nothing else goes on from it.

    digest    of settings, data, and the weights that it builds on
    settings  those that decide the weights, to say what differs
    model     their class, by which settings of an older version are read
    """

    digest: str
    settings: dict[str, Any]
    model: type[BaseModel] = TrainSettings


@dataclass
class State:
    """What a checkpoint restores beside weights: `progress` is plain JSON (step, best, counters), the others
    are state dicts.

    drawn_N   uint16, how often each sample was drawn (train.run_record)
    """

    progress: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ema: dict[str, Tensor]
    drawn_N: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))


def save(folder: Path, model: nn.Module, state: State, identity: Identity | None = None) -> None:
    """Write a checkpoint atomically: temporary folder, fsync, rename; the manifest with every file's sha256
    is written last.

    Of parts that are given and frozen (`Objective.frozen_parts`) it holds the digest alone.
    Raises  CheckpointError where the disk is full; what was saved before stays as it was.
    """
    try:
        with files.fresh_folder(folder) as part:
            tensors, aliases = _unique(frozen_parts.checkpoint_state(model))
            save_file(tensors, part / "weights.safetensors", metadata={"format": "pt"})
            if state.ema:
                save_file(state.ema, part / "ema.safetensors")
            np.save(part / "drawn.npy", state.drawn_N, allow_pickle=False)
            torch.save(
                {"optimizer": state.optimizer, "scaler": state.scaler, "rng": _rng_state()},
                part / "train_state.pt",
            )
            rest = {"given": digest} if (digest := frozen_parts.digest(model)) else {}
            files.write_json(
                part / "progress.json",
                {**state.progress, **rest, "aliases": aliases, "python_rng": _python_rng()},
            )
            digests = {file.name: files.sha256_file(file) for file in sorted(part.iterdir())}
            of = {} if identity is None else {"settings": identity.digest}
            files.write_json(
                part / MANIFEST, {"format": 1, "step": state.progress["step"], **of, "files": digests}
            )
    except (OSError, SafetensorError, RuntimeError) as error:
        if (
            isinstance(error, OSError)
            and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            and not _is_full(folder)
        ):
            raise
        raise CheckpointError(
            f"{folder}: can't save the checkpoint: {error}",
            hint="is the disk full? free some space and run the same command again; older ones are intact",
        ) from error


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder.parent).free < 1 << 20


def _unique(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without those that share memory with an earlier one (tied weights), and alias -> name for
    these."""
    tensors: dict[str, Tensor] = {}
    owner: dict[tuple[int, tuple[int, ...], torch.dtype], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if tensor.numel() and key in owner:
            aliases[name] = owner[key]
        else:
            owner[key] = name
            tensors[name] = tensor.detach().contiguous().cpu()
    return tensors, aliases


def _rng_state() -> dict[str, Any]:
    """Every global generator that torch owns."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _python_rng() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def load(folder: Path, model: nn.Module, device: torch.device, identity: Identity | None = None) -> State:
    """Restore weights into the model and all generators, and give the rest of the state.

    Raises  CheckpointError for a torn checkpoint, one of another model, one that was trained beside other
            given parts, or as something else than `identity`.
    """
    verify(folder)
    progress = files.read_json(folder / "progress.json")
    if identity is not None:
        _demand_identity(folder, progress, identity)
    if progress.pop("given", "") != frozen_parts.digest(model):
        raise CheckpointError(
            f"{folder}: trained beside other given parts than these: {', '.join(frozen_parts.frozen_parameters(model)) or 'none'}"[
                :500
            ],
            hint="put the pretrained weights back that the run began with, or start anew with --fresh",
        )
    tensors = load_file(folder / "weights.safetensors")
    tensors.update({alias: tensors[name] for alias, name in progress.pop("aliases").items()})
    frozen_parts.load_state(model, tensors, where=str(folder))
    saved = torch.load(folder / "train_state.pt", map_location="cpu", weights_only=True)
    torch.set_rng_state(saved["rng"]["cpu"])
    if (
        "cuda" in saved["rng"]
        and torch.cuda.is_available()
        and len(saved["rng"]["cuda"]) == torch.cuda.device_count()
    ):
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
    generators = progress.pop("python_rng")
    version, words, gauss = generators["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(generators["numpy"]))
    ema = (
        load_file(folder / "ema.safetensors", device=str(device))
        if (folder / "ema.safetensors").exists()
        else {}
    )
    return State(
        progress, saved["optimizer"], saved["scaler"], ema, np.load(folder / "drawn.npy", allow_pickle=False)
    )


def _demand_identity(folder: Path, progress: dict[str, Any], identity: Identity) -> None:
    """Raises CheckpointError for a checkpoint that was trained as something else; one of an older version
    tells its settings alone."""
    stored = files.read_json(folder / MANIFEST).get("settings")
    if stored == identity.digest:
        return
    # Where data lie may change; another number of ranks accumulates otherwise, which only a digest tells from
    # another batch.
    left_out = {"data", "gradient_accumulation_steps"} if stored is None else {"data"}
    named = {key: value for key, value in identity.settings.items() if key not in left_out}
    before = config.current(progress.get("settings", {}), identity.model)
    changed = config.difference(
        {key: before[key] for key in named if key in before},
        {key: named[key] for key in named if key in before},
    )
    if stored is None and not changed:
        return
    what = "; ".join(changed) or "its data, a stage that it needs, or weights of others that it stands on"
    raise CheckpointError(
        f"{folder}: trained with other settings: {what}",
        hint="--fresh deletes it and starts anew, --out DIR keeps it",
    )


def verify(folder: Path) -> None:
    """Raises CheckpointError where a file of the checkpoint is missing or differs from its manifest."""
    try:
        manifest = files.read_json(folder / MANIFEST)
        if absent := sorted(WHOLE - manifest["files"].keys()):
            kind = "of an older version" if absent == ["drawn.npy"] else "torn checkpoint"
            hint = "run its stage again with --fresh" if absent == ["drawn.npy"] else ""
            raise CheckpointError(f"{folder}: {kind}: its manifest lacks {', '.join(absent)}", hint=hint)
        for name, digest in manifest["files"].items():
            if files.sha256_file(folder / name) != digest:
                raise CheckpointError(
                    f"{folder / name}: torn checkpoint: the content differs from its manifest"
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: torn checkpoint: {error}") from error


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint `step_*` of a stage's folder; torn ones are named on standard error and
    passed over."""
    for folder in sorted(run.glob("step_*"), key=lambda path: path.name, reverse=True):
        try:
            verify(folder)
        except CheckpointError as error:
            print(f"warning: {error.message}; trying the one before", file=sys.stderr)
            continue
        return folder
    return None


def retain(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` periodic checkpoints, and the leftovers of interrupted saves."""
    for folder in sorted(run.glob("step_*"), key=lambda path: path.name)[:-keep]:
        shutil.rmtree(folder)
    for folder in run.glob(".step_*"):
        shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The updates that a whole checkpoint has behind it."""
    return int(files.read_json(folder / MANIFEST)["step"])


def name(step: int) -> str:
    """The folder name of a periodic checkpoint."""
    return f"step_{step:06d}"
