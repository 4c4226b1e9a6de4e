"""The keys of the flat JSON configs that this system stands for, and what becomes of each: one table a fate.

A key that stands in none of these tables may still be one of our own settings (`lr`, `batch_size`, `gates`),
which pass as they are.
"""

from __future__ import annotations

from typing import Any

# What a flat config is for. Its `talker` makes the codec too, as the sources train both by one file.
STAGES = ("thinker", "hearing", "vision", "codec", "talker", "omni")

_BLOCKS = {
    "d_model": "model.width",
    "n_layers": "model.layers",
    "n_heads": "model.heads",
    "d_ff": "model.ffn_width",
    "dropout": "model.dropout",
}
_CODEC = {"codebooks": "model.codebooks", "codebook_size": "model.codebook_size"}

# By stage: the key, and the setting that it is. What needs more than a new name is done by `flat` itself.
RENAMED: dict[str, dict[str, str]] = {
    "thinker": {
        **_BLOCKS,
        "rope_theta": "model.rope_theta",
        "ctx_len": "model.ctx_len",
        "vocab_size": "model.vocab_size",
    },
    "hearing": {**_BLOCKS, "rope_theta": "model.rope_theta", "downsample_time": "model.downsample"},
    "vision": {
        **_BLOCKS,
        "img_size": "model.image_size",
        "patch": "model.patch_size",
        "embed_dim": "model.embed_dim",
    },
    "codec": _CODEC,
    "talker": {**_BLOCKS, "rope_theta": "model.rope_theta"},
    "omni": {},
}

# Keys that `flat` reads by hand, by stage.
SHAPED: dict[str, tuple[str, ...]] = {
    "thinker": ("use_gqa", "kv_groups", "use_moe", "num_experts", "num_experts_per_tok"),
    "hearing": ("mel_bins", "sample_rate", "frame_hop", "frame_win", "target_hz", "max_mel_length"),
    "vision": ("use_thinker_for_text", "thinker_ckpt", "thinker", "ctx_len"),
    "codec": ("frame_rate", "frame_ms", "n_mels", "sample_rate", "max_mel_length"),
    "talker": ("frame_rate", "frame_ms", "n_mels", "sample_rate", "max_mel_length", *_CODEC),
    "omni": ("thinker_ckpt", "audio_ckpt", "vision_ckpt", "talker_ckpt", "thinker", "ctx_len", "prompt"),
}

# Where the data stand, by stage, the stage's own name for them last; and the format that such a name
# promises.
DATA: dict[str, tuple[str, ...]] = {
    "thinker": ("data_path", "text_path", "train_text"),
    "hearing": ("data_path", "asr_csv", "train_csv"),
    "vision": ("data_path", "image_manifest", "train_manifest"),
    "codec": ("data_path", "tts_csv"),
    "talker": ("data_path", "tts_csv"),
    "omni": ("data_path", "sft_mix"),
}
MIX = ("text_path", "image_manifest", "image_root", "asr_csv")  # inside of sft_mix
FORMATS = {
    "thinker": "text",
    "hearing": "asr_csv",
    "vision": "captions",
    "codec": "tts_csv",
    "talker": "tts_csv",
}
# Where the sources keep them, for a config that names none.
PLACES = {
    "thinker": "data/text",
    "hearing": "data/audio/asr.csv",
    "vision": "data/images/annotations.json",
    "codec": "data/audio/tts.csv",
    "talker": "data/audio/tts.csv",
}

# The finished stages that a config may name, by key.
CHECKPOINTS = {
    "thinker_ckpt": "thinker",
    "audio_ckpt": "hearing",
    "vision_ckpt": "vision",
    "talker_ckpt": "talker",
}

# What changes nothing that is learned here: left out, and why.
IDLE = {
    "drop_last": "the last, smaller batch of a pass counts too",
    "shuffle_buffer_size": "the whole of the data is shuffled",
    "use_flash": "attention takes the fastest kernel that the machine has",
    "use_compile": "nothing is compiled",
    "warn_on_dataset_errors": "bad rows are always named and counted",
}

# What is as it is here: the values that say so, by stage (None: any), and why another is refused.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_swiglu": ((True,), "the feed-forward network is SwiGLU"),
    "ctc_vocab_size": (
        (98, 99),
        "the alphabet has 99 symbols, the blank counted: 95 of ASCII, newline, tab, unknown",
    ),
}
FIXED_IN = {"use_swiglu": ("thinker", "talker"), "ctc_vocab_size": ("hearing",)}

# What can't be had: the setting that comes nearest, and why.
REFUSED: dict[str, dict[str, tuple[str, str]]] = {
    "hearing": {
        "max_text_len_percentile": (
            "max_text_len",
            "a limit is a number of characters, not a share of the data",
        ),
        "max_mel_length_percentile": ("max_s", "a limit is a number of seconds, not a share of the data"),
    },
    "vision": {"head_output_size": ("embed_dim", "both towers end in vectors of embed_dim")},
    "codec": {
        "max_mel_length_percentile": ("max_s", "a limit is a number of seconds, not a share of the data")
    },
    "talker": {
        "max_mel_length_percentile": ("max_s", "a limit is a number of seconds, not a share of the data"),
        "kv_groups": ("n_heads", "each head of the Talker has keys of its own"),
        "use_gqa": ("n_heads", "each head of the Talker has keys of its own"),
    },
    "omni": {
        "proj_audio_dim": ("audio_ckpt", "a projector is as wide as the networks that it joins"),
        "proj_vision_dim": ("vision_ckpt", "a projector is as wide as the networks that it joins"),
    },
}
HARMLESS_IF_FALSE = ("use_gqa",)  # of those, what is said of them agrees with us

# Keys that only one stage's config has: by these a stage is told. The first stage of which a key stands there
# wins.
SIGNS: dict[str, tuple[str, ...]] = {
    "omni": ("sft_mix", "audio_ckpt", "vision_ckpt", "talker_ckpt"),
    "vision": (
        "img_size",
        "patch",
        "train_manifest",
        "image_root",
        "embed_dim",
        "use_thinker_for_text",
        "temperature",
    ),
    "talker": ("tts_csv", "codebooks", "codebook_size", "frame_rate", "frame_ms", "n_mels"),
    "hearing": (
        "train_csv",
        "asr_csv",
        "mel_bins",
        "frame_hop",
        "frame_win",
        "downsample_time",
        "target_hz",
        "ctc_vocab_size",
    ),
    "thinker": ("train_text", "text_path", "ctx_len", "use_moe", "vocab_size"),
}
# Of the configs of systems that have no stage here.
STRANGERS = {
    "lr_g": "the vocoder (HiFi-GAN) is no stage here: Griffin-Lim makes the waves",
    "upsample_initial_channel": "the vocoder (HiFi-GAN) is no stage here: Griffin-Lim makes the waves",
    "vision_d_model": "OCR is no stage of its own: give its csv (image, text) to stage omni as data, format ocr_csv",
    "decoder_d_model": "OCR is no stage of its own: give its csv (image, text) to stage omni as data, format ocr_csv",
}
