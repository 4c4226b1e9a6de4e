"""A run served on a real port of this machine's loopback, as `muomni serve` does it, but in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx
import openai
import uvicorn

from muomni.infer.engine import Engine
from muomni.serve.app import build
from muomni.serve.listening import configured
from muomni.serve.opening import opened
from muomni.serve.scheduler import Scheduler
from muomni.serve.settings import ServeSettings

http = httpx.Client(timeout=600, trust_env=False)  # making one takes longer than most requests


@cache
def _client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=600)


class Running:
    """A server in a thread of this process."""

    def __init__(self, app: Any, server: Any, port: int) -> None:
        self.app, self.server, self.port = app, server, port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "any") -> openai.OpenAI:
        return _client(self.url, key)

    def aio(self, key: str = "any") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=600)


def ready(engine: Engine, settings: ServeSettings, work: Any = None) -> Any:
    """All of a server but its port."""
    return opened(engine, work or Scheduler(engine), settings)


@contextmanager
def serving(engine: Engine, work: Any = None, **settings: Any) -> Iterator[Running]:
    """The engine of a run, served as `muomni serve` does it, but in a thread."""
    chosen = ServeSettings(**{"name": "tiny", "drain_s": 5.0, **settings})
    server = ready(engine, chosen, work)
    app = build(server, chosen)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        running = uvicorn.Server(configured(app, chosen))
        thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listening])), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        try:
            yield Running(app, server, port)
        finally:
            running.should_exit = True
            thread.join(10)
