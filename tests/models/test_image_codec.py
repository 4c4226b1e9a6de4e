"""The image codec: the protocol of codecs, order of its tokens, files, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from muomni.errors import CheckpointError, ConfigError, DataError, ShapeError, TokenRangeError
from muomni.models import codecs, store
from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from muomni.tokens.codec import Codec, CodecEntry

SMALL: dict[str, Any] = {"image_size": 32, "width": 16, "fine_width": 8, "blocks": 1}


def made(**changes: Any) -> ImageCodec:
    torch.manual_seed(0)
    codec = ImageCodec(ImageCodecConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        codec.to_latent.weight.mul_(8)  # an untrained latent stays near 0, and its codes with it
    return codec


def pictures(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("changes", "size", "grid", "entries"),
    [
        ({}, 32, (4, 4), 1024),
        ({"image_size": 64, "patch_size": 16}, 64, (4, 4), 1024),
        ({"image_size": 48, "patch_size": 4, "levels": (8, 5, 5, 5)}, 48, (12, 12), 1000),
        (
            {"patch_size": 8, "fine_patch_size": 8, "blocks": 0, "fine_blocks": 0, "heads": 0},
            32,
            (4, 4),
            1024,
        ),
    ],
)
def test_sizes_are_those_of_the_settings(
    changes: dict[str, Any], size: int, grid: tuple[int, int], entries: int
) -> None:
    codec: Codec = made(**changes)
    assert (codec.kind, codec.modality, codec.codebooks) == ("muomni_image_codec", "image", 1)
    assert (codec.size_px, codec.grid, codec.codebook_size) == (size, grid, entries)
    codes = codec.encode(pictures(3, size))
    assert codes.shape == (3, 1, grid[0] * grid[1])
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < entries
    assert codes.unique().numel() > 4
    rebuilt = codec.decode(codes)
    assert rebuilt.shape == (3, 3, size, size)
    assert float(rebuilt.min()) >= 0
    assert float(rebuilt.max()) <= 1
    assert codec.frames(7) == grid[0] * grid[1]


def test_a_picture_has_the_codes_that_it_has_alone() -> None:
    codec, images = made(), pictures(5)
    together = codec.encode_many(list(images))
    assert [tuple(codes.shape) for codes in together] == [(1, 16)] * 5
    for image, codes in zip(images, together):
        assert torch.equal(codec.encode(image[None])[0], codes)
    assert not torch.equal(together[0], together[1])
    alone = codec.decode(together[2][None])
    torch.testing.assert_close(codec.decode(torch.stack(together))[2:3], alone, rtol=0, atol=1e-5)
    assert torch.equal(codec.decode(together[2][None]), alone)


def test_tokens_stand_row_by_row_where_their_patch_lies() -> None:
    """A change in one corner changes most, or anything at all, in and around that corner."""
    codec = made(blocks=0, fine_blocks=0, heads=0)
    image, other = pictures(1), pictures(1, seed=1)
    changed = image.clone()
    changed[..., :8, 24:] = other[..., :8, 24:]  # the upper right corner: row 0, column 3
    moved = (codec.latents(changed) - codec.latents(image)).detach().abs().sum(-1).view(4, 4)
    assert moved.argmax() == 3
    codes = codec.encode(image)
    new = codes.clone()
    new[0, 0, 3] = (codes[0, 0, 3] + 512) % 1024
    spread = (codec.decode(new) - codec.decode(codes)).abs().sum((0, 1))
    assert bool((spread[:8, 24:] > 0).all())
    assert float(spread[20:].sum() + spread[:, :12].sum()) == 0.0, (
        "two convolutions reach a token, and a fine cell, further"
    )


def test_attention_lets_a_token_know_of_all_others() -> None:
    image, other = pictures(1, size=64), pictures(1, size=64, seed=1)
    changed = image.clone()
    changed[..., :8, :8] = other[..., :8, :8]
    for heads, reaches in ((0, False), (4, True)):
        codec = made(image_size=64, heads=heads)
        moved = (codec.latents(changed) - codec.latents(image)).detach().abs().sum(-1).view(8, 8)
        assert bool(moved[7, 7] > 0) == reaches
        codes = codec.encode(image)
        new = codes.clone()
        new[0, 0, 0] = (codes[0, 0, 0] + 512) % 1024
        spread = (codec.decode(new) - codec.decode(codes)).abs().sum((0, 1))
        assert bool(spread[-1, -1] > 0) == reaches


def test_it_is_saved_and_opened_as_a_codec_with_the_same_digest(tmp_path: Path) -> None:
    codec, images = made(), pictures(2)
    store.save(codec, tmp_path / "final")
    again = codecs.open_codec(tmp_path)
    assert torch.equal(again.encode(images), codec.encode(images))
    assert torch.equal(again.decode(codec.encode(images)), codec.decode(codec.encode(images)))
    assert again.digest == codec.digest
    entry = CodecEntry.of(again, "picture", "interleaved")
    assert entry.differences(codec) == []
    with torch.no_grad():
        codec.to_latent.bias.add_(0.1)
    assert codec.digest != again.digest
    assert [line.split(":")[0] for line in entry.differences(codec)] == ["digest"]
    assert made(levels=(4, 4, 4, 4, 2)).digest != made().digest
    with pytest.raises(ConfigError, match="one codebook, got 2"):
        codecs.open_codec(tmp_path, 2)


def test_its_vectors_are_what_its_decoder_reads() -> None:
    codec = made()
    (table,) = codec.code_vectors()
    assert table.shape == (1024, 5)
    assert len(table.unique(dim=0)) == 1024
    codes = codec.encode(pictures(2))
    with torch.no_grad():
        rebuilt = codec.rebuild(table[codes[:, 0]]).clamp(0, 1)
    assert torch.equal(rebuilt, codec.decode(codes))


def test_another_network_in_its_folder_is_refused(tmp_path: Path) -> None:
    from muomni.models.image_codec import open_folder
    from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig

    store.save(VisionEncoder(VisionEncoderConfig(image_size=32, width=16, layers=1, ffn_width=16)), tmp_path)
    with pytest.raises(CheckpointError, match="expected muomni_image_codec, got a VisionEncoder"):
        open_folder(tmp_path, None, "cpu")


def test_what_it_can_not_code_is_refused_by_name() -> None:
    codec = made()
    with pytest.raises(ShapeError, match=r"pictures \(B, 3, 32, 32\)"):
        codec.encode(pictures(1, 64))
    with pytest.raises(DataError, match=r"\[0, 1\], got 0.* to 25"):
        codec.encode(pictures(1) * 255)
    with pytest.raises(DataError, match="NaN"):
        codec.encode(pictures(1) * torch.nan)
    codes = codec.encode(pictures(1))
    for wrong in (-1, 1024):
        with pytest.raises(TokenRangeError, match="expected codes 0 to 1023"):
            codec.decode(torch.full_like(codes, wrong))
    with pytest.raises(ShapeError, match="expected codes"):
        codec.decode(codes[..., :-1])
    with pytest.raises(ShapeError, match="no samples"):
        codec.samples(16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 36}, "no multiple of patch_size 8"),
        ({"fine_patch_size": 3}, "no multiple of fine_patch_size 3"),
        ({"heads": 3}, "no multiple of heads 3"),
        ({"levels": ()}, "at least one dimension"),
        ({"levels": (4, 1)}, "at least 2 levels"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImageCodecConfig(**{**SMALL, **changes})
