"""Higgs Audio v2 in the layout of its makers (model_type `higgs_audio`): its names and sizes as those of
transformers' class, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni.errors import CheckpointError, ConfigError
from muomni.models import store
from muomni.tokens.bpe import Tokenizer

MODEL_TYPE = "higgs_audio"
SYMBOLS = 2  # beside its codes a book has a row each for the begin and the end of a stream; `audio_codebook_size` leaves them out
NAMES = (
    (re.compile(r"^audio_codebook_embeddings\."), "model.embed_audio_tokens.embed_audio_tokens."),
    (re.compile(r"^(embed_tokens|layers|norm)\."), r"model.\1."),
    (re.compile(r"^audio_decoder_proj\."), ""),
)
BACK = (
    (re.compile(r"^model\.embed_audio_tokens\.embed_audio_tokens\."), "audio_codebook_embeddings."),
    (re.compile(r"^model\."), ""),
    (re.compile(r"^(text_lm_head|audio_lm_head)\."), r"audio_decoder_proj.\1."),
)
# Tables of which some rows rested while they were trained lie in two parts, one behind the other.
HALVES = (
    ("embed_tokens", "embedding"),
    ("audio_decoder_proj.text_lm_head", "linear"),
    ("audio_decoder_proj.audio_lm_head", "linear"),
)
COMPUTED = ("audio_codebook_weights", "rotary_emb.inv_freq", "rotary_emb.original_inv_freq")
TOWER = ("audio_tower.", "audio_encoder_proj.")  # Whisper's encoder, and what leads from it
# What a config may ask for and the library's class has not, with what it must say.
ELSEWHERE: dict[str, Any] = {
    "use_audio_out_self_attention": False,
    "use_audio_out_embed_projector": False,
    "use_rq_transformer": False,
    "audio_embed_avg": False,
    "audio_decoder_proj_num_layers": 0,
}
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range",
    "rms_norm_eps", "attention_bias", "attention_dropout", "mlp_bias",
)  # fmt: skip
"""Of `text_config`, as the library's class calls them too."""


def library_name(name: str) -> str:
    """The library's name of a tensor or of a layer."""
    for pattern, new in NAMES:
        name = pattern.sub(new, name)
    return name


def original_name(name: str) -> str:
    """Its makers' name of a tensor or of a layer of the library's."""
    for pattern, new in BACK:
        name = pattern.sub(new, name)
    return name


def refuse_tower(names: Iterable[str], where: str) -> None:
    """Raises CheckpointError where tensors are those of Whisper's encoder, in either layout: the weights were trained
    to hear a reference by it, and the released class has none."""
    tower = sorted(name for name in names if name.removeprefix("model.").startswith(TOWER))
    if tower:
        raise CheckpointError(
            f"{where} relies on Whisper conditioning: {tower[0]} ({len(tower)} tensors of {' and '.join(TOWER)}); "
            "the released class has none",
            hint="only weights that hear a reference by its codes alone are trained here",
        )


def tell_whisper(content: Mapping[str, Any], where: str) -> None:
    """Say in a line that a config asks for Whisper conditioning, where no weights of it lie."""
    is_asked = content.get("encode_whisper_embed") or content.get("skip_audio_tower") is False
    if is_asked or content.get("encode_audio_in_tokens") is False:
        store.say_once(
            f"{where} asks for Whisper conditioning, and no weights of it are there: it is off, references are heard "
            "by their codes alone"
        )


