"""The one worker of a server: a thread to which the model belongs. Answers share their steps, everything else takes
turns with these."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from muomni.errors import ConfigError
from muomni.infer.answer import Writer
from muomni.infer.batch import Batch, News, Row
from muomni.infer.engine import Engine
from muomni.serve.work import Ask, Piece, QueueFull, TokenLogprob

T = TypeVar("T")
_END = object()


@dataclass(eq=False)
class _Turn:
    """A function of the engine that waits for the model, and where its result goes."""

    run: Callable[[Engine], Any]
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Any]


@dataclass(eq=False)
class _Answer:
    """An answer that is wanted, waiting or at work.

    pieces   what its reader has not taken yet: pieces, at last an error or none
    is_gone  set by its reader, heeded before the next step
    """

    ask: Ask
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | Exception]
    writer: Writer
    row: Row | None = None
    is_gone: bool = False


@dataclass
class _Desk:
    """What the event loop's side and the worker hand each other, under one lock.

    answers  those that wait for a row, the first come first; turns: calls, and items of streams
    """

    wake: threading.Condition = field(default_factory=threading.Condition)
    answers: deque[_Answer] = field(default_factory=deque)
    turns: deque[_Turn] = field(default_factory=deque)
    gone: list[_Answer] = field(default_factory=list)
    is_closed: bool = False


class Scheduler:
    """See `muomni.serve.work.Work`.

    Each round of the worker: rows whose readers have gone leave; answers that wait take free rows in the order in which
    they came; one call or stream's item is run; every row gets an id. So nobody waits for longer than a round,
    but behind a call that takes long in itself, such as the transcript of an hour.

    Takes   max_batch: answers at work at a time; max_waiting: requests at work or waiting, at most.
    """

    def __init__(self, engine: Engine, *, max_batch: int = 16, max_waiting: int = 256) -> None:
        if max_batch < 1 or max_waiting < 1:
            raise ConfigError(
                f"expected max_batch and max_waiting of at least 1, got {max_batch}, {max_waiting}"
            )
        self.engine, self.max_batch, self.max_waiting = engine, max_batch, max_waiting
        self.count = 0  # requests that are open; only the event loop's side changes it
        self._desk = _Desk()
        self._thread: threading.Thread | None = None
        self._is_draining = False
        self._idle: asyncio.Event | None = None
        self._batch: Batch | None = None
        self._at_work: dict[Row, _Answer] = {}

    # --- the event loop's side ------------------------------------------------------------------------------------

    async def answer(self, ask: Ask) -> AsyncIterator[Piece]:
        """See Work. The answer goes on however slowly its pieces are taken: they are few and small.

        Raises  QueueFull; what `Engine.answer` raises.
        """
        if ask.max_new < 1:
            raise ConfigError(f"max_new: expected at least 1, got {ask.max_new}")
        self._enter()
        try:
            wanted = _Answer(
                ask, asyncio.get_running_loop(), asyncio.Queue(), Writer(self.engine.tokenizer, ask.stop)
            )
            try:
                self._hand(lambda desk: desk.answers.append(wanted))
                while True:
                    piece = await wanted.pieces.get()
                    if isinstance(piece, Exception):
                        raise piece
                    yield piece
                    if piece.finish is not None:
                        return
            finally:
                wanted.is_gone = True
                self._hand(lambda desk: desk.gone.append(wanted))
        finally:
            self._leave()

    async def call(self, function: Callable[[Engine], T]) -> T:
        """See Work. A call that is cancelled before its turn is never run."""
        self._enter()
        try:
            return await self._post(function)
        finally:
            self._leave()

    async def stream(self, function: Callable[[Engine], Iterator[T]]) -> AsyncIterator[T]:
        """See Work. An item is made when it is asked for: a slow reader keeps nothing but its iterator."""
        self._enter()
        try:
            made: list[Iterator[T]] = []

            def item(engine: Engine) -> Any:
                if not made:
                    made.append(iter(function(engine)))
                return next(made[0], _END)

            try:
                while (each := await self._post(item)) is not _END:
                    yield each
            finally:
                self._post(lambda _: [each.close() for each in made if hasattr(each, "close")])
        finally:
            self._leave()

    async def drain(self) -> None:
        """Take no new work, end what is open, then the thread."""
        self._is_draining = True
        while self.count:
            self._idle = asyncio.Event()
            await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """End at once: whoever still waits is told so."""
        self._is_draining = True
        with self._desk.wake:
            self._desk.is_closed = True
            self._desk.wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _enter(self) -> None:
        if self._is_draining:
            raise QueueFull("the server is ending: try again later")
        if self.count >= self.max_waiting:
            raise QueueFull(f"{self.count} requests are waiting: try again later")
        self.count += 1

    def _leave(self) -> None:
        self.count -= 1
        if not self.count and self._idle is not None:
            self._idle.set()

    def _post(self, function: Callable[[Engine], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        turn = _Turn(function, loop, loop.create_future())
        # whoever was cancelled asks for no result; then an error is nobody's
        turn.result.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._hand(lambda desk: desk.turns.append(turn))
        return turn.result

    def _hand(self, put: Callable[[_Desk], object]) -> None:
        with self._desk.wake:
            put(self._desk)
            if self._desk.is_closed:
                self._refuse()
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="model", daemon=True)
                self._thread.start()
            self._desk.wake.notify()

    # --- the worker's side ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        desk = self._desk
        while True:
            with desk.wake:
                while not (desk.is_closed or desk.turns or desk.gone or desk.answers or self._at_work):
                    desk.wake.wait()
                if desk.is_closed:
                    break
                gone, desk.gone = desk.gone, []
                turn = desk.turns.popleft() if desk.turns else None
                free = self.max_batch - len(self._at_work) + sum(each.row is not None for each in gone)
                fresh = []
                while desk.answers and len(fresh) < free:
                    if not (wanted := desk.answers.popleft()).is_gone:
                        fresh.append(wanted)
            self._release(gone)
            for wanted in fresh:
                self._begin(wanted)
            if turn is not None:
                self._run(turn)
            if self._at_work:
                self._step()
        self._release(list(self._at_work.values()), tell=True)
        with desk.wake:
            self._refuse()

    def _release(self, gone: list[_Answer], *, tell: bool = False) -> None:
        """Rows whose readers have gone leave the batch."""
        for wanted in gone:
            if wanted.row is not None and self._at_work.pop(wanted.row, None) is not None:
                assert self._batch is not None
                self._batch.leave(wanted.row)
                wanted.row = None
                if tell:
                    _send([(wanted, QueueFull("the server has ended"))])

    def _refuse(self) -> None:
        """Nobody will work any more: tell those who wait. Under the lock."""
        desk, ended = self._desk, QueueFull("the server has ended")
        waiting = [(each, ended) for each in desk.answers if not each.is_gone]
        turns = list(desk.turns)
        desk.answers.clear(), desk.turns.clear(), desk.gone.clear()
        _send(waiting)
        for turn in turns:
            _settle(turn, error=ended)

    def _begin(self, wanted: _Answer) -> None:
        engine, prompt = self.engine, wanted.ask.prompt
        try:
            if self._batch is None:
                words = range(engine.tokenizer.vocab_size)
                self._batch = Batch(engine.parts.thinker, (words,), engine.tokenizer.special_tokens.stops)
            room = min(wanted.ask.max_new, engine.parts.thinker.config.ctx_len - len(prompt.ids))
            x, _ = engine.read([prompt])
            wanted.row = self._batch.join(x, room, wanted.ask.sampling)
        except Exception as error:  # of this request: the others go on
            _send([(wanted, error)])
        else:
            self._at_work[wanted.row] = wanted

    def _run(self, turn: _Turn) -> None:
        if turn.result.cancelled():
            return
        try:
            found = turn.run(self.engine)
        except StopIteration as error:  # no future takes it
            _settle(turn, error=RuntimeError(str(error)))
        except Exception as error:
            _settle(turn, error=error)
        else:
            _settle(turn, found)

    def _step(self) -> None:
        assert self._batch is not None
        try:
            news = self._batch.step()
        except Exception as error:  # a fault of ours: nobody may be left waiting
            news = [News(row, error=error) for row in self._at_work]
        told = []
        for each in news:
            wanted = self._at_work.get(each.row)
            if wanted is None:
                continue
            try:
                piece: Piece | Exception = each.error or _piece(wanted, each)
            except Exception as error:
                piece = error
            told.append((wanted, piece))
            if isinstance(piece, Exception) or piece.finish is not None:
                self._at_work.pop(each.row)
                self._batch.leave(each.row)
                wanted.row = None
        _send(told)


def _piece(wanted: _Answer, news: News) -> Piece:
    """What an id makes of an answer; an id that ends it is no part of it."""
    text, writer = news.row.text, wanted.writer
    if text.ended[0]:
        return Piece(writer.close("end"), [], [], writer.finish)
    certain = writer.push(news.id)
    if news.row.is_over and writer.finish is None:
        certain += writer.close("length")
    scored = [] if wanted.ask.logprobs is None else [_scored(news, wanted.ask.logprobs)]
    return Piece(certain, [news.id], scored, writer.finish)


@torch.inference_mode()
def _scored(news: News, tops: int) -> TokenLogprob:
    """The natural log-probabilities of the id and of the likeliest ones, among the legal ids and before any
    temperature."""
    scores_V, ids_V = news.scores_V, news.row.text.ids_V
    assert scores_V is not None
    assert isinstance(ids_V, Tensor)
    log_probs_V = scores_V.float().log_softmax(-1)
    best = log_probs_V.topk(min(tops, len(log_probs_V)))
    top = [(int(ids_V[place]), float(value)) for value, place in zip(*best)]
    return TokenLogprob(news.id, float(log_probs_V[ids_V == news.id]), top)


def _send(told: list[tuple[_Answer, Any]]) -> None:
    """Hand pieces to their readers: one word a step to each event loop, which may have ended."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Answer, Any]]] = {}
    for wanted, piece in told:
        by_loop.setdefault(wanted.loop, []).append((wanted, piece))

    def put(pairs: list[tuple[_Answer, Any]]) -> None:
        for wanted, piece in pairs:
            wanted.pieces.put_nowait(piece)

    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(put, pairs)
        except RuntimeError:  # the loop is closed: nobody reads
            for wanted, _ in pairs:
                wanted.is_gone = True


def _settle(turn: _Turn, found: Any = None, error: Exception | None = None) -> None:
    def put() -> None:
        if turn.result.done():
            return
        if error is None:
            turn.result.set_result(found)
        else:
            turn.result.set_exception(error)

    with suppress(RuntimeError):  # the loop is closed: nobody waits
        turn.loop.call_soon_threadsafe(put)
