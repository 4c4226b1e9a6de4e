"""The codec: shapes of the source's preset, padding, range, and what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muomni.errors import ShapeError, TokenRangeError
from muomni.media.mel import SPEECH
from muomni.models import store
from muomni.models.codec import Codec, CodecConfig


def small(**changes: int) -> Codec:
    torch.manual_seed(0)
    codec = Codec(
        CodecConfig(
            **{
                "width": 16,
                "latent_width": 8,
                "blocks": 2,
                "fine_width": 8,
                "fine_blocks": 1,
                "codebook_size": 12,
                **changes,
            }
        )
    )
    codec.quantiser.codebooks_KND.normal_()
    return codec.eval()


def speech(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, frames, SPEECH.num_mels, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_301_code_frames_are_385280_samples() -> None:
    codec = Codec(CodecConfig())
    assert (codec.codebooks, codec.codebook_size, codec.rate_hz) == (2, 128, 12.5)
    log_mel = codec.decode(torch.zeros(1, 2, 301, dtype=torch.int64))
    assert log_mel.shape == (1, 2408, 80)
    assert log_mel.shape[1] * SPEECH.hop_samples == 385_280
    assert codec.encode(log_mel, torch.tensor([2408])).shape == (1, 2, 301)


def test_a_clip_alone_equals_the_clip_in_a_batch() -> None:
    codec = small()
    clip = speech(37)
    alone = codec.encode(clip, torch.tensor([37]))
    batch = torch.full((2, 90, SPEECH.num_mels), 7.0)
    batch[0, :37] = clip[0]
    batch[1] = speech(90, 1)[0]
    together = codec.encode(batch, torch.tensor([37, 90]))
    assert torch.equal(alone[0], together[0, :, :5])
    codes = torch.zeros(2, 2, 12, dtype=torch.int64)
    codes[0, :, :5] = alone[0]
    codes[0, :, 5:] = 3
    decoded = codec.decode(codes, torch.tensor([5, 12]))
    torch.testing.assert_close(codec.decode(alone)[0], decoded[0, :40], atol=1e-5, rtol=0)


def test_a_piece_with_its_reach_decodes_as_in_the_whole() -> None:
    codec = small()
    codes = torch.randint(12, (1, 2, 30), generator=torch.Generator().manual_seed(0))
    reach = codec.reach_frames
    whole = codec.decode(codes)[:, 8 * 12 : 8 * 16]
    piece = codec.decode(codes[..., 12 - reach : 16 + reach])[:, 8 * reach : 8 * (reach + 4)]
    torch.testing.assert_close(piece, whole, atol=1e-5, rtol=0)
    # and a reach one frame shorter does not do
    short = codec.decode(codes[..., 13 - reach : 15 + reach])[:, 8 * (reach - 1) : 8 * (reach + 3)]
    assert not torch.allclose(short, whole, atol=1e-5)


def test_codes_outside_and_wrong_shapes_are_refused() -> None:
    codec = small()
    with pytest.raises(TokenRangeError):
        codec.decode(torch.full((1, 2, 3), 12))
    with pytest.raises(ShapeError):
        codec.encode(torch.zeros(1, 10, 79), torch.tensor([10]))
    with pytest.raises(ShapeError):
        codec.encode(torch.zeros(1, 10, 80), torch.tensor([11]))
    with pytest.raises(ShapeError):
        codec.encode(torch.zeros(2, 10, 80), torch.tensor([10]))


def test_statistics_are_of_real_frames_and_stored(tmp_path: Path) -> None:
    codec = small()
    batch = torch.full((1, 60, SPEECH.num_mels), 1e4)
    batch[:, :50] = speech(50)
    codec.fit_statistics(batch, torch.tensor([50]))
    assert codec.normalise(speech(50)).mean().abs() < 1e-4
    assert codec.normalise(speech(50)).std() == pytest.approx(1, abs=1e-3)
    store.save(codec, tmp_path)
    again = store.load(tmp_path)
    assert again.config == codec.config
    assert torch.equal(
        again.encode(speech(50), torch.tensor([50])), codec.encode(speech(50), torch.tensor([50]))
    )


def test_nothing_is_below_the_floor() -> None:
    codec = small()
    codec.mel_mean.fill_(-9.0)
    assert float(codec.decode(torch.zeros(1, 2, 4, dtype=torch.int64)).min()) >= SPEECH.log_floor - 1e-5


@pytest.mark.parametrize("stride", [4, 8])
def test_frames_round_up(stride: int) -> None:
    codec = small(stride_frames=stride)
    for frames in (1, stride - 1, stride, stride + 1):
        assert codec.encode(speech(frames), torch.tensor([frames])).shape[-1] == -(-frames // stride)
        assert int(codec.code_frames(torch.tensor(frames))) == -(-frames // stride)
