"""Engines: order, bytes and failures are ours, whoever does the work."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muomni.data.tokenized import engines
from muomni.errors import ConfigError, DataError, UserError


def square(number: int) -> int:
    if number == 13:
        raise DataError("bad_row", "thirteen", hint="another number")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert list(engines.local(square, iter(range(12)), 2)) == [number * number for number in range(12)]
    assert list(engines.local(square, iter(range(3)), 1)) == [0, 1, 4]


def test_jobs_are_asked_for_as_they_are_needed() -> None:
    asked: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(12):
            asked.append(number)
            yield number

    made = engines.local(square, jobs(), 2)
    next(made)
    assert len(asked) <= 2 * engines.AHEAD + 1
    made.close()


def test_a_failure_of_a_worker_is_raised_as_it_was() -> None:
    with pytest.raises(DataError, match="thirteen") as caught:
        list(engines.local(square, iter([1, 13, 2]), 2))
    assert (caught.value.reason, caught.value.hint) == ("bad_row", "another number")


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(UserError, match="a worker process died") as caught:
        list(engines.local(square, iter([1, 99, 2]), 2))
    assert "fewer --processes" in caught.value.hint


def test_an_unknown_engine_is_refused_and_ray_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match="expected local or ray, got 'dask'"):
        engines.open_engine("dask")
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(ConfigError, match=r"muomni\[scale\]"):
            engines.open_engine("ray")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `scale`)")
def test_ray_gives_equal_bytes_and_our_failures(tmp_path: Path) -> None:
    """In a process of its own: Ray leaves threads and signal handlers behind."""
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import filecmp, ray, standins
from pathlib import Path
from muomni.data.tokenized import make
from muomni.errors import DataError
folder = Path({str(tmp_path)!r})
if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={{"env_vars": {{"PYTHONPATH": ":".join(sys.path)}}}})
    sources = standins.make_data(folder, 90, bad=(5,))
    settings = make.ShardSettings(samples_per_shard=20, val_split=0.2, bad_limit=0.2)
    for engine in ("local", "ray"):
        make.shard(sources, folder / engine, standins.opener(), settings, processes=2, engine=engine)
    names = [str(path.relative_to(folder / "local")) for path in (folder / "local").rglob("*") if path.is_file()]
    print(filecmp.cmpfiles(folder / "local", folder / "ray", names, shallow=False)[1:], len(names))
    sources = standins.make_data(folder / "bad", 40, bad=tuple(range(1, 40, 2)))
    try:
        make.shard(sources, folder / "none", standins.opener(), settings, processes=2, engine="ray")
    except DataError as error:
        print(error.reason)
"""
    script = tmp_path / "program.py"
    script.write_text(program)
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600
    )
    lines = found.stdout.splitlines()
    assert found.returncode == 0, found.stderr[-2000:]
    assert lines[-2].startswith("([], []) "), lines
    assert lines[-1] == "quarantine"
