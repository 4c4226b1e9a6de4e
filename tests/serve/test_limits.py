"""Who may ask, how much, how long: keys, hosts, bodies, queues, clients that are slow or go."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from served import Running, http, serving
from test_refusals import ASKED, error_of, post

from muomni.infer.engine import Engine
from muomni.serve import guard
from muomni.serve.scheduler import Scheduler
from muomni.serve.settings import Limits

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 4}


def until(holds: Callable[[], bool], looks: int = 60_000) -> bool:
    """Whether something becomes true; that it never does shows only after minutes."""
    for _ in range(looks):
        if holds():
            return True
        time.sleep(0.01)
    return False


# --- who --------------------------------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_a_401_and_is_compared_in_constant_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Spy:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(guard, "hmac", Spy)
    with serving(engine, api_key="sesame") as running:
        assert running.client("sesame").models.list().data
        with pytest.raises(openai.AuthenticationError) as caught:
            running.client("sesam").models.list()
        assert caught.value.code == "invalid_api_key"
        for headers in (
            {},
            {"authorization": "sesame"},
            {"authorization": "Basic sesame"},
            {"authorization": "Bearer é"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", CHAT):
                response = http.get(
                    f"{running.url}{path}", headers=[(k.encode(), v.encode()) for k, v in headers.items()]
                )
                assert response.status_code == 401
                assert error_of(response)["type"] == "authentication_error"
        assert http.get(f"{running.url}/health").status_code == 200
    assert len(compared) > 10


def test_without_a_key_only_names_of_this_machine_may_ask(tiny: Running) -> None:
    for host, status in (
        ("localhost", 200),
        ("127.0.0.1:99", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("", 400),
        ("localhost.evil.example", 400),
    ):
        response = http.get(f"{tiny.url}/v1/models", headers={"host": host})
        assert response.status_code == status, host


def test_pages_of_other_origins_may_ask_only_if_told(tiny: Running, engine: Engine) -> None:
    asked = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    assert "access-control-allow-origin" not in http.options(f"{tiny.url}{CHAT}", headers=asked).headers
    assert "access-control-allow-origin" not in post(tiny, CHAT, BODY, headers=asked).headers
    with serving(engine, origins=("https://page.example",), api_key="k") as running:
        before = http.options(f"{running.url}{CHAT}", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://page.example"
        headers = {**asked, "authorization": "Bearer k"}
        assert post(running, CHAT, BODY, headers=headers).headers["access-control-allow-origin"]
        refused = post(running, CHAT, BODY, headers=asked)  # a page must be able to read why
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        other = {**headers, "origin": "https://other.example"}
        assert "access-control-allow-origin" not in post(running, CHAT, BODY, headers=other).headers


# --- how much ---------------------------------------------------------------------------------------------------------------------------


def test_a_body_too_large_is_a_413_however_it_comes(engine: Engine) -> None:
    with serving(engine, limits=Limits(body_bytes=20_000)) as running:
        assert post(running, CHAT, BODY).status_code == 200
        response = post(running, CHAT, {**BODY, "user": "x" * 30_000})
        assert response.status_code == 413
        assert error_of(response)["code"] == "too_large"

        def chunks() -> Any:
            for _ in range(100):
                yield b" " * 1000

        response = http.post(
            f"{running.url}{CHAT}", content=chunks(), headers={"content-type": "application/json"}
        )
        assert response.status_code == 413
        response = http.post(
            f"{running.url}/v1/audio/transcriptions",
            data={"model": "tiny"},
            files={"file": ("a.wav", b"x" * 30_000)},
        )
        assert response.status_code == 413


def test_half_open_requests_are_ended_and_others_answered_meanwhile(engine: Engine) -> None:
    with serving(engine, limits=Limits(receive_s=1.0)) as running:
        open_ones = []
        for _ in range(20):
            one = socket.create_connection(("127.0.0.1", running.port))
            one.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 500\r\n\r\n{"
            )
            open_ones.append(one)
        assert post(running, CHAT, BODY).status_code == 200
        for one in open_ones:
            one.settimeout(10)
            assert b" 408 " in one.recv(4096)
            one.close()


def test_a_connection_that_asks_nothing_is_left(engine: Engine) -> None:
    with serving(engine, limits=Limits(receive_s=0.5)) as running:
        for start in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nhost: local"):
            with socket.create_connection(("127.0.0.1", running.port)) as one:
                one.sendall(start)
                one.settimeout(600)
                assert one.recv(100) == b""
        assert http.get(f"{running.url}/health").status_code == 200


class Held(Scheduler):
    """One whose answers stop after their first piece until they may go on; `ended`: those that came to their end."""

    def __init__(self, engine: Engine, **how: Any) -> None:
        super().__init__(engine, **how)
        self.may_go, self.ended = threading.Event(), 0

    def answer(self, ask: Any) -> Any:
        pieces = super().answer(ask)

        async def held() -> Any:
            try:
                async for piece in pieces:
                    yield piece
                    while not self.may_go.is_set():
                        await asyncio.sleep(0.01)
                self.ended += 1
            finally:
                await pieces.aclose()

        return held()


def test_a_full_queue_is_a_429_and_nothing_is_lost(engine: Engine) -> None:
    work = Held(engine, max_waiting=2)
    with serving(engine, work) as running, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(post, running, CHAT, {**BODY, "stream": stream}) for stream in (False, True)]
        assert until(lambda: work.count == 2)
        for stream in (False, True):
            refused = post(running, CHAT, {**BODY, "stream": stream})
            assert refused.status_code == 429
            assert error_of(refused)["type"] == "rate_limit_error"
            assert refused.headers["retry-after"]
        work.may_go.set()
        assert [reply.result().status_code for reply in asked] == [200, 200]
        assert until(lambda: work.count == 0)
        assert post(running, CHAT, BODY).status_code == 200


# --- who goes ---------------------------------------------------------------------------------------------------------------------------


def test_a_client_that_goes_ends_its_work(engine: Engine) -> None:
    work = Held(engine)
    with serving(engine, work) as running:
        for stream in (False, True):
            asked = json.dumps({**BODY, "stream": stream}).encode()
            one = socket.create_connection(("127.0.0.1", running.port))
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n"
            one.sendall(head.encode() + asked)
            assert until(lambda: work.count == 1)
            if stream:
                one.recv(100)
            one.close()
            assert until(lambda: work.count == 0), "it would have waited for ever"
        assert work.ended == 0
        assert "muomni_clients_gone_total 1" in http.get(f"{running.url}/metrics").text


def test_many_aborted_streams_leave_no_work_behind(engine: Engine) -> None:
    work = Scheduler(engine)
    asked = json.dumps({**BODY, "max_tokens": 60, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n"
    with serving(engine, work) as running:
        expected = post(running, CHAT, BODY).json()["choices"]
        for number in range(100):
            one = socket.create_connection(("127.0.0.1", running.port))
            one.sendall(head.encode() + asked)
            if number % 2:
                one.recv(10 * (number % 7))
            one.close()
        assert until(lambda: work.count == 0)
        assert post(running, CHAT, BODY).json()["choices"] == expected
        assert len(asyncio_tasks(running)) < 10


def asyncio_tasks(running: Running) -> list[str]:
    """The names of tasks that the server's loop still has, by its gauge of running requests."""
    text = http.get(f"{running.url}/metrics").text
    count = next(line for line in text.splitlines() if line.startswith("muomni_requests_running "))
    return ["request"] * int(float(count.split()[1]))


