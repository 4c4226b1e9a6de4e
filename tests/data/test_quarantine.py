"""Bad rows: written once, counted always, bounded."""

import json

import pytest

from muomni.data.quarantine import Quarantine
from muomni.errors import DataError


def test_rows_are_written_and_a_resumed_run_writes_none_twice(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    for _ in range(2):
        quarantine = Quarantine(path)
        quarantine.add("a.jsonl", 3, "missing", "no \ud800 file")
        quarantine.add("a.jsonl", 9, "empty")
        assert quarantine.counts == {"missing": 1, "empty": 1}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["path"], row["row"], row["reason"]) for row in rows] == [
        ("a.jsonl", 3, "missing"),
        ("a.jsonl", 9, "empty"),
    ]


def test_a_torn_line_does_not_hurt(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"path": "a", "row": 1, "rea')
    Quarantine(path).add("a", 1, "missing")
    assert "missing" in path.read_text()


@pytest.mark.parametrize(
    ("bad", "total", "stops"), [(0, 0, False), (1, 3, False), (2, 100, True), (2, 200, False), (3, 200, True)]
)
def test_the_limit(bad, total, stops):
    quarantine = Quarantine(limit=0.01)
    for row in range(bad):
        quarantine.add("a", row, "missing", "gone")
    if stops:
        with pytest.raises(DataError, match=f"{bad} of {total}: {bad} missing"):
            quarantine.check(total)
    else:
        quarantine.check(total)
