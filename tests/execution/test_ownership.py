"""A run's folder belongs to one run, and small files in it that are torn are told, not guessed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from muomni import files, runtime
from muomni.errors import ConfigError, MuomniError, UserError
from muomni.evaluate import certificate
from muomni.execution import ownership, runner
from muomni.execution import recipe as recipes
from muomni.train import best, watchdog
from shared import benchmark

TORN = [b"", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b"\xff\xfe", b'{"a": ' * 9000]
HOLDER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from muomni.execution import ownership, recipe
settings = recipe.stage("thinker").settings(lr=float(sys.argv[2]))
plan = SimpleNamespace(name="first", stages={"thinker": SimpleNamespace(settings=settings)})
with ownership.of_folder(Path(sys.argv[1]), plan, fresh=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def plan(lr: float = 0.1, **others: Any) -> Any:
    stages = {"thinker": recipes.stage("thinker").settings(lr=lr), **others}
    return SimpleNamespace(
        name="second", stages={name: SimpleNamespace(settings=each) for name, each in stages.items()}
    )


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process at work in tmp_path, with a rate of 0.1."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "0.1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_of_other_settings_is_refused_and_a_dead_one_holds_nothing(
    holder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other, fresh, why in (
        (plan(0.2), False, "other settings of thinker"),
        (plan(), True, "--fresh would delete"),
    ):
        with (
            pytest.raises(UserError) as error,
            ownership.of_folder(tmp_path, other, fresh=fresh, patience_s=0.5),
        ):
            raise AssertionError("two at once")
        told = str(error.value)
        assert "\n" not in told
        assert all(
            part in told for part in (f"process {holder.pid} on {socket.gethostname()}", why, "--out DIR")
        )
    assert f"waiting for process {holder.pid}" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    with ownership.of_folder(tmp_path, plan(0.2), fresh=True, patience_s=0.0):
        assert files.read_json(tmp_path / "locks" / "owner.json")["pid"] == os.getpid()


def test_a_run_that_ends_meanwhile_is_waited_for(holder: Any, tmp_path: Path) -> None:
    holder.stdin.close()  # it ends by itself
    with ownership.of_folder(tmp_path, plan(0.2), fresh=False, patience_s=20.0):
        pass


def test_runs_that_say_the_same_of_their_stages_work_together(
    holder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = recipes.stage("vision").settings()
    with ownership.of_folder(tmp_path, plan(vision=vision), fresh=False, patience_s=0.0):
        said = files.read_json(tmp_path / "locks" / "owner.json")
        assert (said["pid"], set(said["stages"])) == (holder.pid, {"thinker", "vision"})
    with ownership.of_folder(
        tmp_path,
        SimpleNamespace(name="x", stages={"vision": SimpleNamespace(settings=vision)}),
        fresh=False,
        patience_s=0.0,
    ):  # type: ignore[arg-type]
        pass
    monkeypatch.setenv(
        runtime.PARENT, str(holder.pid)
    )  # a stage that this very run has started, with its --fresh
    with ownership.of_folder(tmp_path, plan(), fresh=True, patience_s=0.0):
        pass


def test_a_torn_note_of_the_owner_lets_nobody_in_while_one_is_at_work(holder: Any, tmp_path: Path) -> None:
    for content in TORN:
        (tmp_path / "locks" / "owner.json").write_bytes(content)
        with (
            pytest.raises(UserError, match="still at work"),
            ownership.of_folder(tmp_path, plan(), fresh=False, patience_s=0.0),
        ):
            raise AssertionError("two at once")
    holder.kill()
    holder.wait()
    with ownership.of_folder(tmp_path, plan(), fresh=False, patience_s=0.0):
        pass


def test_what_is_deleted_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash half-way through --fresh could leave the checkpoints of other settings without the settings
    that name them."""
    (tmp_path / "thinker" / "step_000001").mkdir(parents=True)
    monkeypatch.setattr(files, "remove", lambda path: None)  # it crashes here
    files.put_away(tmp_path / "thinker")
    assert not (tmp_path / "thinker").exists()
    monkeypatch.undo()
    files.clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Torn files of a run


@pytest.fixture(scope="module")
def two_runs() -> ModuleType:
    return benchmark("two_runs")


