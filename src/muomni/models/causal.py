"""What training and decoding know of a causal language model, whoever made it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from muomni.nn.head import Head


class CausalLM(nn.Module):
    """A causal body that reads embeddings: our Decoder, or another library's network behind these few methods.

    ctx_len  longest sequence, in positions
    head     what turns hidden states into scores of the next symbol, or into the nats of labels
    """

    ctx_len: int
    head: Head

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Embeddings (B,T,D) of ids (B,T) int64; of a grid of K streams, (B,K,T)."""
        raise NotImplementedError

    def hidden(self, x_BTD: Tensor, *, keep_BT: Tensor | None = None, cache: Any = None, **how: Any) -> Tensor:
        """States (B,T,D) from which the head reads the symbol after each position.

        Takes   keep_BT bool, True = a real position, None: all are; cache from `new_cache`: x_BTD goes on after what it holds;
                documents_BT ids of packed documents, where the model knows them, and other arguments of its own.
        """
        raise NotImplementedError

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for `batch` rows of up to `capacity` positions; its `length` says how many it holds."""
        raise NotImplementedError

    def logits(self, h: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.head.logits(h)

    def forward(self, ids_BT: Tensor, **how: Any) -> Tensor:
        """ids (B,T) -> logits (B,T,V); `how` as in `hidden`."""
        return self.logits(self.hidden(self.embed(ids_BT), **how))
