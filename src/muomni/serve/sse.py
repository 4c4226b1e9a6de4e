"""Server-sent events, and iterators of a server: begun before the answer's status is sent, merged, and closed when the
client goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
DONE = "data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy may collect events
MERGED_AHEAD = 64


class ClientGone(Exception):
    """Whoever asked does not listen any more."""


def event(data: Mapping[str, Any], name: str | None = None) -> str:
    """One event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def unless_gone(receive: Callable[[], Awaitable[Mapping[str, Any]]], work: Awaitable[T]) -> T:
    """The result of work, which is cancelled if the client goes before.

    Takes   receive: of ASGI, of a request whose body has been read.
    Raises  ClientGone.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class Started(AsyncIterator[T]):
    """An iterator whose first item is there already."""

    def __init__(self, first: list[T], rest: AsyncIterator[T]) -> None:
        self._first, self._rest = first, rest

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        """End its work."""
        await close(self._rest)


async def started(items: AsyncIterator[T]) -> Started[T]:
    """The same items, the first of which is there already: what goes wrong at the start is raised here, while
    a status can still be sent."""
    try:
        return Started([await anext(items)], items)
    except StopAsyncIteration:
        return Started([], items)
    except BaseException:
        await close(items)
        raise


async def close(items: AsyncIterator[Any]) -> None:
    """End an iterator, if it is one that can be."""
    if (aclose := getattr(items, "aclose", None)) is not None:
        await aclose()


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """(number of its source, item) of several iterators, as they come. An error of one ends all."""
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(MERGED_AHEAD)

    async def drain(number: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                await queue.put((number, item))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)
        finally:
            await close(source)

    tasks = [asyncio.create_task(drain(number, source)) for number, source in enumerate(sources)]
    open_count = len(tasks)
    try:
        while open_count:
            item = await queue.get()
            if item is None:
                open_count -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collected(items: AsyncIterator[T]) -> list[T]:
    """All items."""
    try:
        return [item async for item in items]
    finally:
        await close(items)
