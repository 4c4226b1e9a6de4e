"""Speech codec: log-mel <-> K streams of codes. Patches of frames, ConvNeXt-like blocks, residual quantiser,
and the mirror of it back."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from muomni.errors import ShapeError
from muomni.media.mel import SPEECH, MelSpec
from muomni.nn.rvq import ResidualVQ, Usage


class CodecConfig(BaseModel):
    """Sizes of the codec; the defaults (2 x 128 at 12.5 Hz = 175 bit/s) are enough for one synthetic
    voice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mel: MelSpec = SPEECH
    codebooks: int = Field(default=2, ge=1)
    codebook_size: int = Field(default=128, ge=2)
    stride_frames: int = Field(default=8, ge=1)  # mel frames a code frame
    width: int = Field(default=192, ge=1)
    latent_width: int = Field(default=48, ge=1)
    blocks: int = Field(
        default=3, ge=0
    )  # each side of the quantiser, at the code rate: that is where compute is cheap
    fine_width: int = Field(default=96, ge=1)
    fine_blocks: int = Field(default=2, ge=0)  # at the mel rate
    kernel_size: int = Field(default=5, ge=1)
    codebook_decay: float = Field(default=0.97, ge=0, lt=1)
    revive_below: float = Field(default=0.03, ge=0, lt=1)


