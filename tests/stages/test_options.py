"""The walk: every option of every stage changes what the stage is, does or leaves; or it is refused, with the
reason, in one line."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from option_world import World
from pydantic import BaseModel

from muomni import cli, files
from muomni.data.utterances import voice_of
from muomni.errors import ConfigError, MuomniError
from muomni.execution import recipe as recipes
from muomni.infer.engine import Engine
from muomni.models.talker import NO_VOICE
from muomni.selftest import voices
from muomni.train import loop

STAGES = (
    "thinker",
    "hearing",
    "vision",
    "codec",
    "image_codec",
    "talker",
    "omni",
    "align",
    "instruct",
    "rows",
    "mmpt",
    "voice",
    "voice_base",
)
DOCS = Path(__file__).parents[2] / "docs" / "stages.md"

# By their nature these change no result: the test asks that they don't.
CHANGE_NOTHING = {
    "num_workers": "who loads a batch does not decide what is in it",
    "cache_mb": "what is decoded once or twice is the same",
    "threads": "sums in another order differ in their last bits alone, and the stage takes them when it is run",
    "tensorboard": "another form of the same numbers",
    "gradient_checkpointing": "activations are made again in the backward",
}


@dataclass(frozen=True)
class Case:
    """Another value of an option, other values that it takes beside it, and what must stand around both."""

    value: Any
    context: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)


def refused(value: Any, **context: Any) -> Case:
    """A value that must be refused since it would have no effect."""
    return Case(value, {name.replace("__", "."): part for name, part in context.items()} | {"refused": True})


CHANGES = {
    "shift": Case(2),
    "crop": Case(0.5),
    "jitter": Case(True),
    "degrees": Case(20.0),
    "scale": Case(0.3),
    "shear": Case(0.3),
}
MEL = {
    "rate_hz": Case(8000, {"f_max_hz": 4000.0}),
    "n_fft": Case(2048),
    "window_samples": Case(800),
    "hop_samples": Case(120),
    "num_mels": Case(40),
    "f_min_hz": Case(100.0),
    "f_max_hz": Case(6000.0),
    "floor": Case(1e-2),
    "power": Case(1.0),
}


def nested(prefix: str, cases: dict[str, Case]) -> dict[str, Case]:
    """The cases of a part of the settings."""
    return {
        f"{prefix}.{name}": Case(
            case.value, {f"{prefix}.{key}": value for key, value in case.context.items()}
        )
        for name, case in cases.items()
    }


EXPERTS = {"model.experts": {"num_experts": 3}}
PERCEIVER = {"projectors": {"perceiver": {"tokens": 4, "width": 16, "heads": 2, "depth": 1}}}
LORA = {"lora": {"r": 2, "alpha": 4}}
SHARED: dict[str, Case | list[Case]] = {
    "max_steps": Case(2),
    "max_epochs": Case(1, {"batch_size": 48}),
    "epoch_duration": refused("1h"),  # what it does is in test_sizing.py: a run measures it, before the loop
    "samples_per_epoch": [Case(4, {"max_epochs": 1}), refused(8)],
    "mix_temperature": [Case(3.0, {"two": True}), refused(3.0, one=True)],
    "batch_size": Case(3),
    "gradient_accumulation_steps": Case(3),
    "lr": Case(0.02),
    "wd": Case(0.7),
    "betas": Case([0.5, 0.8]),
    "warmup_steps": Case(2),
    "min_lr_ratio": [Case(0.9), refused(0.9, schedule="constant")],
    "decay_share": [Case(0.9, {"schedule": "wsd"}), refused(0.9)],
    "max_grad_norm": Case(1e-3),
    "explosion_norm": Case(1e-6),
    "max_skips": Case(0, {"explosion_norm": 1e-6}),
    "ema_decay": Case(0.5),
    "use_amp": Case(True),
    "precision": [
        *(Case(name, {"use_amp": True}) for name in ("auto", "fp32", "bf16")),
        refused("fp16", use_amp=True),  # which this device does not have
        *(refused(name) for name in ("bf16", "fp16")),
    ],
    "seed": Case(4),
    "num_workers": Case(1),
    "cache_mb": Case(0),
    "threads": Case(1),
    "shard": refused(True),  # by one process; what it does by two is in train/test_sharding.py
    "val_split": Case(0.6),
    "val_freq": Case(1),
    "val_batches": Case(1, {"batch_size": 2}),
    "len_buckets": Case([2, 100_000]),
    "patience": Case(1, {"val_freq": 1}, {"min_delta": 1e9}),
    "min_delta": [Case(1e9, {"patience": 2, "val_freq": 1, "final": "last", "lr": 1e-4}), refused(0.1)],
    "checkpoint_freq": Case(3),
    "keep_checkpoints": Case(1),
    "final": Case("best", {"patience": 3, "val_freq": 1, "min_delta": 1e9, "final": "last"}),
    "print_freq": Case(2),
    "tensorboard": Case(True),
    "gates": Case({"updates": 0.5}),
    "extra_gates": Case({"steps": ">= 1"}),
    "eval_items": Case(2),
    "quarantine_limit": Case(0.0, {"torn": True, "quarantine_limit": 0.9}),
    "data": Case("fewer"),
    "init_from": Case("itself"),
    "train": Case("one", {"optimizer": "adamw"}),
    "param_groups": Case("one"),
}
OWN: dict[str, dict[str, Case | list[Case]]] = {
    "thinker": {
        "eval_items": refused(2),
        "model.vocab_size": Case(320),
        "model.width": Case(48),
        "model.layers": Case(1),
        "model.heads": Case(4),
        "model.kv_heads": Case(1),
        "model.head_dim": Case(8),
        "model.ffn_width": Case(48),
        "model.rope_theta": Case(100.0),
        "model.ctx_len": Case(112),
        "model.dropout": Case(0.5),
        "model.eps": Case(0.1),
        "model.experts.num_experts": Case(4, EXPERTS),
        "model.experts.experts_per_token": Case(1, EXPERTS),
        "model.experts.ffn_width": Case(48, EXPERTS),
        "model.experts.normalise_weights": Case(False, EXPERTS),
        "model.experts.every_n_layers": Case(2, EXPERTS),
        "model.experts.dense_layers": Case([0], EXPERTS),
        "model.experts.balance_weight": Case(0.5, EXPERTS),
        "mix_temperature": refused(3.0, two=True),
        "row_len": Case(64),
        "tokenizer_data": [Case("questions"), refused("questions", init_from="itself")],
    },
    "hearing": {
        "eval_items": refused(2),
        **nested("model.mel", MEL),
        "model.width": Case(32),
        "model.layers": Case(2),
        "model.heads": Case(1),
        "model.ffn_width": Case(48),
        "model.channels": Case(8),
        "model.symbols": Case(100),
        "model.range_nats": Case(3.0),
        "model.rope_theta": Case(100.0),
        "model.dropout": Case(0.5),
        "max_text_len": Case(15, {"quarantine_limit": 1.0}),
        "pad_s": Case(0.3),
        "max_s": Case(0.8, {"quarantine_limit": 1.0}),
        "augment.speed": Case([0.7, 1.4]),
        "augment.gain_db": Case([-9.0, 9.0]),
        "augment.noise_snr_db": Case([0.0, 5.0]),
        "augment.formant_scale": Case([0.7, 1.4]),
        "augment.low_pass_hz": Case(1000.0),
        "augment.time_masks": Case(2),
        "augment.time_mask_frames": [Case(3, {"augment.time_masks": 3}), refused(3)],
        "augment.freq_masks": Case(2),
        "augment.freq_mask_bins": [Case(3, {"augment.freq_masks": 3}), refused(3)],
        "word_tasks": [Case(["transcribe"]), refused(["no such task"])],
        "lm_order": Case(2),
    },
    "vision": {
        "eval_items": refused(2),
        "len_buckets": refused([4]),
        "model.image_size": Case(48),
        "model.patch_size": Case(16),
        "model.width": Case(32),
        "model.layers": Case(2),
        "model.heads": Case(1),
        "model.ffn_width": Case(48),
        "model.embed_dim": Case(16, {}, {"text.embed_dim": 16}),
        "model.dropout": Case(0.5),
        "text.vocab_size": refused(400),
        "text.source_width": refused(48),
        "text.width": [Case(32, {"text.kind": "transformer"}), refused(32)],
        "text.layers": [Case(1, {"text.kind": "transformer"}), refused(1), refused(1, text__kind="bow")],
        "text.heads": [Case(4, {"text.kind": "transformer"}), refused(4)],
        "text.ffn_width": [Case(48, {"text.kind": "transformer"}), refused(48)],
        "text.embed_dim": Case(16, {}, {"model.embed_dim": 16}),
        "temperature": Case(0.5),
        "word_loss_weight": Case(0.0),
        "num_negatives": [Case(1, {"rich": True}), refused(1)],
        "vocab_size": [Case(300, {"text.kind": "bow"}), refused(310)],
        "min_delta": Case(1e9, {"patience": 2, "val_freq": 1, "final": "last", "lr": 5e-3}),
        **nested("augment", CHANGES),
        "augment.flip_tasks": [Case(["caption"]), refused(["no such task"])],
        "augment.shift_only_tasks": [Case(["caption"], {"augment.jitter": True}), refused(["no such task"])],
        "probe_data": Case("rich"),
        "probe_keys": [Case(["shape"], {"probe_data": "rich"}), refused(["shape"])],
        "zero_shot_tasks": [Case(["caption"]), refused(["no such task"])],
    },
    "codec": {
        "eval_items": refused(2),
        "len_buckets": refused([4]),
        "optimizer": refused("muon"),
        **nested("model.mel", MEL),
        "model.codebooks": Case(3),
        "model.codebook_size": Case(4),
        "model.stride_frames": Case(4),
        "model.width": Case(24),
        "model.latent_width": Case(8),
        "model.blocks": Case(2),
        "model.fine_width": Case(16),
        "model.fine_blocks": Case(2),
        "model.kernel_size": Case(3),
        "model.codebook_decay": Case(0.5),
        "model.revive_below": Case(0.9),
        "crop_frames": Case(32),
        "quantise_after": Case(1),
        "max_s": Case(0.8, {"quarantine_limit": 1.0}),
    },
    "image_codec": {
        "len_buckets": refused([4]),
        "optimizer": refused("muon"),
        "model.image_size": Case(48),
        "model.patch_size": Case(16),
        "model.fine_patch_size": Case(2),
        "model.width": Case(24),
        "model.fine_width": Case(16),
        "model.blocks": Case(2),
        "model.fine_blocks": Case(2),
        "model.heads": Case(2),
        "model.levels": Case([3, 5]),
        **nested("augment", CHANGES),
        "augment.flip_tasks": [Case(["caption"]), refused(["no such task"])],
        "augment.shift_only_tasks": [Case(["caption"], {"augment.jitter": True}), refused(["no such task"])],
        "checked_tasks": [Case(["caption"], {"model.image_size": 64}), refused(["no such task"])],
    },
    "talker": {
        "model.text_vocab": refused(5),
        "model.text_units": [Case("char", {"condition": "text"}), Case("char", {"refused": True})],
        "model.codebooks": refused(3),
        "model.codebook_size": refused(16),
        "model.width": Case(32),
        "model.layers": Case(2),
        "model.heads": Case(1),
        "model.ffn_width": Case(48),
        "model.rope_theta": Case(100.0),
        "model.dropout": Case(0.5),
        "model.condition_width": refused(32),
        "model.condition_dropout": [Case(0.9), refused(0.9, condition="text")],
        "model.num_speakers": [Case(40), Case(3, {"refused": True})],
        "model.speaker_dropout": [Case(0.9, {"model.num_speakers": 40}), refused(0.9)],
        "model.code_noise": Case(0.6),
        "model.guard_frames_per_token": Case(1),
        "codebook_weights": Case([1.0, 0.1]),
        "max_s": Case(0.8, {"quarantine_limit": 1.0}),
    },
    "omni": {
        "projectors.pool_grid": [Case(1), Case(2, {**PERCEIVER, "refused": True})],
        "projectors.perceiver.tokens": Case(2, PERCEIVER),
        "projectors.perceiver.width": Case(32, PERCEIVER),
        "projectors.perceiver.heads": Case(1, PERCEIVER),
        "projectors.perceiver.depth": Case(2, PERCEIVER),
        "projectors.perceiver.mlp_ratio": Case(2.0, PERCEIVER),
        "projectors.perceiver.vision_ln": [Case(name, PERCEIVER) for name in ("frozen", "trained")],
        "lora.r": Case(4, LORA),
        "lora.alpha": Case(16, LORA),
        "lora.dropout": Case(0.5, LORA),
        "lora.targets": Case(["q_proj"], LORA),
        "projectors.feature_layers": Case([0, 1]),
        "projectors.audio_pool": Case(2),
        "max_audio_tokens": Case(12, {"quarantine_limit": 1.0}),
        "dropout": Case(0.6),
        **nested("augment", CHANGES),
        "augment.flip_tasks": [Case(["question"]), refused(["no such task"])],
        "augment.shift_only_tasks": [Case(["question"], {"augment.jitter": True}), refused(["no such task"])],
        "ablation_tasks": [Case(["question"]), refused(["no such task"])],
        "prompts": [Case({"image": "well?"}), Case({"smell": "well?"}, {"refused": True})],
    },
    "align": {
        "llm.name": Case("thinker"),
        "llm.revision": Case("main", {"llm.name": "thinker", "refused": True}),
        "llm.subfolder": Case("nowhere", {"llm.name": "thinker", "refused": True}),
        "llm.dtype": Case("bf16", {"llm.name": "thinker"}),
        "vision_tower.name": Case("vision"),
        "vision_tower.revision": Case("main", {"vision_tower.name": "vision", "refused": True}),
        "vision_tower.subfolder": Case("nowhere", {"vision_tower.name": "vision", "refused": True}),
        "vision_tower.dtype": Case("bf16", {"vision_tower.name": "vision"}),
        "connector.tokens": Case(2),
        "connector.width": Case(32),
        "connector.heads": Case(1),
        "connector.depth": Case(2),
        "connector.mlp_ratio": Case(2.0),
        "feature_layers": Case([0, 1]),
    },
    "instruct": {
        "lr": refused(0.02),
        "wd": refused(0.7),
        "connector": Case("another"),
        "train": Case(
            ["omni.projectors.*"], {"param_groups": [{"pattern": "omni.projectors.*", "lr": 1e-3}]}
        ),
        "lora.r": Case(4),
        "lora.alpha": Case(16),
        "lora.dropout": Case(0.5),
        "lora.targets": Case(["q_proj"]),
        "param_groups": Case([{"pattern": "*", "lr": 0.02}]),
    },
}
TOKENS: dict[str, Case | list[Case]] = {
    "max_epochs": Case(2, {"max_epochs": 1, "samples_per_epoch": 8}),
    "mix_temperature": [
        Case(3.0, {"tasks": {"i2t": 1.0}, "two": True}),
        refused(3.0),  # each task has one source
        refused(3.0, tasks={"i2t": 1.0}, one=True),
    ],
    "tasks": Case({"i2t": 1.0, "a2t": 0.2}, {}, {"replay": [], "ramp_steps": 0}),
    "replay": [
        Case("replayed", {"tasks": {"i2t": 1.0, "text": 1.0}}),
        refused("replayed", tasks={"i2t": 1.0}),
    ],
    "ramp_steps": [Case(3, {"tasks": {"i2t": 1.0, "t2i": 1.0}}), refused(3, tasks={"i2t": 1.0})],
    "drop_prompts": [
        Case(0.5, {"tasks": {"i2t": 1.0, "t2i": 1.0}}),
        refused(0.5, tasks={"i2t": 1.0}),
    ],
    "max_seq_len": Case(40, {"quarantine_limit": 1.0}),
    "legal_loss": Case(True),
    "regression_texts": Case("replayed"),
    "checked_tasks": [
        Case(["caption"], {"tasks": {"t2i": 1.0}, "max_steps": 1}),
        refused(["caption"], tasks={"i2t": 1.0}),
        refused(["no such task"], tasks={"t2i": 1.0}),
    ],
}
OWN["rows"] = {
    **TOKENS,
    "optimizer": refused("muon"),
    "llm.name": Case("thinker"),
    "llm.revision": Case("main", {"llm.name": "thinker", "refused": True}),
    "llm.subfolder": Case("nowhere", {"llm.name": "thinker", "refused": True}),
    "llm.dtype": Case("bf16", {"llm.name": "thinker"}),
    "image_codec.name": Case("image_codec"),
    "image_codec.revision": Case("main", {"image_codec.name": "image_codec", "refused": True}),
    "image_codec.subfolder": Case("nowhere", {"image_codec.name": "image_codec", "refused": True}),
    "image_codec.dtype": refused("fp32"),
    "audio_codec.name": Case("codec"),
    "audio_codec.revision": Case("main", {"audio_codec.name": "codec", "refused": True}),
    "audio_codec.subfolder": Case("nowhere", {"audio_codec.name": "codec", "refused": True}),
    "audio_codec.dtype": refused("fp32"),
    "audio_codebooks": [
        refused(1),  # our own codec decodes by all of its books; others: test_codecs_of_rows
        refused(1, audio_codec=None, tasks={"i2t": 1.0}),
    ],
    "layout": [refused("delay"), refused("parallel")],
    "special_size": Case(16),
    "spread": Case(0.5),
}
DRAWING = {"tasks": {"t2i": 1.0}, "max_steps": 1}
OWN["mmpt"] = {
    **TOKENS,
    "rows.name": Case("another_rows"),
    "rows.revision": Case("main", {"rows.name": "rows", "refused": True}),
    "rows.subfolder": Case("nowhere", {"rows.name": "rows", "refused": True}),
    "rows.dtype": refused("fp32"),
    "optimizer": [
        Case("muon", {"lora": None}),
        refused("muon"),  # beside LoRA and rows there is no matrix that it steps
    ],
    "judge.name": Case("hearing", {"tasks": {"t2a": 1.0}, "max_steps": 1}),
    "judge.revision": Case("main", {"judge.name": "hearing", "refused": True}),
    "judge.subfolder": Case("nowhere", {"judge.name": "hearing", "refused": True}),
    "judge.dtype": refused("fp32", judge__name="hearing"),
    "spoken_tasks": [
        Case(["transcribe"], {"tasks": {"t2a": 1.0}, "judge.name": "hearing", "max_steps": 1}),
        refused(["no such task"], tasks={"t2a": 1.0}, judge__name="hearing"),
        refused(["transcribe"], tasks={"t2a": 1.0}),
        refused(["caption"], tasks={"t2i": 1.0}),
    ],
    "writing": [
        Case({"image": {"temperature": 2.0}}, DRAWING),
        *(
            Case(
                {"image": {"temperature": 2.0, **how}},
                {**DRAWING, "writing": {"image": {"temperature": 2.0}}},
            )
            for how in ({"top_k": 2}, {"top_p": 0.1}, {"seed": 3})
        ),
        Case({"image": {"guidance": 3.0}}, {**DRAWING, "drop_prompts": 0.5}),
        Case(
            {"image": {"temperature": 2.0, "candidates": 3}},
            {
                **DRAWING,
                "tasks": {"t2i": 1.0, "i2t": 1.0},
                "writing": {"image": {"temperature": 2.0}},
            },
        ),
        Case({"audio": {"temperature": 2.0}}, {**DRAWING, "tasks": {"t2a": 1.0}}),
        refused({"image": {"temperature": 2.0}}, tasks={"t2a": 1.0}),
        refused({"image": {"guidance": 2.0}}, tasks={"t2i": 1.0}),  # without drop_prompts
        refused({"image": {"temperature": 2.0, "candidates": 2}}, tasks={"t2i": 1.0}),  # not read
        refused({"image": {"candidates": 2}}, tasks={"t2i": 1.0, "i2t": 1.0}),  # all alike
        refused({"audio": {"repetition_penalty": 2.0}}, tasks={"t2a": 1.0}),
    ],
    "lora.r": Case(4),
    "lora.alpha": Case(16),
    "lora.dropout": Case(0.5),
    "lora.targets": Case(["q_proj"]),
}
SEEING: dict[str, Case | list[Case]] = {
    "max_seq_len": Case(16, {"length_edges": [0], "quarantine_limit": 1.0}),
    "gradient_checkpointing": Case(True),
    "length_edges": Case([0, 1]),
    "watched_items": Case(0),
    "max_new_tokens": Case(1),
    "separate_questions": Case(True, {"questions": True}),
    **nested("augment", CHANGES),
    "augment.flip_tasks": [Case("its task"), refused(["no such task"])],
    "augment.shift_only_tasks": [Case("its task", {"augment.jitter": True}), refused(["no such task"])],
    "ablation_tasks": [Case("its task", {"both": True}), refused(["no such task"])],
    "exact_match_tasks": [Case("its task"), refused(["no such task"])],
    "regression_texts": Case([]),
    "prompts": [Case({"image": "well?"}), Case({"audio": "well?"}, {"refused": True})],
}
OWN["voice"] = {
    "optimizer": refused("muon"),
    "base.name": Case("other_base"),
    "base.revision": refused("main"),
    "base.subfolder": refused("nowhere"),
    "base.dtype": Case("bf16"),
    "codec.name": Case("other_codec"),
    "codec.revision": refused("main"),
    "codec.subfolder": refused("nowhere"),
    "codec.dtype": refused("fp32"),
    "lora.r": Case(4),
    "lora.alpha": Case(16),
    "lora.dropout": Case(0.5),
    "lora.groups": [Case(["attn"]), Case(["text_ffn"]), Case(["audio_ffn"])],
    "text_loss_weight": Case(0.2),
    "audio_loss_weight": Case(0.2),
    "max_seq_len": Case(75, {"quarantine_limit": 1.0}),
    "gradient_checkpointing": Case(True),
}
SPOKEN = (
    "codec.name",
    "codec.revision",
    "codec.subfolder",
    "codec.dtype",
    "text_loss_weight",
    "audio_loss_weight",
)
GIVEN = {"model": None, "base.name": "voice_base"}
OWN["voice_base"] = {
    **{name: OWN["voice"][name] for name in (*SPOKEN, "max_seq_len", "gradient_checkpointing")},
    "model.vocab_size": Case(280),
    "model.books": Case(4),
    "model.width": Case(32),
    "model.layers": Case(2),
    "model.heads": Case(4),
    "model.kv_heads": Case(2),
    "model.ffn_width": Case(32),
    "model.ctx_len": Case(75, {"quarantine_limit": 1.0}),
    "model.rope_theta": Case(100.0),
    "model.dropout": Case(0.5),
    "base.name": Case("other_base", GIVEN),
    "base.revision": Case("main", {**GIVEN, "refused": True}),
    "base.subfolder": Case("nowhere", {**GIVEN, "refused": True}),
    "base.dtype": Case("bf16", GIVEN),
}
OWN["align"] |= SEEING
OWN["instruct"] |= SEEING
OWN["align"]["max_seq_len"] = Case(16, {"connector.tokens": 14})


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option, nested ones as `model.width`, with its type; sources and groups are values, and walked
    where they are read."""
    for name, info in model.model_fields.items():
        kinds = [info.annotation, *get_args(info.annotation)]
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if part is not None and get_origin(info.annotation) not in (list, dict):
            yield from fields_of(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info.annotation


def cases_of(stage: str) -> Iterator[tuple[str, Case]]:
    """Every option of a stage with other values: those above, all literals, the other truth."""
    declared = recipes.stage(stage).settings
    for name, kind in fields_of(declared):
        found = OWN[stage].get(name) or SHARED.get(name)
        if found is not None:
            yield from ((name, case) for case in (found if isinstance(found, list) else [found]))
            if name == "final" or OWN[stage].get(name):
                continue
        literals = (
            get_args(kind)
            if get_origin(kind) is Literal
            else [one for part in get_args(kind) for one in literals_of(part)]
        )
        if literals or kind is bool:
            yield from ((name, Case(value)) for value in (literals or [True, False]) if found is None)
        elif found is None:
            yield name, Case(...)


def literals_of(kind: Any) -> tuple[Any, ...]:
    """The values of a literal type, and None where that may stand beside them."""
    return get_args(kind) if get_origin(kind) is Literal else ()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    os.environ["MUOMNI_PLAIN"] = "1"
    with no_disk():
        return World(tmp_path_factory.mktemp("options"))


@contextmanager
def no_disk() -> Iterator[None]:
    """Files need not survive a power cut here, and to wait for a disk is most of the time of so small a
    run."""
    with patch.object(files, "sync", lambda path: None), patch.object(os, "fsync", lambda handle: None):
        yield


def placed(world: World, stage: str, name: str, value: Any) -> Any:
    """A value that depends on the stage's data or networks."""
    if name == "data":
        return [{**source, "limit": 24} for source in world.recipe[stage]["data"]]
    if value == "itself":
        return str(world.folder / stage)
    if value in ("rich", "questions") and name in ("probe_data", "tokenizer_data"):
        return [world.source(value)]
    if value == "replayed":
        return [world.source("text", limit=24)]
    if name.endswith(".name"):
        return str(world.folder / value / "final")
    if name == "connector":
        return str(world.folder / value / "final")
    if value == "its task":
        return ["caption" if stage == "align" else "question"]
    if value == "one":
        trained = world.trained(stage)
        return trained[:1] if name == "train" else [{"pattern": trained[0], "lr": 0.5}]
    return value


def context_of(world: World, stage: str, case: Case) -> dict[str, Any]:
    """What stands around an option, in the words of a recipe."""
    context = {
        name: placed(world, stage, name, value) for name, value in case.context.items() if name != "refused"
    }
    if context.pop("torn", False):
        context["data"] = [*world.recipe[stage]["data"], world.source("torn")]
    if context.pop("rich", False):
        context["data"] = [world.source("rich")]
    if tasks := context.get("tasks"):
        is_replayed, writes = "text" in tasks, {"t2i", "t2a"} & tasks.keys()
        context |= {
            "replay": [world.source("text")] if is_replayed else [],
            **({} if writes else {"ramp_steps": 0}),
        }
    first = world.recipe[stage]["data"][0]
    if context.pop("two", False):
        context["data"] = [first, {**first, "limit": 12}]
    if context.pop("one", False):
        context["data"] = [first]
    if context.pop("both", False):
        context["data"] = [world.source("captions"), world.source("questions")]
    if context.pop("questions", False):
        context["data"] = [world.source("questions")]
    return context


def ended(world: World, stage: str, values: dict[str, Any], own: Path) -> Iterator[tuple[str, Any]]:
    """As `World.observe`; an end by an error is an observation like any other."""
    try:
        yield from world.observe(stage, values, own)
    except ConfigError:
        raise
    except MuomniError as error:
        yield "end", f"{type(error).__name__}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_has_a_case(stage: str) -> None:
    lacking = [name for name, case in cases_of(stage) if case.value is ...]
    assert lacking == []
    known = {name for name, _ in fields_of(recipes.stage(stage).settings)}
    assert sorted(OWN[stage].keys() - known) == []


def test_the_table_of_the_docs_names_what_is_refused() -> None:
    refusals = {name for stage in STAGES for name, case in cases_of(stage) if case.context.get("refused")}
    part = DOCS.read_text().split("## Options that are refused where they have no effect")[1]
    rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([\w.]+)`", row)} == refusals
    still = re.findall(r"the same test asks that they don't: (.*)", " ".join(part.split()))[0]
    assert set(re.findall(r"`(\w+)`", still)) == CHANGE_NOTHING.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_does_something_or_is_refused(world: World, stage: str) -> None:
    """Faults are gathered: one run tells of all options of a stage."""
    if stage.startswith("voice") and (told := voices.lacking()):
        pytest.skip(told)
    torch.set_num_threads(1)
    known: dict[str, list[tuple[str, Any]]] = {}
    faults = []
    for name, case in cases_of(stage):
        context = context_of(world, stage, case)
        values = {**context, **case.beside, name: placed(world, stage, name, case.value)}
        with no_disk():
            fault = faults_of(world, stage, name, case, context, values, known)
        if fault:
            faults.append(f"{name} = {values[name]!r}: {fault}")
    assert faults == [], "\n".join(["", *faults])


def faults_of(
    world: World,
    stage: str,
    name: str,
    case: Case,
    context: dict[str, Any],
    values: dict[str, Any],
    known: Any,
) -> str:
    """What is wrong with an option; empty where it does something, or is refused as it should be."""
    if case.context.get("refused"):
        try:
            for _ in itertools.islice(ended(world, stage, values, world.folder / "own"), 3):
                pass
        except ConfigError as error:
            return (
                ""
                if name.rpartition(".")[2] in error.message
                else f"refused without its name: {error.message}"
            )
        return "taken, and it should be refused"
    key = repr(sorted(context.items(), key=str))
    before = known.setdefault(key, [])
    try:
        standard = world.settings(stage, context)
        if world.settings(stage, values) == standard:
            return ""  # the value of the recipe itself
        mine = ended(world, stage, values, world.folder / "own")
        theirs = ended(world, stage, context, world.folder / f"standard-{stage}-{len(known)}")
        if not before:
            before.extend(theirs)
        for place, (what, found) in enumerate(mine):
            if place >= len(before) or before[place] != (what, found):
                return f"changes {what}" if name in CHANGE_NOTHING else ""
    except ConfigError as error:
        return f"refused: {error.message}"
    return "" if name in CHANGE_NOTHING else "changes nothing"


def test_a_voice_of_the_data_is_asked_for_by_its_name(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each speaker of the training data has a row, which is told in the batches, learned, saved by name, and
    heard."""
    with no_disk():
        values = {
            "model.num_speakers": 40,
            "model.speaker_dropout": 0.0,
            "lr": 0.5,
            "wd": 0.0,
            "max_steps": 2,
        }
        settings = world.settings("talker", values)
        built = world.built("talker", settings, tmp_path / "talker")
        trained = sorted({voice_of(sample) or "" for sample in built.corpus.train})
        batch = next(iter(built.train.numbers(range(1)))).batch
        names = {sample.id: voice_of(sample) for sample in built.corpus.train}
        assert [trained[number] for number in batch.speaker_B.tolist()] == [
            names[one] for one in batch.sample_ids
        ]
        held_out = next(iter(built.valid.numbers(range(1)))).batch
        assert set(held_out.speaker_B.tolist()) == {NO_VOICE}, (
            "groups never stand on both sides, so nobody here was learned"
        )
        begin = built.objective.talker.speakers.weight.detach().clone()
        run = loop.fit(
            built.objective,
            built.train,
            built.valid,
            settings,
            built.inputs.run,
            tmp_path / "talker",
            name="talker",
        )
        moved = (built.objective.talker.speakers.weight - begin).abs().sum(1) > 0.1
        drawn = {names[built.corpus.train[place].id] for place in run.drawn.counts_N.nonzero()[0].tolist()}
        assert {trained[row] for row in moved.nonzero().flatten().tolist()} == drawn
        built.save(tmp_path / "talker" / "final")
    engine = Engine.load(tmp_path / "talker", "cpu")
    one, other = (sorted(drawn)[place] for place in (0, -1))
    waves = [engine.speak(["red"], voice=name)[0][0] for name in (one, one, other)]
    assert np.array_equal(waves[0], waves[1])
    assert not np.array_equal(waves[0], waves[2])
    codes = []
    for name in ("nobody", one):
        with pytest.raises(SystemExit) as left:
            cli.main(
                [
                    "speak",
                    str(tmp_path / "talker"),
                    "red",
                    "--voice",
                    name,
                    "--out",
                    str(tmp_path / "red.wav"),
                ]
            )
        codes.append(left.value.code)
    assert codes == [2, 0]
    assert one in capsys.readouterr().err, "a wrong name tells the right ones"


def test_a_sweep_hands_every_option_to_its_points(tmp_path: Path) -> None:
    """So what is walked for align holds for a sweep: its own are the grid, and what it stands on."""
    recipe = {"thinker": {"data": [{"path": "x"}]}, "vision": {"data": [{"path": "x"}]}}
    base = {"data": [{"path": "x"}], "grid": {"lr": [0.5]}}
    changed = {
        "max_steps": 77,
        "connector": {"tokens": 5},
        "llm": {"name": "vision"},
        "watched_items": 3,
        "augment": {"shift": 4},
        "final": "best",
    }
    for name, value in changed.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            yaml.safe_dump({**recipe, "align": {"data": [{"path": "x"}]}, "sweep": {**base, name: value}})
        )
        point = recipes.read(str(path)).stages["sweep/lr-0.5"].settings.model_dump(mode="json")
        assert point["lr"] == 0.5
        wanted = (
            {"name": "vision", "revision": None, "subfolder": None, "dtype": "auto"}
            if name == "llm"
            else value
        )
        assert (
            point[name] == wanted
            if not isinstance(value, dict) or name == "llm"
            else all(point[name][key] == inner for key, inner in value.items())
        )
    assert set(recipes.stage("sweep").settings.model_fields) == {
        "grid",
        *recipes.stage("align").settings.model_fields,
    }
