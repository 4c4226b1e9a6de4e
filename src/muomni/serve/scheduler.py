"""The one worker of a server: a thread to which the model belongs, one request after another, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from muomni.infer.answer import Writer
from muomni.infer.decode import decode
from muomni.infer.engine import Engine
from muomni.infer.generate import Text
from muomni.serve.work import Ask, Piece, QueueFull, TokenLogprob

T = TypeVar("T")
_END = object()


class Scheduler:
    """See `muomni.serve.work.Work`: requests take turns, a step each.

    Takes   max_waiting: requests at work or waiting, at most.
    """

    def __init__(self, engine: Engine, *, max_batch: int = 16, max_waiting: int = 256) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.count = 0

    def answer(self, ask: Ask) -> AsyncIterator[Piece]:
        """See Work."""
        return self.stream(lambda engine: _pieces(engine, ask))

    async def call(self, function: Callable[[Engine], T]) -> T:
        """See Work."""
        self._enter()
        try:
            return await self._step(function)
        finally:
            self.count -= 1

    async def stream(self, function: Callable[[Engine], Iterator[T]]) -> AsyncIterator[T]:
        """See Work."""
        self._enter()
        try:
            items = await self._step(lambda engine: iter(function(engine)))
            while (item := await self._step(lambda _: next(items, _END))) is not _END:
                yield item  # type: ignore[misc]
        finally:
            self.count -= 1

    async def close(self) -> None:
        """No more work is taken."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _enter(self) -> None:
        if self.count >= self.max_waiting:
            raise QueueFull(f"{self.count} requests are waiting: try again later")
        self.count += 1

    async def _step(self, function: Callable[[Engine], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, self.engine)


class _Scored(Text):
    """Text that remembers the scores of its last step."""

    scores_V: Tensor

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """See Layout."""
        self.scores_V = scores[0][0]
        return super().column(step, scores)


def _pieces(engine: Engine, ask: Ask) -> Iterator[Piece]:
    """One answer, a token a piece."""
    writer, model = Writer(engine.tokenizer, ask.stop), engine.parts.thinker
    special, words = engine.tokenizer.special_tokens, range(engine.tokenizer.vocab_size)
    x, _ = engine.read([ask.prompt])
    room = min(ask.max_new, model.ctx_len - len(ask.prompt.ids))
    with torch.inference_mode():
        x_BTD = model.embed(x) if x.dim() == 2 else x
    text = _Scored(room, ask.sampling, special.stops, (words,), None, None, x.device)
    count = 0
    for _ in decode(model, x_BTD, text):
        (token,) = text.ids
        if text.ended[0]:
            break
        count += 1
        certain = writer.push(token)
        scored = [] if ask.logprobs is None else [_scored(text, token, ask.logprobs)]
        yield Piece(certain, [token], scored, writer.finish)
        if writer.finish:
            return
    rest = writer.close("length" if count == room else "end")
    yield Piece(rest, [], [], writer.finish)


def _scored(text: _Scored, token: int, tops: int) -> TokenLogprob:
    log_probs_V = text.scores_V.float().log_softmax(-1)
    best = log_probs_V.topk(min(tops, len(log_probs_V)))
    assert text.ids_V is not None
    top = [(int(text.ids_V[place]), float(value)) for value, place in zip(*best)]
    return TokenLogprob(token, float(log_probs_V[text.ids_V == token]), top)
