"""The machine as a run sees it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from muomni import runtime
from muomni.errors import ConfigError
from muomni.runtime import Runtime, choose_dtype, stop_on_signals

CPU = torch.device("cpu")


def test_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, width, expected in (
        (True, 192, torch.bfloat16),
        (True, 191, torch.float32),
        (False, 512, torch.float32),
    ):
        monkeypatch.setattr(runtime, "bf16_gains", lambda _, has=has: has)
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


def a_cpu(monkeypatch: pytest.MonkeyPatch, flags: str, vendor: str = "AuthenticAMD") -> None:
    """What the system says of the chip."""
    said = {"flags": f"flags : {flags}" if flags else "", "vendor_id": f"vendor_id : {vendor}"}
    monkeypatch.setattr(runtime, "_cpu_line", said.__getitem__)


@pytest.fixture
def bf16_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip whose flags name bf16, and kernels that know what to do with it."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    a_cpu(monkeypatch, "avx512f avx512_bf16")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


def test_bf16_is_told_from_the_chip(bf16_chip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, has in (("avx512f", False), ("avx512f avx512_bf16", True), ("", False)):
        a_cpu(monkeypatch, flags)
        assert runtime.has_bf16(CPU) == has
    a_cpu(monkeypatch, "avx512f avx512_bf16")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not runtime.has_bf16(CPU)
    assert not runtime.has_bf16(torch.device("meta"))


@pytest.mark.parametrize(
    ("vendor", "flags", "most", "gains"),
    [
        ("AuthenticAMD", "avx512_bf16", "", True),
        ("AuthenticAMD", "avx512f", "", False),
        ("GenuineIntel", "avx512_bf16", "", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "", True),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "AVX512_CORE_BF16", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "AVX10_1_512_AMX", True),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "avx512_core_amx", True),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "AVX10_1_512", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16", "ALL", True),
    ],
)
def test_bf16_is_taken_where_it_is_faster(
    bf16_chip: None, monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, most: str, gains: bool
) -> None:
    a_cpu(monkeypatch, flags, vendor)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert runtime.bf16_gains(CPU) == gains
    assert choose_dtype("auto", 512, CPU) == (torch.bfloat16 if gains else torch.float32)


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("most", "has"),
    [
        ("AVX2", False),
        ("avx2", False),
        ("AVX512_CORE", False),
        ("AVX512_CORE_BF16", True),
        ("ALL", True),
        ("", True),
    ],
)
def test_bf16_may_be_switched_off(
    bf16_chip: None, monkeypatch: pytest.MonkeyPatch, name: str, most: str, has: bool
) -> None:
    monkeypatch.setenv(name, most)
    assert runtime.has_bf16(CPU) == has


def test_where_avx512_is_switched_off_bf16_is_too() -> None:
    switched_off = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    program = (
        "import torch; from muomni import runtime; cpu = torch.device('cpu');"
        "print(runtime.has_bf16(cpu), runtime.choose_dtype('auto', 512, cpu), runtime.format_gain(torch.bfloat16, cpu) < 0.5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=switched_off,
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    assert done.stdout.split() == ["False", "torch.float32", "True"]


def test_a_gpu_that_emulates_bf16_does_not_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own question says yes for any card of CUDA 11, Turing and Volta too, unless it is asked without
    emulation."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    cuda = torch.device("cuda:0")
    assert not runtime.has_bf16(cuda)
    assert choose_dtype("auto", 64, cuda) == torch.float16
    assert runtime.product_format(64, cuda) == torch.float32


@pytest.mark.parametrize("has", [True, False])
def test_what_is_chosen_is_what_the_machine_is_fast_in(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    """On whatever chip this runs: the choice agrees with a measurement that does not ask for the chip's
    flags."""
    assert runtime.format_gain(torch.float32, CPU) == 1.0
    chosen = choose_dtype("auto", 512, CPU)
    assert runtime.format_gain(chosen, CPU) >= runtime.EMULATED_BELOW
    monkeypatch.setattr(runtime, "has_bf16", lambda device: has)
    assert len(runtime.emulated({torch.bfloat16, torch.float32}, CPU)) == (not has)
    assert not runtime.emulated({torch.float32}, CPU)


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


CHILD = """
import os, time
from muomni import runtime
runtime.end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""
STARTER = """
import os, subprocess, sys, time
environment = {**os.environ, "MUOMNI_PARENT": sys.argv[2] if len(sys.argv) > 2 else str(os.getpid())}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_a_stage_does_not_outlive_its_recipe() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, CHILD], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert int(starter.stdout.readline()) > 0
    starter.kill()
    assert starter.stdout.read() == "", "the pipe ends with the child"
    late = subprocess.Popen(
        [sys.executable, "-c", STARTER, CHILD, "1"], stdout=subprocess.PIPE, text=True
    )  # its parent is gone already
    assert late.stdout is not None
    late.kill()
    assert late.stdout.read() == ""
