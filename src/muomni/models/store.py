"""Networks as folders: config.json + model.safetensors, opened strictly; nothing here unpickles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from muomni import files
from muomni.config import current
from muomni.errors import CheckpointError
from muomni.models import finite
from muomni.plugins import Registry

# model_type -> its class, which is built as cls(config: ItsConfig) and says by `trained_by` which stage ends in
# a folder of it, if one does. Packages bring theirs as `MODEL_TYPE = "package.module:Class"`.
CLASSES = Registry(
    "muomni.networks",
    {
        "qwen3": "muomni.models.decoder:Decoder",
        "qwen3_moe": "muomni.models.decoder:Decoder",
        "muomni_audio_encoder": "muomni.models.audio_encoder:AudioEncoder",
        "muomni_vision_encoder": "muomni.models.vision_encoder:VisionEncoder",
        "muomni_text_tower": "muomni.models.text_tower:TextTower",
        "muomni_codec": "muomni.models.codec:Codec",
        "muomni_image_codec": "muomni.models.image_codec:ImageCodec",
        "muomni_talker": "muomni.models.talker:Talker",
        "muomni_projectors": "muomni.models.omni:Projectors",
    },
)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
ADAPTER = (
    "adapter_config.json"  # PEFT's: transformers adds the adapter beside it to the weights as it opens them
)
HEAD, TABLE = (
    "lm_head.weight",
    "model.embed_tokens.weight",
)  # a language model's two tables of words, which may be one
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in which weights are taken
_TOLD: set[str] = set()  # notes that this process has printed
_copies = False  # whether tensors are copied as they are opened


def save(model: nn.Module, folder: Path | str, *, extra: dict[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors, each whole or not at all; a tensor with two names is stored
    once.

    Takes   model with `config` (pydantic) and `model_type`; a config with `to_file` writes its own
            config.json. extra: JSON values kept in config.json under "muomni" (read them by `extra_of`).
    """
    folder = Path(folder)
    config: Any = model.config
    content = config.to_file() if hasattr(config, "to_file") else config.model_dump(mode="json")
    content = {"model_type": model.model_type, **content, "muomni": extra or {}}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _untied(model).items()}
    files.write_bytes(folder / WEIGHTS, to_safetensors(tensors, metadata={"format": "pt"}))
    files.write_json(folder / CONFIG, content)


@torch.inference_mode(False)  # opened below it by an engine, its parameters could never train
def load(
    folder: Path | str,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | Literal["stored"] = torch.float32,
) -> Any:
    """The network in a folder, in evaluation mode.

    It is built without memory, and its tensors are those that the file maps: a network in the stored dtype on
    a CPU costs no copy, and no random start is drawn. Whoever trains it writes to copies of the pages, never
    to the file.

    Takes   dtype of its floats; "stored": as they lie in the file. Whole numbers stay what they are.
    Raises  CheckpointError where files are missing or torn, the kind is unknown, names or shapes differ (all
            are listed), or weights are no numbers.
    """
    folder = Path(folder)
    content = read_config(folder)
    kind = content.get("model_type")
    network = CLASSES.find(str(kind))
    if network is None:
        known = ", ".join(CLASSES.names())
        raise CheckpointError(f"{folder / CONFIG}: model_type must be one of {known}, got {kind!r}")
    shape = typing.get_type_hints(network.__init__)["config"]
    own = {key: value for key, value in content.items() if key not in ("model_type", "muomni")}
    try:
        config = (
            shape.from_file(content)
            if hasattr(shape, "from_file")
            else shape.model_validate(current(own, shape))
        )
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG}: {'; '.join(map(_fault, error.errors()))}") from error
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder / CONFIG} {error.message.removeprefix('config.json ')}", hint=error.hint
        ) from error
    tensors = read_tensors(folder)
    if getattr(config, "tied", False):
        config = _as_tied(config, tensors, folder)
    with torch.device("meta"):
        model: nn.Module = network(config)
    adopt(model, tensors, where=str(folder), device=device, dtype=dtype)
    finite.demand_weights(_untied(model), folder)
    finite.came_from(model, folder)
    return model.eval()


