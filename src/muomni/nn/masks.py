"""Attention masks: causal, padding, packed documents, prefixes."""

from __future__ import annotations

import torch
from torch import Tensor

SHARED = -2  # in documents_BT: positions at a row's beginning that each of its documents goes on from


def build(
    length: int,
    *,
    keep_BT: Tensor | None = None,
    documents_BT: Tensor | None = None,
    causal: bool = False,
    prefix_B: Tensor | None = None,
) -> Tensor | None:
    """The attention mask of one forward, or None where nothing is hidden but (with `causal`) the future.

    Takes   keep_BT bool, True = a real position; documents_BT ids of packed documents, alike within one
            (SHARED ones are seen by all); prefix_B the number of first positions that all may see (prefix-LM;
            needs `causal`).
    Gives   bool (B or 1, 1, T, T), [b, 0, t, s] True = t may look at s; a position that may see nothing sees
            itself, so that no softmax is empty. None: attend with `causal` alone, the fast path.
    """
    if keep_BT is not None and bool(keep_BT.all()):
        keep_BT = None
    if documents_BT is not None and bool((documents_BT == documents_BT[:, :1]).all()):
        documents_BT = None
    conditions = [each for each in (keep_BT, documents_BT, prefix_B) if each is not None]
    if not conditions:
        return None
    device = conditions[0].device
    mask = torch.ones(1, length, length, dtype=torch.bool, device=device)
    if causal:
        mask = mask.tril()
        if prefix_B is not None:
            mask = mask | (torch.arange(length, device=device) < prefix_B[:, None])[:, None, :]
    if documents_BT is not None:
        mask = mask & (
            (documents_BT[:, :, None] == documents_BT[:, None, :]) | (documents_BT == SHARED)[:, None, :]
        )
    if keep_BT is not None:
        mask = mask & keep_BT[:, None, :]
        blind = ~mask.any(-1, keepdim=True)
        mask = mask | (blind & torch.eye(length, dtype=torch.bool, device=device))
    return mask[:, None]


def positions(
    length: int,
    *,
    keep_BT: Tensor | None = None,
    documents_BT: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Sequential positions that skip padding and restart with every document, after the SHARED ones where
    there are some.

    Gives   int64 (T,) where nothing is given, else (B,T).
    """
    if keep_BT is None and documents_BT is None:
        return torch.arange(length, device=device)
    if keep_BT is None:
        assert documents_BT is not None
        keep_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    before = keep_BT.long().cumsum(1) - keep_BT.long()
    if documents_BT is None:
        return before
    starts = torch.ones_like(keep_BT)
    starts[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    shared_B1 = ((documents_BT == SHARED) & keep_BT).sum(1, keepdim=True)
    return before - (before * starts).cummax(1).values + shared_B1 * (documents_BT != SHARED)
