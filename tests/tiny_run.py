"""A run folder of tiny, untrained networks, as the stages leave it."""

from __future__ import annotations

from pathlib import Path

import torch

from muomni import files
from muomni.data.conversation import MediaSpec
from muomni.media.mel import SPEECH, MelSpec
from muomni.models import store
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.codec import Codec, CodecConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.omni import Projectors, ProjectorsConfig
from muomni.models.talker import Talker, TalkerConfig
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.special_tokens import SPECIAL


def save_run(run: Path) -> None:
    """Every stage's `final/`, with random weights."""
    torch.manual_seed(8)  # one of those whose untrained answers hold words to say
    tokenizer = Tokenizer.train(["the red circle is left of the blue square"] * 4, 280)
    sizes = {
        "width": 32,
        "layers": 2,
        "heads": 2,
        "ffn_width": 64,
        "ctx_len": 96,
        "dropout": 0.0,
        "tied": False,
    }
    thinker = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **sizes))
    assert thinker.lm_head is not None
    torch.nn.init.normal_(
        thinker.lm_head.weight
    )  # untrained logits are so flat that rounding could decide between two ids
    thinker.lm_head.weight.data[: len(SPECIAL.names)] = 0.0  # words rather than marks
    ears = AudioEncoder(
        AudioEncoderConfig(mel=MelSpec(), width=32, layers=1, heads=2, ffn_width=64, channels=8)
    )
    eyes = VisionEncoder(
        VisionEncoderConfig(
            image_size=32, patch_size=16, width=16, layers=1, heads=2, ffn_width=32, embed_dim=8
        )
    )
    tower = TextTower(
        TextTowerConfig(
            vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, ffn_width=32, embed_dim=8
        )
    )
    codec = Codec(
        CodecConfig(
            mel=SPEECH, codebook_size=8, width=16, latent_width=4, blocks=1, fine_width=8, fine_blocks=1
        )
    )
    talker = Talker(
        TalkerConfig(
            text_vocab=tokenizer.vocab_size,
            codebook_size=8,
            width=16,
            layers=1,
            heads=2,
            ffn_width=32,
            condition_width=32,
        )
    )
    talker.pace.durations_V.fill_(0.1)  # untrained, it never ends by itself: let its guard come soon
    projectors = Projectors(
        ProjectorsConfig(width=32, vision_width=16, audio_width=32, pool_grid=1, audio_pool=2)
    ).init_output_scale(1.0)

    def final(stage: str) -> Path:
        return run / stage / "final"

    for folder in (final("thinker"), final("omni") / "thinker"):
        store.save(thinker, folder)
        tokenizer.save(folder)
    for folder in (final("hearing"), final("omni") / "hearing"):
        store.save(ears, folder, extra={"pad_s": 0.1})
    for folder in (final("vision"), final("omni") / "vision"):
        store.save(eyes, folder)
    store.save(tower, final("vision") / "text_tower")
    tokenizer.save(final("vision"))
    for folder in (final("codec"), final("talker") / "codec"):
        store.save(codec, folder)
    store.save(talker, final("talker"), extra={"layer": 1})
    store.save(thinker, final("talker") / "thinker")
    tokenizer.save(final("talker"))
    store.save(projectors, final("omni") / "projectors")
    spec = MediaSpec(image_size=32, image_tokens=2, mel=MelSpec(), audio_pool=2, max_audio_tokens=24)
    media = {**vars(spec), "mel": spec.mel.model_dump()}
    files.write_json(
        final("omni") / "omni.json", {"media": media, "prompts": {"image": "what is it", "audio": "write"}}
    )
