"""Token spaces for tests: the one of the source, small ones, random ones, and codecs without weights behind
them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from muomni.tokens.codec import CodecEntry, check_codes, check_media, encode_by_length
from muomni.tokens.space import TokenSpace

IMAGE = CodecEntry(
    "pictures", "muomni_image_codec", "image", 1, 8192, "interleaved", "1" * 64, size_px=224, grid=(4, 8)
)
AUDIO = CodecEntry(
    "sounds", "encodec", "audio", 4, 1024, "interleaved", "2" * 64, frame_rate_hz=150.0, sample_rate_hz=48_000
)
SOURCE = TokenSpace(151_669, "3" * 64, (IMAGE, AUDIO))


def small(layout: str = "interleaved", books: int = 3) -> TokenSpace:
    """300 words, images of 2 x 3 tokens of 16 codes, sounds of K books of 8 codes."""
    image = CodecEntry("pictures", "toy", "image", 1, 16, "interleaved", "4" * 64, size_px=6, grid=(2, 3))
    audio = CodecEntry(
        "sounds", "toy", "audio", books, 8, layout, "5" * 64, frame_rate_hz=50.0, sample_rate_hz=1000
    )
    return TokenSpace(300, "6" * 64, (image, audio))


@st.composite
def spaces(draw: st.DrawFn) -> TokenSpace:
    """Any space with both media."""
    layouts = st.sampled_from(("interleaved", "delay", "parallel"))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    image = CodecEntry(
        "i",
        "toy",
        "image",
        draw(st.integers(1, 3)),
        draw(st.integers(1, 50)),
        draw(layouts),
        "a" * 64,
        size_px=8,
        grid=(rows, columns),
    )
    audio = CodecEntry(
        "a",
        "toy",
        "audio",
        draw(st.integers(1, 5)),
        draw(st.integers(1, 50)),
        draw(layouts),
        "b" * 64,
        frame_rate_hz=draw(st.floats(1, 200)),
        sample_rate_hz=draw(st.integers(1000, 48_000)),
    )
    return TokenSpace(draw(st.integers(1, 1000)), "c" * 64, (image, audio), draw(st.integers(10, 80)))


def codes(space: TokenSpace, modality: str, frames: int, seed: int = 0) -> Tensor:
    """Random codes (K, F) of a modality; an image has its own number of frames."""
    entry = space.codec(modality)
    frames = entry.grid[0] * entry.grid[1] if entry.grid else frames
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(entry.codebook_size, (entry.codebooks, frames), generator=generator)


class ToyImages:
    """Cells of a picture by their mean brightness: 16 codes."""

    kind, modality, codebooks, codebook_size = "toy", "image", 1, 16
    frame_rate_hz, sample_rate_hz, size_px, grid, digest = None, None, 6, (2, 3), "4" * 64

    def encode(self, media: Tensor) -> Tensor:
        check_media(self, media)
        cells = media.mean(1).unflatten(1, (2, 3)).unflatten(3, (3, 2)).mean((2, 4))  # (B, 2, 3)
        return (cells * 15.999).long().flatten(1)[:, None]

    def decode(self, codes_BKF: Tensor) -> Tensor:
        check_codes(self, codes_BKF)
        cells = (codes_BKF[:, 0] + 0.5).unflatten(1, (2, 3)) / 16
        return cells.repeat_interleave(3, 1).repeat_interleave(2, 2)[:, None].expand(-1, 3, -1, -1)

    def encode_many(self, media):
        return encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        return 6

    def samples(self, frames: int) -> int:
        raise AssertionError


class ToySounds:
    """20 samples a frame; every book of three says the frame's mean level a little finer: 8 codes each."""

    kind, modality, codebooks, codebook_size = "toy", "audio", 3, 8
    frame_rate_hz, sample_rate_hz, size_px, grid, digest = 50.0, 1000, None, None, "5" * 64

    def encode(self, media: Tensor) -> Tensor:
        check_media(self, media)
        padded = torch.nn.functional.pad(media, (0, -media.shape[1] % 20))
        level = ((padded.unflatten(1, (-1, 20)).mean(2) + 1) / 2 * 511.999).long()  # 0 .. 511, (B, F)
        return torch.stack((level // 64, level // 8 % 8, level % 8), 1)

    def decode(self, codes_BKF: Tensor) -> Tensor:
        check_codes(self, codes_BKF)
        level = codes_BKF[:, 0] * 64 + codes_BKF[:, 1] * 8 + codes_BKF[:, 2]
        return ((level + 0.5) / 512 * 2 - 1).repeat_interleave(20, 1)

    def encode_many(self, media):
        return encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        return -(-samples // 20)

    def samples(self, frames: int) -> int:
        return frames * 20
