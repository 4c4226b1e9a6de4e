"""Codecs behind one protocol (`tokens.codec.Codec`): ours, transformers', and those of installed packages.

Takes a folder, gives a codec; may import what `models` may. Each module holds an opener for its model_types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from muomni.errors import CheckpointError
from muomni.models import integrity, pretrained, store
from muomni.plugins import Registry
from muomni.tokens.codec import Codec

# model_type of config.json -> its opener; packages bring theirs as `MODEL_TYPE = "package.module:opener"`.
OPENERS = Registry(
    "muomni.codecs",
    {
        "muomni_codec": "muomni.models.codecs.speech:open_folder",
        "muomni_image_codec": "muomni.models.image_codec:open_folder",
        "encodec": "muomni.models.codecs.residual:open_folder",
        "mimi": "muomni.models.codecs.residual:open_folder",
        "dac": "muomni.models.codecs.residual:open_folder",
        "janus": "muomni.models.codecs.janus:open_folder",
        "janus_vqgan": "muomni.models.codecs.janus:open_folder",
    },
)


class Opener(Protocol):
    """What opens a folder whose config.json names its model_type."""

    def __call__(self, folder: Path, codebooks: int | None, device: torch.device | str) -> Codec:
        """The codec in evaluation mode.

        Takes   codebooks: how many books to use; None: nobody said, which only a codec with one choice takes.
        Raises  CheckpointError for a torn folder; ConfigError for a number of books that it can't give.
        """
        ...


@torch.inference_mode(False)  # opened below it by an engine, its tensors could not be made into parameters
def open_codec(
    reference: str | Path,
    codebooks: int | None = None,
    device: torch.device | str = "cpu",
) -> Codec:
    """The codec of a stage folder, of its `final/`, of a folder that transformers wrote, or of a hub id.

    Takes   reference: as `pretrained.locate`, relative to the working folder; codebooks: how many residual
            books are used. Say it for a codec of transformers with several: defaults differ (Mimi 32, EnCodec
            2).
    Raises  CheckpointError where the folder is torn, holds no codec, or is not what its certificate names;
            ConfigError where there is no such folder, or a number of books is missing or wrong.
    """
    folder = pretrained.locate(str(reference), None, Path.cwd())
    if (folder / integrity.FINAL).is_dir():
        folder = folder / integrity.FINAL
    integrity.verify(folder)
    model_type = store.read_config(folder).get("model_type")
    opener: Opener | None = OPENERS.find(str(model_type))
    if opener is None:
        message = f"{folder}: no codec: its model_type is {model_type!r}"
        raise CheckpointError(message, hint=f"codecs are {', '.join(OPENERS.names())}")
    return opener(folder, codebooks, device)
