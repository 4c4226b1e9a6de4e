"""Continue sequences: batched, cached, from ids or from fused embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from muomni.errors import ContextError, ShapeError, TokenRangeError
from muomni.infer.decode import decode
from muomni.infer.sampling import SamplingConfig, pick
from muomni.models.causal import CausalLM
from muomni.nn.head import Ranges

GREEDY = SamplingConfig()
Allowed = Callable[[Sequence[Sequence[int]]], Tensor]
"""(ids said so far by each row) -> bool (B,V) over all ids, True = may follow; an id or more in every row."""


def generate(
    model: CausalLM,
    prompt: Tensor,
    *,
    max_new: int,
    keep_BT: Tensor | None = None,
    sampling: SamplingConfig = GREEDY,
    stop_ids: Collection[int] = (),
    on_token: Callable[[int, int], None] | None = None,
    cache: Any = None,
    legal: Ranges | None = None,
    allowed: Allowed | None = None,
) -> list[list[int]]:
    """The ids that follow each row, without the stop id that ended it.

    Takes   prompt int64 ids (B,T) or embeddings (B,T,D); keep_BT bool, True = a real position (padding left
            or right); on_token(row, id) is told every id as it comes; cache: what stood before the prompt;
            legal: no other ids are chosen (a table may have more rows than its tokenizer has ids), None = all
            may be; allowed: those of them that may follow in each row, as a grammar has it.
    Raises  ContextError if prompt and max_new do not fit the model's context; ShapeError for a prompt of
            another shape, or without a real position in some row; TokenRangeError where no id may follow;
            CheckpointError where the scores of the next token are no numbers.
    """
    rows: list[list[int]] = [[] for _ in range(prompt.shape[0])]
    for ids in _steps(model, prompt, max_new, keep_BT, sampling, stop_ids, cache, legal, allowed):
        for row, each in enumerate(ids):
            if each is not None:
                rows[row].append(each)
                if on_token is not None:
                    on_token(row, each)
    return rows


def stream(
    model: CausalLM,
    prompt: Tensor,
    *,
    max_new: int,
    sampling: SamplingConfig = GREEDY,
    stop_ids: Collection[int] = (),
    cache: Any = None,
    legal: Ranges | None = None,
    allowed: Allowed | None = None,
) -> Iterator[int]:
    """The ids that follow one sequence (prompt (1,T) or (1,T,D)), each as soon as it is known; takes and
    raises as `generate`."""
    if prompt.shape[0] != 1:
        raise ShapeError(
            f"stream follows one row, got a batch of {prompt.shape[0]}", hint="use generate with on_token"
        )
    for (each,) in _steps(model, prompt, max_new, None, sampling, stop_ids, cache, legal, allowed):
        if each is not None:
            yield each


class Text:
    """Text as a grid of one stream (see `decode.Layout`): a row ends with one of `stop_ids`."""

    def __init__(
        self,
        steps: int,
        sampling: SamplingConfig,
        stop_ids: Collection[int],
        legal: Ranges | None,
        allowed: Allowed | None,
        seen_BV: Tensor | None,
        device: torch.device,
    ) -> None:
        self.steps, self.sampling, self.stop_ids = steps, sampling, frozenset(stop_ids)
        self.legal, self.allowed = [legal], allowed
        self.ids_V = (
            None if legal is None else torch.tensor([each for ids in legal for each in ids], device=device)
        )
        self.generator = torch.Generator(device).manual_seed(sampling.seed)
        self.seen_BV = seen_BV if seen_BV is None else self._of_legal(seen_BV)
        self.said: list[list[int]] = []
        self.ended: list[bool] = []

    def name(self, step: int) -> str:
        """See Layout."""
        return f"token {step}" if step else "the next token"

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """The id of each row, of those that have ended too."""
        (scores_BV,) = scores
        self.said = self.said or [[] for _ in scores_BV]
        if self.allowed is not None:
            all_BV = self.allowed(self.said)
            allowed_BV = self._of_legal(all_BV.to(scores_BV.device))
            if not bool(allowed_BV.any(1).all()):
                raise TokenRangeError(
                    f"{self.name(step)}: no id is allowed in row {int(allowed_BV.any(1).int().argmin())}"
                )
            scores_BV = scores_BV.masked_fill(~allowed_BV, -torch.inf)
        place_B = pick(scores_BV, self.sampling, generator=self.generator, seen_BV=self.seen_BV)
        if self.seen_BV is not None:
            self.seen_BV.scatter_(1, place_B[:, None], True)
        ids_B = place_B if self.ids_V is None else self.ids_V[place_B]
        self.take(ids_B.tolist())
        return ids_B[:, None]

    @property
    def is_plain(self) -> bool:
        """Whether each id is the legal one of the highest score, whatever was said before."""
        return self.sampling.temperature == 0 and self.seen_BV is None and self.allowed is None

    def take(self, ids: list[int]) -> None:
        """Note the id that each row says next."""
        self.ids = ids
        self.said = self.said or [[] for _ in ids]
        for row, each in zip(self.said, ids):
            row.append(each)
        ended = self.ended or [False] * len(ids)
        self.ended = [is_over or each in self.stop_ids for is_over, each in zip(ended, ids)]

    def _of_legal(self, mask_BV: Tensor) -> Tensor:
        return mask_BV if self.ids_V is None else mask_BV[:, self.ids_V]

    @property
    def is_over(self) -> bool:
        """See Layout."""
        return all(self.ended)


def _steps(
    model: CausalLM,
    prompt: Tensor,
    max_new: int,
    keep_BT: Tensor | None,
    sampling: SamplingConfig,
    stop_ids: Collection[int],
    cache: Any,
    legal: Ranges | None,
    allowed: Allowed | None,
) -> Iterator[list[int | None]]:
    """Each step's ids; None for a row that has ended."""
    checked(model, prompt, max_new, keep_BT, cache)
    with torch.inference_mode():
        seen_BV = seen(prompt, keep_BT, model.head.size) if sampling.repetition_penalty != 1 else None
        x_BTD = model.embed(prompt) if prompt.dim() == 2 else prompt
    text = Text(max_new, sampling, stop_ids, legal, allowed, seen_BV, prompt.device)
    for _ in decode(model, x_BTD, text, keep_BT=keep_BT, cache=cache):
        yield [None if is_over else each for each, is_over in zip(text.ids, text.ended)]


