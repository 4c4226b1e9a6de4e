"""How long an update takes: real ones are timed, 50 to 200 of them where the time allows (SPEC T8)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

LEAST, MOST = 50, 200  # updates of a probe


def timed(
    update: Callable[[], float | None], *, most: int = MOST, enough_s: float, limit_s: float
) -> list[float]:
    """Seconds of updates that are made one after another.

    It ends with the `most`-th that is timed; after `enough_s` once LEAST are; and after `enough_s` at once
    where it can be seen that LEAST of them would take longer than `limit_s`. One is always timed.
    Takes   update: makes one and gives its seconds, or None where it stands for no other (caches fill,
            kernels are made).
    """
    begin = time.perf_counter()
    took: list[float] = []
    while len(took) < most:
        spent_s = time.perf_counter() - begin
        if took and spent_s > enough_s:
            to_come_s = (LEAST - len(took)) * statistics.median(took)
            if len(took) >= LEAST or spent_s + to_come_s > limit_s:
                break
        if (seconds := update()) is not None:
            took.append(seconds)
    return took
