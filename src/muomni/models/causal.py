"""The protocol of a causal language model: all that training and decoding know of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muomni.nn.head import Head, Ranges

Read = Callable[[Tensor, Any, Tensor | None], list[Tensor]]
"""(embeddings (B,T,D), cache of what stands before them, keep (B,T) or None) -> for each stream the scores
(B,V) of what follows each row's last real position."""


class CausalLM(nn.Module):
    """A causal body that reads embeddings: our Decoder, or another library's network behind these few
    methods.

    ctx_len  longest sequence, in positions
    head     what turns hidden states into scores of the next symbol, or into the nats of labels
    part     positions of a lone prompt that are read at a time; None: all of them
    """

    ctx_len: int
    head: Head
    part: int | None = None

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Embeddings (B,T,D) of ids (B,T) int64; of a grid of K streams, (B,K,T)."""
        raise NotImplementedError

    def hidden(
        self, x_BTD: Tensor, *, keep_BT: Tensor | None = None, cache: Any = None, **how: Any
    ) -> Tensor:
        """States (B,T,D) from which the head reads the symbol after each position.

        Takes   keep_BT bool, True = a real position, None: all are; cache from `new_cache`: x_BTD goes on
                after what it holds; documents_BT ids of packed documents, where the model knows them, and
                other arguments of its own.
        """
        raise NotImplementedError

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for `batch` rows of up to `capacity` positions; its `length` says how many it
        holds."""
        raise NotImplementedError

    @property
    def adapted(self) -> nn.Module:
        """The module by whose names an adapter's files speak: the model, or the network of another library
        within it."""
        return self

    def projections(self) -> Iterator[tuple[str, nn.Linear]]:
        """The linear layers beside which an adapter may stand, by their names in `adapted`."""
        raise NotImplementedError

    def reading(self, legal: Sequence[Ranges | None] | None = None) -> Read:
        """How decoding reads a prompt and then one place after another; a model may know a faster way than
        `hidden`.

        Takes   legal: of each stream the ids whose scores are wanted, None = all.
        """
        by_stream = [None] * self.head.streams if legal is None else legal

        def read(x_BTD: Tensor, cache: Any, keep_BT: Tensor | None = None) -> list[Tensor]:
            h_BD = last(self.hidden(x_BTD, keep_BT=keep_BT, cache=cache), keep_BT)
            return [self.head.logits(h_BD, stream, ids) for stream, ids in enumerate(by_stream)]

        return read

    def logits(self, h: Tensor, stream: int = 0) -> Tensor:
        """(..., D) -> (..., V) of a stream."""
        return self.head.logits(h, stream)

    def forward(self, ids_BT: Tensor, *given: Any, **how: Any) -> Tensor:
        """ids (B,T) -> logits (B,T,V); `how` as in `hidden`."""
        return self.logits(self.hidden(self.embed(ids_BT), **how))


def last(h_BTD: Tensor, keep_BT: Tensor | None = None) -> Tensor:
    """(B,D) of each row's last real position."""
    if keep_BT is None:
        return h_BTD[:, -1]
    places = torch.arange(keep_BT.shape[1], device=keep_BT.device)
    last_B = torch.where(keep_BT, places, -1).amax(1)
    return h_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
