"""The machine as a run sees it: device, precision, threads, seeds, ranks and the signals that ask a run to stop."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch

from muomni.errors import ConfigError

KERNELS_KEPT = 64
BF16_MIN_WIDTH = 192  # SPEC C3: narrower networks gain nothing from bf16 on a CPU (measured, reference/ecosystem.md 4)


@dataclass(frozen=True)
class Runtime:
    """Where a run computes: its device, its number format, and its place among the ranks."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """True on the rank that writes files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The forward's number format: a context, empty for float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def has_bf16(device: torch.device) -> bool:
    """True where bf16 matrix products are done by the chip itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        flags = _cpu_flags()
        return "AVX512" in capability and ("avx512_bf16" in flags or "amx_bf16" in flags)
    return False


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
            return next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return ""


def start(*, precision: str = "auto", width: int = 256, device: str = "auto", threads: int | None = None) -> Runtime:
    """Choose device and precision (SPEC C3) and join the process group where torchrun made one.

    precision  auto | fp32 | bf16 | fp16
    """
    # Numbers below 1e-38 are zero: sharp softmaxes make millions of them, and the CPU takes ten times longer over each (docs/log.md).
    # Before any thread is started: they inherit it.
    torch.set_flush_denormal(True)
    use_threads(threads)
    # oneDNN keeps the kernels and buffers of every shape that it has met, 1024 of them: gigabytes where lengths vary (docs/log.md).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=collective_timeout())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return Runtime(chosen, choose_dtype(precision, width, chosen), rank, world)


def collective_timeout() -> timedelta:
    """How long a rank waits in a collective for the others: ten minutes, or MUOMNI_COLLECTIVE_TIMEOUT_S.

    Work of one rank alone (measuring, saving) is not waited for in collectives (train.distributed), so this is about a step.
    """
    return timedelta(seconds=float(os.environ.get("MUOMNI_COLLECTIVE_TIMEOUT_S", "600")))


def use_threads(count: int | None) -> None:
    """Compute with so many threads from here on; None changes nothing. Another count may give other last bits."""
    if count:
        torch.set_num_threads(count)


def choose_dtype(precision: str, width: int, device: torch.device) -> torch.dtype:
    """The autocast type for a precision setting; master weights are float32 in any case."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if precision == "fp16":
        if device.type != "cuda":
            raise ConfigError("precision fp16 needs a CUDA device", hint="use auto, bf16 or fp32")
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if has_bf16(device) else torch.float16
    return torch.bfloat16 if has_bf16(device) and width >= BF16_MIN_WIDTH else torch.float32


def seed_everything(seed: int) -> None:
    """The one place where global generators are seeded."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the generators that a network draws from on a device; a thousandth of the time of `seed_everything`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class StopRequest:
    """Set by ctrl-C or SIGTERM; the loop looks at it after each step, saves and leaves."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The shell's code for a process that a signal ended."""
        return 128 + (self.signal or 0)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop honours between two steps; a second signal ends at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, before[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def memory_bytes() -> int:
    """Peak resident memory of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
