"""Rows of tokens as a dataset: tasks over text and media from a set of shards, and texts replayed beside
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.data.corpus import Rows
from muomni.data.tokenized.index import COLUMNS, ShardSet
from muomni.errors import DataError
from muomni.tokens import sequences
from muomni.tokens.sequences import TASKS, TokenRow
from muomni.tokens.space import TokenSpace

TEXT = "text"  # the task of a replayed text
REVERSED = {"i2t": "t2i", "t2i": "i2t", "a2t": "t2a", "t2a": "a2t"}
FRAMING_IDS = 5  # start and end of both spans, and what asks for the second


@dataclass(frozen=True)
class TokenItem:
    """A row with its name and task; ids and labels int64, (T,) or (K, T)."""

    sample_id: str
    task: str
    ids: Tensor
    labels: Tensor


class TokenRows:
    """The rows of one side: for each task those of its samples, block by block, then the replayed texts.

    A caption of an image serves to read it (i2t) and to draw it (t2i), a transcript both ways as well, where
    both tasks are wanted.

    Takes   shards: a side of a set; tasks: those wanted; max_len: most columns of a row; texts: packed rows
            of text; drop_prompts: the share of items that write an image or a sound and come without the
            words that ask for it. Source: Ho & Salimans 2022 (what guidance needs).
    """

    def __init__(
        self,
        shards: ShardSet,
        space: TokenSpace,
        tasks: Sequence[str],
        max_len: int,
        texts: Rows | None = None,
        drop_prompts: float = 0.0,
    ) -> None:
        self.drop_prompts = drop_prompts
        self.shards, self.space, self.max_len, self.texts = shards, space, max_len, texts
        own = self._tasks()
        self.places: list[tuple[str, int]] = []
        self.blocks: dict[str, int] = {}  # rows of each task, in this order
        for task in tasks:
            places = [place for place, name in enumerate(own) if task in (name, REVERSED[name])]
            self.places += [(task, place) for place in places]
            self.blocks[task] = len(places)
        if texts is not None:
            self.blocks[TEXT] = len(texts)

    def _tasks(self) -> list[str]:
        """The task of each sample, from the index alone: which medium it has, and on which side its words
        stand."""
        columns = {
            name: self.shards.rows[:, COLUMNS.index(name)]
            for name in ("text_in", "text_out", "image", "audio")
        }
        is_image_N, is_read_N = columns["image"] > 0, columns["text_out"] > 0
        names = np.where(is_image_N, np.where(is_read_N, "i2t", "t2i"), np.where(is_read_N, "a2t", "t2a"))
        tasks: list[str] = names.tolist()
        return tasks

    def __len__(self) -> int:
        return sum(self.blocks.values())

    def lengths(self) -> NDArray[np.int64]:
        """Columns of each row, from the index alone."""
        columns = {
            name: self.shards.rows[:, COLUMNS.index(name)]
            for name in ("text_in", "text_out", "image", "audio")
        }
        words_N = np.where(columns["text_out"] > 0, columns["text_out"], columns["text_in"])
        media_N = sum(self._columns(modality, columns[modality]) for modality in ("image", "audio"))
        own_N = (words_N + media_N + FRAMING_IDS)[[place for _, place in self.places]]
        texts_N = (
            []
            if self.texts is None
            else [
                sum(stop - start for start, stop in self.texts.packed.pieces(i))
                for i in range(len(self.texts))
            ]
        )
        return np.concatenate([own_N, np.asarray(texts_N, np.int64)])

    def _columns(self, modality: str, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The columns that so many ids of a medium take; where books are delayed, the end stands beside their
        tail."""
        has_codec = any(entry.modality == modality for entry in self.space.codecs)
        lags = self.space.lags(modality) if has_codec else None
        if lags is None:
            return ids_N
        return np.where(ids_N > 0, ids_N // len(lags) - (max(lags) > 0), 0)

    def name(self, index: int) -> str:
        """The task and the sample's key, or the number of a replayed text."""
        if index >= len(self.places):
            return f"{TEXT}-{index - len(self.places)}"
        task, place = self.places[index]
        return f"{task}-{int(self.shards.rows[place, 1]):08d}"

    def item(self, index: int, rng: np.random.Generator) -> TokenItem:
        """One row.

        Raises  DataError for a torn sample, or one that is too long.
        """
        if index >= len(self.places):
            assert self.texts is not None
            _, row = self.texts.item(index - len(self.places), rng)
            is_real_T = row.documents_T >= 0
            ids, labels = (torch.from_numpy(values_T[is_real_T]) for values_T in (row.ids_T, row.labels_T))
            return TokenItem(
                self.name(index),
                TEXT,
                *(self._in_stream_0(each, fill) for each, fill in ((ids, self.space.pad), (labels, -100))),
            )
        built = self.row(index)
        if self.drop_prompts and TASKS[built.task].writes != "text" and rng.random() < self.drop_prompts:
            built = sequences.without_words(built)
        return TokenItem(self.name(index), built.task, built.ids, built.labels)

    def _in_stream_0(self, values_T: Tensor, fill: int) -> Tensor:
        if self.space.streams == 1:
            return values_T
        values_KT = values_T.new_full((self.space.streams, len(values_T)), fill)
        values_KT[0] = values_T
        return values_KT

    def parts(self, index: int) -> tuple[list[int], Tensor]:
        """The words and the medium of a task's sample, as ids, the medium as `sequences.build` takes it.

        Raises  DataError for a torn sample.
        """
        task, place = self.places[index]
        modality, record = TASKS[task].medium, self.shards.read(place)
        ids = torch.from_numpy(record.ids[modality].astype(np.int64))
        medium = (
            ids
            if self.space.lags(modality) is None
            else ids.reshape(self.space.codec(modality).codebooks, -1)
        )
        words = record.ids["text_out"] if len(record.ids["text_out"]) else record.ids["text_in"]
        return words.tolist(), medium

    def row(self, index: int) -> TokenRow:
        """The row of a task's sample, with its spans; raises as `item`."""
        task, place = self.places[index]
        try:
            return sequences.build(self.space, task, *self.parts(index), max_len=self.max_len)
        except DataError as error:
            raise DataError(
                error.reason, f"{self.shards.where(place)}: {error.message}", hint=error.hint
            ) from error

    def sample(self, index: int) -> int:
        """The number of a task's sample on its side of the corpus."""
        return int(self.shards.rows[self.places[index][1], 1])


def shares(blocks: Mapping[str, int], weights: Mapping[str, float]) -> list[tuple[float, int]]:
    """(weight of each sample, size) of each block, by which tasks are drawn in the ratio of their weights
    whatever their sizes."""
    total = sum(blocks.values())
    return [(weights[task] * total / size, size) for task, size in blocks.items() if size]
