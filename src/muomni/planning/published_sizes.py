"""Sizes of networks that others published, by hub id: what a plan needs of them where they are not on this
machine.

Source  the config.json of each, as published (Qwen3: Qwen Team 2025; SigLIP 2: Tschannen et al. 2025;
        EnCodec: Défossez et al. 2022; Janus-Pro: Chen et al. 2025; Higgs Audio v2: Boson AI 2025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from muomni.models.decoder import DecoderConfig


class Tower(NamedTuple):
    """Sizes of a SigLIP vision model; `size` and `patch` in pixels of a side."""

    width: int
    layers: int
    heads: int
    hidden: int
    size: int
    patch: int


class HiggsSizes(NamedTuple):
    """Sizes of a Higgs Audio v2, under the names of transformers' config; words and codes have tables of their own."""

    layers: int
    config: Mapping[str, Any]


class CodecSizes(NamedTuple):
    """A codec of transformers: its class, what decides its codes (rates, books, grid), and how wide it is.

    parameters  of the whole network
    codes       the part of its config that decides how many codes of which size a medium has
    narrow      the rest, for a network that stands in: as few channels as the class allows
    """

    class_name: str
    parameters: int
    codes: Mapping[str, Any]
    narrow: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """It is not drawn out: no update computes with it."""
        return 1


# width, layers, heads, hidden, whether the output table is the input's
QWEN3 = {
    "0.6B": (1024, 28, 16, 3072, True),
    "1.7B": (2048, 28, 16, 6144, True),
    "4B": (2560, 36, 32, 9728, True),
    "8B": (4096, 36, 32, 12288, False),
}
QWEN3_NAME = re.compile(r"Qwen/Qwen3-(0\.6B|1\.7B|4B|8B)(-Base)?")
QWEN3_VOCABULARY = 151_936

SIGLIP2 = {
    "base-patch16": (768, 12, 12, 3072),
    "large-patch16": (1024, 24, 16, 4096),
    "so400m-patch14": (1152, 27, 16, 4304),
}
SIGLIP2_NAME = re.compile(r"google/siglip2-(base-patch16|large-patch16|so400m-patch14)-(224|256|384|512)")
SIGLIP2_SIZES = {
    "base-patch16": (224, 256, 384, 512),
    "large-patch16": (256, 384),
    "so400m-patch14": (224, 384),
}

HIGGS = {
    "bosonai/higgs-audio-v2-generation-3B-base": HiggsSizes(
        28,
        {
            "vocab_size": 128_256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 2048,
            "num_codebooks": 8,
            "codebook_size": 1026,
            "audio_stream_bos_id": 1024,
            "audio_stream_eos_id": 1025,
        },
    )
}
# What makes its codes: its own class needs torchaudio, so it is taken for a DAC of its books, of a DAC's usual widths.
HIGGS_CODES = {
    "n_codebooks": 8,
    "codebook_size": 1024,
    "sampling_rate": 24_000,
    "downsampling_ratios": [3, 4, 8, 10],
    "upsampling_ratios": [10, 8, 4, 3],
    "hop_length": 960,
}

JANUS_VQ = CodecSizes(
    "JanusVQVAE",
    71_883_403,
    {"num_embeddings": 16_384, "embed_dim": 8, "num_patches": 24, "channel_multiplier": [1, 1, 2, 2, 4]},
    {
        "base_channels": 32,
        "latent_channels": 32,
        "num_res_blocks": 1,
        "projection_dim": 16,
        "image_token_embed_dim": 16,
    },
)
CODECS = {
    "facebook/encodec_24khz": CodecSizes(
        "EncodecModel",
        14_851_810,
        {
            "sampling_rate": 24_000,
            "audio_channels": 1,
            "normalize": False,
            "chunk_length_s": None,
            "upsampling_ratios": [8, 5, 4, 2],
            "codebook_size": 1024,
            "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
        },
        {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "num_lstm_layers": 1},
    ),
    "bosonai/higgs-audio-v2-tokenizer": CodecSizes(
        "DacModel",
        83_464_161,
        HIGGS_CODES,
        {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "codebook_dim": 4},
    ),
    # The quantiser within a whole Janus; both sizes have the same.
    "deepseek-community/Janus-Pro-1B": JANUS_VQ,
    "deepseek-community/Janus-Pro-7B": JANUS_VQ,
}

Sizes = DecoderConfig | Tower | CodecSizes | HiggsSizes
STORED = {
    DecoderConfig: torch.bfloat16,
    HiggsSizes: torch.bfloat16,
    Tower: torch.float32,
    CodecSizes: torch.float32,
}  # the number format of the published weights


def sizes(name: str) -> Sizes | None:
    """Those of the network with this hub id; None where it is not known here."""
    if name in CODECS:
        return CODECS[name]
    if name in HIGGS:
        return HIGGS[name]
    if match := QWEN3_NAME.fullmatch(name):
        width, layers, heads, hidden, tied = QWEN3[match[1]]
        return DecoderConfig(
            vocab_size=QWEN3_VOCABULARY,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=8,
            head_dim=128,
            ffn_width=hidden,
            rope_theta=1e6,
            ctx_len=32_768 if match[2] else 40_960,
            dropout=0.0,
            tied=tied,
        )
    match = SIGLIP2_NAME.fullmatch(name)
    if match and int(match[2]) in SIGLIP2_SIZES[match[1]]:
        return Tower(*SIGLIP2[match[1]], size=int(match[2]), patch=int(match[1][-2:]))
    return None
