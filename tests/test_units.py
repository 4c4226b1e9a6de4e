"""Durations, sizes and counts as people read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import muomni
from muomni.units import format_seconds


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0.0423, "0.042 s"),
        (1.26, "1.3 s"),
        (12.4, "12 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (4335, "1 h 12 min"),
        (24286, "6 h 44 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_is_read_at_a_glance(count: float, told: str) -> None:
    assert format_seconds(count) == told


def test_durations_are_told_in_one_way() -> None:
    """No room writes 24286s; seconds of a sound keep their own words (`12.5 s`)."""
    bare = re.compile(r":\.[0-9]f\}s\b")
    sources = sorted(Path(muomni.__file__).parent.rglob("*.py"))
    assert [path.name for path in sources if bare.search(path.read_text(encoding="utf-8"))] == []