class Endless(Scheduler):
    """One whose speech never ends."""

    async def stream(self, function: Any) -> Any:
        self.count += 1
        import numpy as np

        from muomni.serve.speaking import Sound

        try:
            while True:
                await asyncio.sleep(0)
                yield Sound(np.zeros(16_000, np.float32), 16_000)
        finally:
            self.count -= 1


def test_a_client_that_does_not_read_holds_nobody_up_and_is_left(engine: Engine) -> None:
    work = Endless(engine)
    with serving(engine, work, limits=Limits(stall_s=1.0)) as running:
        asked = json.dumps(
            {"model": "tiny", "input": "red", "voice": "default", "response_format": "pcm"}
        ).encode()
        one = socket.create_connection(("127.0.0.1", running.port))
        head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n"
        one.sendall(head.encode() + asked)
        assert until(lambda: work.count == 1)
        assert http.get(f"{running.url}/health").status_code == 200
        assert until(lambda: work.count == 0), "the server waits for its reader"
        one.close()


def test_clients_at_once_each_get_their_own_answer(tiny: Running, engine: Engine) -> None:
    texts = ["the red circle", "is", "blue", "left of", "square the"]
    expected = {text: engine.answer(text, max_new=6).text for text in texts}

    def ask(number: int) -> bool:
        text = texts[number % len(texts)]
        turns = [{"role": "user", "content": text}]
        reply = post(tiny, CHAT, {"model": "tiny", "messages": turns, "max_tokens": 6})
        content: str = reply.json()["choices"][0]["message"]["content"]
        return content == expected[text]

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(ask, range(60)))


# --- counting ---------------------------------------------------------------------------------------------------------------------------


def test_what_is_counted_is_what_was_asked(engine: Engine) -> None:
    with serving(engine) as running:
        post(running, CHAT, BODY)
        post(running, CHAT, {**BODY, "surprise": 1})
        for number in range(5):
            http.get(f"{running.url}/no/{number}")
        text = http.get(f"{running.url}/metrics").text
        assert f'muomni_requests_total{{route="{CHAT}",status="200"}} 1.0' in text
        assert f'muomni_requests_total{{route="{CHAT}",status="400"}} 1.0' in text
        assert 'muomni_requests_total{route="none",status="404"} 5.0' in text, (
            "paths that are none share a label"
        )
        assert 'muomni_tokens_total{kind="completion"} 4.0' in text
        assert threading.active_count() < 200
