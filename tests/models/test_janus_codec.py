"""Janus' image quantiser behind the face of all codecs, alone or within a whole Janus; and which entry is the
nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from muomni.errors import CheckpointError, ConfigError, DataError, ShapeError, TokenRangeError
from muomni.models import codecs
from tiny_codecs import JANUS, network, pictures, saved, transformers


def test_a_folder_of_the_library_is_opened_as_what_it_is(tmp_path: Path) -> None:
    saved("janus_vq", tmp_path)
    own = codecs.open_codec(tmp_path)
    assert (own.kind, own.modality, own.codebooks, own.codebook_size) == ("janus_vq", "image", 1, 64)
    assert (own.size_px, own.grid, own.frame_rate_hz, own.sample_rate_hz) == (8, (4, 4), None, None)
    assert own.frames(0) == 16
    with pytest.raises(ShapeError):
        own.samples(16)
    with pytest.raises(ConfigError, match="1 codebook, got 2"):
        codecs.open_codec(tmp_path, 2)


def test_the_sources_sizes_are_384_pixels_and_576_tokens() -> None:
    from muomni.models.codecs.janus import JanusCodec

    with torch.device("meta"):
        model = transformers.JanusVQVAE(transformers.JanusVQVAEConfig(num_patches=24))
    own = JanusCodec(model, "", {})
    assert (own.size_px, own.grid, own.codebook_size) == (384, (24, 24), 16_384)


@torch.inference_mode()
def test_the_entry_is_the_nearest_by_angle_and_pictures_are_the_librarys_own(tmp_path: Path) -> None:
    model, own = saved("janus_vq", tmp_path), codecs.open_codec(tmp_path)
    pixels = pictures(3)
    codes = own.encode(pixels)
    assert codes.shape == (3, 1, 16)
    assert codes.unique().numel() > 8
    latents = model.quant_conv(model.encoder(2 * pixels - 1))
    for row in range(3):
        for place in range(16):
            z = latents[row, :, place // 4, place % 4]
            near = F.cosine_similarity(z[None], model.quantize.embedding.weight).argmax()
            assert codes[row, 0, place] == near
    expected = model.decode(codes[:, 0]) / 2 + 0.5
    torch.testing.assert_close(own.decode(codes), expected.clamp(0, 1))
    assert torch.equal(own.decode(codes), own.decode(codes))


@torch.inference_mode()
def test_codes_with_one_vector_look_alike(tmp_path: Path) -> None:
    saved("janus_vq", tmp_path)
    own: Any = codecs.open_codec(tmp_path)
    own.network.quantize.embedding.weight[1] = 3 * own.network.quantize.embedding.weight[0]
    (table,) = own.code_vectors()
    torch.testing.assert_close(table[0], table[1])
    assert not torch.allclose(table[0], table[2])
    zeros = torch.zeros(1, 1, 16, dtype=torch.int64)
    torch.testing.assert_close(own.decode(zeros), own.decode(zeros + 1))


@torch.inference_mode()
def test_the_librarys_own_encode_takes_other_entries() -> None:
    """It compares entries of any length, its decode brings them to length 1: it does not choose what decode
    puts nearest.

    With entries of one length both agree, so the difference is this alone.
    """
    model = network("janus_vq")
    pixels = 2 * pictures(8) - 1

    def chosen() -> tuple[torch.Tensor, torch.Tensor, Any]:
        z = F.normalize(model.quant_conv(model.encoder(pixels)).flatten(2).transpose(1, 2), dim=-1)
        book = F.normalize(model.quantize.embedding.weight, dim=-1)
        return model.encode(pixels).image_tokens.view(8, 16), (z @ book.T).argmax(-1), (z, book)

    theirs, right, (z, book) = chosen()
    assert (theirs != right).float().mean() > 0.2
    assert (z - book[theirs]).square().sum() > 1.05 * (z - book[right]).square().sum()
    model.quantize.embedding.weight.copy_(F.normalize(model.quantize.embedding.weight, dim=-1))
    theirs, right, _ = chosen()
    assert torch.equal(theirs, right)


def test_it_is_found_within_a_whole_janus(tmp_path: Path) -> None:
    alone = saved("janus_vq", tmp_path / "alone")
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 70,
    }
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = transformers.JanusConfig(
        text_config={"model_type": "llama", "num_key_value_heads": 2, **text},
        vision_config={**vision, "projection_dim": 16, "num_image_tokens": 4},
        vq_config=JANUS,
    )
    whole = transformers.JanusForConditionalGeneration(config)
    whole.model.vqmodel.load_state_dict(alone.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    first, second = (codecs.open_codec(tmp_path / name) for name in ("alone", "whole"))
    assert torch.equal(first.encode(pictures()), second.encode(pictures()))
    assert first.digest == second.digest


def test_bad_pictures_and_codes_are_refused(tmp_path: Path) -> None:
    saved("janus_vq", tmp_path)
    own = codecs.open_codec(tmp_path)
    with pytest.raises(ShapeError, match=r"\(B, 3, 8, 8\)"):
        own.encode(pictures(size=16))
    with pytest.raises(DataError, match="divide bytes by 255"):
        own.encode(255 * pictures())
    with pytest.raises(TokenRangeError):
        own.decode(torch.full((1, 1, 16), 64))
    with pytest.raises(ShapeError, match=r"\(B, 1, 16\)"):
        own.decode(torch.zeros(1, 1, 15, dtype=torch.int64))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        codecs.open_codec(tmp_path)
