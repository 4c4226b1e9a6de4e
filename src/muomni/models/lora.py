"""LoRA on a causal language model by way of PEFT: attached in place, saved light in PEFT's own files, merged
back (into plain Qwen3 weights, or the weights of another library's network)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from muomni import files
from muomni.errors import CheckpointError, ConfigError
from muomni.models import finite
from muomni.models.causal import CausalLM
from muomni.models.decoder import Decoder
from muomni.nn.adapter import effective

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what a PeftModel puts in front of the names of the model that it wraps
# Keys of adapter_config.json that ask for other maths than W + alpha / r * B A on whole layers.
BEYOND = (
    "use_dora", "use_rslora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "exclude_modules", "modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication",
)  # fmt: skip
NAMES = "*lora_*"  # matches the parameters that `attach` adds, in any network that holds the decoder
M = TypeVar("M", bound=CausalLM)


class LoraSettings(BaseModel):
    """Rank, strength and places of the adapter (SPEC V4); a target is the end of a projection's name, in every
    block, or all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    r: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0, description="the delta is alpha / r * B A")
    dropout: float = Field(0.05, ge=0, lt=1, description="on what A reads, in training mode")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )


def attach(decoder: M, settings: LoraSettings) -> M:
    """The model itself with A and B beside its projections: all that trains from here on, in float32 whatever
    the base's dtype.

    A is drawn from torch's global generator; B is zero, so that nothing is said differently at first.
    Raises  ConfigError for a target that matches no projection, a decoder that has an adapter, or without the
            extra `hf`.
    Source  Hu et al. 2021.
    """
    _demand_plain(decoder)
    names = [name for name, _ in decoder.projections()]
    if lost := [target for target in settings.targets if not any(_fits(name, [target]) for name in names)]:
        ends = sorted({name.rpartition(".")[2] for name in names})
        raise ConfigError(
            f"lora targets match nothing: {', '.join(lost)}", hint=f"the blocks have {', '.join(ends)}"
        )
    peft = _peft()
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    peft.inject_adapter_in_model(config, decoder.adapted)
    decoder.requires_grad_(False)
    for _, weight in _adapter(decoder):
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    # PEFT's new layers stand in training mode, whatever the decoder stands in; a part that rests for ever
    # (optim.freeze) goes on resting.
    nn.Module.train(decoder, decoder.training)
    return decoder


def _fits(name: str, targets: Sequence[str]) -> bool:
    """Whether a projection is among the targets, by PEFT's own rule."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def plain(decoder: CausalLM) -> bool:
    """Whether no adapter is attached."""
    return next(_adapter(decoder), None) is None


def save(decoder: CausalLM, folder: Path | str, base: str) -> None:
    """Write the adapter, and nothing of the base, as PEFT does: `peft.PeftModel.from_pretrained(qwen3,
    folder)` opens it.

    Takes   base: the hub id or folder of the weights that it belongs to.
    Raises  ConfigError for a decoder without an adapter.
    """
    if plain(decoder):
        raise ConfigError("the decoder has no adapter to save")
    peft_config: Any = decoder.adapted.peft_config
    # Not PEFT's save_pretrained: it orders the targets anew in each process, and a kill leaves half a file.
    content = {**peft_config["default"].to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    state = _peft().get_peft_model_state_dict(decoder.adapted, save_embedding_layers=False)
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in state.items()}
    files.write_bytes(Path(folder) / WEIGHTS, to_safetensors(tensors, metadata={"format": "pt"}))
    files.write_json(
        Path(folder) / CONFIG,
        {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()},
    )


def renamed(folder: Path, out: Path, name_of: Callable[[str], str]) -> None:
    """Write the adapter of a folder for the same network under other names.

    Takes   name_of: the new name of a layer, and of a tensor of the adapter's.
    Raises  CheckpointError where its file is missing or torn.
    """
    content = files.read_json(folder / CONFIG)
    targets = sorted(name_of(name) for name in content["target_modules"])
    tensors = {
        PREFIX + name_of(name.removeprefix(PREFIX)): tensor for name, tensor in _stored(folder).items()
    }
    files.write_bytes(out / WEIGHTS, to_safetensors(tensors, metadata={"format": "pt"}))
    files.write_json(out / CONFIG, {**content, "target_modules": targets})


def _stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file.

    Raises  CheckpointError where it is missing or torn.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is missing or torn: {error}") from error


def changed(decoder: CausalLM, folder: Path | str) -> list[str]:
    """The names of an adapter's tensors that a folder does not hold, or holds otherwise.

    Raises  CheckpointError where its file is missing or torn.
    """
    stored = _stored(Path(folder))
    state = _peft().get_peft_model_state_dict(decoder.adapted, save_embedding_layers=False)
    own = {PREFIX + name: tensor.detach().cpu() for name, tensor in state.items()}
    return [
        name for name, tensor in own.items() if name not in stored or not torch.equal(stored[name], tensor)
    ]


@torch.no_grad()
def load(decoder: M, folder: Path | str) -> M:
    """The model itself with the adapter of a folder attached, all or nothing.

    Raises  CheckpointError where files are missing or torn, ask for other maths, or hold tensors of other
            names or shapes (all are listed) or no numbers;
            ConfigError as `attach`.
    """
    _demand_plain(decoder)
    folder = Path(folder)
    settings = _read_settings(folder)
    tensors = _stored(folder)
    expected = _shapes(decoder, settings)
    lines = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    lines += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    lines += [
        f"shape {name}: expected {expected[name]}, got {tuple(tensors[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if expected[name] != tuple(tensors[name].shape)
    ]
    if lines:
        shown = "; ".join(lines[:20]) + (f"; and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise CheckpointError(f"{folder} does not fit this model: {shown}")
    finite.demand_weights(tensors, folder)
    attach(decoder, settings)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    _peft().set_peft_model_state_dict(decoder.adapted, state)
    return decoder


def merged(decoder: Decoder) -> Decoder:
    """A plain decoder that says the same: base + delta, summed in float32 and kept in the base's dtype, under
    Qwen3's names.

    All other tensors are the given decoder's own, so it is frozen, and in evaluation mode; the given one
    stays as it is.
    """
    return _rewired(decoder, effective)


def base_of(decoder: Decoder) -> Decoder:
    """The plain decoder beside which the adapter stands, under Qwen3's names; frozen, in evaluation mode,
    with the given one's tensors."""
    return _rewired(decoder, lambda layer: layer.base_layer.weight.detach())


