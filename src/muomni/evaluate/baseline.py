"""Regression: a stage's facts against those of a stored report, each in the direction that its gates say is
better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate, Judged

SLACK = 0.02  # SPEC T7: not worse by more than 2 %


def compare(gates: Sequence[Gate], now: Mapping[str, Fact], before: Mapping[str, Any]) -> list[Judged]:
    """A verdict for each fact that has a gate and stands in both: red where it is worse by more than 2 %, and
    by more than chance.

    Takes   before: the facts of a stored `muomni gate --json` (or certificate).
    Gives   gates named `baseline_<fact>`; chance is half of the stored 95 % interval. A fact that the report
            has and that was not measured now is red.
    """
    judged = []
    for fact, is_ceiling in {gate.fact: gate.is_ceiling for gate in gates}.items():
        stored = Fact.from_json(before[fact]) if fact in before else None
        if stored is None or not math.isfinite(stored.value):
            continue
        half = (stored.ci[1] - stored.ci[0]) / 2 if stored.ci else 0.0
        slack = max(SLACK * abs(stored.value), half, 1e-9)
        bound = stored.value + slack if is_ceiling else stored.value - slack
        value = now[fact].value if fact in now and math.isfinite(now[fact].value) else None
        holds = value is not None and (value <= bound if is_ceiling else value >= bound)
        why = "" if holds else f"worse than the stored {stored.value:.4g} by more than 2 % and chance"
        judged.append(
            Judged(
                f"baseline_{fact}",
                "green" if holds else "red",
                value,
                f"{'<=' if is_ceiling else '>='} {bound:.4g}",
                why,
                fact,
            )
        )
    return judged
