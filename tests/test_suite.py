"""What no test may do: a suite is green on every machine, fast or slow, busy or idle."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
CLOCKS = re.compile(
    r"(?<!\.)\b(perf_counter|process_time|monotonic|thread_time|timeit)\(|time\.(perf_counter|process_time|monotonic)\(\)"
)
SPANS = re.compile(r"assert .*time\.time\(\)")


def test_no_test_measures_time() -> None:
    """Count calls, products or bytes; what takes how long is told by benchmarks/. Clocks that a test sets
    itself are no clocks."""
    sources = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]
    assert len(sources) > 50
    assert [
        str(path.relative_to(TESTS))
        for path in sources
        if CLOCKS.search(text := path.read_text()) or SPANS.search(text)
    ] == []


def test_a_limit_is_there_for_what_hangs_not_for_what_is_slow() -> None:
    """Two ranks took over 150 s on two cores with load 13: a limit that a busy machine reaches is a
    measurement of time."""
    limits = {
        path.name: re.findall(r"timeout=(\d+)", path.read_text())
        for path in TESTS.rglob("*.py")
        if path != Path(__file__)
    }
    assert any(limits.values())
    assert {name: found for name, found in limits.items() if any(int(limit) < 600 for limit in found)} == {}
