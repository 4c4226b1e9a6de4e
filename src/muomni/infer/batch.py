"""Answers of many that share each step and come and go on their own, each as if it were alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from muomni.infer.decode import parts
from muomni.infer.generate import GREEDY, Text, checked, seen
from muomni.infer.sampling import SamplingConfig
from muomni.models import finite
from muomni.models.causal import CausalLM
from muomni.models.decoder import Decoder
from muomni.nn.cache import KVCache
from muomni.nn.head import Ranges
from muomni.nn.row_cache import RowCache

PROBED = 16  # rows whose bits are compared
# Body -> whether its steps of many rows have the bits of lone ones: a matter of sizes and chip, not of numbers.
_PROBED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(eq=False)
class Row:
    """One answer that is wanted.

    text    chooses its ids: its own sampling, generator, and ids said so far
    unread  parts of its prompt, the next one first
    """

    text: Text
    unread: deque[Tensor]
    cache: KVCache | None
    id: int | None = None  # the newest

    @property
    def is_over(self) -> bool:
        """Whether no id follows."""
        return bool(self.text.said) and (self.text.is_over or len(self.text.said[0]) == self.text.steps)


class News(NamedTuple):
    """What a step brought a row: an id with the scores (V,) that it was chosen by, or why the row has
    failed. An id of the row's `stop_ids` ended it, and is no part of the answer."""

    row: Row
    id: int = -1
    scores_V: Tensor | None = None
    error: Exception | None = None


@dataclass
class Batch:
    """Rows at work over one model. Every `step` reads some of a prompt and gives each other row an id.

    Its model becomes steady (`Decoder.is_steady`), and a row's ids are those of `generate.stream` for it
    alone, whoever else is there. For that each sum must be taken in the order in which it is taken for the
    lone row, which products of matrices do not promise: they choose a way by size. What was found on x86
    (MKL, float32, one thread), and what the code makes of it:

    - A product of one row sums in another order than one of several, but those of 2 to 64 rows give a row the
      same bits at any place, where the matrix lies inputs by outputs. So lone rows are computed as two
      (`Stepper.read`).
    - Attention over S slots sums by S. With S rounded up to a multiple of 16 and the rest hidden, the bits do
      not depend on how many more are hidden (`KVCache`, `RowCache`). So rows of other lengths share it.
    - A prompt is read alone, in the parts that a lone request reads it in.

    None of it is promised for another chip or number of threads: before the first step it is tried on the
    very weights, and where a bit differs (so with experts, in bf16, on a GPU) rows take their steps one by one:
    as slow as alone, and as right.
    """

    model: CausalLM
    legal: Ranges | None = None
    stop_ids: Collection[int] = ()
    reading: deque[Row] = field(default_factory=deque)
    rows: list[Row] = field(default_factory=list)
    cache: RowCache = field(default_factory=RowCache)

    def __post_init__(self) -> None:
        if isinstance(self.model, Decoder):
            self.model.steady()

    def __len__(self) -> int:
        return len(self.reading) + len(self.rows)

    def join(self, prompt: Tensor, max_new: int, sampling: SamplingConfig = GREEDY) -> Row:
        """A new row, whose prompt (1,T) ids or (1,T,D) embeddings is read from the next step on.

        Raises  ContextError and ShapeError as `generate.generate`.
        """
        checked(self.model, prompt, max_new)
        with torch.inference_mode():
            seen_BV = seen(prompt, None, self.model.head.size) if sampling.repetition_penalty != 1 else None
            x_BTD = self.model.embed(prompt) if prompt.dim() == 2 else prompt
            cache = self.model.new_cache(1, prompt.shape[1] + max_new)
        text = Text(max_new, sampling, self.stop_ids, self.legal, None, seen_BV, prompt.device)
        row = Row(text, deque(parts(self.model, x_BTD)), cache)
        self.reading.append(row)
        return row

    def leave(self, row: Row) -> None:
        """End a row, whatever it was at; nothing of it stays."""
        if row in self.reading:
            self.reading.remove(row)
        elif row in self.rows:
            at = self.rows.index(row)
            if row.cache is None:
                with torch.inference_mode():
                    self.cache.leave(at)
                self.rows[at] = self.rows[-1]
                self.rows.pop()
            else:
                self.rows.pop(at)
        row.cache = None
        row.unread.clear()

    def step(self) -> list[News]:
        """An id for each row that has read its prompt, and as much of the prompts, in turns, as fits in a
        part. Rows that are over, or have failed, have left."""
        if not self:
            return []
        with torch.inference_mode():
            read = self.model.reading([self.legal])
            news = self._continue(read) if self.rows else []
            news += self._read_on(read)
        for each in news:
            if each.error is not None or each.row.is_over:
                self.leave(each.row)
        return news

    def _read_on(self, read: Any) -> list[News]:
        news: list[News] = []
        left = self.model.part or 1
        while self.reading and left > 0:
            row = self.reading.popleft()
            part = row.unread.popleft()
            left -= part.shape[1]
            try:
                (scores_BV,) = read(part, row.cache, None)
                if row.unread:
                    self.reading.append(row)
                    continue
                finite.demand(scores_BV, self.model, f"scores of {row.text.name(0)}")
                news.append(self._choose(row, scores_BV))
            except Exception as error:  # it is the row's own, and the others go on
                row.cache = None
                news.append(News(row, error=error))
                continue
            if not row.is_over and news[-1].error is None:
                self._settle(row)
        return news

    def _settle(self, row: Row) -> None:
        """Its prompt is read: from now on it takes its steps with the others."""
        assert row.cache is not None
        if self.is_together:
            self.cache.join(row.cache)
            row.cache = None
        self.rows.append(row)

    @property
    def is_together(self) -> bool:
        """Whether rows share their steps: where that changes no bit."""
        return together(self.model, self.legal)

    def _continue(self, read: Any) -> list[News]:
        """The next id of each row that has one."""
        ids_B1 = torch.tensor([[row.id] for row in self.rows], device=self.rows[0].text.generator.device)
        try:
            x_BTD = self.model.embed(ids_B1)
            if self.rows[0].cache is None:
                (scores_BV,) = read(x_BTD, self.cache, None)
            else:
                each_BV = [read(x_BTD[at : at + 1], row.cache, None)[0] for at, row in enumerate(self.rows)]
                scores_BV = torch.cat(each_BV)
        except Exception as error:  # such as no memory: of all, for nobody knows whose it is
            return [News(row, error=error) for row in self.rows]
        is_sound = bool(scores_BV.sum().isfinite())
        places = scores_BV.argmax(-1).tolist()
        news = []
        for at, row in enumerate(self.rows):
            if row.text.is_plain and is_sound:
                ids = row.text.ids_V
                row.id = places[at] if ids is None else self._numbers(ids)[places[at]]
                row.text.take([row.id])
                news.append(News(row, row.id, scores_BV[at]))
                continue
            scores_1V = scores_BV[at : at + 1]
            try:
                if not is_sound:
                    finite.demand(scores_1V, self.model, f"scores of {row.text.name(len(row.text.said[0]))}")
                news.append(self._choose(row, scores_1V))
            except Exception as error:
                news.append(News(row, error=error))
        return news

    def _choose(self, row: Row, scores_BV: Tensor) -> News:
        """One row's next id."""
        row.text.column(len(row.text.said[0]) if row.text.said else 0, [scores_BV])
        (row.id,) = row.text.ids
        return News(row, row.id, scores_BV[0])

    def _numbers(self, ids_V: Tensor) -> list[int]:
        if not hasattr(self, "_legal_ids"):
            self._legal_ids: list[int] = ids_V.tolist()
        return self._legal_ids


