"""Answers as HTTP has them: JSON, events, and errors within a stream."""

from __future__ import annotations

import sys
import traceback
from collections.abc import AsyncIterator
from typing import Any

from muomni.errors import MuomniError
from muomni.serve import errors, sse
from muomni.serve.errors import LIMITED, OURS, ApiError
from muomni.serve.schemas.base import ErrorReply
from muomni.serve.work import QueueFull

# Statuses that a client may get of every route; described once.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": text}
    for status, text in (
        (400, "The request must change; `param` says where"),
        (401, "No key, or another one"),
        (404, "No such model, or a stage is missing"),
        (408, "The request took too long to come"),
        (413, "More than this server takes"),
        (415, "Another content type"),
        (429, "Too many wait"),
        (500, "A fault of the server"),
        (503, "The weights changed, or the server ends"),
    )
}


def JSON(content: dict[str, Any], status: int = 200) -> Any:
    """A JSON answer."""
    from starlette.responses import JSONResponse

    return JSONResponse(content, status)


def failed(error: ApiError) -> Any:
    """An answer that is an error."""
    from starlette.responses import JSONResponse

    return JSONResponse(error.body(), error.status, headers=error.headers)


def event_stream(events: AsyncIterator[str]) -> Any:
    """A stream of events, whose source ends when the client goes."""
    return stream(events, "text/event-stream", sse.HEADERS)


def stream(content: AsyncIterator[Any], media_type: str, headers: dict[str, str] | None = None) -> Any:
    """A body that grows, whose source ends when the client goes."""
    from starlette.responses import StreamingResponse
    from starlette.types import Send

    class Closing(StreamingResponse):
        async def stream_response(self, send: Send) -> None:
            try:
                await super().stream_response(send)
            finally:
                await sse.close(content)

    return Closing(content, media_type=media_type, headers=headers)


async def streamed_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same events; an error among them becomes the last one."""
    try:
        async for event in events:
            yield event
    except Exception as error:
        yield sse.event(api_error(error).body())
    finally:
        await sse.close(events)


def api_error(error: Exception) -> ApiError:
    """What a client is told of any error; ours go to the log, whole."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        message = "too many requests wait: try again in a moment"
        return ApiError(429, message, kind=LIMITED, code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, MuomniError):
        told = errors.of(error)
        if told.status >= 500:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return told
    traceback.print_exception(error, file=sys.stderr)
    return ApiError(500, "a fault of the server: its log says which", kind=OURS, code="internal_error")
