"""The image quantiser of Janus (transformers) as a `Codec`: pictures <-> a grid of codes of one book."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.errors import CheckpointError, ConfigError, ShapeError
from muomni.models import finite, from_transformers, store
from muomni.models.codecs.residual import OF_THE_LIBRARY
from muomni.tokens.codec import check_codes, check_media, digest_of, encode_by_length

PREFIXES = ("model.vqmodel.", "vqmodel.")  # of its tensors in a whole Janus


class JanusCodec:
    """Janus' VQ: as deepseek-community/Janus-Pro-1B, 384 px to 24 x 24 codes of one book of 16,384.

    Takes   network a JanusVQVAE in evaluation mode; weights: a digest of its tensors as they are stored;
            stored: its config.
    """

    kind = "janus_vq"
    modality = "image"
    codebooks = 1
    frame_rate_hz: float | None = None
    sample_rate_hz: int | None = None

    def __init__(self, network: nn.Module, weights: str, stored: dict[str, Any]) -> None:
        self.network: Any = network
        config: Any = network.config
        self.codebook_size: int = config.num_embeddings
        self.grid: tuple[int, int] | None = (config.num_patches, config.num_patches)
        self.size_px: int | None = config.num_patches * 2 ** (len(config.channel_multiplier) - 1)
        own = {key: value for key, value in stored.items() if key not in OF_THE_LIBRARY}
        self.digest = digest_of(self.kind, own, self.codebooks, weights)

    @torch.inference_mode()
    def encode(self, media: Tensor) -> Tensor:
        """Codes (B, 1, F) of pictures; raises as `tokens.codec.Codec.encode`.

        The nearest entry by angle, as the network was trained (deepseek-ai/Janus, codebook_l2_norm) and as
        its decoder reads entries. transformers' own `encode` compares entries of any length, and so takes
        others.
        """
        check_media(self, media)
        z_BDHW = self.network.quant_conv(self.network.encoder(2 * media.float() - 1))
        z_BFD = F.normalize(z_BDHW.flatten(2).transpose(1, 2), dim=-1)
        book_ND = F.normalize(self.network.quantize.embedding.weight, dim=-1)
        return (z_BFD @ book_ND.T).argmax(-1)[:, None]

    @torch.inference_mode()
    def decode(self, codes_BKF: Tensor) -> Tensor:
        """Pictures (B, 3, size_px, size_px) in [0, 1]; raises as `tokens.codec.Codec.decode`."""
        check_codes(self, codes_BKF)
        pixels_B3HW: Tensor = self.network.decode(codes_BKF[:, 0].long())
        return ((pixels_B3HW + 1) / 2).clamp(0, 1)

    def encode_many(self, media: Sequence[Tensor]) -> list[Tensor]:
        """See `tokens.codec.encode_by_length`."""
        return encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        """Tokens of a picture."""
        assert self.grid is not None
        return self.grid[0] * self.grid[1]

    def samples(self, frames: int) -> int:
        """A picture has none: ShapeError."""
        raise ShapeError(f"{self.kind}: a picture has no samples")

    def code_vectors(self) -> list[Tensor]:
        """The entries of its book, as its decoder reads them: by their direction; see `tokens.codec.Codec`."""
        return [F.normalize(self.network.quantize.embedding.weight.detach(), dim=-1)]


def open_folder(folder: Path, codebooks: int | None, device: torch.device | str) -> JanusCodec:
    """The quantiser of a folder that holds it alone or within a whole Janus (models.codecs.Opener)."""
    if codebooks not in (None, 1):
        raise ConfigError(f"{folder}: Janus' quantiser has 1 codebook, got {codebooks}")
    stored = store.read_config(folder)
    tensors = store.read_tensors(folder)
    if stored["model_type"] == "janus":
        stored = stored.get("vq_config") or {}
        of_it = {name: next((each for each in PREFIXES if name.startswith(each)), None) for name in tensors}
        tensors = {name.removeprefix(prefix): tensors[name] for name, prefix in of_it.items() if prefix}
    if not tensors:
        raise CheckpointError(f"{folder} holds no weights of Janus' quantiser ({PREFIXES[0]}*)")
    library = from_transformers.installed(folder, "Janus' quantiser")
    network: Any = from_transformers.open_network(
        folder,
        "JanusVQVAE",
        "Janus' quantiser",
        device=device,
        dtype=torch.float32,
        config=library.JanusVQVAEConfig.from_dict(stored),
        tensors=tensors,
    )
    codec = JanusCodec(network, store.digest_of_all(tensors), stored)
    finite.came_from(network, folder)
    return codec