def _fault(fault: Any) -> str:
    """What pydantic says of one key, or of a config as a whole, in a line."""
    message = str(fault["msg"]).removeprefix("Value error, ")
    return (
        f"{'.'.join(map(str, fault['loc']))}: {message.lower()}, got {fault['input']!r}"
        if fault["loc"]
        else message
    )


def _as_tied(config: Any, tensors: dict[str, Tensor], folder: Path) -> Any:
    """What a config that ties the head to the embedding table is to the tensors of its file, as transformers
    5 decides it.

    A file that holds the head alone gives its table to both (`tensors` is changed). One that holds two
    different tables is untied, and that is told: its config is wrong, and without its head it would say
    something else.
    """
    if HEAD not in tensors:
        return config
    if TABLE not in tensors:
        tensors[TABLE] = tensors.pop(HEAD)
        return config
    if tensors[HEAD].shape == tensors[TABLE].shape and torch.equal(tensors[HEAD], tensors[TABLE]):
        return config
    say_once(
        f"{folder / CONFIG} ties the head to the embedding table, but the weights hold another {HEAD}: it is used as it lies there, untied"
    )
    return config.model_copy(update={"tied": False})


def say_once(line: str) -> None:
    """Print a note on standard error, once a process, and of several ranks on the first alone."""
    if line not in _TOLD and os.environ.get("RANK", "0") == "0":
        print(f"note: {line}", file=sys.stderr, flush=True)
    _TOLD.add(line)


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
        raise CheckpointError(
            f"{path} is missing", hint="a model is a folder with config.json and model.safetensors"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def weight_index(folder: Path) -> Path | None:
    """The index that says in which files the weights of a folder lie; None where they lie in one file.

    As transformers 5 chooses: what config.json names as `transformers_weights`, else model.safetensors, else
    its index. An index beside model.safetensors is left over from older weights: it is not read, and that is
    told.
    Raises  CheckpointError where a PEFT adapter lies beside the weights.
    """
    named = _named_weights(folder)
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder / ADAPTER}: a PEFT adapter lies beside the weights, where transformers adds it to them; here it would be left out",
            hint="merge it (peft: model.merge_and_unload().save_pretrained(NEW)) and give NEW, or move the adapter_* files elsewhere",
        )
    if named != WEIGHTS:
        return folder / named if named.endswith(".index.json") else None
    if not (folder / INDEX).is_file():
        return None
    if (folder / WEIGHTS).is_file():
        say_once(
            f"{folder / INDEX} is not read: {WEIGHTS} beside it holds the weights, as transformers opens them"
        )
        return None
    return folder / INDEX


