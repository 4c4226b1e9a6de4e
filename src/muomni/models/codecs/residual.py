"""EnCodec, Mimi and DAC of transformers as `Codec`s: waves <-> residual codebooks, as many as were asked
for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muomni.errors import CheckpointError, ConfigError
from muomni.models import finite, from_transformers, store
from muomni.tokens.codec import check_codes, check_media, digest_of, encode_by_length

# What config.json says of the library that wrote it, and not of codes.
OF_THE_LIBRARY = (
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "return_dict",
)


class ResidualCodec:
    """A codec of transformers whose books each code what those before them left over.

    Fewer books than it has give the first codes of more, and a coarser sound.
    Takes   network in evaluation mode; codebooks to use; weights: a digest of its tensors as they are stored.
    """

    kind = ""
    class_name = ""  # in transformers
    modality = "audio"
    size_px: int | None = None
    grid: tuple[int, int] | None = None

    def __init__(self, network: nn.Module, codebooks: int, weights: str, stored: dict[str, Any]) -> None:
        self.network: Any = network
        self.config: Any = getattr(network, "config")  # noqa: B009 - a module's attribute is a tensor or a module to mypy
        self.codebooks = codebooks
        config = self.config
        self.codebook_size: int = config.codebook_size
        self.sample_rate_hz: int = config.sampling_rate
        own = {key: value for key, value in stored.items() if key not in OF_THE_LIBRARY}
        self.digest = digest_of(self.kind, own, codebooks, weights)

    @property
    def frame_rate_hz(self) -> float:
        """Frames of codes a second."""
        return self.sample_rate_hz / self.hop_samples

    @property
    @abstractmethod
    def hop_samples(self) -> int:
        """Samples of a frame of codes."""

    @classmethod
    @abstractmethod
    def most_codebooks(cls, config: Any) -> int:
        """Books that a network of this config has."""

    @classmethod
    def refusal(cls, config: Any) -> str:
        """Why codes alone don't suffice for a network of this config; empty where they do."""
        channels = getattr(config, "audio_channels", 1)
        return "" if channels == 1 else f"it codes {channels} channels at once, and codecs here are mono"

    @torch.inference_mode()
    def encode(self, media: Tensor) -> Tensor:
        """Codes (B, K, frames(S)) of waves (B, S); raises as `tokens.codec.Codec.encode`."""
        check_media(self, media)
        return self._codes(media[:, None].float())

    @torch.inference_mode()
    def decode(self, codes_BKF: Tensor) -> Tensor:
        """Waves (B, samples(F)); raises as `tokens.codec.Codec.decode`."""
        check_codes(self, codes_BKF)
        return self._wave(codes_BKF.long())

    def encode_many(self, media: Sequence[Tensor]) -> list[Tensor]:
        """See `tokens.codec.encode_by_length`."""
        return encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        """Frames of codes: a last one that is not full is coded with zeros after it."""
        return -(-samples // self.hop_samples)

    def samples(self, frames: int) -> int:
        """Samples of the decoded wave."""
        return frames * self.hop_samples

    def code_vectors(self) -> list[Tensor]:
        """The entries of its books; see `tokens.codec.Codec`."""
        return [table_ND.detach() for table_ND in self._tables()[: self.codebooks]]

    @abstractmethod
    def _codes(self, wave_B1S: Tensor) -> Tensor: ...

    @abstractmethod
    def _wave(self, codes_BKF: Tensor) -> Tensor: ...

    @abstractmethod
    def _tables(self) -> list[Tensor]:
        """The entries (N, D) of all books, in order."""


class EncodecCodec(ResidualCodec):
    """EnCodec of one channel without normalisation, as facebook/encodec_24khz: 75 Hz, up to 32 books of
    1,024."""

    kind, class_name = "encodec", "EncodecModel"

    @property
    def hop_samples(self) -> int:
        """See `ResidualCodec`."""
        return int(self.config.hop_length)

    @classmethod
    def most_codebooks(cls, config: Any) -> int:
        """Those of its widest bandwidth."""
        return int(config.num_quantizers)

    @classmethod
    def refusal(cls, config: Any) -> str:
        """As `ResidualCodec.refusal`; also where each chunk has a gain beside its codes
        (facebook/encodec_48khz)."""
        if config.normalize:
            return "it divides each chunk by a gain that is no code, so codes alone don't give the wave back"
        if config.chunk_length_s is not None:
            return "it codes overlapping chunks, so its frames don't follow each other in time"
        return super().refusal(config)

    def _codes(self, wave_B1S: Tensor) -> Tensor:
        # It is asked for a bandwidth, not for books: the smallest one that has enough of them, cut to the
        # first K.
        books = self.network.quantizer.get_num_quantizers_for_bandwidth
        bandwidth = min(each for each in self.config.target_bandwidths if books(each) >= self.codebooks)
        codes_BKF: Tensor = self.network.encode(wave_B1S, bandwidth=bandwidth).audio_codes[0][
            :, : self.codebooks
        ]
        return codes_BKF

    def _wave(self, codes_BKF: Tensor) -> Tensor:
        wave_B1S: Tensor = self.network.decode(codes_BKF[None], [None]).audio_values
        return wave_B1S[:, 0]

    def _tables(self) -> list[Tensor]:
        return [layer.codebook.embed for layer in self.network.quantizer.layers]


class MimiCodec(ResidualCodec):
    """Mimi, as kyutai/mimi: 12.5 Hz, up to 32 books of 2,048, of which the first codes what is said."""

    kind, class_name = "mimi", "MimiModel"

    @property
    def hop_samples(self) -> int:
        """See `ResidualCodec`."""
        return int(self.config.frame_size)

    @classmethod
    def most_codebooks(cls, config: Any) -> int:
        """All of both quantisers."""
        return int(config.num_quantizers)

    def _codes(self, wave_B1S: Tensor) -> Tensor:
        codes_BKF: Tensor = self.network.encode(wave_B1S, num_quantizers=self.codebooks).audio_codes
        return codes_BKF

    def _wave(self, codes_BKF: Tensor) -> Tensor:
        wave_B1S: Tensor = self.network.decode(codes_BKF).audio_values
        return wave_B1S[:, 0]

    def _tables(self) -> list[Tensor]:
        parts = (
            self.network.quantizer.semantic_residual_vector_quantizer,
            self.network.quantizer.acoustic_residual_vector_quantizer,
        )
        return [layer.codebook.embed for part in parts for layer in part.layers]


class DacCodec(ResidualCodec):
    """DAC, by default 31.25 Hz at 16 kHz, 9 books of 1,024; ratios (8, 5, 4, 2, 3) give 25 Hz at 24 kHz."""

    kind, class_name = "dac", "DacModel"

    @property
    def hop_samples(self) -> int:
        """See `ResidualCodec`."""
        return math.prod(self.config.downsampling_ratios)

    @classmethod
    def most_codebooks(cls, config: Any) -> int:
        """All that it has."""
        return int(config.n_codebooks)

    def samples(self, frames: int) -> int:
        """Each odd ratio loses a sample of what it unfolds, so this can be less than whole frames."""
        length = frames
        for ratio in self.config.upsampling_ratios:
            length = (length - 1) * ratio - 2 * math.ceil(ratio / 2) + 2 * ratio
        return length

    def _codes(self, wave_B1S: Tensor) -> Tensor:
        # Its convolutions round down: without zeros to the end of the frame the last samples would be left
        # out.
        missing = self.frames(wave_B1S.shape[2]) * self.hop_samples - wave_B1S.shape[2]
        whole_B1S = nn.functional.pad(wave_B1S, (0, missing))
        codes_BKF: Tensor = self.network.encode(whole_B1S, n_quantizers=self.codebooks).audio_codes
        return codes_BKF

    def _wave(self, codes_BKF: Tensor) -> Tensor:
        wave_BS: Tensor = self.network.decode(audio_codes=codes_BKF).audio_values
        return wave_BS

    def _tables(self) -> list[Tensor]:
        return [book.codebook.weight for book in self.network.quantizer.quantizers]


CLASSES: dict[str, type[ResidualCodec]] = {each.kind: each for each in (EncodecCodec, MimiCodec, DacCodec)}


def open_folder(folder: Path, codebooks: int | None, device: torch.device | str) -> ResidualCodec:
    """A codec that transformers saved (models.codecs.Opener); its number of codebooks must be said."""
    stored = store.read_config(folder)
    own = CLASSES[stored["model_type"]]
    network: Any = from_transformers.open_network(
        folder, own.class_name, own.class_name, device=device, dtype=torch.float32
    )
    if why := own.refusal(network.config):
        raise CheckpointError(f"{folder}: this {own.class_name} is not taken: {why}")
    most = own.most_codebooks(network.config)
    if codebooks is None or not 1 <= codebooks <= most:
        asked = "nobody said how many" if codebooks is None else f"got {codebooks}"
        message = f"{folder}: expected 1 to {most} codebooks, {asked}"
        raise ConfigError(message, hint="more books: a truer sound, and as many more tokens")
    codec = own(network, codebooks, store.digest_of_all(store.read_tensors(folder)), stored)
    finite.came_from(network, folder)
    return codec
