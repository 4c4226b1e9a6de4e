"""Regression against a stored report: worse is red in each gate's own direction, chance and 2 % are forgiven,
what is missing is red."""

from __future__ import annotations

import pytest

from muomni.evaluate import baseline
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate

MORE = Gate("reads", "exact", "", at_least=0.5)
LESS = Gate("hears", "cer", "", at_most=0.5)


@pytest.mark.parametrize(
    ("gate", "before", "now", "verdict"),
    [
        (MORE, Fact(0.8), 0.8, "green"),
        (MORE, Fact(0.8), 0.79, "green"),
        (MORE, Fact(0.8), 0.77, "red"),
        (MORE, Fact(0.8, ci=(0.7, 0.9)), 0.71, "green"),
        (MORE, Fact(0.8, ci=(0.7, 0.9)), 0.69, "red"),
        (LESS, Fact(0.1), 0.05, "green"),
        (LESS, Fact(0.1), 0.11, "red"),
        (LESS, Fact(0.0), 0.001, "red"),
        (MORE, Fact(0.8), float("nan"), "red"),
    ],
)
def test_worse_is_red(gate: Gate, before: Fact, now: float, verdict: str) -> None:
    (judged,) = baseline.compare([gate], {gate.fact: Fact(now)}, {gate.fact: before.to_json()})
    assert judged.verdict == verdict
    assert judged.name == f"baseline_{gate.fact}"


def test_a_fact_that_is_no_longer_measured_is_red_and_a_new_one_is_not_asked() -> None:
    stored = {"exact": Fact(0.8).to_json()}
    assert [row.verdict for row in baseline.compare([MORE, LESS], {"cer": Fact(0.4)}, stored)] == ["red"]