class ConvBlock(nn.Module):
    """Depthwise convolution over time, then an MLP, both inside one residual. Source: Liu et al. 2022
    (ConvNeXt), layer scale 0.3."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x_BTD: Tensor, keep_BT1: Tensor) -> Tensor:
        # Padding is zeroed before the convolution, so a clip padded in a batch sees what it sees alone: zeros
        # beyond its end.
        y = self.depthwise((x_BTD * keep_BT1).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x_BTD + self.scale * self.down(nn.functional.gelu(self.up(self.norm(y))))
        return out


class Codec(nn.Module):
    """Log-mel <-> codes. `encode` and `decode` are deterministic; training goes through `latents`,
    `quantiser` and `rebuild`.

    Statistics of the log-mel (one mean, one deviation) are set once by `fit_statistics` and stored with the
    weights.
    """

    model_type = "muomni_codec"
    trained_by = "codec"
    mel_mean: Tensor
    mel_std: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        mels, stride = config.mel.num_mels, config.stride_frames
        self.patch = nn.Linear(stride * mels, config.width)
        self.encoder = nn.ModuleList(
            ConvBlock(config.width, config.kernel_size) for _ in range(config.blocks)
        )
        self.to_latent = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, config.latent_width)
        )
        self.quantiser = ResidualVQ(
            config.codebooks,
            config.codebook_size,
            config.latent_width,
            decay=config.codebook_decay,
            revive_below=config.revive_below,
        )
        self.from_latent = nn.Linear(config.latent_width, config.width)
        self.decoder = nn.ModuleList(
            ConvBlock(config.width, config.kernel_size) for _ in range(config.blocks)
        )
        self.unpatch = nn.Linear(config.width, stride * config.fine_width)
        self.fine = nn.ModuleList(
            ConvBlock(config.fine_width, config.kernel_size) for _ in range(config.fine_blocks)
        )
        self.to_mel = nn.Linear(config.fine_width, mels)
        self.register_buffer("mel_mean", torch.zeros(()))
        self.register_buffer("mel_std", torch.ones(()))

    @property
    def codebooks(self) -> int:
        """Streams of codes."""
        return self.config.codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of every codebook."""
        return self.config.codebook_size

    @property
    def rate_hz(self) -> float:
        """Code frames a second."""
        return self.config.mel.rate_hz / self.config.mel.hop_samples / self.config.stride_frames

    @property
    def reach_frames(self) -> int:
        """Code frames on either side that the decoder looks at: with so much context, a piece decodes as in
        the whole."""
        half = self.config.kernel_size // 2
        return half * self.config.blocks + -(-half * self.config.fine_blocks // self.config.stride_frames)

    def fit_statistics(self, log_mels_BFM: Tensor, frames_B: Tensor) -> None:
        """Store mean and deviation of the real frames of a batch (the more the better)."""
        real = log_mels_BFM[keep_mask(frames_B, log_mels_BFM.shape[1])].double()
        self.mel_mean.copy_(real.mean())
        self.mel_std.copy_(real.std().clamp(min=1e-3))

    def normalise(self, log_mel_BFM: Tensor) -> Tensor:
        """Log-mel to zero mean and unit deviation."""
        return (log_mel_BFM - self.mel_mean) / self.mel_std

    def code_frames(self, frames_B: Tensor) -> Tensor:
        """Code frames that so many mel frames give: rounded up."""
        return (frames_B + self.config.stride_frames - 1) // self.config.stride_frames

    def latents(self, log_mel_BFM: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors before the quantiser (B, P, latent), and keep_BP, True = a real code frame.

        Raises  ShapeError on another number of mel bins, or frames that the array does not have.
        """
        batch, length, mels = log_mel_BFM.shape
        if (
            mels != self.config.mel.num_mels
            or (len(frames_B) and int(frames_B.max()) > length)
            or len(frames_B) != batch
        ):
            raise ShapeError(
                f"codec: expected (B, F, {self.config.mel.num_mels}) and B lengths of at most F, "
                f"got {tuple(log_mel_BFM.shape)} and {frames_B.tolist()[:8]}"
            )
        stride = self.config.stride_frames
        patches = -(-length // stride)
        floor = self.normalise(log_mel_BFM.new_tensor(self.config.mel.log_floor))
        x_BFM = nn.functional.pad(self.normalise(log_mel_BFM), (0, 0, 0, patches * stride - length))
        # What lies beyond a clip's end is silence, whatever the batch was padded with.
        x_BFM = torch.where(keep_mask(frames_B, patches * stride)[..., None], x_BFM, floor)
        keep_BP = keep_mask(self.code_frames(frames_B), patches)
        x_BPD = self.patch(x_BFM.reshape(batch, patches, stride * mels))
        for block in self.encoder:
            x_BPD = block(x_BPD, keep_BP[..., None])
        z_BPD: Tensor = self.to_latent(x_BPD)
        return z_BPD, keep_BP

    def rebuild(self, z_BPD: Tensor, keep_BP: Tensor) -> Tensor:
        """Normalised log-mel (B, P * stride, M) of latent vectors."""
        batch, patches = z_BPD.shape[:2]
        stride = self.config.stride_frames
        x_BPD = self.from_latent(z_BPD)
        for block in self.decoder:
            x_BPD = block(x_BPD, keep_BP[..., None])
        x_BFD = self.unpatch(x_BPD).reshape(batch, patches * stride, self.config.fine_width)
        keep_BF = keep_BP.repeat_interleave(stride, dim=1)
        for block in self.fine:
            x_BFD = block(x_BFD, keep_BF[..., None])
        mel_BFM: Tensor = self.to_mel(nn.functional.gelu(x_BFD))
        return mel_BFM

    @torch.no_grad()
    def encode(self, log_mel_BFM: Tensor, frames_B: Tensor) -> Tensor:
        """Codes (B, K, ceil(F / stride)) int64 of log-mels; frames_B are the real mel frames of each row,
        rows don't see their padding.

        Raises  ShapeError as `latents`.
        """
        z_BPD, _ = self.latents(log_mel_BFM, frames_B)
        return self.quantiser.encode(z_BPD)

    @torch.no_grad()
    def decode(self, codes_BKF: Tensor, frames_B: Tensor | None = None) -> Tensor:
        """Log-mel (B, F * stride, M) of codes; frames_B are the real code frames of each row (None = all).

        Raises  ShapeError if there are not K streams; TokenRangeError if a code lies outside its codebook.
        """
        length = codes_BKF.shape[-1]
        frames_B = (
            torch.full((len(codes_BKF),), length, device=codes_BKF.device) if frames_B is None else frames_B
        )
        keep_BF = keep_mask(frames_B, length)
        rebuilt_BFM = self.rebuild(self.quantiser.decode(codes_BKF), keep_BF)
        return (rebuilt_BFM.float() * self.mel_std + self.mel_mean).clamp(min=self.config.mel.log_floor)

    def usage(self, codes_BKF: Tensor) -> list[Usage]:
        """Share of used entries and perplexity of every codebook, over the given codes."""
        return self.quantiser.usage(codes_BKF)


def keep_mask(lengths_B: Tensor, length: int) -> Tensor:
    """(B, length) bool, True = before the row's end."""
    return torch.arange(length, device=lengths_B.device)[None] < lengths_B[:, None]
