"""Bad data is set aside with its reason, counted, and bounded: never dropped in silence, never let
through."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from muomni.errors import DataError

NOTES = 50  # that are told in a run
EXAMPLES = 20  # kept in memory for each reason; the file has them all


class Quarantine:
    """Counts bad rows by reason and appends them to a JSONL file (`path, row, reason, detail`).

    A row that the file already holds (a run that resumed) is counted, not written twice.
    """

    def __init__(self, path: Path | None = None, limit: float = 0.01) -> None:
        self.path = path
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.notes: list[str] = []  # what must be told, the first of it
        self._written = _known(path) if path is not None and path.exists() else set[tuple[str, str, str]]()

    def add(self, path: str | Path, row: int | str, reason: str, detail: str = "") -> None:
        """Set one row aside; `row` is the line (from 1) or the sample's id."""
        self.counts[reason] += 1
        if len(examples := self.examples.setdefault(reason, [])) < EXAMPLES:
            examples.append(f"{path}:{row}: {detail}")
        key = (str(path), str(row), reason)
        if self.path is not None and key not in self._written:
            self._written.add(key)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"path": str(path), "row": row, "reason": reason, "detail": detail}
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def note(self, path: str | Path, row: int | str, reason: str, detail: str) -> None:
        """Tell something about a row or a file that is read all the same; it is counted among no bad rows."""
        if len(self.notes) < NOTES:
            self.notes.append(f"{path}:{row}: {detail}")

    @property
    def total(self) -> int:
        """How many rows were set aside."""
        return self.counts.total()

    def summary(self) -> str:
        """`3 missing, 1 empty; first missing: photos.jsonl:7: ...` in one line."""
        counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        first = "; ".join(
            f"first {reason}: {self.examples[reason][0]}"
            for reason, _ in self.counts.most_common(3)
            if reason in self.examples
        )
        return f"{counts}; {first}" if first else counts

    def check(self, total: int) -> None:
        """Stop when more than `limit` of `total` rows are bad. One bad row alone never stops, so that tiny
        sets can be used.

        Raises  DataError (quarantine) with the counts and the first row of each reason.
        """
        if self.total > max(self.limit * total, 1):
            where = f"; all are in {self.path}" if self.path is not None else ""
            raise DataError(
                "quarantine",
                f"data: expected at most {self.limit:.1%} bad rows, got {self.total} of {total}: {self.summary()}{where}",
                hint="mend or remove these rows, or raise the limit",
            )


def _known(path: Path) -> set[tuple[str, str, str]]:
    stored = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            stored.add((str(entry["path"]), str(entry["row"]), str(entry["reason"])))
        except (ValueError, KeyError, TypeError):  # a line torn by a crash: the row is written again
            continue
    return stored
