"""Batches: they move to a device whole, rows of ids are padded on the right, and sequences are all of one
class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from muomni.data.corpus import NO_DOCUMENT
from muomni.tokens.chat import IGNORE


class Batch:
    """Base of dataclasses that hold tensors, absent ones as None, and batches by name."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        moved: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
            elif isinstance(value, Mapping):
                moved[name] = {key: batch.to(device) for key, batch in value.items()}
        return replace(self, **moved)  # type: ignore[type-var]


def right_padded(rows: Sequence[Sequence[int]], fill: int = 0, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids of any lengths -> (ids int64, keep bool), both (rows, T): T is the longest length, at least
    `width`."""
    size = max([width, *map(len, rows)])
    ids_BT = torch.full((len(rows), size), fill, dtype=torch.int64)
    keep_BT = torch.zeros(len(rows), size, dtype=torch.bool)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
        keep_BT[row, : len(ids)] = True
    return ids_BT, keep_BT


@dataclass(frozen=True)
class MediaBatch(Batch):
    """The media of one modality in a batch, in the order of their pads (row by row, left to right).

    values_N   what the encoder takes, padded to the longest: pixels (N,3,H,W) uint8, natural-log mel (N,F,M)
    lengths_N  how much of each is real (frames of mel); None: all of it
    """

    values_N: Tensor
    lengths_N: Tensor | None = None


Media = Mapping[str, MediaBatch]
"""The media of a batch, by modality; those that no row has are absent."""


@dataclass
class SequenceBatch(Batch):
    """Rows of symbols: a text, and a grid of K streams of codes where there is one: behind the text, or, where
    the text keeps places for them, at its positions (S = T, stage voice).

    Labels stand at the symbol that they ask for: labels[t] is ids[t], or -100 where nothing is learned.

    ids_BT, labels_BT           int64, the text
    keep_BT                     bool, True = a real position of the text, None = all are
    documents_BT                int64, number of the packed document (masks.SHARED: of all), None = one a row
    media                       by modality, in the order of their pads in the text
    codes_BKS, code_labels_BKS  int64, the steps of the grid with what fills it; None = the text is all
    frames_B                    int64, code frames of each row
    hidden_BTD                  float, another model's states at the text's positions
    speaker_B                   int64, numbers of voices
    """

    sample_ids: list[str]
    ids_BT: Tensor
    labels_BT: Tensor
    keep_BT: Tensor | None = None
    documents_BT: Tensor | None = None
    media: Media = field(default_factory=dict)
    codes_BKS: Tensor | None = None
    code_labels_BKS: Tensor | None = None
    frames_B: Tensor | None = None
    hidden_BTD: Tensor | None = None
    speaker_B: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions of a row, or code frames of the longest one."""
        return self.ids_BT.shape[1] if self.frames_B is None else int(self.frames_B.max())

    @property
    def labelled_rows(self) -> int:
        """Rows that teach something."""
        has_label_B = (self.labels_BT != IGNORE).any(1)
        if self.code_labels_BKS is not None:
            has_label_B |= (self.code_labels_BKS != IGNORE).flatten(1).any(1)
        return int(has_label_B.sum())

    @property
    def is_real_BT(self) -> Tensor:
        """bool (B, T), True = a token of the text, not padding."""
        if self.keep_BT is not None:
            return self.keep_BT
        if self.documents_BT is not None:
            return self.documents_BT != NO_DOCUMENT
        return torch.ones_like(self.ids_BT, dtype=torch.bool)
