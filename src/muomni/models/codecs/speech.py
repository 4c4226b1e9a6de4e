"""Our audio codec (stage codec) as a `Codec`: wave -> log-mel -> codes, and back by Griffin-Lim."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni.errors import CheckpointError, ConfigError, ShapeError
from muomni.media import griffin_lim, mel
from muomni.models import store
from muomni.models.codec import Codec as MelCodec
from muomni.tokens.codec import check_codes, check_media, digest_of, encode_by_length


class SpeechCodec:
    """Waves <-> the codes of a network that knows log-mel frames (models.codec).

    Its codes are those of stage talker, but for one thing: that stage keeps log-mels as float16, this
    computes them anew, so a code whose two nearest entries are equally near may differ.
    """

    kind = MelCodec.model_type
    modality = "audio"
    size_px: int | None = None
    grid: tuple[int, int] | None = None

    def __init__(self, network: MelCodec) -> None:
        self.network = network.eval()
        self.spec = network.config.mel
        self.codebooks, self.codebook_size = network.codebooks, network.codebook_size
        self.frame_rate_hz, self.sample_rate_hz = network.rate_hz, self.spec.rate_hz

    @cached_property
    def digest(self) -> str:
        """See `tokens.codec.Codec`."""
        config = self.network.config.model_dump(mode="json")
        return digest_of(self.kind, config, self.codebooks, store.digest(self.network))

    @torch.inference_mode()
    def encode(self, media: Tensor) -> Tensor:
        """Codes (B, K, frames(S)) of waves (B, S), S at least one hop; raises as `Codec.encode`."""
        check_media(self, media)
        if media.shape[1] < self.spec.hop_samples:
            least = f"at least {self.spec.hop_samples} samples"
            raise ShapeError(f"{self.kind}: expected {least}, got {media.shape[1]}")
        mel_BFM = mel.log_mel(media, self.spec)
        mel_BFM = mel_BFM.to(next(self.network.parameters()).device)
        frames_B = torch.full((len(mel_BFM),), mel_BFM.shape[1], device=mel_BFM.device)
        return self.network.encode(mel_BFM, frames_B)

    @torch.inference_mode()
    def decode(self, codes_BKF: Tensor) -> Tensor:
        """Waves (B, samples(F)) on the codes' device; one seed for all phases, so equal codes sound equal."""
        check_codes(self, codes_BKF)
        codes_BKF = codes_BKF.to(next(self.network.parameters()).device)
        mel_BFM = self.network.decode(codes_BKF)
        waves = [torch.from_numpy(griffin_lim.sound(mel_FM, self.spec)) for mel_FM in mel_BFM]
        wave_BS = torch.stack(waves) if waves else torch.empty(0, self.samples(codes_BKF.shape[2]))
        return wave_BS.to(codes_BKF.device)

    def encode_many(self, media: Sequence[Tensor]) -> list[Tensor]:
        """See `tokens.codec.encode_by_length`."""
        return encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        """Mel frames by strides, rounded up; a last piece of less than a hop of samples is not heard."""
        return -(-self.spec.frames(samples) // self.network.config.stride_frames)

    def samples(self, frames: int) -> int:
        """Whole code frames."""
        return frames * self.network.config.stride_frames * self.spec.hop_samples

    def code_vectors(self) -> list[Tensor]:
        """The entries of its books; see `tokens.codec.Codec`."""
        return list(self.network.quantiser.codebooks_KND)


def open_folder(folder: Path, codebooks: int | None, device: torch.device | str) -> SpeechCodec:
    """The codec that stage codec left (models.codecs.Opener)."""
    network: Any = store.load(folder, device)
    if not isinstance(network, MelCodec):
        raise CheckpointError(f"{folder}: expected {MelCodec.model_type}, got a {type(network).__name__}")
    if codebooks not in (None, network.codebooks):
        own = f"this codec has {network.codebooks} codebooks and decodes by all of them"
        raise ConfigError(f"{folder}: {own}, got {codebooks}")
    return SpeechCodec(network)
