"""A tiny Higgs Audio v2 with random weights and a tokenizer of Llama 3's kind, saved by the libraries themselves, a
codec of 25 frames a second, and recordings of two voices: what stage voice trains on in seconds."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muomni.media import audio
from muomni.models import from_transformers
from muomni.tokens.higgs_vocabulary import MARKS

BOOKS = 8
RATE_HZ = 24_000
WORDS = ("one", "two", "three", "four")
BASE, CODEC, MANIFEST = "base", "codec", "manifest.json"
NEEDED = ("transformers", "peft")


def lacking() -> str:
    """What stage voice needs and this machine has not, in a few words; empty where it has all."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (pip install 'muomni[hf]')"
    if importlib.util.find_spec("transformers.models.higgs_audio_v2") is None:
        return "this transformers has no Higgs Audio v2 (pip install -U transformers)"
    return ""


def build(folder: Path) -> None:
    """Write `base/`, which holds its codec, `manifest.json` and its wavs."""
    saved(folder / BASE)
    codec(folder / BASE / CODEC)
    write(folder)


# --- the model ------------------------------------------------------------------------------------------------------------------


def tokenizer(folder: Path) -> Any:
    """Bytes and a few merges, then the special tokens as Llama 3 and Higgs spell them, saved by
    transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    library.train_from_iterator(["system user assistant please generate speech for the text"], trainer)
    library.add_special_tokens(list(MARKS))
    made: Any = PreTrainedTokenizerFast
    fast = made(
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
    from transformers import HiggsAudioV2Config

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
    return HiggsAudioV2Config(**{**sizes, **changes})


def saved(folder: Path, *, seed: int = 0, use_text_head: bool = True, **changes: Any) -> Any:
    """The library's network as it wrote it into a folder, stirred so that logits are not flat.

    Takes   changes: of its config.
    """
    from transformers import HiggsAudioV2ForConditionalGeneration

    with from_transformers.quiet():
        made = config(tokenizer(folder), **changes)
        torch.manual_seed(seed)
        network: Any = HiggsAudioV2ForConditionalGeneration(made, use_text_head=use_text_head)
        network.eval()
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "norm" not in name:
                    weight.normal_(0, 0.15)
        network.save_pretrained(folder)
    return network


def codec(folder: Path, *, seed: int = 0, codebook_size: int = 32) -> Any:
    """DAC at 24 kHz with a hop of 960 samples, saved by the library: 8 books, 25 frames a second, its tables
    stirred."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "downsampling_ratios": [3, 4, 8, 10],
        "upsampling_ratios": [10, 8, 4, 3],
        "hop_length": 960,
        "n_codebooks": BOOKS,
        "codebook_size": codebook_size,
        "codebook_dim": 4,
        "sampling_rate": RATE_HZ,
    }
    with from_transformers.quiet():
        made: Any = DacModel(DacConfig(**sizes))
        made.eval()
        with torch.no_grad():
            for name, tensor in made.state_dict().items():
                if name.endswith("codebook.weight"):
                    tensor.normal_()
                elif tensor.is_floating_point():
                    tensor.add_(torch.randn_like(tensor) * 0.1)
        made.save_pretrained(folder)
    return made


# --- the recordings -------------------------------------------------------------------------------------------------------------


def wave(word: str, voice: int, take: int = 0) -> NDArray[np.float32]:
    """A word of WORDS in a voice: its length and pitch are the word's, its overtones the voice's (0 or 1); takes differ
    a little."""
    number = WORDS.index(word)
    length = RATE_HZ // 25 * (6 + 2 * number)
    t = np.arange(length) / RATE_HZ
    pitch_hz = 110 * (1 + 0.25 * number) * (1 + voice) * (1 + 0.001 * take)
    tones = [np.sin(2 * np.pi * pitch_hz * k * t) / k for k in ((1, 2, 3) if voice else (1, 3, 5))]
    sound: NDArray[np.float32] = (0.2 * np.sum(tones, 0)).astype(np.float32)
    return sound


def row(word: str, voice: int, side: str, take: int | None = None) -> dict[str, Any]:
    """A conversation in Higgs' ChatML, of the documented example's form: the reference stands in an earlier turn, and is
    only heard."""
    other = WORDS[(WORDS.index(word) + 1) % len(WORDS)]
    many = "" if take is None else f"-{take}"
    return {
        "id": f"{side}-{word}{voice}{many}",
        "group": f"{side}{voice}{many}",
        "split": side,
        "messages": [
            {"role": "system", "content": "Generate speech in the voice of the reference."},
            {"role": "user", "content": other},
            {
                "role": "assistant",
                "content": {"type": "audio", "audio_url": f"{side}-{other}{voice}{many}.wav"},
            },
            {"role": "user", "content": [{"type": "text", "text": word}]},
            {
                "role": "assistant",
                "content": [{"type": "audio", "audio_url": f"{side}-{word}{voice}{many}.wav"}],
            },
        ],
        "start_index": 3,
        "speaker": f"voice{voice}",
        "misc": {"duration": 1.0},
    }


def write(folder: Path, *, lines: bool = False, takes: Sequence[int | None] = (None,)) -> Path:
    """The wavs and a manifest of 8 rows to learn from and 8 held out, as one JSON array or as JSON lines.

    Takes   takes: as many times, each time other wavs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for take in takes:
        for number, side in enumerate(("train", "valid")):
            for voice in (0, 1):
                for word in WORDS:
                    made = row(word, voice, side, take)
                    sound_S = wave(word, voice, number + 2 * (take or 0))
                    audio.write(folder / f"{made['id']}.wav", sound_S, RATE_HZ)
                    rows.append(made)
    path = folder / ("manifest.jsonl" if lines else MANIFEST)
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path
