"""Objective of stage talker: say the codes of a text's speech, every codebook by its own head, and where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.batch import Batch, right_padded
from muomni.errors import ConfigError
from muomni.models.talker import Talker
from muomni.nn.head import IGNORE, row_means
from muomni.train.objective import Objective, Probe, Term, with_perplexity


@dataclass(frozen=True)
class TalkerItem:
    """One utterance."""

    sample_id: str
    text_ids: list[int]
    codes_KF: Tensor  # int64
    hidden_TD: Tensor | None = None  # the Thinker's states at the text tokens
    speaker: int | None = None  # its voice's number, NO_VOICE for one that the Talker has no row for; None: a Talker of one voice


@dataclass(frozen=True)
class TalkerBatch(Batch):
    """Texts and the codes of their speech, padded to the longest.

    heard_BKF    int64, what it is told of its own speech, None: what it is to say
    learned_BP   bool (B, F + 1), True = a place that it is to say, frames and then the end; None: all
    """

    sample_ids: list[str]
    text_ids_BT: Tensor  # int64
    text_keep_BT: Tensor  # bool
    codes_BKF: Tensor  # int64
    frames_B: Tensor  # int64
    hidden_BTD: Tensor | None = None
    speaker_B: Tensor | None = None
    heard_BKF: Tensor | None = None
    learned_BP: Tensor | None = None

    @property
    def length(self) -> int:
        """Code frames of the longest row."""
        return self.codes_BKF.shape[2]

    @staticmethod
    def of(items: Sequence[TalkerItem]) -> TalkerBatch:
        """Pad items into a batch; hidden states and speakers are there for all of them or for none."""
        batch = len(items)
        ids_BT, keep_BT = right_padded([item.text_ids for item in items])
        frames_B = torch.tensor([item.codes_KF.shape[1] for item in items])
        codes_BKF = torch.zeros(batch, items[0].codes_KF.shape[0], int(frames_B.max()), dtype=torch.int64)
        hidden = [item.hidden_TD for item in items if item.hidden_TD is not None]
        speakers = [item.speaker for item in items if item.speaker is not None]
        for name, given in (("hidden states", hidden), ("speakers", speakers)):
            if given and len(given) != batch:
                raise ConfigError(f"talker batch: {name} for {len(given)} of {batch} items, expected all or none")
        hidden_BTD = torch.zeros(*ids_BT.shape, hidden[0].shape[1]) if hidden else None
        for row, item in enumerate(items):
            codes_BKF[row, :, : item.codes_KF.shape[1]] = item.codes_KF
            if hidden_BTD is not None:
                hidden_BTD[row, : len(item.text_ids)] = hidden[row]
        speaker_B = torch.tensor(speakers) if speakers else None
        return TalkerBatch([item.sample_id for item in items], ids_BT, keep_BT, codes_BKF, frames_B, hidden_BTD, speaker_B)


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
        frames, ends = int(batch.frames_B.sum()), len(batch.frames_B)
        if batch.learned_BP is not None:
            places_P = torch.arange(batch.learned_BP.shape[1], device=batch.frames_B.device)
            frames = int((batch.learned_BP & (places_P < batch.frames_B[:, None])).sum())
            ends = int((batch.learned_BP & (places_P == batch.frames_B[:, None])).sum())
        return {f"book{book}": frames + (ends if book == 0 else 0) for book in range(len(self.weights))}

    def contents(self, batch: TalkerBatch) -> dict[str, float]:
        """Utterances, tokens of their texts, and code frames (of one code a codebook each)."""
        return {**super().contents(batch), "tokens": float(batch.text_keep_BT.sum()), "code_frames": float(batch.frames_B.sum())}

    def sizes(self, batch: TalkerBatch) -> tuple[float, ...]:
        """Positions and positions squared of text and frames together; text alone; frames that are said."""
        rows, text = batch.text_ids_BT.shape
        length = text + 1 + batch.codes_BKF.shape[2]
        return rows * length, rows * length**2, rows * text, float(batch.frames_B.sum())

    def forward(self, batch: TalkerBatch) -> dict[str, Term]:
        """Nats of every book over real codes and ends."""
        states_BSD, labels = self._read(batch)
        terms = {}
        for book, weight in enumerate(self.weights):
            nats = self.talker.head.nats(states_BSD, labels[book], book)
            terms[f"book{book}"] = Term(nats.total, nats.num_labels, weight)
        return terms

    def told(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nats and perplexity of each book: among how many codes it wavers."""
        return with_perplexity(means, {f"book{book}": f"book{book}_perplexity" for book in range(len(self.weights))})

    @torch.no_grad()
    def nats(self, batch: TalkerBatch) -> Tensor:
        """Mean nats a code of each row, (B,) float32, all books together."""
        states_BSD, labels = self._read(batch)
        found = [self.talker.head.each_nats(states_BSD, each, book) for book, each in enumerate(labels)]
        nats_N, rows_N = (torch.cat(each) for each in zip(*found))
        return row_means(nats_N, rows_N, len(batch.frames_B))

    def _read(self, batch: TalkerBatch) -> tuple[Tensor, list[Tensor]]:
        """The states of all steps, and for each book its labels (B,S): what it has to say, else -100."""
        talker = self.talker
        grid_BKS = talker.lay_out(batch.codes_BKF, batch.frames_B)
        heard_BKS = grid_BKS if batch.heard_BKF is None else talker.lay_out(batch.heard_BKF, batch.frames_B)
        heard_BKS = self.noisy(heard_BKS) if self.training else heard_BKS
        states_BSD = talker(batch.text_ids_BT, batch.text_keep_BT, heard_BKS, hidden_BTD=batch.hidden_BTD, speaker_B=batch.speaker_B)
        books = enumerate(grid_BKS.unbind(1))
        return states_BSD, [target_BS.masked_fill(~self._said(batch, target_BS, book), IGNORE) for book, target_BS in books]

    def _said(self, batch: TalkerBatch, target_BS: Tensor, book: int) -> Tensor:
        """Where a book has something to say: a code or, for book 0, the end; of these the learned places."""
        said_BS = target_BS < self.talker.config.codebook_size + (book == 0)
        if batch.learned_BP is None:
            return said_BS
        lag, steps = (book if self.talker.config.layout == "delay" else 0), target_BS.shape[1]
        places = batch.learned_BP.shape[1]
        return said_BS & F.pad(batch.learned_BP, (lag, max(0, steps - lag - places)))[:, :steps]

    def teaches(self) -> dict[str, tuple[str, ...]]:
        """Every book teaches its own head."""
        return {f"book{book}": (f"talker.heads.{book}.*", "talker.blocks.*") for book in range(len(self.weights))}

    def probes(self, batch: TalkerBatch, count: int, rng: np.random.Generator) -> list[Probe]:
        """Codes asked alone: of the first book, with other frames heard from there on; of the last, with others of its own heard."""
        found = []
        frames = batch.frames_B.tolist()
        rows = [row for row, length in enumerate(frames) if length > 1]
        for _ in range(count if rows else 0):
            row = rows[int(rng.integers(len(rows)))]
            place = int(rng.integers(1, frames[row]))
            learned_BP = torch.zeros(len(frames), batch.codes_BKF.shape[2] + 1, dtype=torch.bool, device=batch.codes_BKF.device)
            learned_BP[row, place] = True
            asked = replace(batch, learned_BP=learned_BP)
            last = len(self.weights) - 1
            for book, books in {0: slice(None), last: slice(last, None)}.items():
                after, before = (row, books, slice(place, None)), (row, books, slice(place - 1, place))
                found.append(Probe(asked, self._hearing(asked, after, rng), self._hearing(asked, before, rng), f"book{book}"))
        return found

    def _hearing(self, batch: TalkerBatch, where: Any, rng: np.random.Generator) -> TalkerBatch:
        """The batch with other codes heard in the given places."""
        entries = self.talker.config.codebook_size
        heard_BKF = batch.codes_BKF.clone()
        turn = torch.from_numpy(rng.integers(1, entries, tuple(heard_BKF[where].shape))).to(heard_BKF)
        heard_BKF[where] = (heard_BKF[where] + turn) % entries
        return replace(batch, heard_BKF=heard_BKF)

    def noisy(self, grid_BKS: Tensor) -> Tensor:
        """The grid with a share of its codes replaced at random: what the Talker hears of itself will not be flawless either."""
        config = self.talker.config
        hit_BKS = (torch.rand(grid_BKS.shape, device=grid_BKS.device) < config.code_noise) & (grid_BKS < config.codebook_size)
        return torch.where(hit_BKS, torch.randint_like(grid_BKS, config.codebook_size), grid_BKS)
