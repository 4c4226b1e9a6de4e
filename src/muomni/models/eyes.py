"""What a fusion knows of a vision tower, whoever made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn


class Eyes(nn.Module):
    """A tower that looks at square pictures: VisionEncoder (ours) or SiglipTower.

    image_size  pixels of a side
    side        patches along an edge; P = side * side, row by row
    width       of a state
    summaries   states that stand before the patches and speak for the whole picture (0 or 1)
    depth       blocks
    resample    how its pictures are brought to image_size (media.image.to_array)
    """

    image_size: int
    side: int
    width: int
    summaries: int
    depth: int
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    def look(self, pixels_N3HW: Tensor, levels: Sequence[int] = ()) -> Tensor:
        """States of pictures.

        Takes   pixels_N3HW uint8, or float in [0, 1]; they are normalised here.
                levels: after how many blocks states are read (0: before the first).
        Gives   (N, summaries + P, E). Without levels the tower's last, normed states, E = width; else those of all levels beside each
                other, each brought to rms 1, E = width * len(levels).
        Raises  ShapeError if the pictures are not (N, 3, image_size, image_size).
        """
        raise NotImplementedError
