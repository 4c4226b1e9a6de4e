"""Durations and sizes as people write them, and back: 1h, 90m, 12GB, 8GiB."""

from __future__ import annotations

import re

from muomni.errors import ConfigError

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

# What batches hold, as a run's metrics.jsonl (`<unit>_per_s`) and a plan name it, and the words for it.
# Padding is never counted.
CONTENTS = {
    "samples": "samples",
    "tokens": "tokens",
    "labels": "labels",
    "pictures": "pictures",
    "audio_s": "seconds of sound",
    "code_frames": "code frames",
}
# The meter's numbers (train.meter), as metrics.jsonl, pages, plans and `muomni inspect` name them;
# docs/formats.md says what each is.
METERS = (
    "steps_per_s",
    *(f"{unit}_per_s" for unit in CONTENTS),
    "data_wait",
    "mfu",
    "flops_error",
    "peak_memory_mb",
)


def seconds(text: str, what: str) -> float:
    """The seconds that a duration means; `what` names it in errors.

    Raises  ConfigError
    """
    return _value(text, SECONDS, what, "a duration such as 1h, 90m or 45s")


def num_bytes(text: str, what: str) -> int:
    """The bytes that a size means; GB are 10^9 bytes, GiB 2^30. `what` names it in errors.

    Raises  ConfigError
    """
    return int(
        _value(
            text,
            {name: float(size) for name, size in BYTES.items()},
            what,
            "a size such as 12GB, 8GiB or 500MB",
        )
    )


def _value(text: str, units: dict[str, float], what: str, unit_wanted: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise ConfigError(f"{what}: expected {unit_wanted}, got {text!r}")
    return float(match[1]) * units[match[2]]


def format_bytes(count: float) -> str:
    """A size for people: 1.2 GB."""
    for unit in ("GB", "MB", "kB"):
        size = {"GB": 1e9, "MB": 1e6, "kB": 1e3}[unit]
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_seconds(count: float) -> str:
    """A duration for people: 2 h 05 min, 3 min 20 s, 12 s, 1.3 s."""
    count = round(count) if count >= 10 else count  # 59.7 s is a minute
    if count >= 86400:
        return f"{int(count // 86400)} d {int(count % 86400 // 3600)} h"
    if count >= 3600:
        return f"{int(count // 3600)} h {int(count % 3600 // 60):02d} min"
    if count >= 60:
        return f"{int(count // 60)} min {int(count % 60):02d} s"
    return f"{count:.0f} s" if count >= 10 else f"{count:.2g} s"


def format_count(count: float) -> str:
    """A number for people: 3.7 M."""
    for letter, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"
