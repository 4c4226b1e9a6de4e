"""Gates: rules over facts, judged by code. A fact that is missing fails its gate; it is never skipped."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from muomni.errors import ConfigError
from muomni.evaluate.facts import Fact

Verdict = Literal["green", "red", "waived"]
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Gate:
    """One demand on one fact.

    at_least, at_most   the bound, which a recipe may set anew
    more_than           a bound that a tie does not meet: what a model that knows nothing reaches exactly
    below_floor         the value must be less than this factor of the fact's floor (0.5 = half of what
                        knowing nothing gives)
    above_floor         the value must be at least this much above the floor
    by_ci               the worse end of the fact's 95 % interval must hold, not its middle
    why                 what a red verdict means, and what to try
    source              where the bound comes from
    modality            applies where the data hold it: image, audio, text
    when                applies where this setting of the stage is on
    """

    name: str
    fact: str
    why: str
    at_least: float | None = None
    at_most: float | None = None
    more_than: float | None = None
    below_floor: float | None = None
    above_floor: float | None = None
    by_ci: bool = False
    source: str = ""
    modality: str | None = None
    when: str | None = None

    def applies(self, settings: object, modalities: Collection[str]) -> bool:
        """Whether a stage of these settings, on data of these modalities, is asked for it."""
        is_on = self.when is None or bool(getattr(settings, self.when, False))
        return is_on and (self.modality is None or self.modality in modalities)

    def value(self, fact: Fact) -> float:
        """The number that is compared; nan where an interval is asked for and there is none."""
        if not self.by_ci:
            return fact.value
        return math.nan if fact.ci is None else fact.ci[1 if self.is_ceiling else 0]

    @property
    def is_ceiling(self) -> bool:
        """True where less is better."""
        return self.at_most is not None or self.below_floor is not None

    def bound(self, fact: Fact, override: float | None) -> tuple[str, float]:
        """The comparison and the number to compare with; nan where the fact has no floor to compare with."""
        floor = math.nan if fact.floor is None else fact.floor
        if self.at_least is not None:
            return ">=", self.at_least if override is None else override
        if self.at_most is not None:
            return "<=", self.at_most if override is None else override
        if self.more_than is not None:
            return ">", self.more_than if override is None else override
        if self.below_floor is not None:
            return "<", floor * (self.below_floor if override is None else override)
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
    fact: str = ""

    def is_known(self, facts: Collection[str]) -> bool:
        """Whether its fact is among these."""
        return self.fact in facts

    def to_json(self) -> dict[str, Any]:
        """As it stands in a certificate."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "value": self.value,
            "threshold": self.threshold,
            "why": self.why,
        }


def judge(
    gates: Sequence[Gate],
    facts: Mapping[str, Fact],
    overrides: Mapping[str, float] | None = None,
    waived: Mapping[str, str] | None = None,
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
            number = gate.value(fact)
            value = number if math.isfinite(number) else None
            holds = value is not None and math.isfinite(bound) and COMPARISONS[sign](value, bound)
            threshold = f"{sign} {bound:.4g}"
        verdict: Verdict = "green" if holds else "waived" if gate.name in waived else "red"
        note = f": {fact.note}" if fact is not None and fact.note else ""
        why = waived[gate.name] if verdict == "waived" else gate.why + note if verdict == "red" else ""
        judged.append(Judged(gate.name, verdict, value, threshold, why, gate.fact))
    return judged


def demanded(extra_gates: Mapping[str, str]) -> tuple[Gate, ...]:
    """Gates that a recipe adds for facts of its own data, `fact: ">= 0.9"` or `fact: "<= 0.1"`.

    Raises  ConfigError for another form.
    """
    gates = []
    for fact, text in extra_gates.items():
        match = re.fullmatch(r"\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
        if match is None or not math.isfinite(float(match[2])):
            raise ConfigError(f"extra_gates.{fact}: expected e.g. '>= 0.9' or '<= 0.1', got {text!r}")
        bound = float(match[2])
        why = "less than the recipe's extra_gates ask: train longer, or look at its report"
        least, most = (bound, None) if match[1] == ">=" else (None, bound)
        gates.append(Gate(f"demand_{fact}", fact, why, at_least=least, at_most=most))
    return tuple(gates)
