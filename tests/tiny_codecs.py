"""Codecs of transformers, tiny and random, saved by the library itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

ENCODEC = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 64, "num_lstm_layers": 1}
MIMI = {
    "hidden_size": 32,
    "num_filters": 4,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
DAC = {
    "encoder_hidden_size": 8,
    "decoder_hidden_size": 32,
    "n_codebooks": 5,
    "codebook_size": 64,
    "codebook_dim": 4,
}
JANUS = {
    "num_embeddings": 64,
    "latent_channels": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "num_patches": 4,
    "projection_dim": 16,
    "image_token_embed_dim": 16,
}
# kbit/s of 1, 2, 4 and 8 books of 64 entries at 75 Hz
BANDWIDTHS = [0.45, 0.9, 1.8, 3.6]


def network(kind: str, **changes: Any) -> Any:
    """A tiny network in evaluation mode, stirred so that every table counts and codes vary."""
    torch.manual_seed(0)
    made: Any = {
        "encodec": lambda: transformers.EncodecModel(
            transformers.EncodecConfig(**{**ENCODEC, "target_bandwidths": BANDWIDTHS, **changes})
        ),
        "mimi": lambda: transformers.MimiModel(transformers.MimiConfig(**{**MIMI, **changes})),
        "dac": lambda: transformers.DacModel(transformers.DacConfig(**{**DAC, **changes})),
        "janus_vq": lambda: transformers.JanusVQVAE(transformers.JanusVQVAEConfig(**{**JANUS, **changes})),
    }[kind]()
    with torch.no_grad():
        for name, tensor in made.state_dict().items():  # what is not saved stays as it is
            if name.endswith((".embed", ".embed_sum", "codebook.weight")):
                tensor.normal_()
            elif kind == "encodec":
                # Its random start forgets the wave on the way down: twice the gain of every convolution keeps
                # it.
                tensor.mul_(2 if name.endswith("weight.original0") else 1)
            elif tensor.is_floating_point() and "cluster" not in name:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return made.eval()


def saved(kind: str, folder: Path, **changes: Any) -> Any:
    """Such a network, and its folder as the library writes it."""
    made = network(kind, **changes)
    made.save_pretrained(folder)
    return made


def wave(samples: int, *, seed: int = 0, rows: int = 1) -> torch.Tensor:
    """Noise (rows, samples)."""
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed)) * 0.3


def pictures(rows: int = 2, *, size: int = 8, seed: int = 0) -> torch.Tensor:
    """Noise (rows, 3, size, size) in [0, 1]."""
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))