def _named_weights(folder: Path) -> str:
    """The file of weights, or its index, that config.json names; model.safetensors where it names none."""
    if not (folder / CONFIG).is_file():
        return WEIGHTS
    named = read_config(folder).get("transformers_weights") or WEIGHTS
    if (
        not isinstance(named, str)
        or Path(named).name != named
        or not named.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise CheckpointError(
            f"{folder / CONFIG}: transformers_weights must name a .safetensors file beside it or an index, got {named!r}"
        )
    return named


def weight_files(folder: Path | str) -> list[Path]:
    """Where the weights of a folder lie: one file, or the shards that its index names (`weight_index`).

    Raises  CheckpointError naming what is missing, torn, or outside of the folder.
    """
    folder = Path(folder)
    index = weight_index(folder)
    names = [_named_weights(folder)]
    if index is not None:
        try:
            names = sorted(set(files.read_json(index)["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not an index of shards: {error}") from error
        if odd := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise CheckpointError(f"{index} names a file outside of its folder: {odd[0]}")
        if not names:
            raise CheckpointError(f"{index} names no shards")
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing", hint=_instead(folder, index))
    return [folder / name for name in names]


def _instead(folder: Path, index: Path | None) -> str:
    """What lies in a folder in the place of weights that are missing, and what to do about it."""
    if index is not None:
        return f"{index.name} names it: copy the shard there, or save the model again"
    there = sorted(
        path.name
        for path in folder.glob("*")
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")
    )
    if not there:
        return "a model is a folder with config.json and model.safetensors"
    if any(name.endswith(".safetensors") for name in there):
        return f"found {', '.join(there[:3])}: one file must be named {WEIGHTS}, shards need {INDEX}"
    return f"found {', '.join(there[:3])}, which is not opened here: save it again by transformers, whose save_pretrained writes {WEIGHTS}"


@contextlib.contextmanager
def copying() -> Iterator[None]:
    """While it lasts, `read_tensors` gives copies in memory, which no writer to the files can reach."""
    global _copies
    before, _copies = _copies, True
    try:
        yield
    finally:
        _copies = before


def read_tensors(folder: Path | str) -> dict[str, Tensor]:
    """All tensors of a folder, mapped from its files: nothing is read before it is looked at (but `copying`).

    Raises  CheckpointError naming the file that is missing or torn, or a tensor in a number format of
            quantised weights.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as stream:
                opened = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
                tensors.update({key: each.clone() for key, each in opened.items()} if _copies else opened)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is torn or not a safetensors file: {error}") from error
    if odd := next(
        (
            name
            for name, tensor in tensors.items()
            if tensor.is_floating_point() and tensor.dtype not in FLOATS
        ),
        None,
    ):
        raise CheckpointError(
            f"{folder}: {odd} is stored in {str(tensors[odd].dtype).removeprefix('torch.')}: expected {_spelled(FLOATS)}",
            hint="quantised weights are not opened here: give the model as it was before",
        )
    return tensors


def tensor_names(folder: Path | str) -> list[str]:
    """The names of all tensors of a folder, by its files' headers alone.

    Raises  CheckpointError naming the file that is missing or torn.
    """
    names: list[str] = []
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as stream:
                names += stream.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is torn or not a safetensors file: {error}") from error
    return names


def stored_format(folder: Path | str) -> torch.dtype:
    """The number format of the largest tensor that a folder's files hold.

    Raises  CheckpointError as `read_tensors`.
    """
    return max(read_tensors(folder).values(), key=lambda tensor: tensor.numel()).dtype


def _spelled(formats: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(each).removeprefix("torch.") for each in formats)


def adopt(
    model: nn.Module,
    tensors: dict[str, Tensor],
    *,
    where: str,
    device: torch.device | str,
    dtype: torch.dtype | Literal["stored"],
) -> None:
    """Make tensors the state of a model that was built on the meta device; what was tied stays tied.

    Raises  CheckpointError as `check`.
    """
    check(model, tensors, where=where)
    adopted: dict[int, Tensor] = {}
    for name, own in _untied(model).items():
        is_cast = dtype != "stored" and tensors[name].is_floating_point()
        tensor = tensors[name].to(device, dtype if is_cast else None)  # type: ignore[arg-type]
        adopted[id(own)] = (
            nn.Parameter(tensor, own.requires_grad) if isinstance(own, nn.Parameter) else tensor
        )
    for part in model.modules():
        for table in (part._parameters, part._buffers):
            table.update({name: adopted[id(own)] for name, own in table.items() if own is not None})  # type: ignore[misc]


def check(model: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Whether tensors have the names, shapes and kinds of a model's state, a tied one under its first name or
    under both.

    Raises  CheckpointError listing what is missing, unexpected, of another shape, or whole numbers in the
            place of floats.
    """
    own = model.state_dict(keep_vars=True)
    missing = sorted(_untied(model).keys() - tensors.keys())
    # Some files repeat a tied table under its second name, which the model may not even have.
    repeated = {HEAD} if getattr(getattr(model, "config", None), "tied", False) else set()
    unexpected = sorted(tensors.keys() - own.keys() - repeated)
    shapes = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    kinds = [
        f"{name}: expected floats, got {tensors[name].dtype}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    if missing or unexpected or shapes or kinds:
        named = {"missing": missing, "unexpected": unexpected, "shape": shapes, "format": kinds}
        lines = [f"{kind} {each}" for kind, faults in named.items() for each in faults]
        shown = "; ".join(lines[:20]) + (f"; and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise CheckpointError(f"{where} does not fit {type(model).__name__}: {shown}")


def digest(module: nn.Module, *, parameters_only: bool = False) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters (and buffers), in the order of their
    names."""
    return digest_of_all(dict(module.named_parameters()) if parameters_only else module.state_dict())


def digest_of_all(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
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
    return [
        name
        for name, tensor in _untied(model).items()
        if name not in stored or not torch.equal(stored[name], tensor.detach().cpu())
    ]


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with every shared tensor under its first name only."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state
