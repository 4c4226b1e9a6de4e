"""Fixtures of more than one room. Imports stay inside, so that a test of one room needs no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from shared import LOADED, once

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # before anything loads torch: workers share the cores, and so do the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in each run, on a machine of any speed: no test fails by chance; more examples are tried
# by hand
hypothesis_settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("fixed")

if TYPE_CHECKING:
    from muomni.infer.engine import Engine


# files by the time that they take, the longest first (docs/testing.md)
LONGEST = (
    "test_curriculum",
    "test_seeing",
    "test_second_device",
    "test_shipped_recipes",
    "test_readers_and_stages",
    "test_vlm",
    "test_killed_stages",
    "test_album_and_pages",
    "test_forecast",
    "test_selftest",
    "test_newcomer",
)


@pytest.fixture(autouse=True)
def _numbers_as_they_are() -> None:
    """What a run sets for its process (numbers below 1e-38 are zero) does not reach into the next test:
    hypothesis draws such numbers."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first: workers that take file by file then end together."""
    order = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def loaded() -> Any:
    """Makes processes, as multiprocessing does, that hold torch and muomni from their start: loading takes
    seven seconds on a slow chip."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world in its tiny size."""
    from muomni.data.world.build import build

    return once(tmp_path_factory, "world", lambda folder: build(folder, seed=1, size="tiny"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of tiny, untrained networks, as the stages leave it."""
    from tiny_run import save_run

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_run(folder)
    return folder


@pytest.fixture(scope="session")
def engine(run: Path) -> Engine:
    """The tiny run at work."""
    from muomni.infer.engine import Engine

    return Engine.load(run)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """red.png, blue.png, high.wav (0.5 s), low.wav (1 s), broken.wav, broken.png."""
    import numpy as np
    from PIL import Image

    from muomni.media import audio

    folder = tmp_path_factory.mktemp("media")
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    for name, hz, seconds in (("high", 880, 0.5), ("low", 220, 1.0)):
        times = np.arange(int(16000 * seconds)) / 16000
        audio.write(folder / f"{name}.wav", 0.5 * np.sin(2 * np.pi * hz * times), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF, but no more")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's folder in Qwen3's exact shape."""
    import qwen

    return qwen.tokenizer(tmp_path_factory.mktemp("qwen") / "tokenizer")


@pytest.fixture(scope="session")
def qwen_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3 with that tokenizer."""
    import qwen

    pytest.importorskip("transformers")
    return qwen.llm(tmp_path_factory.mktemp("qwen") / "llm")
