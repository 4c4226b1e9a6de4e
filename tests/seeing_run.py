"""Finished stages in which a frozen language model sees, tiny and untrained: on stages of their run, or on
Qwen3 and SigLIP beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from muomni import files
from muomni.data.conversation import MediaSpec
from muomni.models import integrity, lora, pretrained, store
from muomni.models.connector import PerceiverConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.lora import LoraSettings
from muomni.models.omni import Projectors, ProjectorsConfig
from muomni.models.reference import NetworkReference
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.tokens.bpe import Tokenizer

SIZES = {"width": 32, "layers": 2, "heads": 2, "ffn_width": 64, "ctx_len": 128, "dropout": 0.0}
TEXTS = ["the red circle is left of the blue square"] * 4
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
]


def save_qwen(folder: Path) -> None:
    """A Qwen3 checkpoint as another maker writes it: tied, with a ChatML tokenizer and files of its own."""
    library = Library(BPE())
    library.pre_tokenizer, library.decoder = ByteLevel(add_prefix_space=False), ByteDecoder()
    library.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=280, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    )
    library.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    torch.manual_seed(1)
    decoder = Decoder(
        DecoderConfig(vocab_size=library.get_vocab_size() + 6, tied=True, **SIZES)
    )  # more rows than the tokenizer uses
    for parameter in decoder.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(
                parameter, std=0.4
            )  # tied and hardly stirred, it would say its last token again
    store.save(decoder, folder)
    content = store.read_config(folder)
    files.write_json(folder / "config.json", {**content, "eos_token_id": library.token_to_id("<|im_end|>")})
    files.write_text(
        folder / "tokenizer.json", library.to_str()
    )  # unlike ours in blanks: a copy must be one to the byte
    files.write_text(
        folder / "tokenizer_config.json",
        '{"tokenizer_class":   "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}',
    )


def save_siglip(folder: Path) -> None:
    """A SigLIP vision model as transformers writes it."""
    import transformers

    torch.manual_seed(2)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
    }
    network = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes))
    network.save_pretrained(folder)
    files.write_json(
        folder / "preprocessor_config.json",
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5] * 3, "resample": 2},
    )


def save_bases(run: Path) -> None:
    """Stages thinker and vision of the run."""
    tokenizer = Tokenizer.train(TEXTS, 280)
    torch.manual_seed(3)
    thinker = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, tied=False, **SIZES))
    assert thinker.lm_head is not None
    torch.nn.init.normal_(thinker.lm_head.weight)
    store.save(thinker, run / "thinker" / "final")
    tokenizer.save(run / "thinker" / "final", thinker.config.ctx_len)
    eyes = VisionEncoder(
        VisionEncoderConfig(
            image_size=32, patch_size=8, width=32, layers=2, heads=2, ffn_width=64, embed_dim=8
        )
    )
    store.save(eyes, run / "vision" / "final")
    certify(run / "thinker")


def certify(stage: Path, verdict: str = "green") -> None:
    """A certificate with one gate."""
    gate = {
        "name": "image_swap_sure",
        "verdict": verdict,
        "value": 0.2,
        "threshold": ">= 0",
        "why": "it does not look",
    }
    facts = {"image_swap_gap_nats": {"value": 0.2, "n": 64, "ci": [0.1, 0.3], "floor": None}}
    content = {
        "stage": stage.name,
        "verdict": verdict,
        "facts": facts,
        "gates": [gate],
        "weights": "ab" * 32,
        "modalities": ["image"],
    }
    content |= {"files": integrity.digests(stage / "final")}
    files.write_json(stage / "certificate.json", content)


def save_stage(
    run: Path, name: str, llm: NetworkReference, eyes: NetworkReference, *, with_lora: bool
) -> Path:
    """The `final/` of a stage that stands on these, with a connector that is heard, and a certificate."""
    needed = {"thinker": run / "thinker" / "final", "vision": run / "vision" / "final"}
    named = {"thinker": llm, "vision": eyes}
    places = {key: base.locate(needed, run) for key, base in named.items()}
    bases: dict[str, dict[str, Any]] = {
        key: base.describe(places[key], is_stage=base.name in needed) for key, base in named.items()
    }
    decoder, tower = pretrained.open_decoder(places["thinker"]), pretrained.open_tower(places["vision"])
    perceiver = PerceiverConfig(tokens=4, width=16, heads=2, depth=1)
    shape = ProjectorsConfig(
        width=32,
        vision_width=tower.width,
        audio_width=None,
        num_cls_tokens=tower.num_cls_tokens,
        perceiver=perceiver,
    )
    torch.manual_seed(5)
    projectors = Projectors(shape).init_output_scale(2.0)
    final = run / name / "final"
    store.save(projectors, final / "projectors", extra={"bases": bases})
    spec = MediaSpec(image_size=tower.image_size, image_tokens=4, resample=tower.resample)
    media = {**vars(spec), "mel": spec.mel.model_dump()}
    files.write_json(
        final / "omni.json", {"media": media, "prompts": {"image": "what is it"}, "bases": bases}
    )
    if with_lora:
        lora.attach(decoder, LoraSettings(r=4, alpha=8))
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        lora.save(decoder, final / "lora", llm.name)
    certify(run / name)
    return final
