"""What no test may do: a suite is green on every machine, fast or slow, busy or idle."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
CLOCKS = re.compile(r"(?<!\.)\b(perf_counter|process_time|monotonic|thread_time|timeit)\(|time\.(perf_counter|process_time|monotonic)\(\)")
SPANS = re.compile(r"assert .*time\.time\(\)")


def test_no_test_measures_time() -> None:
    """Count calls, products or bytes; what takes how long is told by benchmarks/. Clocks that a test sets itself are no clocks."""
    sources = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]
    assert len(sources) > 50
    assert [str(path.relative_to(TESTS)) for path in sources if CLOCKS.search(text := path.read_text()) or SPANS.search(text)] == []
