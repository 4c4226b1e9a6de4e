"""Objective of stage talker: say the codes of a text's speech, every codebook by its own head, and where it
ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from muomni.data.batch import SequenceBatch, right_padded
from muomni.errors import ConfigError
from muomni.models.talker import Talker, TalkerConfig
from muomni.nn.head import IGNORE, Head
from muomni.train.objective import Probe
from muomni.train.objectives.symbols import NextSymbol, Symbols, before


@dataclass(frozen=True)
class TalkerItem:
    """One utterance."""

    sample_id: str
    text_ids: list[int]
    codes_KF: Tensor  # int64
    hidden_TD: Tensor | None = None  # the Thinker's states at the text tokens
    speaker: int | None = (
        None  # its voice's number, NO_VOICE for one that the Talker has no row for; None: a Talker of one voice
    )


def collate(items: Sequence[TalkerItem], config: TalkerConfig) -> SequenceBatch:
    """Texts, and the codes of their speech laid out in steps, padded to the longest; no word is learned.

    Raises  ConfigError where only some items have hidden states or a speaker; as `TalkerConfig.lay_out`.
    """
    ids_BT, keep_BT = right_padded([item.text_ids for item in items])
    frames_B = torch.tensor([item.codes_KF.shape[1] for item in items])
    codes_BKF = pad_sequence([item.codes_KF.T for item in items], batch_first=True).transpose(1, 2)
    hidden = [item.hidden_TD for item in items if item.hidden_TD is not None]
    speakers = [item.speaker for item in items if item.speaker is not None]
    for name, given in (("hidden states", hidden), ("speakers", speakers)):
        if given and len(given) != len(items):
            raise ConfigError(
                f"talker batch: {name} for {len(given)} of {len(items)} items, expected all or none"
            )
    grid_BKS = config.lay_out(codes_BKF, frames_B)
    return SequenceBatch(
        [item.sample_id for item in items],
        ids_BT,
        torch.full_like(ids_BT, IGNORE),
        keep_BT,
        codes_BKS=grid_BKS,
        code_labels_BKS=config.said(grid_BKS),
        frames_B=frames_B,
        hidden_BTD=pad_sequence(hidden, batch_first=True).float() if hidden else None,
        speaker_B=torch.tensor(speakers) if speakers else None,
    )


class TalkerObjective(NextSymbol):
    """Cross-entropy of every codebook, as terms `book0`, `book1`, ...; book 0 also says the end.

    In training a share of the codes that it reads is random, of those that it must say none.
    """

    def __init__(self, talker: Talker, *, weights: Sequence[float] | None = None) -> None:
        books = talker.config.codebooks
        weights = [1.0] * books if weights is None else list(weights)
        if len(weights) != books:
            raise ConfigError(f"talker: expected {books} codebook weights, got {len(weights)}")
        super().__init__({f"book{book}": Symbols(book, weight=weight) for book, weight in enumerate(weights)})
        self.talker = talker

    @property
    def head(self) -> Head:
        """The Talker's: a stream a book."""
        return self.talker.head

    def contents(self, batch: SequenceBatch) -> dict[str, float]:
        """Utterances, tokens of their texts, and code frames (of one code a codebook each)."""
        assert batch.frames_B is not None
        frames = float(batch.frames_B.sum())
        return {**super().contents(batch), "tokens": float(batch.is_real_BT.sum()), "code_frames": frames}

    def sizes(self, batch: SequenceBatch) -> tuple[float, ...]:
        """Positions and positions squared of text and steps together; text alone; frames that are said."""
        assert batch.codes_BKS is not None
        assert batch.frames_B is not None
        rows, text = batch.ids_BT.shape
        length = text + batch.codes_BKS.shape[2]  # with the start, without the last step
        return rows * length, rows * length**2, rows * text, float(batch.frames_B.sum())

    def states(self, batch: SequenceBatch) -> Tensor:
        """See NextSymbol: of the start and all steps but the last."""
        assert batch.codes_BKS is not None
        read_BKS = before(self.noisy(batch.codes_BKS) if self.training else batch.codes_BKS)
        conditions = {"hidden_BTD": batch.hidden_BTD, "speaker_B": batch.speaker_B}
        out: Tensor = self.talker(batch.ids_BT, batch.is_real_BT, read_BKS, **conditions)
        return out

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """Every book teaches its own head."""
        return {
            name: (f"talker.heads.{term.stream}.*", "talker.blocks.*") for name, term in self.terms.items()
        }

    def probes(self, batch: SequenceBatch, count: int, rng: np.random.Generator) -> list[Probe]:
        """Codes of a frame asked alone.

        Of the first book, with other frames read from there on; of the last one, with others of its own.
        """
        assert batch.frames_B is not None
        assert batch.code_labels_BKS is not None
        lags, last = self.talker.config.lags, self.talker.config.codebooks - 1
        probes_made = []
        frames = batch.frames_B.tolist()
        rows = [row for row, length in enumerate(frames) if length > 1]
        for _ in range(count if rows else 0):
            row = rows[int(rng.integers(len(rows)))]
            place = int(rng.integers(1, frames[row]))
            labels_BKS = torch.full_like(batch.code_labels_BKS, IGNORE)
            for book, lag in enumerate(lags):
                labels_BKS[row, book, place + lag] = batch.code_labels_BKS[row, book, place + lag]
            batch_asked = replace(batch, code_labels_BKS=labels_BKS)
            for book, changed in {0: lags, last: (None,) * last + lags[last:]}.items():
                after, past = slice(place, frames[row]), slice(place - 1, place)
                future = self._with_others(batch_asked, row, changed, after, rng)
                probes_made.append(
                    Probe(
                        batch_asked,
                        future,
                        self._with_others(batch_asked, row, changed, past, rng),
                        (f"book{book}",),
                    )
                )
        return probes_made

    def _with_others(
        self,
        batch: SequenceBatch,
        row: int,
        lags: Sequence[int | None],
        where: slice,
        rng: np.random.Generator,
    ) -> SequenceBatch:
        """The batch with other codes in some frames of a row, in the books that have a lag."""
        assert batch.codes_BKS is not None
        size, codes_BKS = self.talker.config.codebook_size, batch.codes_BKS.clone()
        for book, lag in enumerate(lags):
            if lag is not None:
                here = codes_BKS[row, book, where.start + lag : where.stop + lag]
                turn = torch.from_numpy(rng.integers(1, size, len(here))).to(here)
                here.copy_((here + turn) % size)
        return replace(batch, codes_BKS=codes_BKS)

    def noisy(self, grid_BKS: Tensor) -> Tensor:
        """The grid with a share of its codes replaced at random: what the Talker hears of itself will not be
        flawless either."""
        config = self.talker.config
        hit_BKS = (torch.rand(grid_BKS.shape, device=grid_BKS.device) < config.code_noise) & (
            grid_BKS < config.codebook_size
        )
        return torch.where(hit_BKS, torch.randint_like(grid_BKS, config.codebook_size), grid_BKS)
