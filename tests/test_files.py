"""Files are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from muomni import files
from muomni.errors import UserError
from power_cut import every_moment


class Crash(BaseException):
    """The process ends here."""


def crash(*_: Any, **__: Any) -> Any:
    raise Crash


@pytest.mark.parametrize("where", ["fsync", "replace", "chmod"])
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
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


def test_who_makes_a_folder_beside_another_process_has_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks make the same at once: the other's stands there between the look for the name and its taking."""
    target, replace = tmp_path / "folder", os.replace

    def other_first(part: Path, path: Path) -> None:
        if path == target and not target.exists():
            target.mkdir()
            (target / "theirs").write_text("1")
        replace(part, path)

    monkeypatch.setattr(os, "replace", other_first)
    with files.fresh_folder(target) as part:
        (part / "ours").write_text("1")
    assert [file.name for file in target.iterdir()] == ["ours"]
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


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


OLD, NEW = {"a": "1", "sub/b": "2"}, {"a": "3", "sub/c": "4"}


def put(target: Path, given: dict[str, str]) -> None:
    with files.fresh_folder(target) as part:
        for name, text in given.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_text(text)


@pytest.fixture(params=["exchange", "renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By one system call, and where the system has none."""
    if request.param == "renames":
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    elif files._renameat2() is None:
        pytest.skip("this system can't exchange two names")
    return str(request.param)


def test_whenever_a_folder_is_cut_off_the_old_or_the_new_is_whole(tmp_path: Path, way: str) -> None:
    target = tmp_path / "final"

    def prepare() -> None:
        shutil.rmtree(tmp_path)
        (target / "sub").mkdir(parents=True)
        for name, text in OLD.items():
            (target / name).write_text(text)

    seen = []
    for moment in every_moment(prepare, lambda: put(target, NEW)):
        if way == "exchange":
            assert target.is_dir(), moment  # whoever opens it needs no cure
        files.settle(target)
        seen.append(content(target))
        assert seen[-1] in (OLD, NEW), moment
        files.clear_leftovers(tmp_path)
        assert content(target) == seen[-1], moment
        assert list(tmp_path.iterdir()) == [target], moment
    assert OLD in seen
    assert NEW in seen
    assert len(seen) > 20


def test_whenever_a_first_folder_is_cut_off_it_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "final"

    def prepare() -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()

    seen = []
    for moment in every_moment(prepare, lambda: put(target, NEW)):
        seen.append(content(target) if target.exists() else {})
        assert seen[-1] in ({}, NEW), moment
        files.clear_leftovers(tmp_path, deep=True)
        assert [each for each in tmp_path.rglob("*") if each.name.startswith(".")] == []
    assert NEW in seen


def test_whenever_a_file_is_cut_off_the_old_or_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"

    def prepare() -> None:
        files.write_json(path, {"old": 1})

    seen = []
    for _ in every_moment(prepare, lambda: files.write_json(path, {"new": 2})):
        seen.append(files.read_json(path))
        files.clear_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
    assert {"old": 1} in seen
    assert {"new": 2} in seen


def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(what, path) of every sync, rename and removal, in their order."""
    done: list[tuple[str, str]] = []
    fsync, replace, exchange, remove = os.fsync, os.replace, files._exchange, files.remove

    def synced(handle: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("name", str(b))), replace(a, b))[1])
    monkeypatch.setattr(files, "_exchange", lambda a, b: (done.append(("name", str(b))), exchange(a, b))[1])
    monkeypatch.setattr(files, "remove", lambda path: (done.append(("remove", str(path))), remove(path))[1])
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of handles come from /proc")
def test_a_disk_that_loses_what_was_not_synced_has_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made" / "final"
    done = traced(monkeypatch)
    put(target, OLD)
    assert ("sync", str(tmp_path)) in done, "the new parent's own name"
    del done[:]
    put(target, NEW)
    names = [path for what, path in done if what == "name"]
    at = done.index(("name", str(target)))
    assert names == [str(target)]
    assert {Path(path).name for what, path in done[:at] if what == "sync"} >= {"a", "c", "sub"}, (
        "all of it is there before its name"
    )
    assert done[at + 1] == ("sync", str(target.parent)), (
        "the name is on the disk before the old one is taken apart"
    )
    assert done[at + 2][0] == "remove"
    del done[:]
    files.write_text(target.parent / "x", "y")
    assert [what for what, _ in done] == ["sync", "name", "sync"]
    assert done[-1] == ("sync", str(target.parent))


def test_a_link_in_the_place_of_a_folder_is_replaced_not_followed(tmp_path: Path, way: str) -> None:
    put(tmp_path / "elsewhere", OLD)
    (tmp_path / "final").symlink_to(tmp_path / "elsewhere")
    put(tmp_path / "final", NEW)
    assert content(tmp_path / "elsewhere") == OLD
    assert content(tmp_path / "final") == NEW
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "final"}


def test_digests_are_read_once_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    real = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: (reads.append(path), real(path))[1])
    monkeypatch.setattr(files, "_DIGESTS", {})
    path = tmp_path / "x"
    path.write_text("one")
    assert files.sha256_once(path) == files.sha256_once(path) == real(path)
    assert len(reads) == 1
    files.write_text(path, "two")  # as long, and perhaps within the same tick of the clock: another inode
    assert files.sha256_once(path) == real(path)
    assert len(reads) == 2
    known = files.known_digests()
    files._DIGESTS.clear()
    files.learn_digests(known)
    assert files.sha256_once(path) == real(path)
    assert len(reads) == 2


HOLDER = """
import sys, time
from pathlib import Path
from muomni import files
from muomni.errors import UserError
with files.only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    import subprocess
    import sys

    lock = tmp_path / "locks" / "thinker"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []
    with (
        pytest.raises(UserError, match=f"process {holder.pid} is still at work"),
        files.only_writer(lock, patience_s=0.3, say=said.append),
    ):
        raise AssertionError("two at once")
    assert said == [f"waiting for process {holder.pid}, which is still at work there"]
    holder.kill()
    holder.wait()
    with files.only_writer(lock, patience_s=0.0):
        assert lock.read_text() == str(os.getpid())
    assert lock.read_text() == ""
