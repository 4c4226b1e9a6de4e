"""Files are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from muomni import files


class Crash(BaseException):
    """The process ends here."""


def crash(*_: Any, **__: Any) -> Any:
    raise Crash


@pytest.mark.parametrize("where", ["fsync", "replace", "chmod"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "a" / "x.json"
    files.write_json(path, {"old": 1})
    monkeypatch.setattr(os, where, crash)
    with pytest.raises(Crash):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert list(path.parent.iterdir()) == [path], "no leftovers"


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("name"), replace(a, b))[1])
    files.write_text(tmp_path / "x", "y")
    assert done[:2] == ["sync", "name"]


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    files.write_text(tmp_path / "x", "ü\n")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644
    assert (tmp_path / "x").read_text(encoding="utf-8") == "ü\n"
    with files.fresh_folder(tmp_path / "folder") as part:
        (part / "a").write_text("1")
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def half_written(target: Path) -> None:
    """A folder whose writer dies in the middle."""
    before = target.exists()
    with files.fresh_folder(target) as part:
        (part / "new").write_text("2")
        assert target.exists() == before
        raise Crash


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with pytest.raises(Crash):
        half_written(target)
    assert list(target.parent.iterdir()) == []
    with files.fresh_folder(target) as part:
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("1")
    assert (target / "sub" / "a").read_text() == "1"


def test_a_replaced_folder_is_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    with files.fresh_folder(target) as part:
        (part / "old").write_text("1")
    with pytest.raises(Crash):
        half_written(target)
    assert [file.name for file in target.iterdir()] == ["old"]
    with files.fresh_folder(target) as part:
        (part / "new").write_text("2")
    assert [file.name for file in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_text(tmp_path / "x", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True, "ü"], "a": {"x": -0.0}}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    assert list(files.read_json(tmp_path / "x.json")) == ["b", "a"]
    files.write_jsonl(tmp_path / "x.jsonl", [value, {}])
    assert (tmp_path / "x.jsonl").read_text().count("\n") == 2


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a" * (3 << 20))
    assert files.sha256_file(tmp_path / "x") == files.sha256_bytes(b"a" * (3 << 20))
    assert files.sha256_json({"a": 1, "b": [2]}) == files.sha256_json({"b": [2], "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})
    assert files.sha256_json([1, 2]) != files.sha256_json([2, 1])
