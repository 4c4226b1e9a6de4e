"""What stands before every route: who may ask, how large a request may be and how long it may take, and how long an
answer waits for its reader. Plain ASGI, so that streams pass through as they are."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from muomni.serve.errors import AUTHENTICATION, ApiError, invalid
from muomni.serve.metrics import Metrics
from muomni.serve.settings import Limits, ServeSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN_PATHS = ("/health", "/")  # the page holds nothing of the run: what it shows it asks for, with the key
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class SlowClient(Exception):
    """Nobody reads an answer: its connection is closed."""


class Guard:
    """Keys, hosts and limits; `failed` makes the answer of an ApiError."""

    def __init__(
        self, app: App, *, settings: ServeSettings, failed: Callable[[ApiError], App], metrics: Metrics
    ) -> None:
        self.app, self.settings, self.failed, self.metrics = app, settings, failed, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See App."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        error = self._refusal(scope)
        if scope["type"] == "websocket":
            if error is not None:
                await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
                return
            await self.app(scope, receive, send)
            return
        if error is not None:
            await self.failed(error)(scope, receive, send)
            return
        request = _Request(self.settings.limits, receive, send)
        try:
            await self.app(scope, request.receive, request.send)
        except SlowClient:
            self.metrics.gone.inc()
        except ApiError:
            if request.error is None:
                raise
        if request.error is not None and not request.has_begun:
            await self.failed(request.error)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if scope["path"] in OPEN_PATHS or scope.get("method") == "OPTIONS":
            return None
        key = self.settings.api_key
        if key is not None:
            return _wrong_key(headers.get(b"authorization", b""), key)
        if self.settings.is_loopback:
            return _foreign_host(headers.get(b"host", b""))
        return None


def _wrong_key(header: bytes, key: str) -> ApiError | None:
    kind, _, given = header.partition(b" ")
    is_bearer = kind.lower() == b"bearer"
    if hmac.compare_digest(given.strip(), key.encode()) and is_bearer:
        return None
    message = "a wrong API key" if header else "an API key is needed: Authorization: Bearer KEY"
    return ApiError(
        401,
        message,
        kind=AUTHENTICATION,
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _foreign_host(header: bytes) -> ApiError | None:
    """Without a key, a page of another host whose name leads to this machine could ask as its user does."""
    host = header.decode("latin-1").lower()
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    if name in LOOPBACK_NAMES:
        return None
    message = (
        f"host {name[:80]!r}: without --api-key only this machine may ask, by {', '.join(LOOPBACK_NAMES)}"
    )
    return invalid(message, code="invalid_host")


class _Request:
    """One request's body and answer, within limits."""

    def __init__(self, limits: Limits, receive: Receive, send: Send) -> None:
        self.limits, self._receive, self._send = limits, receive, send
        self.has_begun = False
        # The limit that the body broke: it is what the client is told, whatever the application makes of it.
        self.error: ApiError | None = None
        self._bytes = 0
        self._is_whole = False
        self._deadline = time.monotonic() + limits.receive_s

    async def receive(self) -> Message:
        """The next part of the body.

        Raises  ApiError: 408 where it does not come, 413 where it is too large.
        """
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            late = f"the request was not there within {self.limits.receive_s:g} s"
            raise self._refused(ApiError(408, late, code="timeout")) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._bytes > self.limits.body_bytes:
                limit = f"at most {self.limits.body_bytes} bytes are taken"
                raise self._refused(ApiError(413, f"the request is too large: {limit}", code="too_large"))
        return message

    async def send(self, message: Message) -> None:
        """A part of the answer.

        Raises  SlowClient where it is not fetched.
        """
        if self.error is not None and not self.has_begun:
            return
        self.has_begun = True
        try:
            async with asyncio.timeout(self.limits.stall_s):
                await self._send(message)
        except TimeoutError:
            raise SlowClient from None

    def _refused(self, error: ApiError) -> ApiError:
        self.error = error
        return error


class Counting:
    """Counts requests by route and status, and how long they take."""

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See App."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, first_s = time.perf_counter(), 499, None

        async def counted(message: Message) -> None:
            nonlocal status, first_s
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first_s is None and message.get("body"):
                first_s = time.perf_counter() - start
            await send(message)

        self.metrics.running.inc()
        try:
            await self.app(scope, receive, counted)
        finally:
            self.metrics.running.dec()
            # Of the route, never of the path: a client could make as many of these as it likes.
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
            if first_s is not None:
                self.metrics.first.labels(route).observe(first_s)
