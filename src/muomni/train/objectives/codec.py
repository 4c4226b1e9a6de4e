"""Objective of stage codec: rebuild log-mels through the quantiser, which starts by k-means once the latents
have settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.data.batch import Batch
from muomni.models.codec import Codec, keep_mask
from muomni.train.objective import Objective, Term


@dataclass(frozen=True)
class CodecBatch(Batch):
    """Log-mel clips or crops of them."""

    sample_ids: list[str]
    mel_BFM: Tensor  # natural log, as media.mel gives it
    frames_B: Tensor  # int64, real mel frames of each row


class CodecObjective(Objective):
    """L1 + MSE + L1 of the differences in time, over real frames only, and the quantiser's commitment.

    For the first `warmup` updates the quantiser is left out; latents seen meanwhile lie in a ring buffer, and
    at the update after, the codebooks start from them by k-means. From then on moving averages and revival
    follow every update.

    Source  SPEC M-D and section 7.
    """

    done: Tensor
    ring_ND: Tensor
    ring_seen: Tensor

    def __init__(
        self,
        codec: Codec,
        *,
        warmup: int = 60,
        seed: int = 0,
        mse: float = 0.5,
        delta: float = 0.5,
        commitment: float = 0.25,
        ring: int = 8192,
    ) -> None:
        super().__init__()
        self.codec = codec
        self.warmup, self.seed = warmup, seed
        self.weights = {"l1": 1.0, "mse": mse, "delta": delta, "commitment": commitment}
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))  # updates done
        self.register_buffer("ring_ND", torch.zeros(ring, codec.config.latent_width))
        self.register_buffer("ring_seen", torch.zeros((), dtype=torch.int64))

    def counts(self, batch: CodecBatch) -> dict[str, int]:
        """Real values that each term sums over."""
        mels = self.codec.config.mel.num_mels
        frames, steps = int(batch.frames_B.sum()), int((batch.frames_B - 1).clamp(min=0).sum())
        codes = int(self.codec.code_frames(batch.frames_B).sum())
        return {"l1": frames * mels, "mse": frames * mels, "delta": steps * mels, "commitment": codes}

    def contents(self, batch: CodecBatch) -> dict[str, float]:
        """Clips, and seconds of sound."""
        return {
            **super().contents(batch),
            "audio_s": float(batch.frames_B.sum()) / self.codec.config.mel.frame_rate_hz,
        }

    def sizes(self, batch: CodecBatch) -> tuple[float, ...]:
        """Mel frames, mel frames squared."""
        rows, frames = batch.mel_BFM.shape[:2]
        return rows * frames, rows * frames**2

    def forward(self, batch: CodecBatch) -> dict[str, Term]:
        """Sums of errors in units of the mel's deviation."""
        target_BFM = self.codec.normalise(batch.mel_BFM).float()
        z_BPD, keep_BP = self.codec.latents(batch.mel_BFM, batch.frames_B)
        commitment = z_BPD.new_zeros((), dtype=torch.float32)
        if bool(self.codec.quantiser.started):
            quantised = self.codec.quantiser(z_BPD, keep_BP)
            commitment = quantised.commitment
            rebuilt_BFM = self.codec.rebuild(quantised.vectors_BTD, keep_BP)
        else:
            if self.training:
                self._remember(z_BPD.detach()[keep_BP].float())
            rebuilt_BFM = self.codec.rebuild(z_BPD, keep_BP)
        keep_BF1 = keep_mask(batch.frames_B, target_BFM.shape[1])[..., None]
        error_BFM = (rebuilt_BFM[:, : target_BFM.shape[1]].float() - target_BFM) * keep_BF1
        slope_BFM = (error_BFM[:, 1:] - error_BFM[:, :-1]) * keep_BF1[:, 1:]
        sums = {
            "l1": error_BFM.abs().sum(),
            "mse": error_BFM.square().sum(),
            "delta": slope_BFM.abs().sum(),
            "commitment": commitment,
        }
        counts = self.counts(batch)
        return {name: Term(total, counts[name], self.weights[name]) for name, total in sums.items()}

    @property
    def is_settled(self) -> bool:
        """Whether what is rebuilt goes through codes: without a quantiser it is rebuilt better, and is no
        codec."""
        return bool(self.codec.quantiser.started)

    def begin(self, micro_batches: Sequence[CodecBatch], world: int) -> None:
        """Start the codebooks by k-means once the warm-up is over."""
        if bool(self.codec.quantiser.started) or int(self.done) < self.warmup:
            return
        vectors_MD = self.ring_ND[: int(self.ring_seen.clamp(max=len(self.ring_ND)))]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Ranks may have seen unequal numbers of vectors; the smallest holds for all, so that every rank
            # places the same entries.
            size = torch.tensor(len(vectors_MD), device=vectors_MD.device)
            torch.distributed.all_reduce(size, torch.distributed.ReduceOp.MIN)
            mine = vectors_MD[: int(size)].contiguous()
            theirs = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(theirs, mine)
            vectors_MD = torch.cat(theirs)
        if not len(vectors_MD):  # no warm-up at all: the latents of this very update
            with torch.no_grad():
                vectors_MD = torch.cat(
                    [
                        z[keep]
                        for z, keep in (self.codec.latents(b.mel_BFM, b.frames_B) for b in micro_batches)
                    ]
                ).float()
        self.codec.quantiser.start(vectors_MD, self._generator())

    def after_step(self, step: int) -> None:
        """Moving-average step of the codebooks, revival of dead entries."""
        self.done += 1
        if bool(self.codec.quantiser.started):
            self.codec.quantiser.update(self._generator())

    def warm_start(self, batch: CodecBatch) -> None:
        """Start the codebooks on the latents of one batch, a little off: else each of these few would be an
        entry, and nothing be wrong."""
        self.done.fill_(self.warmup)
        self.begin([batch], 1)
        self.codec.quantiser.codebooks_KND.mul_(0.9)

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """What is rebuilt teaches decoder and, through the quantiser, encoder."""
        return dict.fromkeys(
            ("l1", "mse", "delta"),
            ("codec.patch.*", "codec.encoder.*", "codec.to_latent.*", "codec.decoder.*", "codec.to_mel.*"),
        )

    def learning_buffers(self) -> dict[str, Tensor]:
        """The codebooks."""
        return {f"codebook {number}": book for number, book in enumerate(self.codec.quantiser.codebooks_KND)}

    def _generator(self) -> torch.Generator:
        """Random numbers that depend on seed and update alone, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.done))

    def _remember(self, vectors_MD: Tensor) -> None:
        """Write latents into the ring, over the oldest."""
        size = len(self.ring_ND)
        slots = (int(self.ring_seen) + torch.arange(len(vectors_MD), device=vectors_MD.device)) % size
        self.ring_ND[slots[-size:]] = vectors_MD[-size:]
        self.ring_seen += len(vectors_MD)
