"""Continue sequences: batched, cached, from ids or from fused embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from muomni.errors import ContextError, ShapeError
from muomni.infer.sampling import SamplingConfig, pick
from muomni.infer.stepper import Stepper
from muomni.models import finite
from muomni.models.decoder import Decoder
from muomni.nn.cache import KVCache

GREEDY = SamplingConfig()


def generate(
    model: Decoder,
    prompt: Tensor,
    *,
    max_new: int,
    keep_BT: Tensor | None = None,
    sampling: SamplingConfig = GREEDY,
    stop_ids: Collection[int] = (),
    on_token: Callable[[int, int], None] | None = None,
    cache: KVCache | None = None,
    size: int | None = None,
) -> list[list[int]]:
    """The ids that follow each row, without the stop id that ended it.

    Takes   prompt int64 ids (B,T) or embeddings (B,T,D); keep_BT bool, True = a real position (padding left or right);
            on_token(row, id) is told every id as it comes; cache: what stood before the prompt;
            size: ids from here on are never chosen (a table may have more rows than its tokenizer has ids), None: all may be.
    Raises  ContextError if prompt and max_new do not fit the model's context; ShapeError for a prompt of another shape, or without
            a real position in some row; CheckpointError where the scores of the next token are no numbers.
    """
    rows: list[list[int]] = [[] for _ in range(prompt.shape[0])]
    for ids in _steps(model, prompt, max_new, keep_BT, sampling, frozenset(stop_ids), cache, size):
        for row, each in enumerate(ids):
            if each is not None:
                rows[row].append(each)
                if on_token is not None:
                    on_token(row, each)
    return rows


def stream(
    model: Decoder,
    prompt: Tensor,
    *,
    max_new: int,
    sampling: SamplingConfig = GREEDY,
    stop_ids: Collection[int] = (),
    cache: KVCache | None = None,
    size: int | None = None,
) -> Iterator[int]:
    """The ids that follow one sequence (prompt (1,T) or (1,T,D)), each as soon as it is known; takes and raises as `generate`."""
    if prompt.shape[0] != 1:
        raise ShapeError(f"stream follows one row, got a batch of {prompt.shape[0]}", hint="use generate with on_token")
    for (each,) in _steps(model, prompt, max_new, None, sampling, frozenset(stop_ids), cache, size):
        if each is not None:
            yield each


def _steps(
    model: Decoder,
    prompt: Tensor,
    max_new: int,
    keep_BT: Tensor | None,
    sampling: SamplingConfig,
    stop_ids: frozenset[int],
    cache: KVCache | None,
    size: int | None,
) -> Iterator[list[int | None]]:
    """Each step's ids; None for a row that has ended."""
    _check(model, prompt, max_new, keep_BT, cache)
    was_training = model.training
    model.eval()
    try:
        # inference_mode must not stay open between yields, where the caller's code runs.
        with torch.inference_mode():
            batch, length = prompt.shape[:2]
            cache = model.new_cache(batch, length + max_new) if cache is None else cache
            x_BTD = model.embed(prompt) if prompt.dim() == 2 else prompt
            h_BTD = model.hidden(x_BTD, keep_BT=keep_BT, cache=cache)
            logits_BV = model.logits(_last(h_BTD, keep_BT))[:, :size]
            finite.demand(logits_BV, model, "scores of the next token", lambda: model.hidden(x_BTD, keep_BT=keep_BT))
            stepper = Stepper(model)
            generator = torch.Generator(prompt.device).manual_seed(sampling.seed)
            seen_BV = _seen(prompt, keep_BT, logits_BV) if sampling.repetition_penalty != 1 else None
        ended = [False] * batch
        for step in range(max_new):
            with torch.inference_mode():
                ids_B = pick(logits_BV, sampling, generator=generator, seen_BV=seen_BV)
                ids: list[int] = ids_B.tolist()
                ended = [was or each in stop_ids for was, each in zip(ended, ids)]
            yield [None if is_over else each for each, is_over in zip(ids, ended)]
            if all(ended) or step == max_new - 1:
                return
            with torch.inference_mode():
                if seen_BV is not None:
                    seen_BV.scatter_(1, ids_B[:, None], True)
                logits_BV = stepper.logits(stepper.embedding_VD[ids_B], cache)[:, :size]
                finite.demand(logits_BV, model, f"scores of token {step + 1}")
    finally:
        model.train(was_training)


def _check(model: Decoder, prompt: Tensor, max_new: int, keep_BT: Tensor | None, cache: KVCache | None) -> None:
    if prompt.dim() not in (2, 3) or 0 in prompt.shape:
        raise ShapeError(f"a prompt is ids (B,T) or embeddings (B,T,D) with at least one position, got {tuple(prompt.shape)}")
    if keep_BT is not None and not bool(keep_BT.any(1).all()):
        raise ShapeError("every row of a prompt needs at least one real position")
    before = 0 if cache is None else cache.length
    if before + prompt.shape[1] + max_new > model.config.ctx_len:
        needed = f"{before} + {prompt.shape[1]} + {max_new} new" if before else f"{prompt.shape[1]} + {max_new} new"
        raise ContextError(f"{needed} positions do not fit ctx_len {model.config.ctx_len}", hint="shorten the prompt or lower max_new")


def _last(h_BTD: Tensor, keep_BT: Tensor | None) -> Tensor:
    """(B,D) of each row's last real position."""
    if keep_BT is None:
        return h_BTD[:, -1]
    places = torch.arange(keep_BT.shape[1], device=keep_BT.device)
    last_B = torch.where(keep_BT, places, -1).amax(1)
    return h_BTD[torch.arange(len(last_B), device=last_B.device), last_B]


def _seen(prompt: Tensor, keep_BT: Tensor | None, logits_BV: Tensor) -> Tensor:
    """bool (B,V), the ids that stand in the prompt; none of an embedded one, whose ids nobody knows."""
    seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    if prompt.dim() == 2:
        real = torch.ones_like(prompt, dtype=torch.bool) if keep_BT is None else keep_BT
        counts = torch.zeros_like(logits_BV).scatter_add_(1, prompt, real.to(logits_BV.dtype))
        seen_BV = counts > 0
    return seen_BV
