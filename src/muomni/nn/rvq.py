"""Residual vector quantiser: K codebooks, each coding what the ones before it left over; learned by moving
averages, not by gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.errors import ShapeError, TokenRangeError


@dataclass(frozen=True)
class Quantised:
    """What the quantiser gives back for z_BTD."""

    vectors_BTD: Tensor  # the sum of the chosen entries; its gradient goes straight through to z
    codes_BKT: Tensor  # int64
    commitment: Tensor  # scalar: sum over real positions of the squared error of every stage, averaged over width and codebooks


@dataclass(frozen=True)
class Usage:
    """How one codebook is used by a set of codes."""

    used: float  # share of the entries that occur at all
    perplexity: float  # exp of the entropy of the entries, at most `entries`


class ResidualVQ(nn.Module):
    """K codebooks of N entries over vectors of width D.

    Training mode gathers each entry's hits (`forward`), over as many micro-batches as the caller likes;
    `update` turns them into the new entries. All lasting state lies in buffers, so that a checkpoint between
    updates is complete.

    Source  van den Oord et al. 2017 (EMA codebooks), Zeghidour et al. 2021 (residual, k-means start, revival
            of dead entries).
    """

    codebooks_KND: Tensor
    mass_KN: Tensor
    sums_KND: Tensor
    started: Tensor

    def __init__(
        self, codebooks: int, entries: int, width: int, *, decay: float = 0.97, revive_below: float = 0.03
    ) -> None:
        super().__init__()
        self.codebooks, self.entries, self.width = codebooks, entries, width
        self.decay, self.revive_below = decay, revive_below
        self.register_buffer("codebooks_KND", torch.randn(codebooks, entries, width) * 0.1)
        self.register_buffer("mass_KN", torch.ones(codebooks, entries))
        self.register_buffer("sums_KND", self.codebooks_KND.clone())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._hits_KN: Tensor | None = None
        self._hit_sums_KND: Tensor | None = None
        self._leftovers: list[list[Tensor]] = [
            [] for _ in range(codebooks)
        ]  # what each stage was given, for the revival of dead entries

    def _stage(self, residual_MD: Tensor, stage: int) -> Tensor:
        """Index of the entry nearest to each vector, (M,) int64."""
        book_ND = self.codebooks_KND[stage]
        return (book_ND.square().sum(-1) - 2.0 * residual_MD @ book_ND.T).argmin(-1)

    def forward(self, z_BTD: Tensor, keep_BT: Tensor | None = None) -> Quantised:
        """Quantise with a straight-through gradient; in training mode the hits are gathered for `update`.

        Takes   z_BTD float; keep_BT True = a real position (others get codes too, but neither loss nor hits).
        Raises  ShapeError on another width.
        """
        self._check_width(z_BTD)
        with torch.autocast(z_BTD.device.type, enabled=False):
            z = z_BTD.float().reshape(-1, self.width)
            keep = (
                torch.ones(len(z), dtype=torch.bool, device=z.device)
                if keep_BT is None
                else keep_BT.reshape(-1)
            )
            residual, total, codes, commitment = z, torch.zeros_like(z), [], z.new_zeros(())
            for stage in range(self.codebooks):
                code_M = self._stage(residual.detach(), stage)
                entry = self.codebooks_KND[stage][code_M]
                if self.training:
                    # An update with a non-finite latent is skipped by the loop; it must not poison the moving
                    # averages either.
                    sound = keep & residual.detach().isfinite().all(-1)
                    self._gather(stage, residual.detach()[sound], code_M[sound])
                commitment = commitment + ((residual - entry).square().mean(-1) * keep).sum() / self.codebooks
                residual, total = residual - entry, total + entry
                codes.append(code_M)
            through = z + (total - z).detach()
        batch, length = z_BTD.shape[:2]
        return Quantised(
            through.view(batch, length, self.width),
            torch.stack(codes, 0).view(-1, batch, length).transpose(0, 1),
            commitment,
        )

    def encode(self, z_BTD: Tensor) -> Tensor:
        """Codes (B, K, T) int64 of vectors, nearest entry stage by stage."""
        self._check_width(z_BTD)
        batch, length = z_BTD.shape[:2]
        with torch.autocast(z_BTD.device.type, enabled=False):
            residual, codes = z_BTD.float().reshape(-1, self.width), []
            for stage in range(self.codebooks):
                codes.append(self._stage(residual, stage))
                residual = residual - self.codebooks_KND[stage][codes[-1]]
        return torch.stack(codes, 0).view(-1, batch, length).transpose(0, 1)

    def decode(self, codes_BKT: Tensor) -> Tensor:
        """Vectors (B, T, D) of codes.

        Raises  ShapeError if there are not K streams; TokenRangeError if a code lies outside 0 .. entries -
                1.
        """
        if codes_BKT.dim() != 3 or codes_BKT.shape[1] != self.codebooks:
            raise ShapeError(f"codes: expected (B, {self.codebooks}, T), got {tuple(codes_BKT.shape)}")
        if codes_BKT.numel() and (int(codes_BKT.min()) < 0 or int(codes_BKT.max()) >= self.entries):
            low, high = int(codes_BKT.min()), int(codes_BKT.max())
            raise TokenRangeError(
                f"codes: expected 0 to {self.entries - 1}, got {low} to {high}",
                hint="cut end and pad symbols off first",
            )
        stages = torch.arange(self.codebooks, device=codes_BKT.device)[None, :, None]
        return self.codebooks_KND[stages, codes_BKT].sum(1)

    @torch.no_grad()
    def start(self, z_MD: Tensor, generator: torch.Generator, *, iterations: int = 12) -> None:
        """Place all entries by residual k-means on real vectors (M, D).

        Raises  ShapeError if there are none or of another width.
        """
        self._check_width(z_MD)
        if not len(z_MD):
            raise ShapeError("k-means start: expected at least one vector, got none")
        residual = z_MD.float()
        for stage in range(self.codebooks):
            pick = torch.randperm(max(len(residual), self.entries), generator=generator)[: self.entries].to(
                residual.device
            ) % len(residual)
            book = residual[pick] + 1e-4 * residual.std() * torch.randn(
                self.entries, self.width, generator=generator
            ).to(residual.device)
            for _ in range(iterations):
                self.codebooks_KND[stage] = book
                code = self._stage(residual, stage)
                hits, sums = self._count(residual, code)
                book = torch.where(hits[:, None] > 0, sums / hits.clamp(min=1)[:, None], book)
            self.codebooks_KND[stage] = book
            code = self._stage(residual, stage)
            hits, _ = self._count(residual, code)
            # Mass is relative to a uniform share; no entry starts so light that it would be revived at once.
            self.mass_KN[stage] = (hits / hits.mean().clamp(min=1e-6)).clamp(min=0.1)
            residual = residual - book[code]
        self.sums_KND.copy_(self.codebooks_KND * self.mass_KN[..., None])
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> int:
        """One moving-average step from the hits gathered since the last one; dead entries are born anew.
        Gives how many were revived.

        With torch.distributed running, hits are summed over the ranks, and rank 0's entries hold for all.
        """
        if self._hits_KN is None or self._hit_sums_KND is None:
            return 0
        hits, sums = self._hits_KN, self._hit_sums_KND
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed:
            torch.distributed.all_reduce(hits)
            torch.distributed.all_reduce(sums)
        # Mass is kept relative to a uniform share, so that its threshold does not depend on the batch size.
        share = hits.sum(-1, keepdim=True).clamp(min=1) / self.entries
        self.mass_KN.lerp_(hits / share, 1 - self.decay)
        self.sums_KND.lerp_(sums / share[..., None], 1 - self.decay)
        self.codebooks_KND.copy_(self.sums_KND / self.mass_KN.clamp(min=1e-5)[..., None])
        revived = self._revive(generator)
        if distributed:
            for buffer in (self.codebooks_KND, self.mass_KN, self.sums_KND):
                torch.distributed.broadcast(buffer, src=0)
        self._hits_KN = self._hit_sums_KND = None
        self._leftovers = [[] for _ in range(self.codebooks)]
        return revived

    def usage(self, codes_BKT: Tensor) -> list[Usage]:
        """Share of used entries and perplexity of every codebook, over the given codes."""
        usages = []
        for stage in range(self.codebooks):
            share = torch.bincount(codes_BKT[:, stage].reshape(-1).cpu(), minlength=self.entries).double()
            share = share / share.sum().clamp(min=1)
            entropy = -(share * share.clamp(min=1e-30).log()).sum()
            usages.append(Usage(float((share > 0).double().mean()), float(entropy.exp())))
        return usages

    def _gather(self, stage: int, residual_MD: Tensor, code_M: Tensor) -> None:
        if self._hits_KN is None or self._hit_sums_KND is None:
            self._hits_KN, self._hit_sums_KND = (
                torch.zeros_like(self.mass_KN),
                torch.zeros_like(self.sums_KND),
            )
        hits, sums = self._count(residual_MD, code_M)
        self._hits_KN[stage] += hits
        self._hit_sums_KND[stage] += sums
        self._leftovers[stage].append(residual_MD)

    def _count(self, residual_MD: Tensor, code_M: Tensor) -> tuple[Tensor, Tensor]:
        """Hits (N,) of every entry, and the sum (N, D) of the vectors that hit it."""
        one_hot_MN = F.one_hot(code_M, self.entries).to(residual_MD.dtype)
        return one_hot_MN.sum(0), one_hot_MN.T @ residual_MD

    def _revive(self, generator: torch.Generator) -> int:
        """Move entries that almost nothing hits onto vectors of this update."""
        revived = 0
        for stage in range(self.codebooks):
            dead = (self.mass_KN[stage] < self.revive_below).nonzero().squeeze(-1)
            leftovers = torch.cat(self._leftovers[stage])
            if not len(dead) or not len(leftovers):
                continue
            pick = torch.randint(len(leftovers), (len(dead),), generator=generator).to(leftovers.device)
            self.codebooks_KND[stage, dead] = leftovers[pick]
            self.mass_KN[stage, dead] = 0.5
            self.sums_KND[stage, dead] = 0.5 * leftovers[pick]
            revived += len(dead)
        return revived

    def _check_width(self, z: Tensor) -> None:
        if z.shape[-1] != self.width:
            raise ShapeError(f"quantiser: expected vectors of width {self.width}, got {z.shape[-1]}")
