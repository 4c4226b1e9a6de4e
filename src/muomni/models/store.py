"""Networks as folders: config.json + model.safetensors, opened strictly; nothing here unpickles."""

from __future__ import annotations

import hashlib
import importlib
import json
import typing
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from muomni import files
from muomni.errors import CheckpointError
from muomni.models import finite

# model_type -> where its class lives, imported when such a folder is opened. A class is built as cls(config: ItsConfig).
CLASSES = {
    "qwen3": "muomni.models.decoder:Decoder",
    "qwen3_moe": "muomni.models.decoder:Decoder",
    "muomni_audio_encoder": "muomni.models.audio_encoder:AudioEncoder",
    "muomni_vision_encoder": "muomni.models.vision_encoder:VisionEncoder",
    "muomni_text_tower": "muomni.models.text_tower:TextTower",
    "muomni_codec": "muomni.models.codec:Codec",
    "muomni_talker": "muomni.models.talker:Talker",
    "muomni_projectors": "muomni.models.omni:Projectors",
}
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def save(model: nn.Module, folder: Path | str, *, extra: dict[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors, each whole or not at all; a tensor with two names is stored once.

    Takes   model with `config` (pydantic) and `model_type`; a config with `to_file` writes its own config.json.
            extra: JSON values kept in config.json under "muomni" (read them by `extra_of`).
    """
    folder = Path(folder)
    config: Any = model.config
    content = config.to_file() if hasattr(config, "to_file") else config.model_dump(mode="json")
    content = {"model_type": model.model_type, **content, "muomni": extra or {}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _untied(model).items()}
    files.write_bytes(folder / WEIGHTS, to_safetensors(tensors, metadata={"format": "pt"}))
    files.write_json(folder / CONFIG, content)


@torch.inference_mode(False)  # opened below it by an engine, its parameters could never train
def load(folder: Path | str, device: torch.device | str = "cpu", *, dtype: torch.dtype | Literal["stored"] = torch.float32) -> Any:
    """The network in a folder, in evaluation mode.

    It is built without memory, and its tensors are those that the file maps: a network in the stored dtype on a CPU costs no copy, and
    no random start is drawn. Whoever trains it writes to copies of the pages, never to the file.

    Takes   dtype of its floats; "stored": as they lie in the file. Whole numbers stay what they are.
    Raises  CheckpointError where files are missing or torn, the kind is unknown, names or shapes differ (all are listed), or weights are
            no numbers.
    """
    folder = Path(folder)
    content = read_config(folder)
    kind = content.pop("model_type", None)
    content.pop("muomni", None)
    if kind not in CLASSES:
        raise CheckpointError(f"{folder / CONFIG}: model_type must be one of {', '.join(CLASSES)}, got {kind!r}")
    module, name = CLASSES[kind].split(":")
    network = getattr(importlib.import_module(module), name)
    shape = typing.get_type_hints(network.__init__)["config"]
    try:
        config = shape.from_file(content) if hasattr(shape, "from_file") else shape.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    with torch.device("meta"):
        model: nn.Module = network(config)
    adopt(model, read_tensors(folder), where=str(folder), device=device, dtype=dtype)
    finite.demand_weights(_untied(model), folder)
    finite.came_from(model, folder)
    return model.eval()


def extra_of(folder: Path | str) -> dict[str, Any]:
    """What `save` was given as `extra`."""
    extra: dict[str, Any] = read_config(Path(folder)).get("muomni", {})
    return extra


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises  CheckpointError where it is missing or not an object.
    """
    path = folder / CONFIG
    try:
        content = files.read_json(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing", hint="a model is a folder with config.json and model.safetensors") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def weight_files(folder: Path | str) -> list[Path]:
    """Where the weights of a folder lie: one file, or the shards that an index names.

    Raises  CheckpointError naming what is missing, torn, or outside of the folder.
    """
    folder = Path(folder)
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        try:
            names = sorted(set(files.read_json(folder / INDEX)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is not an index of shards: {error}") from error
    for name in names:
        if (folder / name).parent != folder:
            raise CheckpointError(f"{folder / INDEX} names a file outside of its folder: {name}")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing")
    return [folder / name for name in names]


def read_tensors(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a folder, mapped from its files: nothing is read before it is looked at.

    Raises  CheckpointError naming the file that is missing or torn.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as stream:
                tensors.update({key: stream.get_tensor(key) for key in stream.keys()})  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is torn or not a safetensors file: {error}") from error
    return tensors


@torch.no_grad()
def fill(model: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Copy tensors into a model, all or none.

    Raises  CheckpointError as `check`.
    """
    check(model, tensors, where=where)
    for name, own in _untied(model).items():
        own.copy_(tensors[name])


def adopt(
    model: nn.Module, tensors: dict[str, Tensor], *, where: str, device: torch.device | str, dtype: torch.dtype | Literal["stored"]
) -> None:
    """Make tensors the state of a model that was built on the meta device; what was tied stays tied.

    Raises  CheckpointError as `check`.
    """
    check(model, tensors, where=where)
    adopted: dict[int, Tensor] = {}
    for name, own in _untied(model).items():
        is_cast = dtype != "stored" and tensors[name].is_floating_point()
        tensor = tensors[name].to(device, dtype if is_cast else None)  # type: ignore[arg-type]
        adopted[id(own)] = nn.Parameter(tensor, own.requires_grad) if isinstance(own, nn.Parameter) else tensor
    for part in model.modules():
        for table in (part._parameters, part._buffers):
            table.update({name: adopted[id(own)] for name, own in table.items() if own is not None})  # type: ignore[misc]


def check(model: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Whether tensors have the names and shapes of a model's state, a tied one under its first name or under both.

    Raises  CheckpointError listing what is missing, unexpected, or of another shape.
    """
    own = model.state_dict(keep_vars=True)
    missing = sorted(_untied(model).keys() - tensors.keys())
    # Some files repeat a tied table under its second name, which the model may not even have.
    repeated = {"lm_head.weight"} if getattr(getattr(model, "config", None), "tied", False) else set()
    unexpected = sorted(tensors.keys() - own.keys() - repeated)
    shapes = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    if missing or unexpected or shapes:
        lines = (
            [f"missing {each}" for each in missing] + [f"unexpected {each}" for each in unexpected] + [f"shape {each}" for each in shapes]
        )
        shown = "; ".join(lines[:20]) + (f"; and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise CheckpointError(f"{where} does not fit {type(model).__name__}: {shown}")


def digest(module: nn.Module, *, parameters_only: bool = False) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters (and buffers), in the order of their names."""
    whole = hashlib.sha256()
    for name, tensor in sorted(dict(module.named_parameters()).items() if parameters_only else module.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(_bytes(tensor))
    return whole.hexdigest()


def digest_of(tensor: Tensor) -> str:
    """sha256 over one tensor's dtype, shape and bytes as they are."""
    whole = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    whole.update(_bytes(tensor))
    return whole.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory itself, not a copy, where the tensor lies on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def changed(model: nn.Module, folder: Path | str) -> list[str]:
    """The names of a network's tensors that a folder does not hold, or holds otherwise.

    Raises  CheckpointError as `read_tensors`.
    """
    stored = read_tensors(folder)
    return [name for name, tensor in _untied(model).items() if name not in stored or not torch.equal(stored[name], tensor.detach().cpu())]


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with every shared tensor under its first name only."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
