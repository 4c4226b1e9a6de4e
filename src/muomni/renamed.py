"""Keys of settings that had other names: the one table. `config` reads it, docs/renamed.md shows it.

A key is renamed within its settings class, by the class's name; what inherits from the class has the renamed
key too. Digests of runs are taken over the names that a key had first (`config.first_names`), so a rename
leaves the digest of a finished run as it was. A key that has moved into a block is named by its path there.
No line ever leaves this table; a key that is renamed twice has two, the first name first, both to the name of
today.
"""

from __future__ import annotations

# Settings class -> where its keys stand in a recipe.
PLACES: dict[str, str] = {
    "StageSettings": "every stage",
    "Source": "a source, under `data`",
    "VisionSettings": "vision",
    "TalkerSettings": "talker",
    "OmniSettings": "omni",
    "VlmSettings": "align, sweep, instruct",
    "AlignSettings": "align, sweep",
    "PictureAugment": "`augment` of stages with pictures",
    "SpeechAugment": "`augment` of hearing",
    "DecoderConfig": "`model` of thinker",
    "AudioEncoderConfig": "`model` of hearing",
    "VisionEncoderConfig": "`model` of vision",
    "TextTowerConfig": "`text` of vision",
    "CodecConfig": "`model` of codec",
    "TalkerConfig": "`model` of talker",
    "ExpertsConfig": "`model.experts` of thinker",
    "ProjectorsConfig": "config.json of projectors",
}

# Settings class -> {old key: new key}.
KEYS: dict[str, dict[str, str]] = {
    "StageSettings": {"demands": "extra_gates", "epoch": "epoch_duration"},
    "Source": {"told": "captions_as_text", "names": "class_name"},
    "VisionSettings": {
        "probe": "probe_data",
        "zero_shot": "zero_shot_tasks",
        "negatives": "num_negatives",
        "word_weight": "word_loss_weight",
    },
    "TalkerSettings": {"book_weights": "codebook_weights"},
    "OmniSettings": {
        "apart": "separate_questions",
        "proof": "ablation_tasks",
        "levels": "projectors.feature_layers",
        "feature_layers": "projectors.feature_layers",
        "grid": "projectors.pool_grid",
        "pool_grid": "projectors.pool_grid",
        "resampler": "projectors.perceiver",
        "audio_pool": "projectors.audio_pool",
    },
    "VlmSettings": {
        "apart": "separate_questions",
        "proof": "ablation_tasks",
        "exact": "exact_match_tasks",
        "edges": "length_edges",
        "golden": "watched_items",
        "max_new": "max_new_tokens",
        "regression": "regression_texts",
    },
    "AlignSettings": {
        "eyes": "vision_tower",
        "levels": "feature_layers",
        "num_image_tokens": "connector.tokens",
        "resampler_width": "connector.width",
        "resampler_heads": "connector.heads",
        "resampler_depth": "connector.depth",
        "mlp_ratio": "connector.mlp_ratio",
        "vision_ln": "connector.vision_ln",
    },
    "PictureAugment": {"flip": "flip_tasks", "spared": "shift_only_tasks"},
    "SpeechAugment": {
        "formants": "formant_scale",
        "narrow_hz": "low_pass_hz",
        "time_frames": "time_mask_frames",
        "bin_masks": "freq_masks",
        "bins": "freq_mask_bins",
    },
    "DecoderConfig": {"hidden": "ffn_width", "theta": "rope_theta"},
    "AudioEncoderConfig": {"hidden": "ffn_width", "theta": "rope_theta"},
    "VisionEncoderConfig": {"hidden": "ffn_width", "patch": "patch_size"},
    "TextTowerConfig": {"hidden": "ffn_width"},
    "CodecConfig": {
        "entries": "codebook_size",
        "latent": "latent_width",
        "kernel": "kernel_size",
        "decay": "codebook_decay",
    },
    "TalkerConfig": {"entries": "codebook_size", "hidden": "ffn_width", "theta": "rope_theta"},
    "ExpertsConfig": {
        "hidden": "ffn_width",
        "every": "every_n_layers",
        "number": "num_experts",
        "per_token": "experts_per_token",
        "normalise": "normalise_weights",
        "dense": "dense_layers",
        "balance": "balance_weight",
    },
    "ProjectorsConfig": {"levels": "feature_layers", "summaries": "num_cls_tokens", "grid": "pool_grid"},
}


def keys_of(settings: type) -> dict[str, str]:
    """Old key -> new key, of a settings class and all that it inherits from."""
    return {
        old: new for each in reversed(settings.__mro__) for old, new in KEYS.get(each.__name__, {}).items()
    }


def page() -> str:
    """docs/renamed.md: the table, by where the keys stand."""
    lines = [
        "# Renamed keys",
        "",
        "Old keys of recipes, overrides and flat configs still work; each says its new name once, on standard error. So do those in files",
        "that a run keeps (config.yaml, config.json, checkpoints), silently.",
        "Runs and checkpoints of the old names are reused and resumed: their digests are taken over the first name of every key.",
        "`python -m muomni.renamed` writes this page from `muomni/renamed.py`, the one table.",
        "",
        "| where | was | is |",
        "|---|---|---|",
    ]
    lines += [
        f"| {PLACES[name]} | `{old}` | `{new}` |" for name, keys in KEYS.items() for old, new in keys.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