def _rewired(decoder: Decoder, weight_of: Callable[[Any], Tensor]) -> Decoder:
    """A plain decoder whose wrapped projections have the weights that are told; all else is shared."""
    wrapped = {name: layer for name, layer in decoder.named_modules() if hasattr(layer, "base_layer")}
    inside = (
        "grown_",
        *(f"{name}." for name in wrapped),
    )  # new rows of a token space are no part of the decoder
    state = {name: tensor for name, tensor in decoder.state_dict().items() if not name.startswith(inside)}
    state |= {f"{name}.weight": weight_of(layer) for name, layer in wrapped.items()}
    with torch.device("meta"):
        out = Decoder(decoder.config)
    out.load_state_dict(state, assign=True)
    return out.requires_grad_(False).eval()


def merged_tensors(model: CausalLM) -> dict[str, Tensor]:
    """The weights of a model with an adapter as those of a plain one that says the same, under the names that
    its own files use: base + delta, summed in float32 and kept in the base's dtype."""
    wrapped = {name: layer for name, layer in model.adapted.named_modules() if hasattr(layer, "base_layer")}
    inside = tuple(f"{name}." for name in wrapped)
    state = {
        name: tensor for name, tensor in model.adapted.state_dict().items() if not name.startswith(inside)
    }
    return state | {f"{name}.weight": effective(layer) for name, layer in wrapped.items()}


def _demand_plain(decoder: CausalLM) -> None:
    if not plain(decoder):
        raise ConfigError("the decoder has an adapter already", hint="merge it first: models.lora.merged")


def _adapter(decoder: CausalLM) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in decoder.named_parameters() if ".lora_" in name)


def _shapes(decoder: CausalLM, settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """What a file must hold for this model."""
    chosen = [(name, layer) for name, layer in decoder.projections() if _fits(name, settings.targets)]
    down = {f"{PREFIX}{name}.lora_A.weight": (settings.r, layer.in_features) for name, layer in chosen}
    return down | {
        f"{PREFIX}{name}.lora_B.weight": (layer.out_features, settings.r) for name, layer in chosen
    }


def _read_settings(folder: Path) -> LoraSettings:
    path = folder / CONFIG
    try:
        content = files.read_json(path)
        if content["peft_type"] != "LORA":
            raise CheckpointError(
                f"{path}: expected an adapter of peft_type LORA, got {content['peft_type']}"
            )
        if beyond := [key for key in BEYOND if content.get(key)] + ["bias"] * (
            content.get("bias", "none") != "none"
        ):
            raise CheckpointError(f"{path} asks for what this LoRA does not have: {', '.join(beyond)}")
        values = {
            "alpha": content["lora_alpha"],
            "dropout": content["lora_dropout"],
            "targets": content["target_modules"],
        }
        return LoraSettings(r=content["r"], **values)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"{path} is missing or no LoRA configuration: {error}") from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "LoRA needs peft, which is not installed", hint="pip install 'muomni[hf]'"
        ) from error
    return peft
