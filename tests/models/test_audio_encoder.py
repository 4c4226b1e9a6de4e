"""The ears: shapes of SPEC M-B, exact lengths, and padding that changes nothing."""

import pytest
import torch

from muomni.errors import ShapeError
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig, keep, normalise


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(AudioEncoderConfig()).eval()


def small(downsample: int = 4) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(
        AudioEncoderConfig(width=32, layers=2, heads=2, ffn_width=64, channels=8, downsample=downsample)
    ).eval()


def test_the_front_has_the_shapes_of_the_specification(encoder: AudioEncoder) -> None:
    x = torch.randn(1, 1, 100, 128)
    x = encoder.convs[0](x)
    assert x.shape == (1, 64, 50, 64)
    x = encoder.convs[1](x)
    assert x.shape == (1, 64, 25, 32)
    assert (encoder.proj.in_features, encoder.proj.out_features) == (2048, 192)
    assert (AudioEncoder(AudioEncoderConfig(downsample=8)).proj.in_features, encoder.head.out_features) == (
        1024,
        99,
    )


def test_parameters_by_arithmetic(encoder: AudioEncoder) -> None:
    convs = (9 + 1) * 64 + (9 * 64 + 1) * 64
    front = convs + (2048 + 1) * 192
    block = (
        4 * 192 * 192 + (192 * 768 + 768) + (768 * 192 + 192) + 2 * 192 + 2 * 64
    )  # attention, mlp, two norms, q and k norm
    assert (
        sum(p.numel() for p in encoder.parameters()) == front + 4 * block + 192 + (192 + 1) * 99 == 2_225_635
    )


@pytest.mark.parametrize(
    ("frames", "four", "eight"), [(100, 25, 13), (101, 26, 13), (1, 1, 1), (95, 24, 12), (1792, 448, 224)]
)
def test_lengths_are_the_ceiling_a_stride(frames: int, four: int, eight: int) -> None:
    for downsample, states in ((4, four), (8, eight)):
        encoder = small(downsample)
        heard = encoder(torch.randn(1, frames, 128), torch.tensor([frames]))
        assert encoder.length(frames) == states == heard.states_BTD.shape[1] == int(heard.lengths_B[0])


@pytest.mark.parametrize("downsample", [2, 4, 8])
def test_a_clip_alone_is_the_clip_in_a_padded_batch(downsample: int) -> None:
    encoder = small(downsample)
    frames = torch.tensor([90, 1, 37, 64])
    mel = torch.randn(4, 90, 128) * 4 - 9
    poisoned = mel.masked_fill(~keep(frames, 90)[:, :, None], 1e4)
    together = encoder(poisoned, frames)
    for row, count in enumerate(frames.tolist()):
        alone = encoder(mel[row : row + 1, :count], frames[row : row + 1])
        torch.testing.assert_close(
            together.states_BTD[row, : encoder.length(count)], alone.states_BTD[0], atol=1e-5, rtol=0
        )
    assert together.keep_BT.sum(1).tolist() == together.lengths_B.tolist()


def test_order_matters() -> None:
    """The original's blocks were permutation-equivariant: no positions (reference/muomni.md B14)."""
    encoder = small()
    block_only = torch.randn(1, 8, 32)
    front = encoder.front
    encoder.front = lambda mel, frames: block_only if mel[0, 0, 0] > 0 else block_only.flip(1)  # type: ignore[method-assign]
    ones = torch.ones(1, 32, 128)
    forward, back = encoder(ones, torch.tensor([32])), encoder(-ones, torch.tensor([32]))
    encoder.front = front  # type: ignore[method-assign]
    assert (forward.states_BTD - back.states_BTD.flip(1)).abs().max() > 1e-2


def test_loudness_and_digital_silence_do_not_swamp_the_words() -> None:
    mel = torch.randn(2, 40, 128) - 5
    frames = torch.tensor([40, 30])
    here = keep(frames, 40)
    normal = normalise(mel, here, 14.0)
    torch.testing.assert_close(normalise(mel + 3.0, here, 14.0), normal, atol=1e-4, rtol=0)
    assert (normal[1, 30:] == 0).all()
    assert abs(float(normal[1, :30].mean())) < 1e-5
    assert abs(float(normal[1, :30].std()) - 1) < 1e-2
    silence = torch.cat([mel, torch.full((2, 40, 128), -23.03)], 1)
    everything = torch.ones(2, 80, dtype=torch.bool)
    assert (
        normalise(silence, everything, 8.0)[0, :40].std()
        > 1.5 * normalise(silence, everything, 100.0)[0, :40].std()
    )


def test_a_constant_utterance_stays_finite() -> None:
    heard = small()(torch.full((1, 20, 128), -23.0), torch.tensor([20]))
    assert heard.states_BTD.isfinite().all()


def test_symbols_are_log_probabilities(encoder: AudioEncoder) -> None:
    log_probs = encoder.symbols(torch.randn(2, 5, 192))
    assert log_probs.shape == (2, 5, 99)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("mel", "frames"),
    [
        (torch.zeros(1, 10, 80), torch.tensor([10])),
        (torch.zeros(10, 128), torch.tensor([10])),
        (torch.zeros(1, 10, 128), torch.tensor([11])),
        (torch.zeros(1, 10, 128), torch.tensor([0])),
        (torch.zeros(2, 10, 128), torch.tensor([10])),
    ],
)
def test_wrong_shapes_are_refused(mel: torch.Tensor, frames: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="hearing"):
        small()(mel, frames)
