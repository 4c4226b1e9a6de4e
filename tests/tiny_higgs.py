"""The selftest's tiny Higgs Audio v2, its tokenizer and its codec, for tests that are skipped where transformers is
not installed."""

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

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from muomni.selftest.voices import BOOKS, codec, config, saved, tokenizer  # noqa: E402

__all__ = ["BOOKS", "codec", "config", "saved", "tokenizer", "transformers"]


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
