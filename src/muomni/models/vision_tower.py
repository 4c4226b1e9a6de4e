"""The interface of a vision tower: our encoder and SigLIP have it, fusions need no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn


class VisionTower(nn.Module):
    """A network that encodes square pictures: VisionEncoder (ours) or SiglipTower.

    image_size  pixels of a side
    side        patches along an edge; P = side * side, row by row
    width       of a state
    num_cls_tokens   states before the patches that stand for the whole picture (0 or 1)
    depth       blocks
    resample    how its pictures are brought to image_size (media.image.to_array)
    """

    image_size: int
    side: int
    width: int
    num_cls_tokens: int
    depth: int
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    def encode_image(self, pixels_N3HW: Tensor, feature_layers: Sequence[int] = ()) -> Tensor:
        """States of pictures.

        Takes   pixels_N3HW uint8, or float in [0, 1]; they are normalised here.
                feature_layers: after how many blocks states are read (0: before the first).
        Gives   (N, num_cls_tokens + P, E). Without feature_layers the tower's last, normed states, E = width;
                else those of all layers beside each other, each brought to rms 1, E = width * len(levels).
        Raises  ShapeError if the pictures are not (N, 3, image_size, image_size).
        """
        raise NotImplementedError