def together(model: CausalLM, legal: Ranges | None = None) -> bool:
    """Whether steps of many rows give each the bits of a step alone: tried once a model, on random rows of
    different lengths."""
    if not isinstance(model, Decoder):
        return False
    if model.body not in _PROBED:
        model.steady()
        _PROBED[model.body] = _probe(model, legal)
    return _PROBED[model.body]


@torch.inference_mode()
def _probe(model: Decoder, legal: Ranges | None) -> bool:
    read, generator = model.reading([legal]), torch.Generator().manual_seed(0)
    config, weight = model.config, model.table.weight
    lengths = torch.randint(1, min(100, config.ctx_len - 2), (PROBED,), generator=generator).tolist()

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator) * model.embedding_rms
        return values.to(weight.device, weight.dtype)

    starts = [drawn(1, length, config.width) for length in lengths]
    x_BTD = drawn(PROBED, 1, config.width)
    caches = []
    for start in starts:
        caches.append(model.new_cache(1, start.shape[1] + 1))
        read(start, caches[-1], None)
    if not all(each.block > 1 for each in caches):
        return False
    shared = {size: RowCache() for size in (2, 3, 7, PROBED)}
    for size, cache in shared.items():
        for each in caches[PROBED - size :]:
            cache.join(each)
    alone_BV = torch.cat([read(x_BTD[at : at + 1], each, None)[0] for at, each in enumerate(caches)])
    return all(
        read(x_BTD[PROBED - size :], cache, None)[0].equal(alone_BV[PROBED - size :])
        for size, cache in shared.items()
    )
