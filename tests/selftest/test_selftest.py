"""The gates' own test: the registry is whole, the page is what the code says, and planted bugs are caught
while the true run is green."""

from __future__ import annotations

import functools
import io
import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from muomni.errors import ConfigError
from muomni.evaluate import thresholds
from muomni.execution import recipe as recipes
from muomni.selftest import page
from muomni.selftest import run as planting
from muomni.selftest.mutants import MUTANTS
from muomni.stages import registry

PAGE = Path(__file__).parents[2] / "docs" / "gates.md"
VOICES = () if planting.voices.lacking() else (38, 40)  # where transformers makes their base


def test_every_mutant_has_a_stage_and_gates_that_exist() -> None:
    numbers = [mutant.number for mutant in MUTANTS]
    assert numbers == sorted(set(numbers))
    assert numbers == list(range(1, len(MUTANTS) + 1))
    for mutant in MUTANTS:
        gates = {gate.name for gate in (*thresholds.SOUND, *recipes.stage(mutant.stage).gates)}
        assert {gate for _, named in mutant.plants for gate in named.split(", ")} <= gates, mutant.name


@pytest.mark.parametrize(
    "plant", [plant for mutant in MUTANTS for plant, _ in mutant.plants], ids=lambda plant: plant.__name__
)
def test_every_bug_can_be_planted(plant: Callable[[], AbstractContextManager[Any]]) -> None:
    """What a mutant patches is there: a name that was moved in the code is told within a second, not by the
    whole selftest alone."""
    with plant():
        pass


def test_the_page_is_what_the_code_says() -> None:
    text = PAGE.read_text()
    assert text.startswith(page.INTRODUCTION + page.gates() + page.SELFTEST), "run `make gates`"
    for mutant in MUTANTS:
        gates = ", ".join(dict.fromkeys(gate for _, gate in mutant.plants))
        assert f"| {mutant.number} {mutant.name} | {gates} |" in text
    assert f"{len(MUTANTS)} of {len(MUTANTS)} caught, unmutated run green" in text


def test_only_the_stages_concerned_are_run_and_each_after_those_that_it_needs(tmp_path: Path) -> None:
    """Mutants of talker need thinker, codec and ears, and no eyes."""
    parts = planting._parts([mutant for mutant in MUTANTS if mutant.number in (9, 13)], tmp_path)
    assert {part.name: part.needs for part in parts} == {
        "thinker": (),
        "hearing": (),
        "codec": (),
        "talker": ("thinker", "codec", "hearing"),
        planting.TWINS: (),
        "9": ("thinker", "codec", "hearing"),
        "13": (),
    }
    assert {part.name for part in parts if part.width == 2} == {planting.TWINS, "13"}
    every = {part.name for part in planting._parts(MUTANTS, tmp_path)}
    assert every == {
        *recipes.read(str(planting.RECIPE)).stages,
        planting.TWINS,
        *(str(mutant.number) for mutant in MUTANTS),
    }


