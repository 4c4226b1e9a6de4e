"""The fusion: which states of the eyes become tokens."""

from pathlib import Path

import pytest
import torch

from muomni.errors import ConfigError
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.omni import Omni, Projectors, ProjectorsConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig


def omni(grid: int = 0, levels: tuple[int, ...] = ()) -> Omni:
    torch.manual_seed(0)
    eyes = VisionEncoder(
        VisionEncoderConfig(
            image_size=32, patch_size=8, width=32, layers=2, heads=2, ffn_width=64, embed_dim=16
        )
    ).eval()
    thinker = Decoder(DecoderConfig(vocab_size=40, width=16, layers=1, heads=2, ffn_width=32, dropout=0.0))
    shape = ProjectorsConfig(width=16, vision_width=32, audio_width=8, pool_grid=grid, feature_layers=levels)
    return Omni(thinker, eyes, None, Projectors(shape).init_output_scale(0.3))


@pytest.mark.parametrize("levels", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("grid", [0, 2, 4])
def test_a_picture_fills_its_summary_and_its_grid_from_any_levels(grid: int, levels: tuple[int, ...]) -> None:
    model = omni(grid, levels)
    tokens = model.embed_image(torch.rand(3, 3, 32, 32))
    assert tokens.shape == (3, 1 + grid**2, 16)
    assert tokens.detach().square().mean().sqrt() == pytest.approx(
        0.3, rel=0.3
    )  # as loud as asked, whatever is read


def test_without_levels_the_end_of_the_eyes_is_read() -> None:
    model, pixels = omni(4), torch.rand(2, 3, 32, 32)
    seen = model.vision(pixels)
    expected = model.projectors.vision(torch.cat([seen.cls_B1D, seen.grid_BPD], 1))
    torch.testing.assert_close(model.embed_image(pixels), expected)


def test_a_level_that_the_eyes_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 blocks"):
        omni(4, (0, 3))


def test_what_all_patches_share_is_taken_away_before_it_is_projected(tmp_path: Path) -> None:
    """Unstandardised, patches were as good as alike: 400 steps of colour questions stayed at guessing among
    the picture's colours."""
    model, pixels = omni(4, (0, 2)), torch.rand(64, 3, 32, 32)
    states = model.encode_image(pixels)
    projectors = model.projectors.standardise(states)
    for row, part in enumerate((states[:, :1], states[:, 1:])):
        clean = ((part - projectors.mean_2E[row]) / projectors.spread_2E[row]).flatten(0, 1)
        assert clean.mean(0).abs().max() < 1e-3
        heard = part.flatten(0, 1).std(0) > 1e-3
        torch.testing.assert_close(clean.std(0)[heard], torch.ones(int(heard.sum())), atol=1e-3, rtol=0)
    # Summaries before the first block are the same for every picture: quiet, not blown up.
    assert not (states[:, 0, :32].std(0) > 1e-3).any()
    assert model.embed_image(pixels).isfinite().all()
    store.save(projectors, tmp_path)
    again = store.load(tmp_path)
    torch.testing.assert_close(again.project_image(states), projectors.project_image(states))