def to_library(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of its makers' files under the library's names.

    Raises  CheckpointError for a half of a table without the other one.
    """
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith(COMPUTED)}
    for table, kind in HALVES:
        halves = [f"{table}.{kind}_{half}.weight" for half in ("frozen", "trainable")]
        there = [name for name in halves if name in left]
        if len(there) == 1:
            raise CheckpointError(f"{where}: {there[0]} is half a table, the other half is missing")
        if there:
            left[f"{table}.weight"] = torch.cat([left.pop(name) for name in halves])
    return {library_name(name): tensor for name, tensor in left.items()}


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The library's tensors under its makers' names."""
    return {original_name(name): tensor for name, tensor in tensors.items()}


def library_config(folder: Path, library: Any) -> Any:
    """The library's config of a folder in the makers' layout; ids that its makers' config does not name are its
    tokenizer's.

    Takes   library: transformers.
    Raises  CheckpointError where it asks for what the library's class has not, or lacks a size.
    """
    content = store.read_config(folder)
    where = folder / store.CONFIG
    for key, needed in ELSEWHERE.items():
        if content.get(key, needed) != needed:
            raise CheckpointError(
                f"{where}: {key} is {content[key]!r}, transformers' class has only {needed!r}"
            )
    if not content.get("use_delay_pattern", False):
        raise CheckpointError(
            f"{where}: use_delay_pattern is false or missing: weights without the delay are another model"
        )
    text = content.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(f"{where}: expected sizes in text_config, got {type(text).__name__}")
    if text.get("model_type", "llama") != "llama":
        raise CheckpointError(
            f"{where}: expected text_config of model_type llama, got {text['model_type']!r}"
        )
    sizes = library.LlamaConfig(**text)  # what it leaves out is the library's default, as for its makers
    layers = content.get("audio_dual_ffn_layers")
    if content.get("audio_adapter_type") not in ("dual_ffn", "dual_ffn_fast_forward") or sorted(
        layers or []
    ) != list(range(sizes.num_hidden_layers)):
        raise CheckpointError(
            f"{where}: expected a second path for codes in each of {sizes.num_hidden_layers} layers, got "
            f"audio_adapter_type {content.get('audio_adapter_type')!r} and audio_dual_ffn_layers {layers!r:.60}"
        )
    missing = [key for key in ("audio_num_codebooks", "audio_codebook_size") if key not in content]
    if missing:
        raise CheckpointError(f"{where}: {missing[0]} is missing")
    tokenizer = Tokenizer.load(folder)
    books, codes = int(content["audio_num_codebooks"]), int(content["audio_codebook_size"])
    return library.HiggsAudioV2Config(
        **{key: getattr(sizes, key) for key in SIZES},
        rope_parameters=sizes.rope_parameters,
        num_codebooks=books,
        codebook_size=codes + SYMBOLS,
        audio_token_id=content.get("audio_out_token_idx", tokenizer.special("<|AUDIO_OUT|>")),
        audio_bos_token_id=content.get("audio_out_bos_token_id", tokenizer.special("<|audio_out_bos|>")),
        audio_delay_token_id=tokenizer.special("<|reserved_special_token_6|>"),
        audio_stream_bos_id=content.get("audio_stream_bos_id", codes),
        audio_stream_eos_id=content.get("audio_stream_eos_id", codes + 1),
        pad_token_id=content.get("pad_token_id", tokenizer.special("<|end_of_text|>")),
        bos_token_id=tokenizer.special("<|begin_of_text|>"),
        eos_token_id=tokenizer.special("<|eot_id|>"),
        architectures=["HiggsAudioV2ForConditionalGeneration"],
    )


def original_config(config: Any, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """Its makers' config.json of a config of the library's.

    Takes   dtype: in which the weights are stored.
    Raises  ConfigError where the rows of a book are not its codes and the two symbols of a stream.
    """
    codes = config.codebook_size - SYMBOLS
    if sorted((config.audio_stream_bos_id, config.audio_stream_eos_id)) != [codes, codes + 1]:
        raise ConfigError(
            f"books of {config.codebook_size} rows with a stream's symbols at {config.audio_stream_bos_id} and "
            f"{config.audio_stream_eos_id}: the makers' layout has them behind the codes, {codes} and {codes + 1}"
        )
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    layers = config.num_hidden_layers
    stored = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["HiggsAudioModel"],
        "model_type": MODEL_TYPE,
        "torch_dtype": stored,
        "text_config": {
            "model_type": "llama",
            **{key: getattr(config, key) for key in SIZES},
            "rope_theta": theta,
            "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
            "bos_token_id": tokenizer.special("<|begin_of_text|>"),
            "eos_token_id": tokenizer.special("<|eot_id|>"),
            "tie_word_embeddings": False,
            "torch_dtype": stored,
        },
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(layers)),
        "audio_ffn_hidden_size": config.hidden_size,
        "audio_ffn_intermediate_size": config.intermediate_size,
        **ELSEWHERE,
        "encode_whisper_embed": False,
        "encode_audio_in_tokens": True,
        "skip_audio_tower": True,
        "use_delay_pattern": True,
        "audio_num_codebooks": config.num_codebooks,
        "audio_codebook_size": codes,
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_out_bos_token": "<|audio_out_bos|>",
        "audio_in_token": "<|AUDIO|>",
        "audio_out_token": "<|AUDIO_OUT|>",
        "audio_in_token_idx": tokenizer.special("<|AUDIO|>"),
        "audio_out_token_idx": config.audio_token_id,
        "audio_out_bos_token_id": config.audio_bos_token_id,
        "audio_eos_token_id": tokenizer.special("<|audio_eos|>"),
        "pad_token_id": config.pad_token_id,
    }
