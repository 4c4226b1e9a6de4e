"""The ears: log-mel frames -> strided convolutions -> transformer states -> CTC symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from muomni.errors import ShapeError
from muomni.media.frames import DOWNSAMPLE, num_states
from muomni.media.mel import MelSpec
from muomni.nn import masks, rope
from muomni.nn.block import Block
from muomni.nn.norm import RMSNorm


class AudioEncoderConfig(BaseModel):
    """Sizes of an AudioEncoder; `downsample` 4 gives 25 states a second at 100 mel frames a second, 8 gives
    12.5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mel: MelSpec = MelSpec()
    width: int = Field(default=192, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=3, gt=0)
    ffn_width: int = Field(default=768, gt=0)
    channels: int = Field(default=64, gt=0)
    downsample: Literal[2, 4, 8] = DOWNSAMPLE
    symbols: int = Field(default=99, gt=1)
    range_nats: float = Field(default=14.0, gt=0)
    rope_theta: float = Field(default=1e4, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def strides(self) -> int:
        """How many stride-2 convolutions make up `downsample`."""
        return self.downsample.bit_length() - 1


@dataclass
class AudioOutput:
    """What an AudioEncoder gives: states_BTD, and lengths_B int64, how many of the T states are real."""

    states_BTD: Tensor
    lengths_B: Tensor

    @property
    def keep_BT(self) -> Tensor:
        """Bool (B, T), True = a real state."""
        return keep(self.lengths_B, self.states_BTD.shape[1])


def keep(lengths_B: Tensor, size: int) -> Tensor:
    """Bool (B, size), True before each row's length."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def normalise(mel_BFM: Tensor, keep_BF: Tensor, range_nats: float) -> Tensor:
    """Log-mel with mean 0 and deviation 1 an utterance, padding at 0.

    Takes   mel_BFM natural log; keep_BF True = a real frame; what lies more than range_nats under the
            utterance's peak is cut off there, so that digital silence (the logarithm's floor) does not swamp
            the deviation.
    Gives   (B, F, M) float32; padding has no influence on the statistics, and is 0.
    """
    mel_BFM = mel_BFM.float()
    real = keep_BF[:, :, None]
    peak_B = mel_BFM.masked_fill(~real, -torch.inf).amax((1, 2), keepdim=True)
    cut = mel_BFM.maximum(peak_B - range_nats).masked_fill(~real, 0.0)
    count = (keep_BF.sum(1) * mel_BFM.shape[2])[:, None, None]
    centred = (cut - cut.sum((1, 2), keepdim=True) / count).masked_fill(~real, 0.0)
    deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / deviation.clamp_min(1e-3)


class AudioEncoder(nn.Module):
    """Log-mel -> states at frame_rate / downsample, and their CTC symbols.

    A clip alone gives what it gives beside longer ones: padding is zeroed before every convolution and never
    attended.
    Source  SPEC M-B; the original had neither positions, masks, exact lengths nor a logarithm
            (reference/muomni.md B13, B14).
    """

    model_type = "muomni_audio_encoder"
    trained_by = "hearing"

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.config = config
        inputs = [1, *[config.channels] * (config.strides - 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(count, config.channels, 3, stride=2, padding=1) for count in inputs
        )
        bins = num_states(config.mel.num_mels, config.downsample)  # the strides halve the mel axis, too
        self.proj = nn.Linear(config.channels * bins, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ffn_width, mlp="gelu", dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.symbols)

    def length(self, frames: int) -> int:
        """States that `frames` mel frames give."""
        return num_states(frames, self.config.downsample)

    def lengths(self, frames_B: Tensor) -> Tensor:
        """`length` of each row, int64 (B,)."""
        return num_states(frames_B, self.config.downsample)

    def front(self, mel_BFM: Tensor, frames_B: Tensor) -> Tensor:
        """The strided convolutions alone: (B, F, M) log-mel -> (B, T, width)."""
        x = normalise(mel_BFM, keep(frames_B, mel_BFM.shape[1]), self.config.range_nats)[:, None]
        for conv in self.convs:
            x = F.gelu(conv(x))
            frames_B = num_states(frames_B, 2)
            x = x * keep(frames_B, x.shape[2])[:, None, :, None]
        projected: Tensor = self.proj(x.permute(0, 2, 1, 3).flatten(2))
        return projected

    def forward(self, mel_BFM: Tensor, frames_B: Tensor) -> AudioOutput:
        """States of a padded batch of utterances.

        Takes   mel_BFM natural-log mel (any float type; padding may hold anything finite); frames_B int64,
                real frames a row.
        Gives   Heard(states_BTD, lengths_B), T = length(F).
        Raises  ShapeError if the bins are not the config's, or a row has no frame or more than F.
        """
        bins = self.config.mel.num_mels
        if mel_BFM.ndim != 3 or mel_BFM.shape[2] != bins or frames_B.shape != mel_BFM.shape[:1]:
            got = f"{tuple(mel_BFM.shape)} and {tuple(frames_B.shape)}"
            raise ShapeError(f"hearing: expected mel (B, F, {bins}) and frames (B,), got {got}")
        if not torch.compiler.is_compiling() and bool(((frames_B < 1) | (frames_B > mel_BFM.shape[1])).any()):
            raise ShapeError(
                f"hearing: every row needs 1 to {mel_BFM.shape[1]} real frames, got {frames_B.tolist()}"
            )
        lengths_B = self.lengths(frames_B)
        x_BTD = self.front(mel_BFM, frames_B)
        size = x_BTD.shape[1]
        mask = masks.build(size, keep_BT=keep(lengths_B, size))
        turn = rope.angles(
            torch.arange(size, device=x_BTD.device),
            self.config.width // self.config.heads,
            self.config.rope_theta,
        )
        for block in self.blocks:
            x_BTD = block(x_BTD, rope=turn, mask=mask)
        return AudioOutput(self.norm(x_BTD), lengths_B)

    def symbols(self, states_BTD: Tensor) -> Tensor:
        """CTC log-probabilities (B, T, symbols), float32, blank at 0."""
        log_probs_BTC: Tensor = self.head(states_BTD).float().log_softmax(-1)
        return log_probs_BTC
