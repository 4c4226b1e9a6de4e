"""Mean and spread of a frozen vision tower's features, measured on training pictures before training."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from muomni.data import indexed
from muomni.data.conversation import MediaSpec, read_picture
from muomni.data.sample import Sample
from muomni.errors import DataError
from muomni.models.omni import Omni

MEASURED_PICTURES = 512
AT_ONCE = 64


def standardise(omni: Omni, samples: Sequence[Sample], spec: MediaSpec, device: torch.device) -> None:
    """Give the projectors the statistics of what the eyes see in training pictures, evenly chosen; unreadable
    ones do not count."""
    shown = indexed.where(samples, lambda sample: bool(sample.images))
    pictures = []
    for sample in shown[:: max(1, len(shown) // MEASURED_PICTURES)][:MEASURED_PICTURES]:
        part = sample.images[0]
        with contextlib.suppress(DataError):
            pictures.append(
                torch.from_numpy(read_picture(part, spec.image_size, spec.resample)).permute(2, 0, 1)
            )
    if pictures:
        parts = [torch.stack(pictures[first : first + AT_ONCE]) for first in range(0, len(pictures), AT_ONCE)]
        omni.projectors.standardise(torch.cat([omni.encode_image(part.to(device)).cpu() for part in parts]))
