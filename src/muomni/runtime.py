"""The machine as a run sees it: device, precision, threads, seeds, ranks and the signals that ask a run to
stop."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from muomni.errors import ConfigError

KERNELS_KEPT = 64
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# SPEC C3: on a CPU with bf16 of its own, narrower networks gain nothing from it: measured on two cores with
# AVX512-BF16 alone. A chip without it computes in float32 whatever the width.
BF16_MIN_WIDTH = 192
# Values of ONEDNN_MAX_CPU_ISA that switch bf16 products off on a chip that has them.
ISAS_WITHOUT_BF16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
EMULATED_BELOW = 0.5  # of float32's speed: bf16 that is taken gains (1.2 to 4 times), emulated it loses (measured on AVX2: 0.02)


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
        return computing_in(self.dtype, self.device)


def computing_in(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which products are taken in a number format, empty for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def has_bf16(device: torch.device) -> bool:
    """True where bf16 matrix products are done by the chip itself, and are not switched off by the
    environment."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        wide = torch.backends.cpu.get_cpu_capability().startswith(
            ("AVX512", "AVX10")
        )  # heeds ATEN_CPU_CAPABILITY
        flags = _cpu_line("flags")
        return wide and _isa() not in ISAS_WITHOUT_BF16 and ("avx512_bf16" in flags or "amx_bf16" in flags)
    return False


def bf16_gains(device: torch.device) -> bool:
    """True where products in bf16 are faster than in float32, by the chip's kind.

    An Intel chip without AMX has bf16 products of its own that lose: twice the work an instruction, which half
    as many ports take. Measured (docs/log.md): 0.6 times float32's speed, on AMD 2.2 times.
    """
    if device.type != "cpu" or not has_bf16(device):
        return has_bf16(device)
    has_amx = "amx_bf16" in _cpu_line("flags") and (_isa() in ("", "ALL", "DEFAULT") or "AMX" in _isa())
    return has_amx or "GenuineIntel" not in _cpu_line("vendor_id")


def _isa() -> str:
    """The most of the chip that oneDNN may use, as the environment says it; "" where it says nothing."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()


def _cpu_line(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
            return next((line for line in stream if line.startswith(key)), "")
    except OSError:
        return ""


def start(
    *, precision: str = "auto", width: int = 0, device: str = "auto", threads: int | None = None
) -> Runtime:
    """Choose device and precision (SPEC C3) and join the process group where torchrun made one.

    precision  auto | fp32 | bf16 | fp16
    width      of what is computed, which decides on a CPU; each stage chooses its own format
               (StageSettings.number_format)
    """
    # Numbers below 1e-38 are zero: sharp softmaxes make millions of them, and the CPU takes ten times longer
    # over each (docs/log.md). Before any thread is started: they inherit it.
    torch.set_flush_denormal(True)
    use_threads(threads)
    # oneDNN keeps the kernels and buffers of every shape that it has met, 1024 of them: gigabytes where
    # lengths vary (docs/log.md).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo", timeout=collective_timeout()
        )
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return Runtime(chosen, choose_dtype(precision, width, chosen), rank, world)


def collective_timeout() -> timedelta:
    """How long a rank waits in a collective for the others: ten minutes, or MUOMNI_COLLECTIVE_TIMEOUT_S.

    Work of one rank alone (measuring, saving) is not waited for in collectives (train.distributed), so this
    is about a step.
    """
    return timedelta(seconds=float(os.environ.get("MUOMNI_COLLECTIVE_TIMEOUT_S", "600")))


def use_threads(count: int | None) -> None:
    """Compute with so many threads from here on; None changes nothing. Another count may give other last
    bits."""
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
    return torch.bfloat16 if bf16_gains(device) and width >= BF16_MIN_WIDTH else torch.float32


def product_format(width: int, device: torch.device) -> torch.dtype:
    """The fastest format in which matrices of this width may be multiplied where nothing scales them against
    underflow."""
    fastest = choose_dtype("auto", width, device)
    return torch.float32 if fastest == torch.float16 else fastest


def format_gain(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as fast as in float32 this device multiplies matrices in a format: measured, 1.0 for
    float32.

    It asks the machine, not `has_bf16`. The formats take turns and the best time of each counts, so that a
    busy machine slows both; a format that seems emulated is tried longer.
    """
    if dtype == torch.float32:
        return 1.0
    size = 2048 if device.type == "cuda" else 256
    matrices = {
        kind: torch.full((size, size), 0.5, dtype=kind, device=device) for kind in (torch.float32, dtype)
    }
    best = dict.fromkeys(matrices, float("inf"))
    for turn in range(32):
        for kind, matrix in matrices.items():
            begin = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for a GPU
            if turn >= 2:  # the first calls choose their kernels
                best[kind] = min(best[kind], time.perf_counter() - begin)
        if turn >= 7 and best[torch.float32] / best[dtype] >= EMULATED_BELOW:
            break
    return best[torch.float32] / best[dtype]


def format_name(dtype: torch.dtype) -> str:
    """A number format for people: float32, bf16, fp16."""
    name = str(dtype).removeprefix("torch.")
    return {"bfloat16": "bf16", "float16": "fp16"}.get(name, name)


def emulated(formats: Collection[torch.dtype], device: torch.device) -> list[str]:
    """A line for the user where one of the formats has no hardware on this device, else none."""
    if torch.bfloat16 not in formats or has_bf16(device):
        return []
    return [
        f"bf16 is only emulated on this {device.type}, and slow: `auto` (precision, dtype) takes the fastest sound format"
    ]


def seed_everything(seed: int) -> None:
    """The one place where global generators are seeded."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the generators that a network draws from on a device; a thousandth of the time of
    `seed_everything`."""
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
    """Turn SIGINT and SIGTERM into a request that the loop honours between two steps; a second signal ends at
    once."""
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


PARENT = "MUOMNI_PARENT"  # the process that runs this one as a stage of its recipe


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when the one that started it dies, by -9 or for want of
    memory too.

    Only for a process to which MUOMNI_PARENT names that one: a stage that outlived its recipe would write
    where the next run of that recipe does. Without Linux's call the lock of the stage alone keeps them apart.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError, TypeError):
        return
    prctl(1, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before
        os.kill(os.getpid(), signal.SIGTERM)


def memory_bytes() -> int:
    """Peak resident memory of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory_bytes() -> int:
    """Memory that may still be taken: the machine's, or what its container leaves; half of all where the
    system does not tell."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as stream:
        free = 1024 * int(next(line for line in stream if line.startswith("MemAvailable")).split()[1])
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max", where there is no limit, is no number
        free = min(
            free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        )
    return max(0, free)
