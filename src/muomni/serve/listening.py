"""A server on its port, from the first line it says until its last answer has ended."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

from muomni.errors import ConfigError
from muomni.infer.engine import Engine
from muomni.serve.app import build
from muomni.serve.opening import opened
from muomni.serve.scheduler import Scheduler
from muomni.serve.settings import ServeSettings

WAITING_CONNECTIONS = 512
KEEP_ALIVE_S = (
    75  # longer than clients keep a connection: who closes first while a request is under way loses it
)
MOST_HEAD_BYTES = 64 * 1024


def run(
    engine: Engine,
    settings: ServeSettings,
    *,
    max_batch: int,
    max_waiting: int,
    say: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then no connection is taken any more, and open answers have `drain_s` to end.

    Raises  ConfigError where the port is taken; CheckpointError for a part of the run that can't be opened.
    """
    with _bound(settings) as listening:
        host, port = listening.getsockname()[:2]
        asyncio.run(
            _serve(
                engine,
                settings,
                listening,
                max_batch=max_batch,
                max_waiting=max_waiting,
                say=say,
                url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
            )
        )
    say("stopped")


async def _serve(
    engine: Engine,
    settings: ServeSettings,
    listening: socket.socket,
    *,
    max_batch: int,
    max_waiting: int,
    say: Callable[[str], None],
    url: str,
) -> None:
    import uvicorn

    work = Scheduler(engine, max_batch=max_batch, max_waiting=max_waiting)
    server = opened(engine, work, settings)
    running = uvicorn.Server(configured(build(server, settings), settings))
    able = ", ".join(each for each in server.abilities.names)
    say(f"{server.name} ({able}) at {url}/v1, until ctrl-C")
    for name, stage in server.abilities.missing.items():
        say(f"note: no {name}: stage {stage} is missing")
    if server.weights.files:
        say(
            f"note: {len(server.weights.files)} files of weights are too large to be copied: "
            "they are watched, and overwriting one ends the service"
        )
    # uvicorn raises the signal once more after it has ended: then it has done its work.
    before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        await running.serve(sockets=[listening])
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        await work.close()


def configured(app: Any, settings: ServeSettings) -> Any:
    """uvicorn's settings for an application."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_level="warning",
        backlog=WAITING_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        server_header=False,
        ws_max_size=settings.limits.body_bytes,
        ws_per_message_deflate=False,
        http=impatient(settings.limits.receive_s),
    )


def impatient(limit_s: float) -> Any:
    """uvicorn's protocol, which leaves a connection on which no whole head of a request came in time."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(limit_s, self.leave_the_silent)

        def leave_the_silent(self) -> None:
            """Close a connection without a request; one that became a websocket has another protocol."""
            if (
                self.cycle is None
                and self.transport.get_protocol() is self
                and not self.transport.is_closing()
            ):
                self.transport.close()

    return Impatient


def _bound(settings: ServeSettings) -> socket.socket:
    """A socket at the address that was asked for, told of before the networks are opened if it is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"serve: --host {settings.host}: {error.strerror}") from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"serve: {settings.host}:{settings.port}: {error.strerror}", hint="give another --port"
        ) from error
    return listening
