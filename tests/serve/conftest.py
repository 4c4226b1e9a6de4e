"""A tiny run behind a real port on this machine's loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

for extra in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "openai", "httpx"):
    pytest.importorskip(extra)

from served import Running, serving  # noqa: E402 - after the extras were looked for

from muomni.infer.engine import Engine  # noqa: E402


@pytest.fixture(scope="session")
def tiny(engine: Engine) -> Iterator[Running]:
    """The tiny run, served for all tests."""
    with serving(engine) as running:
        yield running


@pytest.fixture(scope="session")
def client(tiny: Running) -> Any:
    """The official client of it."""
    return tiny.client()


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A tiny token model, which draws and speaks, served for all tests."""
    from tiny_tokens import save_token_run

    folder = save_token_run(tmp_path_factory.mktemp("served") / "tokens")
    with serving(Engine.load(folder), name="tokens") as running:
        yield running
