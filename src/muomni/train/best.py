"""`best/`: the weights of the best validation so far, in the form that the engine opens; one copy, replaced
in one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from muomni import files
from muomni.errors import CheckpointError
from muomni.models import store
from muomni.models.integrity import BEST, KEPT
from muomni.train import frozen_parts
from muomni.train.objective import Objective

REST = "weights.safetensors"  # what the networks' own files do not hold


@dataclass(frozen=True)
class Export:
    """How a stage writes what is opened afterwards; by default nothing is, and `best/` holds the objective's
    tensors alone.

    save      writes the files of `final/` into a folder
    networks  what they hold, by folder ("." its top)
    """

    save: Callable[[Path], None] = lambda folder: None
    networks: Mapping[str, nn.Module] = field(default_factory=dict)


def keep(folder: Path, objective: Objective, export: Export, note: dict[str, Any]) -> None:
    """Put the weights in place into `folder/best`: the files of `final/`, and beside them the tensors that
    only training needs.

    A reader, and a run that was killed, finds the best before or this one, whole. `told` is kept as
    best.json.
    """
    with files.fresh_folder(folder / BEST) as part:
        export.save(part)
        tensors = rest(objective, export)
        save_file(
            {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()},
            part / REST,
        )
        files.write_json(part / KEPT, note)


def rest(objective: Objective, export: Export) -> dict[str, Tensor]:
    """The tensors of a checkpoint that the networks' own files do not hold."""
    elsewhere = _places(export)
    return {
        name: tensor
        for name, tensor in frozen_parts.checkpoint_state(objective).items()
        if _key(tensor) not in elsewhere
    }


def put_back(folder: Path, objective: Objective, export: Export) -> dict[str, Any]:
    """Bring an objective to the weights that `keep` wrote, all or none, and give the note.

    Raises  CheckpointError where `folder/best` is missing or torn, or of another model.
    """
    best = folder / BEST
    files.settle(best)
    if not (best / KEPT).is_file() or not (best / REST).is_file():
        raise CheckpointError(
            f"{best} is not there, or not whole, and its weights are to be handed on",
            hint="--fresh starts anew",
        )
    stored = load_file(best / REST)
    tensors_stored = {place: store.read_tensors(best / place) for place in export.networks}
    elsewhere = _places(export)
    for name, tensor in frozen_parts.checkpoint_state(objective).items():
        if name not in stored and (alias := elsewhere.get(_key(tensor))) is not None:
            place, key = alias
            if key in tensors_stored[place]:
                stored[name] = tensors_stored[place][key]
    frozen_parts.load_state(objective, stored, where=str(best))
    return note(folder)


def note(folder: Path) -> dict[str, Any]:
    """What `keep` noted of a stage's best weights; empty where it has none."""
    files.settle(folder / BEST)
    path = folder / BEST / KEPT
    if not path.is_file():
        return {}
    hint = "--fresh starts the stage anew"
    stored: dict[str, Any] = files.read_stored(path, dict, hint=hint)
    if odd := [key for key in ("step", "loss", "average") if key not in stored]:
        raise CheckpointError(f"{path}: torn: it lacks {', '.join(odd)}", hint=hint)
    return stored


def _places(export: Export) -> dict[tuple[Any, ...], tuple[str, str]]:
    """Where the files of an export hold a tensor of memory: its folder, and its first name there."""
    places: dict[tuple[Any, ...], tuple[str, str]] = {}
    for place, network in export.networks.items():
        for name, tensor in network.state_dict().items():
            places.setdefault(_key(tensor), (place, name))
    return places


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """Tells a tensor from all others by its memory; an empty one has none, and is told by itself."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype) if tensor.numel() else (id(tensor),)
