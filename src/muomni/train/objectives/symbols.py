"""The next symbol of each stream, a term a stream or a region of ids: the base of the language objectives.

The only shift between what is read and what is asked stands here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.data.batch import SequenceBatch
from muomni.errors import TokenRangeError
from muomni.nn.head import IGNORE, Head, Nats, Ranges, is_in, row_means
from muomni.train.objective import Objective, Term, with_perplexity


@dataclass(frozen=True)
class Symbols:
    """What one term of the loss asks for.

    stream  of the head
    ids     its labels are those of the stream that lie here; None = all
    legal   ids that share the probability; None = all
    weight  of the term
    """

    stream: int = 0
    ids: Ranges | None = None
    legal: Ranges | None = None
    weight: float = 1.0


def targets(batch: SequenceBatch) -> Tensor:
    """What each position of a text is to predict: the label of the next one in the same document.

    Gives   int64 (B, T-1), -100 where there is none.
    """
    next_BT = batch.labels_BT[:, 1:]
    if batch.documents_BT is not None:
        next_BT = next_BT.masked_fill(batch.documents_BT[:, 1:] != batch.documents_BT[:, :-1], IGNORE)
    return next_BT


def targets_of_codes(batch: SequenceBatch) -> list[Tensor]:
    """By book what each position of a text with codes in its places is to predict: the label of the next one.

    Gives   int64 (B, T-1) each, -100 where there is none.
    """
    assert batch.code_labels_BKS is not None
    return list(batch.code_labels_BKS[..., 1:].unbind(1))


def before(codes_BKS: Tensor) -> Tensor:
    """What is read of a grid, (B, K, S-1): a start stands before its first step, so state s is to predict
    step s."""
    return codes_BKS[..., :-1]


class NextSymbol(Objective):
    """Cross entropy of the next symbol of each stream.

    terms  by name; regions of one stream must hold all labels of it
    """

    def __init__(self, terms: Mapping[str, Symbols]) -> None:
        super().__init__()
        self.terms = dict(terms)

    @property
    def head(self) -> Head:
        """Of the model that is trained."""
        raise NotImplementedError

    def states(self, batch: SequenceBatch) -> Tensor:
        """States (B,S,D), each of what stands before a symbol that may be asked for (`labels`)."""
        raise NotImplementedError

    def labels(self, batch: SequenceBatch) -> list[Tensor]:
        """What each state is to predict, by stream, (B,S) int64, -100 where nothing is asked."""
        return [targets(batch)] if batch.code_labels_BKS is None else list(batch.code_labels_BKS.unbind(1))

    def _asked(self, batch: SequenceBatch) -> Iterator[tuple[str, Symbols, Tensor]]:
        """The labels of each term."""
        by_stream = self.labels(batch)
        for name, term in self.terms.items():
            labels_BS = by_stream[term.stream]
            if term.ids is not None:
                labels_BS = labels_BS.masked_fill(~is_in(labels_BS, term.ids), IGNORE)
            yield name, term, labels_BS

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Labels by term.

        Raises  TokenRangeError where a label lies in no region, or in two.
        """
        found = {name: int((labels_BS != IGNORE).sum()) for name, _, labels_BS in self._asked(batch)}
        if any(term.ids is not None for term in self.terms.values()):
            expected = sum(int((labels_BS != IGNORE).sum()) for labels_BS in self.labels(batch))
            if sum(found.values()) != expected:
                raise TokenRangeError(
                    f"{expected} labels, of which the terms ask for {found}: each must lie in one region"
                )
        return found

    def scored(self, h_BSD: Tensor, batch: SequenceBatch) -> dict[str, Nats]:
        """The nats of each term; the head scores labelled places alone."""
        return {
            name: self.head.nats(h_BSD, labels_BS, term.stream, term.legal)
            for name, term, labels_BS in self._asked(batch)
        }

    def weighed(self, scored: Mapping[str, Nats]) -> dict[str, Term]:
        """Nats as terms of the loss."""
        return {
            name: Term(each.total, each.num_labels, self.terms[name].weight) for name, each in scored.items()
        }

    def forward(self, batch: SequenceBatch) -> dict[str, Term]:
        """Nats of each term."""
        return self.weighed(self.scored(self.states(batch), batch))

    @torch.no_grad()
    def nats(self, batch: SequenceBatch) -> Tensor:
        """Mean nats of each row's labels, (B,) float32, all terms together; 0 where a row has none."""
        h_BSD = self.states(batch)
        found = [
            self.head.each_nats(h_BSD, labels_BS, term.stream, term.legal)
            for _, term, labels_BS in self._asked(batch)
        ]
        nats_N, rows_N = (torch.cat(each) for each in zip(*found))
        return row_means(nats_N, rows_N, len(h_BSD))

    def describe(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nats and perplexity of each term: among how many symbols it wavers."""
        names = {name: "perplexity" if name == "text" else f"{name}_perplexity" for name in self.terms}
        return with_perplexity(means, names)