def test_voices_are_skipped_loudly_where_the_library_lacks_and_the_rest_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine without transformers plants all others; asked for stage voice alone, it has nothing to do."""
    monkeypatch.setattr(planting.voices, "lacking", lambda: "transformers is not installed")
    chosen, skipped = planting._possible(list(MUTANTS))
    assert [mutant.number for mutant in chosen] == list(range(1, 35))
    assert [row["name"].split()[0] for row in skipped] == [str(number) for number in range(35, 41)]
    assert "voice" not in {part.name for part in planting._parts(chosen, Path("nowhere"))}
    told = page.mutants({"mutants": [], "skipped": skipped, "unmutated": "green"})
    assert told.count("**skipped**: transformers is not installed") == 6
    assert told.endswith("0 of 6 caught, unmutated run green.\n")
    with pytest.raises(ConfigError, match="nothing is left to plant"):
        planting.selftest([38], say=pytest.fail)


def test_what_is_skipped_is_told_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from muomni import cli

    result = {
        "unmutated": "green",
        "why": "",
        "seconds": 1.0,
        "mutants": [{"name": "1 a", "caught_by": "shift", "seconds": 1.0, "told": ""}],
        "skipped": [{"name": "38 b", "why": "transformers is not installed"}],
    }
    monkeypatch.setattr(planting, "selftest", lambda *_, **__: result)
    assert cli._exit_code(["selftest"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "SKIPPED" in shown
    assert "1 of 1 caught, 1 SKIPPED, unmutated run green" in shown


@pytest.mark.parametrize(
    ("lost", "told"),
    [("peft", "peft is not installed"), ("transformers.models.higgs_audio_v2", "no Higgs Audio v2")],
)
def test_what_a_machine_lacks_for_voices_is_named(
    monkeypatch: pytest.MonkeyPatch, lost: str, told: str
) -> None:
    there = lambda name: None if name == lost else object()  # noqa: E731
    monkeypatch.setattr(planting.voices.importlib.util, "find_spec", there)
    assert told in planting.voices.lacking()


def given(folder: Path, name: str) -> str:
    """Work of a part: what was there when it began, and a sign that it has ended."""
    there = sorted(path.name for path in folder.iterdir())
    if name == "dies":
        os.kill(os.getpid(), 9)
    (folder / name).touch()
    return " ".join(there)


def test_a_part_begins_when_what_it_needs_has_ended_and_one_that_dies_is_told(tmp_path: Path) -> None:
    parts = [
        planting.Part("last", ("first", "dies"), given),
        planting.Part("first", (), given),
        planting.Part("dies", (), given, width=2),
    ]
    told = dict(planting.side_by_side(parts, tmp_path, jobs=2))
    assert told == {"first": "", "dies": "its process ended with -9", "last": "first"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[str, Any]]:
    """What `muomni selftest` leaves, its exit code and what it tells, of mutants of each kind."""
    from muomni.cli import main

    folder, told = tmp_path_factory.mktemp("selftest"), io.StringIO()
    numbers = [argument for number in (1, 8, 13, 15, *VOICES) for argument in ("--only", str(number))]
    with (
        patch.object(planting, "selftest", functools.partial(planting.selftest, keep=folder)),
        redirect_stdout(told),
        pytest.raises(SystemExit) as left,
    ):
        main(["selftest", *numbers, "--json"])
    return folder, int(left.value.code or 0), json.loads(told.getvalue())


def test_facts_that_prove_nothing_are_judged_red(tmp_path: Path) -> None:
    """A tie, and so few wins that a coin has them too: `>= 0` let both pass."""
    told = planting._try(tmp_path, "27")
    assert (told.caught_by, told.told) == ("above_question", "red: above_question; red: above_question")


@pytest.mark.slow
def test_planted_bugs_are_caught_and_nothing_else_is_red(planted: tuple[Path, int, dict[str, Any]]) -> None:
    _, code, told = planted
    assert code == 0
    assert told["unmutated"] == "green"
    assert [row["caught_by"] for row in told["mutants"]] == [
        "causality",
        "gradient_reach, all_learn",
        "ranks",
        "order",
        *(("delays", "adapted, gradient_reach") if VOICES else ()),
    ]


@pytest.mark.slow
def test_a_recipe_whose_pictures_are_swapped_is_red_with_one_line(
    planted: tuple[Path, int, dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    from muomni.cli import main

    run = planted[0] / "run"  # its thinker is reused
    data = run / "data" / "world"
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    pictures = [row["messages"][0]["content"][0]["path"] for row in rows]
    for row, other in zip(rows, pictures[11:] + pictures[:11]):
        row["messages"][0]["content"][0]["path"] = other
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as left:
        main(["run", str(planting.RECIPE), "thinker", "hearing", "vision", "omni", "--out", str(run)])
    assert left.value.code == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: stage omni: gate image_swap")
    assert "answers ignore the picture" in last


def test_the_play_book_knows_every_gate_and_no_other() -> None:
    rows = [
        line.split(" | ")[0]
        for line in (PAGE.parent / "playbook.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    told = re.findall(r"`(\w+)`", " ".join(rows))
    known = {
        gate.name
        for gates in (
            thresholds.START,
            thresholds.RUN,
            *(registry.find(name).gates for name in registry.OURS),
        )
        for gate in gates
    }
    assert sorted(told) == sorted(known)  # each once
