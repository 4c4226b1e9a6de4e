"""The machine as a run sees it."""

from __future__ import annotations

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from muomni import runtime
from muomni.errors import ConfigError
from muomni.runtime import Runtime, choose_dtype, stop_on_signals

CPU = torch.device("cpu")


def test_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, width, expected in ((True, 192, torch.bfloat16), (True, 191, torch.float32), (False, 512, torch.float32)):
        monkeypatch.setattr(runtime, "has_bf16", lambda _, has=has: has)
        assert choose_dtype("auto", width, CPU) == expected
    assert choose_dtype("fp32", 512, CPU) == torch.float32
    assert choose_dtype("bf16", 8, CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match="CUDA"):
        choose_dtype("fp16", 512, CPU)


def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")
    for has, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(runtime, "has_bf16", lambda _, has=has: has)
        assert choose_dtype("auto", 64, cuda) == expected
    assert choose_dtype("fp16", 64, cuda) == torch.float16


def test_bf16_is_told_from_the_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for flags, has in (("flags : avx512f", False), ("flags : avx512f avx512_bf16", True), ("", False)):
        monkeypatch.setattr(runtime, "_cpu_flags", lambda flags=flags: flags)
        assert runtime.has_bf16(CPU) == has
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not runtime.has_bf16(CPU)
    assert not runtime.has_bf16(torch.device("meta"))


def test_autocast_is_empty_for_full_precision() -> None:
    with Runtime(CPU, torch.float32).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with Runtime(CPU, torch.bfloat16).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_seeds_reach_every_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    runtime.seed_everything(5)
    first = draw()
    assert first != draw()
    runtime.seed_everything(5)
    assert draw() == first
    runtime.seed_everything(2**40)  # numpy takes 32 bits


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_asks_and_a_second_ends(number: int, code: int) -> None:
    before = signal.getsignal(number)
    ended: list[int] = []
    signal.signal(number, lambda *_: ended.append(1))
    try:
        with stop_on_signals() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop
            assert stop.exit_code == code
            assert not ended
            os.kill(os.getpid(), number)
            assert ended == [1]
        os.kill(os.getpid(), number)
        assert ended == [1, 1], "afterwards the handlers are as they were"
    finally:
        signal.signal(number, before)


def test_outside_of_the_main_thread_nothing_is_caught() -> None:
    seen: list[bool] = []

    def inside() -> None:
        with stop_on_signals() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [False]


def test_one_process_starts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    run = runtime.start(device="cpu", precision="fp32")
    assert (run.device.type, run.rank, run.world, run.is_main) == ("cpu", 0, 1, True)


def test_memory_is_in_bytes() -> None:
    assert 20e6 < runtime.memory_bytes() < 1e12
