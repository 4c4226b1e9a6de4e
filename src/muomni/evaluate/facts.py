"""A fact: one measured number with what is needed to believe it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """A number measured by code on held-out data.

    value   the measurement
    n       how many items stand behind it
    ci      95 % interval, where it is a mean over items
    floor   what knowing nothing would give (chance, unigram entropy, a mean predictor)
    note    what is behind the number in words, where it counts things that have names
    """

    value: float
    n: int | None = None
    ci: tuple[float, float] | None = None
    floor: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a certificate; what is not finite becomes None, which JSON can hold."""
        row = asdict(self)
        for key in ("value", "floor"):
            if row[key] is not None and not math.isfinite(row[key]):
                row[key] = None
        if self.ci is not None and not all(map(math.isfinite, self.ci)):
            row["ci"] = None
        if not self.note:
            del row["note"]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Fact:
        """The fact that `to_json` wrote."""
        value = math.nan if row["value"] is None else float(row["value"])
        return cls(
            value,
            row.get("n"),
            tuple(row["ci"]) if row.get("ci") else None,
            row.get("floor"),
            row.get("note", ""),
        )


def share(hits: int, n: int, *, floor: float | None = None) -> Fact:
    """A share of n items with its 95 % Wilson interval (Wilson 1927)."""
    if n == 0:
        return Fact(math.nan, 0, None, floor)
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Fact(p, n, (max(0.0, middle - half), min(1.0, middle + half)), floor)