@pytest.fixture(scope="module")
def finished(two_runs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of ten steps, with weights of its best validation."""
    home = tmp_path_factory.mktemp("torn")
    recipe = two_runs.make(home / "made", 10)
    runner.run(str(recipe), out=home / "run", overrides=["thinker.val_freq=5", "thinker.final=best"])
    return home


OVERRIDES = ["thinker.val_freq=5", "thinker.final=best"]


def test_torn_files_of_a_run(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    for content in TORN:
        (run / "recipe.json").write_bytes(content)
        (run / "locks" / "owner.json").write_bytes(content)
        for again in (lambda: runner.run(str(run)), lambda: runner.gate(run)):
            with pytest.raises(ConfigError) as error:
                again()
            assert "\n" not in str(error.value)
            assert str(run / "recipe.json") in str(error.value)
    runner.run(str(finished / "made" / "recipe.yaml"), out=run, overrides=OVERRIDES)
    assert files.read_json(run / "recipe.json")["values"]["thinker"]["lr"] == 0.003


@pytest.mark.parametrize("name", ["batch.json", "digest.json", "config.yaml"])
def test_a_torn_file_of_a_stage_is_named_before_it_goes_on(finished: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    (run / "thinker" / "certificate.json").unlink()
    for content in TORN:
        (run / "thinker" / name).write_bytes(content)
        if (
            content == b"3" and name == "batch.json"
        ):  # a number, but another one: it is no other batch of this product
            continue
        with pytest.raises(MuomniError, match=r"--fresh") as error:
            runner.run(str(finished / "made" / "recipe.yaml"), out=run, overrides=OVERRIDES)
        assert "\n" not in str(error.value)
        assert Path(name).name in str(error.value) or "made with other settings" in str(error.value)


def test_a_torn_note_of_the_best_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    for content in TORN:
        (tmp_path / "best" / "best.json").write_bytes(content)
        with pytest.raises(UserError, match=r"best\.json: torn") as error:
            best.note(tmp_path)
        assert "\n" not in str(error.value)


def test_a_torn_file_that_only_tells_does_not_stop_a_stage(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    before = certificate.read(run / "thinker")
    for name, content in (
        ("alive.json", b"["),
        ("metrics.jsonl", b'3\n{"step": 1}\n'),
        ("account.json", b""),
        ("certificate.json", b"{}"),
    ):
        (run / "thinker" / name).write_bytes(content)
    runner.run(str(finished / "made" / "recipe.yaml"), out=run, overrides=OVERRIDES)
    after = certificate.read(run / "thinker")
    assert before is not None
    assert after is not None
    assert [after[key] for key in ("verdict", "settings", "weights")] == [
        before[key] for key in ("verdict", "settings", "weights")
    ]
    assert "alive.json is torn" in capsys.readouterr().err


def test_a_torn_certificate_says_nothing(tmp_path: Path) -> None:
    for content in (
        *TORN,
        b'{"stage": 1, "verdict": 2, "gates": 3, "facts": 4}',
        b'{"stage": "a", "verdict": "gold", "gates": [], "facts": {}}',
    ):
        (tmp_path / "certificate.json").write_bytes(content)
        assert certificate.read(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [*TORN, b'{"pid": 1e999, "step": 3}', b'{"pid": "me"}', b'{"pid": 1, "samples": 3, "memory_mb": "x"}'],
)
def test_a_torn_alive_json_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / watchdog.RUNNING_FILE).write_bytes(content)
    assert watchdog.crash_report(tmp_path) in (
        "",
        f"the previous run ended without an error, and {tmp_path / watchdog.RUNNING_FILE} is torn",
    )


@pytest.mark.parametrize("content", TORN)
def test_what_a_stage_began_from_is_not_guessed(tmp_path: Path, content: bytes) -> None:
    from muomni.stages import initial_weights

    (tmp_path / initial_weights.RECORD).write_bytes(content)
    with pytest.raises(UserError, match="torn") as error:
        initial_weights.origin(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "second", "kills"), [(0.3, "other rate, --fresh", False), (0.6, "other rate", True)]
)
def test_two_runs_in_one_folder_certify_only_what_trained(
    two_runs: ModuleType, tmp_path: Path, moment: float, second: str, kills: bool
) -> None:
    found = two_runs.one_try(tmp_path / "try", moment, second, kills=kills)
    assert found["problems"] == [], json.dumps(found)
