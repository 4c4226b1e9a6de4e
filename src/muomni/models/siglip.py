"""SigLIP and SigLIP 2 as eyes: transformers' vision models, fed as their own image processors feed them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni import files
from muomni.errors import CheckpointError, ShapeError
from muomni.models import finite, from_transformers, store
from muomni.models.vision_tower import VisionTower

# model_type -> the class of its vision model. "siglip2" is the NaFlex one; SigLIP 2 of a fixed resolution
# calls itself "siglip".
CLASSES = {
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
PROCESSOR = "preprocessor_config.json"
RESAMPLE: dict[int, Literal["bicubic", "bilinear"]] = {
    2: "bilinear",
    3: "bicubic",
}  # Pillow's numbers, as processors store them


class SiglipTower(VisionTower):
    """A SigLIP vision model as `Eyes`; it has no summary, every state is a patch.

    Takes   network a SiglipVisionModel or Siglip2VisionModel; processor the content of its
            preprocessor_config.json, {} for the class's own values. NaFlex models see squares here: the
            largest of at most max_num_patches patches.
    Raises  CheckpointError where the processor does what `look` and `to_array` do not.
    """

    num_cls_tokens = 0

    def __init__(self, network: nn.Module, processor: dict[str, Any]) -> None:
        super().__init__()
        config: Any = network.config
        self.network, self.processor = network, processor
        self.is_naflex = config.model_type == "siglip2_vision_model"
        self.patch: int = config.patch_size
        if self.is_naflex:
            self.side = math.isqrt(processor.get("max_num_patches", config.num_patches))
        else:
            self.side = config.image_size // self.patch
        self.image_size = self.side * self.patch if self.is_naflex else config.image_size
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        resample = processor.get("resample", 2 if self.is_naflex else 3)
        if resample not in RESAMPLE:
            raise CheckpointError(
                f"{PROCESSOR}: resample must be 2 (bilinear) or 3 (bicubic), got {resample!r}"
            )
        self.resample = RESAMPLE[resample]
        self.scale = (
            255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
        )
        is_normed = processor.get("do_normalize", True)
        self.mean = processor.get("image_mean", [0.5] * 3) if is_normed else [0.0] * 3
        self.std = processor.get("image_std", [0.5] * 3) if is_normed else [1.0] * 3

    @classmethod
    @torch.inference_mode(False)
    def open(
        cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> SiglipTower:
        """The vision part of a folder that transformers wrote, whole model or vision alone; dtype None: as
        stored.

        Raises  CheckpointError where the folder is torn, or lacks weights or holds some that are no numbers;
                ConfigError where the extra
                `hf` is not installed.
        """
        kind = store.read_config(folder).get("model_type")
        if kind not in CLASSES:
            raise CheckpointError(f"{folder}: model_type must be one of {', '.join(CLASSES)}, got {kind!r}")
        network = from_transformers.open_network(folder, CLASSES[kind], "SigLIP", device=device, dtype=dtype)
        tower = cls(network, _processor(folder)).eval()
        finite.came_from(tower, folder)
        return tower

    def save(self, folder: Path) -> None:
        """Write the vision model and its processor, so that transformers and `open` open them."""
        network: Any = self.network
        with from_transformers.quiet():
            network.save_pretrained(folder)
        kind = "Siglip2ImageProcessor" if self.is_naflex else "SiglipImageProcessor"
        edges = {"height": self.image_size, "width": self.image_size}
        size = (
            {"max_num_patches": self.side**2, "patch_size": self.patch} if self.is_naflex else {"size": edges}
        )
        number = next(number for number, name in RESAMPLE.items() if name == self.resample)
        files.write_json(
            folder / PROCESSOR, {"image_processor_type": kind, "resample": number, **size, **self.processor}
        )

    def encode_image(self, pixels_N3HW: Tensor, feature_layers: Sequence[int] = ()) -> Tensor:
        """As `VisionTower.encode_image`."""
        size = self.image_size
        if pixels_N3HW.ndim != 4 or pixels_N3HW.shape[1:] != (3, size, size):
            raise ShapeError(
                f"vision: expected pixels (N, 3, {size}, {size}), got {tuple(pixels_N3HW.shape)}"
            )
        pixels = pixels_N3HW.float() / 255 if pixels_N3HW.dtype == torch.uint8 else pixels_N3HW.float()
        mean_311, std_311 = (pixels.new_tensor(each).view(3, 1, 1) for each in (self.mean, self.std))
        pixels = (pixels * self.scale - mean_311) / std_311
        seen = self.network(
            **(self._patches(pixels) if self.is_naflex else {"pixel_values": pixels}),
            output_hidden_states=bool(feature_layers),
        )
        if not feature_layers:
            last: Tensor = seen.last_hidden_state
            return last
        return torch.cat(
            [F.rms_norm(seen.hidden_states[level], (self.width,)) for level in feature_layers], -1
        )

    def _patches(self, pixels_N3HW: Tensor) -> dict[str, Tensor]:
        """What a NaFlex model reads: each patch a row of its pixels, channels last, and none of them
        padding."""
        count, side, patch = len(pixels_N3HW), self.side, self.patch
        rows = (
            pixels_N3HW.reshape(count, 3, side, patch, side, patch)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(count, side * side, -1)
        )
        return {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.int32, device=rows.device),
            "spatial_shapes": torch.full((count, 2), side, device=rows.device),
        }


def _processor(folder: Path) -> dict[str, Any]:
    """What a folder says of its pictures: a file of its own, or a part of the whole processor's; {} where it
    is silent."""
    try:
        if (folder / PROCESSOR).is_file():
            content = files.read_json(folder / PROCESSOR)
        elif (folder / "processor_config.json").is_file():
            content = files.read_json(folder / "processor_config.json").get("image_processor", {})
        else:
            content = {}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / PROCESSOR} is not JSON: {error}") from error
    return {name: value for name, value in content.items() if value is not None}
