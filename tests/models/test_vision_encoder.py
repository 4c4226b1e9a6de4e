"""The eyes: shapes of SPEC M-C, audible positions, and gradients for every patch."""

import pytest
import torch
from pydantic import ValidationError

from muomni.errors import ShapeError
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig, sincos_2d


def small(stem: str = "conv", patch: int = 8) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(
        VisionEncoderConfig(
            image_size=32,
            patch_size=patch,
            width=32,
            layers=2,
            heads=2,
            ffn_width=64,
            stem=stem,
            embed_dim=16,
        )
    )


@pytest.mark.parametrize("stem", ["linear", "conv"])
def test_a_picture_gives_one_summary_and_196_patches(stem: str) -> None:
    vision = VisionEncoder(VisionEncoderConfig(stem=stem))
    seen = vision(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert seen.cls_B1D.shape == (1, 1, 128)
    assert seen.grid_BPD.shape == (1, 196, 128)
    assert vision.positions.shape == (197, 128)


@pytest.mark.parametrize(
    ("stem", "patch", "patches"), [("conv", 8, 16), ("conv", 16, 4), ("linear", 8, 16), ("conv", 4, 64)]
)
def test_the_grid_is_as_fine_as_the_patch(stem: str, patch: int, patches: int) -> None:
    assert small(stem, patch)(torch.rand(2, 3, 32, 32)).grid_BPD.shape == (2, patches, 32)


def test_bytes_and_floats_see_the_same() -> None:
    vision, pixels = small(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(vision.embed(pixels), vision.embed(pixels.float() / 255), atol=1e-5, rtol=0)


def test_a_picture_alone_is_the_picture_in_a_batch() -> None:
    vision, pixels = small(), torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(vision(pixels).grid_BPD[2:3], vision(pixels[2:3]).grid_BPD, atol=1e-5, rtol=0)


def test_positions_are_heard_beside_the_patches() -> None:
    vision = VisionEncoder(VisionEncoderConfig(image_size=112))
    patches = vision.stem(torch.rand(4, 3, 112, 112) * 2 - 1)
    positions = vision.positions.detach()[1:]
    assert positions.square().mean().sqrt() > 0.3
    assert positions.std() > 0.3 * patches.detach().std()  # std 0.02 was not heard
    rows = sincos_2d(7, 128)
    assert torch.cdist(rows, rows).fill_diagonal_(9).min() > 0.3  # no two places alike
    assert sincos_2d(3, 8)[1 * 3 + 2].shape == (8,)


def test_the_embedding_is_unit_and_teaches_every_patch() -> None:
    vision = small()
    seen = vision(torch.rand(3, 3, 32, 32))
    seen.grid_BPD.retain_grad()
    unit = vision.unit(vision.pooled(seen))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
    unit[:, 0].sum().backward()
    assert seen.grid_BPD.grad is not None
    assert (seen.grid_BPD.grad.abs().amax((0, 2)) > 0).all()
    assert all(p.grad is not None for p in vision.parameters())


@pytest.mark.parametrize(
    "changes",
    [{"image_size": 30}, {"stem": "conv", "patch_size": 14, "image_size": 28}, {"width": 30}, {"wdith": 3}],
)
def test_impossible_sizes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        VisionEncoderConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 3, 32, 31), (1, 32, 32, 3), (3, 32, 32)])
def test_wrong_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="vision"):
        small()(torch.rand(shape))


def test_levels_are_what_passed_through_so_many_blocks() -> None:
    vision, pixels = small(), torch.rand(2, 3, 32, 32)
    seen = vision(pixels, feature_layers=(0, 2))
    assert seen.layers_BTE is not None
    assert seen.layers_BTE.shape == (2, 1 + 16, 2 * 32)
    torch.testing.assert_close(
        seen.layers_BTE.unflatten(2, (2, 32)).square().mean(-1), torch.ones(2, 17, 2), atol=1e-3, rtol=0
    )
    vision.norm.weight.data.fill_(1.0)
    last = vision(pixels)
    torch.testing.assert_close(
        seen.layers_BTE[:, 1:, 32:], last.grid_BPD, atol=1e-5, rtol=0
    )  # the end is a level too
    changed = pixels.clone()
    changed[:, :, :8, :8] = 1.0 - changed[:, :, :8, :8]
    stem = vision(pixels, feature_layers=(0,)).layers_BTE, vision(changed, feature_layers=(0,)).layers_BTE
    assert not torch.allclose(stem[0][:, 1], stem[1][:, 1])
    assert last.layers_BTE is None
