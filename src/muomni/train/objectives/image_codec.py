"""Objective of stage image_codec: rebuild pictures through the quantiser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from muomni.data.batch import Batch
from muomni.models.image_codec import ImageCodec
from muomni.train.objective import Objective, Term


@dataclass(frozen=True)
class ImageCodecBatch(Batch):
    """pixels_BHW3: pictures uint8, as they are read; a quarter of the bytes of floats on their way from a
    worker."""

    sample_ids: list[str]
    pixels_BHW3: Tensor

    @property
    def image_B3HW(self) -> Tensor:
        """Pictures as a codec takes them: float32 in [0, 1]."""
        return as_image(self.pixels_BHW3)


def as_image(pixels_BHW3: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [0, 1], channels last in memory."""
    return pixels_BHW3.permute(0, 3, 1, 2).float() / 255


class ImageCodecObjective(Objective):
    """L1 + MSE of every value, in units of half the range (-1 to 1).

    Squares alone blur edges; absolute errors alone leave small things out for long. FSQ needs no term of its
    own.
    """

    def __init__(self, codec: ImageCodec, *, l1: float = 1.0, mse: float = 5.0) -> None:
        super().__init__()
        self.codec = codec
        self.weights = {"l1": l1, "mse": mse}

    def counts(self, batch: ImageCodecBatch) -> dict[str, int]:
        """Values of the pictures, for both terms."""
        return dict.fromkeys(self.weights, batch.pixels_BHW3.numel())

    def contents(self, batch: ImageCodecBatch) -> dict[str, float]:
        """Samples, each of which is a picture."""
        return {**super().contents(batch), "pictures": float(len(batch.sample_ids))}

    def forward(self, batch: ImageCodecBatch) -> dict[str, Term]:
        """Sums of errors."""
        target_B3HW = batch.image_B3HW
        values_BFD = self.codec.quantiser(self.codec.latents(target_B3HW)).values_BTD
        error_B3HW = 2 * (self.codec.rebuild(values_BFD).float() - target_B3HW)
        sums = {"l1": error_B3HW.abs().sum(), "mse": error_B3HW.square().sum()}
        counts = self.counts(batch)
        return {name: Term(total, counts[name], self.weights[name]) for name, total in sums.items()}

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """What is rebuilt teaches decoder and, past the quantiser, encoder."""
        parts = (
            "patch",
            "fine_encoder",
            "fold",
            "encoder",
            "to_latent",
            "from_latent",
            "decoder",
            "unfold",
            "to_pixels",
        )
        return dict.fromkeys(self.weights, tuple(f"codec.{part}.*" for part in parts))
