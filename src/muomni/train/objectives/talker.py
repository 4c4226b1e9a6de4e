"""Objective of stage talker: say the codes of a text's speech, every codebook by its own head, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.errors import ConfigError
from muomni.models.talker import Talker
from muomni.train.objective import Objective, Term


@dataclass(frozen=True)
class TalkerItem:
    """One utterance."""

    sample_id: str
    text_ids: list[int]
    codes_KF: Tensor  # int64
    hidden_TD: Tensor | None = None  # the Thinker's states at the text tokens
    speaker: int | None = None


@dataclass(frozen=True)
class TalkerBatch:
    """Texts and the codes of their speech, padded to the longest."""

    sample_ids: list[str]
    text_ids_BT: Tensor  # int64
    text_keep_BT: Tensor  # bool
    codes_BKF: Tensor  # int64
    frames_B: Tensor  # int64
    hidden_BTD: Tensor | None = None
    speaker_B: Tensor | None = None

    @staticmethod
    def of(items: Sequence[TalkerItem]) -> TalkerBatch:
        """Pad items into a batch; hidden states and speakers are there for all of them or for none."""
        batch, text = len(items), max(len(item.text_ids) for item in items)
        frames_B = torch.tensor([item.codes_KF.shape[1] for item in items])
        ids_BT = torch.zeros(batch, text, dtype=torch.int64)
        keep_BT = torch.zeros(batch, text, dtype=torch.bool)
        codes_BKF = torch.zeros(batch, items[0].codes_KF.shape[0], int(frames_B.max()), dtype=torch.int64)
        hidden = [item.hidden_TD for item in items if item.hidden_TD is not None]
        speakers = [item.speaker for item in items if item.speaker is not None]
        for name, given in (("hidden states", hidden), ("speakers", speakers)):
            if given and len(given) != batch:
                raise ConfigError(f"talker batch: {name} for {len(given)} of {batch} items, expected all or none")
        hidden_BTD = torch.zeros(batch, text, hidden[0].shape[1]) if hidden else None
        for row, item in enumerate(items):
            ids_BT[row, : len(item.text_ids)] = torch.tensor(item.text_ids)
            keep_BT[row, : len(item.text_ids)] = True
            codes_BKF[row, :, : item.codes_KF.shape[1]] = item.codes_KF
            if hidden_BTD is not None:
                hidden_BTD[row, : len(item.text_ids)] = hidden[row]
        speaker_B = torch.tensor(speakers) if speakers else None
        return TalkerBatch([item.sample_id for item in items], ids_BT, keep_BT, codes_BKF, frames_B, hidden_BTD, speaker_B)

    def to(self, device: torch.device | str) -> TalkerBatch:
        """The same batch on another device."""
        return replace(
            self,
            text_ids_BT=self.text_ids_BT.to(device),
            text_keep_BT=self.text_keep_BT.to(device),
            codes_BKF=self.codes_BKF.to(device),
            frames_B=self.frames_B.to(device),
            hidden_BTD=None if self.hidden_BTD is None else self.hidden_BTD.to(device),
            speaker_B=None if self.speaker_B is None else self.speaker_B.to(device),
        )

    def rolled(self) -> TalkerBatch:
        """The same speech with the neighbour's text (and its hidden states): a Talker that reads finds it harder to say."""
        return replace(
            self,
            text_ids_BT=self.text_ids_BT.roll(1, 0),
            text_keep_BT=self.text_keep_BT.roll(1, 0),
            hidden_BTD=None if self.hidden_BTD is None else self.hidden_BTD.roll(1, 0),
        )


class TalkerObjective(Objective):
    """Cross-entropy of every codebook, as terms `book0`, `book1`, ...; book 0 also says the end.

    In training a share of the codes that it hears is random, of those that it must say none.
    """

    def __init__(self, talker: Talker, *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.talker = talker
        self.weights = [1.0] * talker.config.codebooks if weights is None else list(weights)
        if len(self.weights) != talker.config.codebooks:
            raise ConfigError(f"talker: expected {talker.config.codebooks} codebook weights, got {len(self.weights)}")

    def counts(self, batch: TalkerBatch) -> dict[str, int]:
        """Codes to say per book; book 0 has an end symbol a row more."""
        frames = int(batch.frames_B.sum())
        return {f"book{book}": frames + (len(batch.frames_B) if book == 0 else 0) for book in range(len(self.weights))}

    def forward(self, batch: TalkerBatch) -> dict[str, Term]:
        """Nats of every book over real codes and ends."""
        talker = self.talker
        grid_BKS = talker.lay_out(batch.codes_BKF, batch.frames_B)
        heard_BKS = self.noisy(grid_BKS) if self.training else grid_BKS
        states_BSD = talker(batch.text_ids_BT, batch.text_keep_BT, heard_BKS, hidden_BTD=batch.hidden_BTD, speaker_B=batch.speaker_B)
        counts, terms = self.counts(batch), {}
        for book, weight in enumerate(self.weights):
            target_BS = grid_BKS[:, book]
            said_BS = target_BS < talker.config.entries + (book == 0)
            nats = F.cross_entropy(talker.logits(states_BSD[said_BS], book), target_BS[said_BS], reduction="sum")
            terms[f"book{book}"] = Term(nats, counts[f"book{book}"], weight)
        return terms

    def noisy(self, grid_BKS: Tensor) -> Tensor:
        """The grid with a share of its codes replaced at random: what the Talker hears of itself will not be flawless either."""
        config = self.talker.config
        hit_BKS = (torch.rand(grid_BKS.shape, device=grid_BKS.device) < config.code_noise) & (grid_BKS < config.entries)
        return torch.where(hit_BKS, torch.randint_like(grid_BKS, config.entries), grid_BKS)
