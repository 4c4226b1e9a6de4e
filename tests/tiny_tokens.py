"""A run folder of a tiny, untrained token model with its codecs, as stages leave it."""

from __future__ import annotations

from pathlib import Path

import torch

from muomni.models import rows, store
from muomni.models.codec import Codec, CodecConfig
from muomni.models.codecs import open_codec
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from muomni.models.reference import NetworkReference
from muomni.models.rows import TokenModel
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import CodecEntry
from muomni.tokens.space import TokenSpace

TEXTS = ["a red circle", "a blue square and a star", "one"]
PICTURES = {  # of its image codec
    "image_size": 16,
    "patch_size": 4,
    "fine_patch_size": 2,
    "width": 8,
    "fine_width": 4,
    "levels": (3, 3),
}


def save_token_run(
    run: Path, *, layout: str = "interleaved", media: tuple[str, ...] = ("image", "audio")
) -> Path:
    """A run of random networks: stages thinker, image_codec, codec and rows."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS * 4, 290)
    decoder = Decoder(
        DecoderConfig(vocab_size=tokenizer.num_ids + 5, width=32, layers=2, heads=2, ctx_len=128, tied=False)
    )
    store.save(decoder, run / "thinker" / "final")
    tokenizer.save(run / "thinker" / "final")
    store.save(ImageCodec(ImageCodecConfig(**PICTURES)), run / "image_codec" / "final")
    sounds = {
        "width": 16,
        "latent_width": 8,
        "blocks": 1,
        "fine_width": 8,
        "fine_blocks": 1,
        "codebook_size": 12,
    }
    store.save(Codec(CodecConfig(**sounds)), run / "codec" / "final")
    folders = {"image": run / "image_codec" / "final", "audio": run / "codec" / "final"}
    entries = [
        CodecEntry.of(open_codec(folders[each]), each, layout if each == "audio" else "interleaved")
        for each in media
    ]
    model = TokenModel(decoder, TokenSpace.of(tokenizer, entries))
    model.start(torch.Generator().manual_seed(1), spread=3.0)
    final = run / "rows" / "final"
    final.mkdir(parents=True)
    names = {"image": "image_codec", "audio": "codec"}
    rows.save(
        model,
        final,
        base=NetworkReference(name="thinker").describe(run / "thinker" / "final", is_stage=True),
        codecs={
            each: NetworkReference(name=names[each]).describe(folders[each], is_stage=True) for each in media
        },
        longest={"audio": 5},
    )
    return run
