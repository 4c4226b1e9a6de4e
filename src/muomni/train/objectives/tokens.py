"""The next token of rows over text and media tokens, a term for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.batch import SequenceBatch
from muomni.data.token_rows import TokenItem
from muomni.models.rows import TokenModel
from muomni.nn.head import IGNORE, Nats, is_in, row_means
from muomni.tokens import grammar
from muomni.tokens.grammar import Legal
from muomni.tokens.space import FRAMING, TokenSpace
from muomni.train.objective import Probe, Term, with_perplexity, without_misses
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import Symbols


@dataclass
class TokenBatch(SequenceBatch):
    """Rows of tasks; tasks names that of each row."""

    tasks: list[str] = field(default_factory=list)


class TokenTasks(NextToken):
    """Cross entropy of the labelled tokens of rows of several tasks; each task is a term with a weight of its
    own.

    weights   by task
    legal     where given, the probability of a target is shared by the ids that may stand there alone
              (`choices`)
    ramp      by task, updates over which its weight rises from 0; such tasks join late
    """

    updates: Tensor

    def __init__(
        self,
        model: TokenModel,
        weights: Mapping[str, float],
        *,
        legal: Sequence[Legal] | None = None,
        ramp: Mapping[str, int] | None = None,
        frozen_parts: Sequence[str] = (),
    ) -> None:
        super().__init__(
            model,
            frozen_parts=frozen_parts,
            terms={task: Symbols(weight=weight) for task, weight in weights.items()},
        )
        self.model, self.legal, self.ramp = model, legal, dict(ramp or {})
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # done so far

    def _asked_of(self, batch: TokenBatch) -> dict[str, Tensor]:
        """The targets of each task, (B, T-1), -100 in rows of the others."""
        (labels_BT,) = self.labels(batch)
        found = {}
        for task in self.terms:
            is_own_B = torch.tensor([each == task for each in batch.tasks], device=labels_BT.device)
            found[task] = labels_BT.masked_fill(~is_own_B[:, None], IGNORE)
        return found

    def counts(self, batch: TokenBatch) -> dict[str, int]:  # type: ignore[override]
        """Targets of each task, and all of them for the count of misses."""
        found = {task: int((labels_BT != IGNORE).sum()) for task, labels_BT in self._asked_of(batch).items()}
        return {**found, "misses": sum(found.values())}

    def scored(self, h_BSD: Tensor, batch: TokenBatch) -> dict[str, Nats]:  # type: ignore[override]
        """The nats of each task."""
        return {task: self._nats(h_BSD, labels_BT) for task, labels_BT in self._asked_of(batch).items()}

    def _nats(self, h_BTD: Tensor, labels_BT: Tensor) -> Nats:
        if self.legal is None:
            return self.head.nats(h_BTD, labels_BT)
        parts = []
        left_BT = labels_BT
        for ids in self.legal:
            is_here_BT = is_in(left_BT, ids)
            parts.append(self.head.nats(h_BTD, left_BT.masked_fill(~is_here_BT, IGNORE), legal=ids))
            left_BT = left_BT.masked_fill(is_here_BT, IGNORE)
        # What is left has no choice: a start token, the end of an image.
        forced = int((left_BT != IGNORE).sum())
        total = torch.stack([part.total for part in parts]).sum()
        correct = torch.stack([part.correct for part in parts]).sum()
        return Nats(total, sum(part.num_labels for part in parts) + forced, correct + forced)

    @property
    def _step(self) -> int:
        return int(self.updates)

    def weighed(self, scored: Mapping[str, Nats]) -> dict[str, Term]:
        """Nats as terms; tasks that join late count by the updates that are done."""
        terms = {}
        for task, each in scored.items():
            late = self.ramp.get(task, 0)
            share = min(1.0, self._step / late) if late and self.training else 1.0
            terms[task] = Term(each.total, each.num_labels, self.terms[task].weight * share)
        return terms

    def warm_start(self, batch: Any) -> None:
        """All tasks have joined."""
        self.updates.fill_(max([0, *self.ramp.values()]))

    def after_step(self, step: int) -> None:
        """Count the updates."""
        super().after_step(step)
        self.updates.fill_(step)

    @torch.no_grad()
    def nats(self, batch: TokenBatch) -> Tensor:  # type: ignore[override]
        """Mean nats of each row's labels over all ids, (B,) float32; 0 where a row has none."""
        (labels_BT,) = self.labels(batch)
        nats_N, rows_N = self.head.each_nats(self.states(batch), labels_BT)
        return row_means(nats_N, rows_N, len(labels_BT))

    def describe(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nats and perplexity of each task, and the accuracy over all."""
        rest, shares = without_misses(means)
        return {**with_perplexity(rest, {task: f"{task}_perplexity" for task in self.terms}), **shares}

    def probes(self, batch: TokenBatch, count: int, rng: np.random.Generator) -> list[Probe]:  # type: ignore[override]
        """Labelled tokens, each by the term of its row's task. The token before a probe must matter, so
        forced ones are left out."""
        found = []
        for probe in super().probes(self._unforced(batch), count, rng):
            row = int((probe.asked.labels_BT != IGNORE).any(1).nonzero()[0])
            found.append(replace(probe, terms=(batch.tasks[row],)))
        return found

    def _with_others(self, batch: TokenBatch, where_BT: Tensor, rng: np.random.Generator) -> TokenBatch:  # type: ignore[override]
        """The batch with other words in the given places: at first new rows are all but equal, so one of them
        would change nothing."""
        size = self.model.space.text_size
        drawn_BT = torch.from_numpy(rng.integers(0, size, tuple(batch.ids_BT.shape))).to(batch.ids_BT)
        drawn_BT = torch.where(drawn_BT == batch.ids_BT, (drawn_BT + 1) % size, drawn_BT)
        return replace(batch, ids_BT=torch.where(where_BT, drawn_BT, batch.ids_BT))

    def _unforced(self, batch: TokenBatch) -> TokenBatch:
        special = self.model.space.region("special").ids
        is_special_BT = (batch.labels_BT >= special.start) & (batch.labels_BT < special.stop)
        return replace(batch, labels_BT=batch.labels_BT.masked_fill(is_special_BT, IGNORE))


def choices(space: TokenSpace, words: Sequence[range]) -> list[Legal]:
    """The sets of ids among which a writer chooses: a word or the end of the text, the code of a book, that
    or the end of a sound.

    Every target that is in none of them has no choice. Sets that share an id stand in the order in which they
    claim it.
    """
    sets = [grammar.union([(*words, _one(space.special(FRAMING["text"][2])))])]
    for entry in space.codecs:
        end = _one(space.special(FRAMING[entry.modality][2]))
        for number, book in enumerate(space.books(entry.modality)):
            has_end = number == 0 and entry.grid is None
            sets.append(grammar.union([(book.ids, end)]) if has_end else (book.ids,))
    return sets


def _one(token: int) -> range:
    return range(token, token + 1)


def collate(items: Sequence[TokenItem], pad: int) -> TokenBatch:
    """Rows padded on the right with `pad`: nothing before a place looks at what follows it, so no mask is
    needed for the loss."""
    longest = max(item.ids.shape[-1] for item in items)

    def stack(tensors: Sequence[Tensor], fill: int) -> Tensor:
        return torch.stack([F.pad(each, (0, longest - each.shape[-1]), value=fill) for each in tensors])

    lengths_B = torch.tensor([item.ids.shape[-1] for item in items])
    return TokenBatch(
        [item.sample_id for item in items],
        stack([item.ids for item in items], pad),
        stack([item.labels for item in items], IGNORE),
        torch.arange(longest) < lengths_B[:, None],
        tasks=[item.task for item in items],
    )
