"""Gates: rules over facts, judged by code. A fact that is missing fails its gate; it is never skipped."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from muomni.errors import ConfigError
from muomni.evaluate.facts import Fact

Verdict = Literal["green", "red", "waived"]


@dataclass(frozen=True)
class Gate:
    """One demand on one fact.

    at_least, at_most   the bound, which a recipe may set anew
    below_floor         the value must be at most this factor of the fact's floor (0.5 = half of what knowing nothing gives)
    above_floor         the value must be at least this much above the floor
    why                 what a red verdict means, and what to try
    """

    name: str
    fact: str
    why: str
    at_least: float | None = None
    at_most: float | None = None
    below_floor: float | None = None
    above_floor: float | None = None

    def bound(self, fact: Fact, override: float | None) -> tuple[str, float]:
        """The comparison and the number to compare with; nan where the fact has no floor to compare with."""
        floor = math.nan if fact.floor is None else fact.floor
        if self.at_least is not None:
            return ">=", self.at_least if override is None else override
        if self.at_most is not None:
            return "<=", self.at_most if override is None else override
        if self.below_floor is not None:
            return "<=", floor * (self.below_floor if override is None else override)
        assert self.above_floor is not None
        return ">=", floor + (self.above_floor if override is None else override)


@dataclass(frozen=True)
class Judged:
    """A gate's verdict on a stage."""

    name: str
    verdict: Verdict
    value: float | None
    threshold: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """As it stands in a certificate."""
        return {"name": self.name, "verdict": self.verdict, "value": self.value, "threshold": self.threshold, "why": self.why}


def judge(
    gates: Sequence[Gate], facts: Mapping[str, Fact], overrides: Mapping[str, float] | None = None, waived: Mapping[str, str] | None = None
) -> list[Judged]:
    """The verdict of every gate.

    Takes   overrides: gate -> bound of the recipe; waived: gate -> the written reason.
    Raises  ConfigError where an override or a waiver names no gate of the stage, or a waiver has no reason.
    """
    overrides, waived = overrides or {}, waived or {}
    names = [gate.name for gate in gates]
    for name in [*overrides, *waived]:
        if name not in names:
            raise ConfigError(f"gate {name!r} is none of this stage's", hint=f"they are {', '.join(names)}")
    for name, reason in waived.items():
        if not reason.strip():
            raise ConfigError(f"gate {name!r}: a waiver needs a reason", hint='--waive GATE --reason "..."')
    judged = []
    for gate in gates:
        fact = facts.get(gate.fact)
        if fact is None:
            value, threshold, holds = None, f"{gate.fact} was not measured", False
        else:
            sign, bound = gate.bound(fact, overrides.get(gate.name))
            value = fact.value if math.isfinite(fact.value) else None
            holds = value is not None and math.isfinite(bound) and (value >= bound if sign == ">=" else value <= bound)
            threshold = f"{sign} {bound:.4g}"
        verdict: Verdict = "green" if holds else "waived" if gate.name in waived else "red"
        why = waived[gate.name] if verdict == "waived" else gate.why if verdict == "red" else ""
        judged.append(Judged(gate.name, verdict, value, threshold, why))
    return judged


def demanded(demands: Mapping[str, str]) -> tuple[Gate, ...]:
    """Gates that a recipe adds for facts of its own data, `fact: ">= 0.9"` or `fact: "<= 0.1"`.

    Raises  ConfigError for another form.
    """
    gates = []
    for fact, text in demands.items():
        found = re.fullmatch(r"\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
        if found is None or not math.isfinite(float(found[2])):
            raise ConfigError(f"demands.{fact}: expected e.g. '>= 0.9' or '<= 0.1', got {text!r}")
        bound = float(found[2])
        why = "less than this recipe demands: train longer, or look at its report"
        least, most = (bound, None) if found[1] == ">=" else (None, bound)
        gates.append(Gate(f"demand_{fact}", fact, why, at_least=least, at_most=most))
    return tuple(gates)


# Gates that every stage has (SPEC G1): the run itself must have been sound.
SOUND = (
    Gate("finite", "finite", "a loss or weight is not finite: lower lr, look at skipped.jsonl", at_least=1.0),
    Gate("updates", "skipped_share", "more than 1 % of the updates were skipped as unsafe: lower lr or raise warmup_steps", at_most=0.01),
    Gate("label_coverage", "label_coverage", "some rows teach nothing: all their labels are masked", at_least=0.99),
    Gate("frozen", "frozen_moved", "a frozen part changed its weights", at_most=0.0),
    Gate("leaks", "leaks", "training and held-out data share items: fix `group`", at_most=0.0),
)