def checked(
    model: CausalLM, prompt: Tensor, max_new: int, keep_BT: Tensor | None = None, cache: Any = None
) -> None:
    """See that a prompt can be continued; raises as `generate`."""
    if prompt.dim() not in (2, 3) or 0 in prompt.shape:
        raise ShapeError(
            f"a prompt is ids (B,T) or embeddings (B,T,D) with at least one position, got {tuple(prompt.shape)}"
        )
    if keep_BT is not None and not bool(keep_BT.any(1).all()):
        raise ShapeError("every row of a prompt needs at least one real position")
    before = 0 if cache is None else cache.length
    if before + prompt.shape[1] + max_new > model.ctx_len:
        needed = (
            f"{before} + {prompt.shape[1]} + {max_new} new"
            if before
            else f"{prompt.shape[1]} + {max_new} new"
        )
        raise ContextError(
            f"{needed} positions do not fit ctx_len {model.ctx_len}",
            hint="shorten the prompt or lower max_new",
        )


def seen(prompt: Tensor, keep_BT: Tensor | None, size: int) -> Tensor:
    """bool (B,size), the ids that stand in the prompt; none of an embedded one, whose ids nobody knows."""
    seen_BV = torch.zeros(len(prompt), size, dtype=torch.bool, device=prompt.device)
    if prompt.dim() == 2:
        real = torch.ones_like(prompt, dtype=torch.bool) if keep_BT is None else keep_BT
        seen_BV = torch.zeros_like(seen_BV, dtype=torch.int64).scatter_add_(1, prompt, real.long()) > 0
    return seen_BV
