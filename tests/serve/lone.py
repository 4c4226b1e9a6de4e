"""A stand-in for the scheduler, for tests of the routes: one thread, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from muomni.infer import generate
from muomni.infer.answer import Writer
from muomni.infer.engine import Engine
from muomni.serve.work import Ask, Piece, TokenLogprob

T = TypeVar("T")
END = object()


class Lone:
    """See `muomni.serve.work.Work`. `open_count`: iterators that are neither read to their ends nor closed."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.thread = engine, ThreadPoolExecutor(1)
        self.open_count = 0

    async def answer(self, ask: Ask) -> AsyncIterator[Piece]:
        async for piece in self.stream(lambda engine: pieces(engine, ask)):
            yield piece

    async def call(self, function: Callable[[Engine], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, self.engine)

    async def stream(self, function: Callable[[Engine], Iterator[T]]) -> AsyncIterator[T]:
        self.open_count += 1
        try:
            items = await self.call(lambda engine: iter(function(engine)))
            while (item := await self.call(lambda _: next(items, END))) is not END:
                yield item  # type: ignore[misc]
        finally:
            self.open_count -= 1


def pieces(engine: Engine, ask: Ask) -> Iterator[Piece]:
    """One answer, token by token."""
    writer = Writer(engine.tokenizer, ask.stop)
    x, _ = engine.read([ask.prompt])
    vocabulary: dict[str, Any] = engine._vocabulary
    ids = generate.stream(engine.parts.thinker, x, max_new=ask.max_new, sampling=ask.sampling, **vocabulary)
    count = 0
    for token in ids:
        count += 1
        text = writer.push(token)
        scored = [] if ask.logprobs is None else [scores(engine, token, ask.logprobs)]
        yield Piece(text, [token], scored, writer.finish)
        if writer.finish:
            return
    rest = writer.close("length" if count == ask.max_new else "end")
    yield Piece(rest, [], [], writer.finish)


def scores(engine: Engine, token: int, tops: int) -> TokenLogprob:
    """Made up, but of the right shape."""
    torch.manual_seed(token)
    return TokenLogprob(
        token, -0.5, [(token, -0.5), *((20 + each, -2.0 - each) for each in range(tops))][:tops]
    )
