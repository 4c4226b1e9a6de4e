"""Checks of this machine for `muomni doctor`: one finding each; a failing check does not hide the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1 << 30
LEAST_MEMORY_BYTES = 3 * GIB
LEAST_DISK_BYTES = 2 * GIB
OLDEST_TORCH = (2, 11)
EXTRAS = {
    "transformers": "hf",
    "espeakng_loader": "speech",
    "tensorboard": "track",
    "fastapi": "serve",
}  # module -> extra of our package


@dataclass(frozen=True)
class Finding:
    """Result of one check; `ok` False means that the user should act, and `hint` says how. Absent extras are
    ok."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def examine() -> list[Finding]:
    """All findings about this machine, in a fixed order; never raises, whatever is missing or broken."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "torch": _torch,
        "cores": _cores,
        "threads": _threads,
        "bf16": _bf16,
        "memory": _memory,
        "disk": _disk,
        "cuda": _cuda,
        **{module: lambda module=module: _extra(module) for module in EXTRAS},  # type: ignore[misc]
        "data": _data,
        "sound": _sound,
    }
    return [_guarded(name, check) for name, check in checks.items()]


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a failing check must not hide the others
        reason = " ".join(str(error).split()) or type(error).__name__
        return Finding(
            name,
            False,
            f"the check failed: {reason}",
            "is the installation whole? pip install --force-reinstall muomni",
        )


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding(
        "python",
        good,
        f"{platform.python_version()} on {platform.platform()}",
        "" if good else "muOmni needs Python 3.11 or newer",
    )


def _torch() -> Finding:
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    good = (major, minor) >= OLDEST_TORCH
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU only"
    )
    return Finding(
        "torch",
        good,
        f"{torch.__version__}, {build}",
        "" if good else f"muOmni needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer",
    )


def _cores() -> Finding:
    quota = _cpu_quota()
    limit = f", limited to {quota:g} by the container" if quota is not None else ""
    return Finding("cores", True, f"{_usable_cores()} usable of {os.cpu_count()}{limit}")


def _threads() -> Finding:
    import torch

    threads, cores = torch.get_num_threads(), _usable_cores()
    good = threads <= cores
    return Finding(
        "threads",
        good,
        f"torch computes with {threads}",
        "" if good else f"export OMP_NUM_THREADS={cores}: more threads than cores are slow",
    )


def _bf16() -> Finding:
    import torch

    from muomni.runtime import (
        EMULATED_BELOW,
        bf16_gains,
        choose_dtype,
        format_gain,
        format_name,
        has_bf16,
    )

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gain = format_gain(torch.bfloat16, device)
    own = "by the chip itself" if has_bf16(device) else "only emulated"
    chosen = format_name(choose_dtype("auto", 1 << 30, device))
    summary = f"{own}, {gain:.2g} x float32's speed: `precision: auto` takes {chosen} ({_chip(device)})"
    good = not bf16_gains(device) or gain >= EMULATED_BELOW
    return Finding(
        "bf16",
        good,
        summary,
        ""
        if good
        else "is the machine busy? run it again when idle; else use precision: fp32, and report it",
    )


def _chip(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    rows = dict(line.split(":", 1) for line in _read(Path("/proc/cpuinfo")).splitlines() if ":" in line)
    name = next(
        (value.strip() for key, value in rows.items() if key.strip() == "model name"),
        platform.processor() or platform.machine(),
    )
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _memory() -> Finding:
    free_bytes, total_bytes = _memory_bytes()
    good = free_bytes >= LEAST_MEMORY_BYTES
    hint = "" if good else f"the quickstart wants about {LEAST_MEMORY_BYTES // GIB} GiB: close other programs"
    return Finding("memory", good, f"{free_bytes / GIB:.1f} GiB free of {total_bytes / GIB:.1f} GiB", hint)


def _disk() -> Finding:
    usage = shutil.disk_usage(Path.cwd())
    good = usage.free >= LEAST_DISK_BYTES
    hint = "" if good else f"runs want {LEAST_DISK_BYTES // GIB} GiB: free some space or choose another --out"
    return Finding("disk", good, f"{usage.free / GIB:.1f} GiB free in {Path.cwd()}", hint)


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        nvidia = Path("/proc/driver/nvidia/version").exists()
        hint = "a driver is installed, but this torch can't use it: install a CUDA build" if nvidia else ""
        return Finding("cuda", not nvidia, "no device: muOmni runs on the CPU", hint)
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Finding(
        "cuda", True, ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices)
    )


def _extra(module: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, True, "absent, optional", f"pip install 'muomni[{EXTRAS[module]}]'")
    return Finding(module, True, importlib.metadata.version(module.replace("_", "-")))


def _data() -> Finding:
    folder = os.environ.get("MUOMNI_DATA")
    if not folder:
        return Finding("data", True, "MUOMNI_DATA is not set: only the toy world is used")
    good = Path(folder).is_dir()
    return Finding(
        "data",
        good,
        f"MUOMNI_DATA = {folder}",
        "" if good else "no such folder: correct or unset MUOMNI_DATA",
    )


def _sound() -> Finding:
    import soundfile

    formats = ("WAV", "FLAC", "OGG", "MP3")
    available = soundfile.available_formats()
    good = {"WAV", "FLAC"} <= set(available)
    detail = f"libsndfile {soundfile.__libsndfile_version__}: {', '.join(kind for kind in formats if kind in available)}"
    return Finding(
        "sound", good, detail, "" if good else "install a newer libsndfile: WAV and FLAC are needed"
    )


def _usable_cores() -> int:
    """Cores that this process may run on, a container's quota included."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return allowed if quota is None else max(1, min(allowed, round(quota)))


def _cpu_quota() -> float | None:
    quota, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory_bytes() -> tuple[int, int]:
    """Free and total memory in bytes, a container's limit included."""
    rows = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    if "MemAvailable" in rows:
        free, total = (int(rows[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    else:  # not Linux
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = (_read(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        free, total = min(free, max(0, int(limit) - int(used))), min(total, int(limit))
    return free, total


def _read(path: Path) -> str:
    """A small text file of the system, empty where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
