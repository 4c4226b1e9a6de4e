"""Our eyes over SigLIP's weights give what transformers' models give for what their own processors make of a
picture."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from muomni.errors import CheckpointError, ShapeError
from muomni.media import image
from muomni.models import pretrained
from muomni.models.siglip import SiglipTower

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pil_siglip = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
pil_siglip2 = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
}
FIXED, NAFLEX = (
    {**VISION, "image_size": 20},
    {**VISION, "num_patches": 16},
)  # 20 pixels: 5 x 5 patches; NaFlex tables are 4 x 4
KINDS = {
    "siglip_vision_model": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**FIXED)),
    "siglip": lambda: transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=FIXED, text_config=TEXT)
    ),
    "siglip2_vision_model": lambda: transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(**NAFLEX)
    ),
    "siglip2": lambda: transformers.Siglip2Model(
        transformers.Siglip2Config(vision_config=NAFLEX, text_config=TEXT)
    ),
}
MEAN, STD = (
    [0.48, 0.45, 0.40],
    [0.26, 0.25, 0.27],
)  # unlike each other, so that no two channels can change places


def photo() -> Image.Image:
    """A real one where there are any, cut to a square."""
    folder = Path(os.environ.get("MUOMNI_DATA", Path(__file__).parents[2] / "../shared/data")) / "coco"
    found = next(iter(sorted(folder.rglob("*.jpg"))), None)
    if found is None:
        return Image.fromarray(np.random.default_rng(5).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    return image.read(found).crop((30, 40, 230, 240))


def saved(kind, folder, **changes):
    """A tiny model by transformers, stirred so that every table counts, and its processor."""
    torch.manual_seed(3)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    if "siglip2" in kind:  # 30 patches at most: a square of 5 x 5 and 5 of padding
        processor = pil_siglip2.Siglip2ImageProcessorPil(
            patch_size=4, max_num_patches=30, image_mean=MEAN, image_std=STD, **changes
        )
    else:
        processor = pil_siglip.SiglipImageProcessorPil(
            size={"height": 20, "width": 20}, image_mean=MEAN, image_std=STD, **changes
        )
    processor.save_pretrained(folder)
    return getattr(model, "vision_model", model), processor


@torch.no_grad()
def theirs(model, inputs, **how):
    out = model(**inputs, **how)
    return out.hidden_states if how else out.last_hidden_state[:, :25]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resample", [2, 3])
def test_a_photo_is_seen_as_transformers_sees_it(kind, resample, tmp_path):
    model, processor = saved(kind, tmp_path, resample=resample)
    inputs = processor(images=photo(), return_tensors="pt")
    tower = pretrained.open_tower(tmp_path)
    assert (tower.image_size, tower.side, tower.width, tower.num_cls_tokens, tower.depth) == (20, 5, 32, 0, 3)
    assert tower.resample == {2: "bilinear", 3: "bicubic"}[resample]
    array = image.to_array(photo(), tower.image_size, resample=tower.resample)
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None]
    with torch.no_grad():
        seen = tower.encode_image(pixels)
        torch.testing.assert_close(seen, theirs(model, inputs), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tower.encode_image(pixels.float() / 255), seen, atol=1e-5, rtol=1e-5)
        levels = tower.encode_image(pixels, (0, 2))
    states = theirs(model, inputs, output_hidden_states=True)
    assert len(states) == tower.depth + 1
    expected = torch.cat([F.rms_norm(states[level][:, :25], (32,)) for level in (0, 2)], -1)
    torch.testing.assert_close(levels, expected, atol=1e-4, rtol=1e-4)
    assert seen.std() > 0.1


def test_a_level_is_what_so_many_blocks_gave(tmp_path):
    model, processor = saved("siglip", tmp_path)
    inputs = processor(images=photo(), return_tensors="pt")
    with torch.no_grad():
        x = model.embeddings(inputs["pixel_values"])
        for layer in model.encoder.layers[:2]:
            x = layer(x, attention_mask=None)
        array = image.to_array(photo(), 20)
        level = pretrained.open_tower(tmp_path).encode_image(
            torch.from_numpy(array).permute(2, 0, 1)[None], [2]
        )
    torch.testing.assert_close(level, F.rms_norm(x, (32,)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_goes_to_a_folder_and_back_to_both(kind, tmp_path):
    saved(kind, tmp_path / "theirs", resample=2)
    tower = pretrained.open_tower(tmp_path / "theirs")
    pretrained.save_tower(tower, tmp_path / "ours")
    pixels = torch.randint(
        0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    again = pretrained.open_tower(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels), tower.encode_image(pixels))
    assert again.resample == "bilinear"
    backend = (
        {"backend": "pil"} if "backend" in transformers.AutoImageProcessor.from_pretrained.__doc__ else {}
    )
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", **backend)
    model = getattr(
        transformers, "Siglip2VisionModel" if "siglip2" in kind else "SiglipVisionModel"
    ).from_pretrained(tmp_path / "ours")
    square = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    inputs = processor(images=square, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            again.encode_image(pixels[:1]), theirs(model.eval(), inputs), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", ["siglip_vision_model", "siglip2_vision_model"])
def test_without_a_processor_the_defaults_of_its_class_hold(kind, tmp_path):
    saved(kind, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    tower = pretrained.open_tower(tmp_path)
    assert (tower.mean, tower.std) == ([0.5] * 3, [0.5] * 3)
    assert (tower.side, tower.resample) == ((4, "bilinear") if tower.is_naflex else (5, "bicubic"))
    pretrained.save_tower(tower, tmp_path / "again")
    assert pretrained.open_tower(tmp_path / "again").image_size == tower.image_size


def test_the_processor_may_be_part_of_a_larger_file(tmp_path):
    saved("siglip", tmp_path, resample=2)
    alone = (tmp_path / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text('{"image_processor": ' + alone + "}")
    tower = pretrained.open_tower(tmp_path)
    assert (tower.mean, tower.resample) == (MEAN, "bilinear")


def test_the_sources_tower_has_729_patches_of_1152():
    """google/siglip2-so400m-patch14-384: 14 does not divide 384, the last 6 pixels are never looked at."""
    sizes = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    with torch.device("meta"):
        tower = SiglipTower(
            transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, image_size=384)), {}
        )
        assert tower.encode_image(torch.empty(1, 3, 384, 384)).shape == (1, 729, 1152)
    assert (tower.image_size, tower.side, tower.width, tower.depth) == (384, 27, 1152, 27)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_half_precision_sees_nearly_the_same(kind, dtype, tmp_path):
    saved(kind, tmp_path)
    pixels = torch.randint(
        0, 256, (1, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        exact, seen = (
            pretrained.open_tower(tmp_path).encode_image(pixels),
            pretrained.open_tower(tmp_path, dtype=dtype).encode_image(pixels),
        )
    assert seen.dtype == dtype
    assert F.cosine_similarity(seen.float(), exact, dim=-1).min() > 0.999


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    saved("siglip_vision_model", tmp_path)
    with pytest.raises(ShapeError, match=r"\(N, 3, 20, 20\)"):
        pretrained.open_tower(tmp_path).encode_image(torch.zeros(1, 3, 16, 20))
    with pytest.raises(CheckpointError, match="resample"):
        SiglipTower(pretrained.open_tower(tmp_path).network, {"resample": 0})
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("post_layernorm.weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing .*post_layernorm.weight"):
        pretrained.open_tower(tmp_path)
    save_file({**tensors, name: torch.ones(7)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        pretrained.open_tower(tmp_path)
    assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError) as error:
        pretrained.open_tower(tmp_path)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        pretrained.open_tower(tmp_path)
