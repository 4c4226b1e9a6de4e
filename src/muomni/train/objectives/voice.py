"""Objective of stage voice: the next word, and the next code of each book, of conversations that hold speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from muomni.data.batch import SequenceBatch, right_padded
from muomni.data.voice_rows import VoiceRow
from muomni.models.higgs import TEXT, Higgs
from muomni.nn.head import IGNORE, Head
from muomni.train.objective import Probe
from muomni.train.objectives.symbols import NextSymbol, Symbols, targets, targets_of_codes
from muomni.train.sharding import blocks_of


def collate(rows: Sequence[VoiceRow], pad: int) -> SequenceBatch:
    """Rows padded on the right with word `pad`; places without codes hold -1, so that nobody reads them
    unseen."""
    ids_BT, keep_BT = right_padded([row.ids for row in rows], pad)
    labels_BT, _ = right_padded([row.labels for row in rows], IGNORE)

    def stack(grids: Sequence[Tensor], fill: int) -> Tensor:
        return pad_sequence([grid.T for grid in grids], batch_first=True, padding_value=fill).transpose(1, 2)

    return SequenceBatch(
        [row.sample_id for row in rows],
        ids_BT,
        labels_BT,
        keep_BT,
        codes_BKS=stack([row.codes_KT for row in rows], -1),
        code_labels_BKS=stack([row.code_labels_KT for row in rows], IGNORE),
        frames_B=torch.tensor([row.frames for row in rows]),
    )


class VoiceObjective(NextSymbol):
    """Cross entropy of the words (`text`) and of every codebook (`book0`, `book1`, ...).

    text_weight    of the mean over words
    audio_weight   of the mean over the books' means: each book has an equal share
    frozen         the model's own weights come from elsewhere and rest: checkpoints leave them out
    """

    def __init__(
        self, model: Higgs, *, text_weight: float = 1.0, audio_weight: float = 1.0, frozen: bool = True
    ) -> None:
        books = {
            f"book{book}": Symbols(TEXT + 1 + book, weight=audio_weight / model.books)
            for book in range(model.books)
        }
        super().__init__({"text": Symbols(TEXT, weight=text_weight), **books})
        self.model, self.frozen = model, frozen

    @property
    def head(self) -> Head:
        """The model's: a stream of words and one a book."""
        return self.model.head

    def blocks(self) -> Sequence[nn.Module]:
        """The model's, where it learns whole."""
        return () if self.frozen else blocks_of(self.model)

    def frozen_parts(self) -> Sequence[str]:
        """The model, as far as it rests."""
        return ("model.",) if self.frozen else ()

    def labels(self, batch: SequenceBatch) -> list[Tensor]:
        """See NextSymbol."""
        return [targets(batch), *targets_of_codes(batch)]

    def states(self, batch: SequenceBatch) -> Tensor:
        """See NextSymbol: of all positions but the last."""
        x_BTD = self.model.embed(columns(batch))
        return self.model.hidden(x_BTD, is_audio_BT=self.model.is_audio(batch.ids_BT))[:, :-1]

    def contents(self, batch: SequenceBatch) -> dict[str, float]:
        """Samples, their positions, and code frames of all their sounds, references too."""
        assert batch.frames_B is not None
        frames = float(batch.frames_B.sum())
        return {**super().contents(batch), "tokens": float(batch.is_real_BT.sum()), "code_frames": frames}

    def sizes(self, batch: SequenceBatch) -> tuple[float, ...]:
        """Positions, positions squared, positions of codes, labels of words, labels of codes."""
        rows, length = batch.ids_BT.shape
        words, *books = ((labels != IGNORE).sum() for labels in self.labels(batch))
        audio = self.model.is_audio(batch.ids_BT).sum()
        return rows * length, rows * length**2, float(audio), float(words), float(sum(books))

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """Where both paths learn, words reach the one and codes the other."""
        names = [name for name, weight in self.named_parameters() if weight.requires_grad]
        wanted: dict[str, tuple[str, ...]] = {}
        paths = {"text": ".mlp.", **{f"book{book}": ".audio_mlp." for book in range(self.model.books)}}
        for term, path in paths.items():
            if any(path in name for name in names):
                wanted[term] = (f"*{path}*lora_B*",) if self.frozen else (f"*{path}*",)
        return wanted

    def media_swaps(self, batch: SequenceBatch) -> dict[str, SequenceBatch]:
        """Other codes in the sounds that are heard and not learned (references), where there are some."""
        assert batch.codes_BKS is not None
        assert batch.code_labels_BKS is not None
        heard_BT = self.model.is_audio(batch.ids_BT) & ~_taught(batch, self.model)
        if not bool(heard_BT.any()):
            return {}
        size = self.model.codebook_size
        is_code_BKS = (batch.codes_BKS < size) & heard_BT[:, None]
        other_BKS = torch.where(is_code_BKS, (batch.codes_BKS + size // 2) % size, batch.codes_BKS)
        return {"audio": replace(batch, codes_BKS=other_BKS)}

    def probes(self, batch: SequenceBatch, count: int, rng: np.random.Generator) -> list[Probe]:
        """Codes of a step asked alone, by each book, and words, with others from their own place on, or right before
        it."""
        assert batch.code_labels_BKS is not None
        is_audio_BT = self.model.is_audio(batch.ids_BT)
        has_code_BT = (batch.code_labels_BKS != IGNORE).any(1)
        has_word_BT = (batch.labels_BT != IGNORE) & ~is_audio_BT
        has_code_BT[:, 1:] &= is_audio_BT[:, :-1]
        has_word_BT[:, 1:] &= ~is_audio_BT[:, :-1]
        has_code_BT[:, 0], has_word_BT[:, 0] = False, False
        probes_made = []
        for is_code, places_BT in ((True, has_code_BT), (False, has_word_BT)):
            places = places_BT.nonzero().tolist()
            drawn = [places[number] for number in rng.permutation(len(places))]
            if is_code:  # the first asks every book, where a place does: at its edges a sound has few
                books_BT = (batch.code_labels_BKS != IGNORE).sum(1)
                whole = [place for place in drawn if books_BT[*place] == self.model.books][:1]
                drawn = whole + [place for place in drawn if place not in whole]
            for row, t in drawn[: -(-count // 2)]:
                asked = self._alone(batch, row, t, is_code=is_code)
                after_BT, before_BT = torch.zeros_like(is_audio_BT), torch.zeros_like(is_audio_BT)
                after_BT[row, t:], before_BT[row, t - 1] = True, True
                assert asked.code_labels_BKS is not None
                books = (asked.code_labels_BKS[row, :, t] != IGNORE).nonzero().flatten().tolist()
                terms = tuple(f"book{book}" for book in books) if is_code else ("text",)
                future, past = (self._with_others(asked, where, rng) for where in (after_BT, before_BT))
                probes_made.append(Probe(asked, future, past, terms))
        return probes_made[:count]

    def _alone(self, batch: SequenceBatch, row: int, t: int, *, is_code: bool) -> SequenceBatch:
        """The batch with the labels of one place, either its codes or its word."""
        assert batch.code_labels_BKS is not None
        labels_BT = torch.full_like(batch.labels_BT, IGNORE)
        codes_BKS = torch.full_like(batch.code_labels_BKS, IGNORE)
        if is_code:
            codes_BKS[row, :, t] = batch.code_labels_BKS[row, :, t]
        else:
            labels_BT[row, t] = batch.labels_BT[row, t]
        return replace(batch, labels_BT=labels_BT, code_labels_BKS=codes_BKS)

    def _with_others(self, batch: SequenceBatch, where_BT: Tensor, rng: np.random.Generator) -> SequenceBatch:
        """The batch with other words, and other codes, in the given places; labels stay, and so does what is
        a word and what is a sound."""
        assert batch.codes_BKS is not None
        is_audio_BT = self.model.is_audio(batch.ids_BT)
        words, size = min(self.model.placeholders), self.model.codebook_size
        turn_BT = torch.from_numpy(rng.integers(1, words - 1, tuple(batch.ids_BT.shape))).to(batch.ids_BT)
        other_BT = (batch.ids_BT + turn_BT) % words
        turn_BKS = torch.from_numpy(rng.integers(1, size, tuple(batch.codes_BKS.shape))).to(batch.codes_BKS)
        other_BKS = (batch.codes_BKS + turn_BKS) % size
        return replace(
            batch,
            ids_BT=torch.where(where_BT & ~is_audio_BT, other_BT, batch.ids_BT),
            codes_BKS=torch.where((where_BT & is_audio_BT)[:, None], other_BKS, batch.codes_BKS),
        )


def columns(batch: SequenceBatch) -> Tensor:
    """A batch as the model reads it: (B, 1 + K, T), a word and K codes a position."""
    assert batch.codes_BKS is not None
    return torch.cat([batch.ids_BT[:, None], batch.codes_BKS], 1)


def _taught(batch: SequenceBatch, model: Higgs) -> Tensor:
    """bool (B, T), True = in a sound of which codes are learned: its start and its last ends too."""
    assert batch.code_labels_BKS is not None
    is_audio_BT = model.is_audio(batch.ids_BT)
    begins_BT = is_audio_BT.clone()
    begins_BT[:, 1:] &= ~is_audio_BT[:, :-1]
    number_BT = begins_BT.cumsum(1)  # of the sound, counted in its row
    taught_BT = torch.zeros_like(is_audio_BT)
    for row, number_T in enumerate(number_BT):
        learned = (batch.code_labels_BKS[row] != IGNORE).any(0)
        taught_BT[row] = torch.isin(number_T, number_T[learned].unique()) & is_audio_BT[row]
    return taught_BT
