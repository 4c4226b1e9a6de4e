"""One worker for all: answers equal those of the engine alone, readers that go leave nothing, and all are told."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from muomni.errors import DataError
from muomni.infer.engine import Engine
from muomni.infer.prompt import Request
from muomni.infer.sampling import SamplingConfig
from muomni.serve.scheduler import Scheduler
from muomni.serve.work import Ask, Piece, QueueFull

WORDS = ["is", "the red circle", "what is left of it", "blue square", "of the", "a " * 20, "red"]
WARM = SamplingConfig(temperature=1.2, top_p=0.9)


async def said(work: Scheduler, ask: Ask) -> list[Piece]:
    return [piece async for piece in work.answer(ask)]


def run(body: Any, engine: Engine, **how: Any) -> Any:
    """A test's body with a scheduler that ends with it, its thread too."""

    async def whole() -> Any:
        work = Scheduler(engine, **how)
        try:
            return await body(work)
        finally:
            await work.close()
            assert work._thread is None or not work._thread.is_alive()

    return asyncio.run(asyncio.wait_for(whole(), 900))


def empty(work: Scheduler) -> bool:
    return not work._at_work and (work._batch is None or not (len(work._batch) or work._batch.cache.lengths))


async def until(condition: Any) -> None:
    """Wait for something to be true; that it never is shows only after minutes."""
    for _ in range(120_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_answers_equal_those_of_the_engine_alone(engine: Engine, media: Path) -> None:
    draw, requests = random.Random(0), []
    for at in range(40):
        images = [media / draw.choice(["red.png", "blue.png"])] if draw.random() < 0.4 else []
        audios = [media / "low.wav"] if draw.random() < 0.3 else []
        how = draw.choice([SamplingConfig(), WARM, SamplingConfig(repetition_penalty=1.5)])
        stop = draw.choice([(), (), ("e",)])
        asked = Request(draw.choice(WORDS), images, audios)
        requests.append((asked, how.model_copy(update={"seed": at}), stop, draw.randint(1, 40)))
    alone = [
        engine.answer(each.ask, images=each.images, audios=each.audios, sampling=how, stop=stop, max_new=most)
        for each, how, stop, most in requests
    ]

    async def body(work: Scheduler) -> list[list[Piece]]:
        async def one(request: Any) -> list[Piece]:
            each, how, stop, most = request
            await asyncio.sleep(draw.random() * 0.1)
            return await said(work, Ask(engine.prepare(each), how, stop, most))

        found = await asyncio.gather(*(one(each) for each in requests))
        assert empty(work)
        assert work.count == 0
        return found

    for pieces, answer in zip(run(body, engine, max_batch=7), alone, strict=True):
        assert [each for piece in pieces for each in piece.token_ids] == answer.token_ids
        assert "".join(piece.text for piece in pieces) == answer.text
        assert [piece.finish for piece in pieces if piece.finish] == [answer.finish]
        assert pieces[-1].finish
    assert {each.finish for each in alone} >= {"length", "stop"}


def test_logprobs_are_of_the_legal_ids(engine: Engine) -> None:
    pieces = run(lambda work: said(work, Ask(engine.prepare("is"), max_new=5, logprobs=3)), engine)
    for piece in pieces:
        for token, scored in zip(piece.token_ids, piece.logprobs, strict=True):
            assert scored.token == token == scored.top[0][0]
            assert scored.logprob == scored.top[0][1] < 0
            assert len(scored.top) == 3
    assert pieces[0].logprobs


def test_a_thousand_that_go_at_random_moments_leave_nothing(engine: Engine) -> None:
    draw, prompts = random.Random(1), [engine.prepare(each) for each in WORDS]
    threads = threading.active_count()

    async def body(work: Scheduler) -> None:
        async def one() -> None:
            pieces = work.answer(Ask(draw.choice(prompts), max_new=60))
            await asyncio.sleep(draw.random() * 0.5)
            if draw.random() < 0.5:  # it closes its iterator
                for _ in range(draw.randint(0, 4)):
                    await anext(pieces, None)
                await pieces.aclose()
                return

            async def read() -> None:
                async for _ in pieces:
                    pass

            task = asyncio.create_task(read())  # or whoever reads is cancelled
            await asyncio.sleep(draw.random() * 0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def mostly() -> None:
            try:
                await one()
            except BaseException as error:
                if "DID NOT RAISE" not in str(error):  # it was answered before it could go
                    raise

        await asyncio.gather(*(mostly() for _ in range(1000)))
        assert work.count == 0
        await until(lambda: empty(work))
        assert not work._batch.cache.keys.numel()
        await until(lambda: not (work._desk.answers or work._desk.gone or work._desk.turns))
        again = await said(work, Ask(prompts[0], max_new=9))
        assert [i for p in again for i in p.token_ids] == engine.answer(WORDS[0], max_new=9).token_ids

    run(body, engine, max_waiting=2000)
    assert threading.active_count() <= threads + 2  # asyncio's own helpers may rest


def test_too_many_are_refused_and_the_rest_answered(engine: Engine) -> None:
    async def body(work: Scheduler) -> list[Any]:
        asked = [said(work, Ask(engine.prepare("is"), max_new=20)) for _ in range(8)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = run(body, engine, max_batch=2, max_waiting=5)
    assert sum(isinstance(each, QueueFull) for each in found) == 3
    assert len({str(each) for each in found if isinstance(each, list)}) == 1


def test_first_come_first_served(engine: Engine) -> None:
    order: list[int] = []

    async def body(work: Scheduler) -> None:
        async def one(number: int) -> None:
            await said(work, Ask(engine.prepare("is"), max_new=10))
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(12)))

    run(body, engine, max_batch=1)
    assert order == list(range(12))


def test_calls_and_streams_take_turns_with_answers(engine: Engine) -> None:
    alone = engine.answer("is", max_new=60).token_ids
    log: list[str] = []

    async def body(work: Scheduler) -> list[int]:
        def slow(engine: Engine) -> Any:
            for number in range(10):
                time.sleep(0.003)
                yield number, threading.current_thread().name

        async def items() -> None:
            async for number, name in work.stream(slow):
                assert name == "model"
                log.append(f"item {number}")

        task, ids = asyncio.create_task(items()), []
        async for piece in work.answer(Ask(engine.prepare("is"), max_new=60)):
            ids += piece.token_ids
            log.append("id")
        assert await work.call(lambda each: each is engine)
        await task
        return ids

    assert run(body, engine) == alone
    places = [at for at, each in enumerate(log) if each != "id"]
    assert len(places) == 10
    assert places[-1] - places[0] > 12, "they took no turns"


def test_a_stream_that_is_left_is_closed_by_the_worker(engine: Engine) -> None:
    closed: list[str] = []

    async def body(work: Scheduler) -> None:
        def endless(_: Engine) -> Any:
            try:
                while True:
                    yield 1
            finally:
                closed.append(threading.current_thread().name)

        items = work.stream(endless)
        assert await anext(items) == 1
        await items.aclose()
        await until(lambda: closed)

    run(body, engine)
    assert closed == ["model"]


def test_errors_reach_those_whose_they_are(engine: Engine) -> None:
    async def body(work: Scheduler) -> list[Any]:
        def bad(_: Engine) -> Any:
            raise DataError("planted", "planted")

        def stops(_: Engine) -> Any:
            raise StopIteration

        long = engine.prepare("is")
        too_long = type(long)(**{**vars(long), "ids": long.ids * 200})
        return await asyncio.gather(
            said(work, Ask(engine.prepare("is"), max_new=5)),
            work.call(bad),
            work.call(stops),
            said(work, Ask(too_long)),
            said(work, Ask(long, max_new=0)),
            return_exceptions=True,
        )

    good, *errors = run(body, engine)
    assert [i for p in good for i in p.token_ids] == engine.answer("is", max_new=5).token_ids
    assert [type(each).__name__ for each in errors] == [
        "DataError", "RuntimeError", "ContextError", "ConfigError"
    ]  # fmt: skip


def test_draining_ends_what_runs_and_takes_nothing_new(engine: Engine) -> None:
    async def body(work: Scheduler) -> None:
        task = asyncio.create_task(said(work, Ask(engine.prepare("is"), max_new=60)))
        await until(lambda: work._at_work)
        end = asyncio.create_task(work.drain())
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await said(work, Ask(engine.prepare("is")))
        with pytest.raises(QueueFull):
            await work.call(lambda _: 1)
        await end
        assert [i for p in await task for i in p.token_ids] == engine.answer("is", max_new=60).token_ids
        assert not work._thread.is_alive()

    run(body, engine)


def test_closing_tells_all_who_wait(engine: Engine) -> None:
    async def body(work: Scheduler) -> list[Any]:
        tasks = [asyncio.create_task(said(work, Ask(engine.prepare("is"), max_new=60))) for _ in range(5)]
        tasks.append(asyncio.create_task(work.call(lambda _: time.sleep(0.01))))
        await until(lambda: work._at_work)
        await work.close()
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert empty(work)
        assert work.count == 0
        return found

    found = run(body, engine, max_batch=2)
    assert sum(isinstance(each, QueueFull) for each in found) >= 3
