"""A tiny Higgs Audio v2 with random weights and a tokenizer of Llama 3's kind, saved by the libraries
themselves, and a codec of 25 frames a second beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

NAMES = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|recipient|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
)
BOOKS = 8


def tokenizer(folder: Path) -> Any:
    """Bytes and a few merges, then the special tokens as Llama 3 and Higgs spell them, saved by
    transformers."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    library.train_from_iterator(["system user assistant please generate speech for the text"], trainer)
    library.add_special_tokens(list(NAMES))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
    )
    fast.save_pretrained(folder)
    return fast


def config(named: Any, **changes: Any) -> Any:
    """A tiny config whose ids are those of the tokenizer; 8 books of 32 codes and the two symbols of a
    stream."""
    ids = named.convert_tokens_to_ids
    sizes = {
        "vocab_size": len(named),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "num_codebooks": BOOKS,
        "codebook_size": 34,
        "audio_stream_bos_id": 32,
        "audio_stream_eos_id": 33,
        "audio_token_id": ids("<|AUDIO_OUT|>"),
        "audio_bos_token_id": ids("<|audio_out_bos|>"),
        "audio_delay_token_id": ids("<|reserved_special_token_6|>"),
        "pad_token_id": ids("<|end_of_text|>"),
        "bos_token_id": ids("<|begin_of_text|>"),
        "eos_token_id": ids("<|eot_id|>"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return transformers.HiggsAudioV2Config(**{**sizes, **changes})


def saved(folder: Path, *, seed: int = 0, use_text_head: bool = True, **changes: Any) -> Any:
    """The library's network as it wrote it into a folder, stirred so that logits are not flat."""
    made = config(tokenizer(folder), **changes)
    torch.manual_seed(seed)
    network = transformers.HiggsAudioV2ForConditionalGeneration(made, use_text_head=use_text_head).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" not in name:
                weight.normal_(0, 0.15)
    network.save_pretrained(folder)
    return network


def original(base: Path, folder: Path, *, halves: bool = False, **changes: Any) -> None:
    """What `saved` wrote in `base` as Higgs' makers lay it out, by the names and keys of their published code; the
    values are the same.

    Takes   halves: tables in two parts, as they lie where some rows rested; changes: of config.json.
    """
    made = json.loads((base / "config.json").read_text())
    tops = {
        "model.embed_tokens.weight": "embed_tokens.weight",
        "model.norm.weight": "norm.weight",
        "model.embed_audio_tokens.embed_audio_tokens.weight": "audio_codebook_embeddings.weight",
        "text_lm_head.weight": "audio_decoder_proj.text_lm_head.weight",
        "audio_lm_head.weight": "audio_decoder_proj.audio_lm_head.weight",
    }
    layer = re.compile(r"model\.(layers\.\d+\..*)")
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        found = layer.fullmatch(name)
        tensors[found[1] if found else tops[name]] = tensor
    tensors["audio_codebook_weights"] = torch.full((BOOKS,), 1 / BOOKS)
    if halves:
        for table, kind in (
            ("embed_tokens", "embedding"),
            ("audio_decoder_proj.text_lm_head", "linear"),
            ("audio_decoder_proj.audio_lm_head", "linear"),
        ):
            whole = tensors.pop(f"{table}.weight")
            tensors[f"{table}.{kind}_frozen.weight"] = whole[:20].clone()
            tensors[f"{table}.{kind}_trainable.weight"] = whole[20:].clone()
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("config.json", "model.safetensors", "codec"))
    save_file(tensors, folder / "model.safetensors")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    content = {
        "architectures": ["HiggsAudioModel"],
        "model_type": "higgs_audio",
        "text_config": {
            "model_type": "llama",
            **{key: made[key] for key in sizes},
            "rope_theta": made["rope_parameters"]["rope_theta"],
            "rope_scaling": None,
        },
        "audio_encoder_config": {"model_type": "higgs_audio_encoder", "d_model": 1280},
        "audio_adapter_type": "dual_ffn_fast_forward",
        "audio_dual_ffn_layers": list(range(made["num_hidden_layers"])),
        "audio_num_codebooks": BOOKS,
        "audio_codebook_size": made["codebook_size"] - 2,
        "audio_stream_bos_id": made["audio_stream_bos_id"],
        "audio_stream_eos_id": made["audio_stream_eos_id"],
        "audio_out_token_idx": made["audio_token_id"],
        "audio_out_bos_token_id": made["audio_bos_token_id"],
        "pad_token_id": made["pad_token_id"],
        "encode_audio_in_tokens": True,
        "encode_whisper_embed": False,
        "skip_audio_tower": True,
        "use_delay_pattern": True,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(content))


def codec(folder: Path, *, seed: int = 0, codebook_size: int = 32) -> Any:
    """DAC at 24 kHz with a hop of 960 samples: 8 books, 25 frames a second, its tables stirred."""
    torch.manual_seed(seed)
    made = transformers.DacModel(
        transformers.DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=16,
            downsampling_ratios=[3, 4, 8, 10],
            upsampling_ratios=[10, 8, 4, 3],
            hop_length=960,
            n_codebooks=BOOKS,
            codebook_size=codebook_size,
            codebook_dim=4,
            sampling_rate=24000,
        )
    ).eval()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name.endswith("codebook.weight"):
                tensor.normal_()
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    made.save_pretrained(folder)
    return made
