"""The account of what trains, told by part: counts, rates and decays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muomni.train.optim import Row


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The content of account.json: a row a parameter; from_step where it rests at first."""
    return [
        {
            "name": r.name,
            "shape": list(r.shape),
            "count": r.count,
            "lr": r.lr,
            "trains": r.trains,
            **({"from_step": r.from_step} if r.from_step else {}),
        }
        for r in rows
    ]


def parameters(rows: Sequence[Row]) -> dict[str, Any]:
    """The account of what trains: in all, and by part; parts are named as far down as it takes to tell them
    apart."""
    names = [row.name.split(".") for row in rows]
    depth = next((n for n in range(1, 4) if len({tuple(name[:n]) for name in names}) > 1), 1)
    parts: dict[str, dict[str, Any]] = {}
    for row, name in zip(rows, names, strict=True):
        part = parts.setdefault(
            ".".join(name[:depth]), {"count": 0, "trained": 0, "rates": set(), "decays": set()}
        )
        part["count"] += row.count
        if row.trains:
            part["trained"] += row.count
            part["rates"].add(row.lr)
            part["decays"].add(row.wd)
    trained = sum(row.count for row in rows if row.trains)
    count = sum(row.count for row in rows)
    parts_json = [
        {"part": name, **{k: sorted(v) if isinstance(v, set) else v for k, v in part.items()}}
        for name, part in parts.items()
    ]
    return {"all": count, "trained": trained, "frozen": count - trained, "parts": parts_json}
