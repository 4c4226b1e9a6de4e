"""A spoken answer begins while its text is still being written, and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from muomni.serve import speaking, sse
from muomni.serve.speaking import Sound
from muomni.serve.work import Piece


class Work:
    """Says what it is asked to say, as one sound a text; `heard`: those texts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.heard: list[str] = []
        self.error, self.has_spoken, self.closed = error, asyncio.Event(), 0

    async def stream(self, function: Any) -> AsyncIterator[Sound]:
        try:
            if self.error:
                raise self.error
            self.heard.append(function)
            self.has_spoken.set()
            yield Sound(np.ones(10, np.float32), 16_000)
        finally:
            self.closed += 1


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaking, "say", lambda text, voice: text)


def spoken(work: Work, pieces: AsyncIterator[Piece]) -> AsyncIterator[Any]:
    server: Any = SimpleNamespace(work=work)
    return speaking.while_written(server, pieces, None)


def test_the_first_sentence_is_spoken_before_the_second_is_written() -> None:
    async def run() -> tuple[list[str], list[str]]:
        work = Work()

        async def written() -> AsyncIterator[Piece]:
            yield Piece("the star", [1])
            yield Piece(" is red. it", [2])
            await work.has_spoken.wait()  # for ever, if nothing is said before the end
            yield Piece(" costs 3.5 coins", [3], finish="end")

        kinds = [type(each).__name__ async for each in spoken(work, written())]
        return kinds, work.heard

    kinds, heard = asyncio.run(run())
    assert kinds == ["Piece", "Piece", "Sound", "Piece", "Sound"]
    assert heard == ["the star is red.", " it costs 3.5 coins"]


def test_an_error_of_speech_ends_the_writing() -> None:
    async def run() -> bool:
        work, is_closed = Work(ValueError("no voice")), False

        async def written() -> AsyncIterator[Piece]:
            nonlocal is_closed
            try:
                yield Piece("one. ", [1])
                await asyncio.Event().wait()
            finally:
                is_closed = True

        with pytest.raises(ValueError, match="no voice"):
            await sse.collected(spoken(work, written()))
        return is_closed

    assert asyncio.run(run())


def test_leaving_ends_both() -> None:
    async def run() -> tuple[bool, int]:
        work, is_closed = Work(), False

        async def written() -> AsyncIterator[Piece]:
            nonlocal is_closed
            try:
                yield Piece("one. ", [1])
                yield Piece("two. ", [2])
                await asyncio.Event().wait()
            finally:
                is_closed = True

        both = spoken(work, written())
        async for each in both:
            if isinstance(each, Sound):
                break
        await sse.close(both)
        return is_closed, work.closed

    is_closed, closed = asyncio.run(run())
    assert is_closed
    assert closed >= 1
