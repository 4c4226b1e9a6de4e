"""The gates' own test: the registry is whole, the page is what the code says, and planted bugs are caught while the true run is green."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from muomni.evaluate import thresholds
from muomni.selftest import page
from muomni.selftest import run as planting
from muomni.selftest.mutants import MUTANTS
from muomni.stages import recipe as recipes

PAGE = Path(__file__).parents[2] / "docs" / "gates.md"


def test_every_mutant_has_a_stage_and_gates_that_exist() -> None:
    numbers = [mutant.number for mutant in MUTANTS]
    assert numbers == sorted(set(numbers))
    for mutant in MUTANTS:
        gates = {gate.name for gate in (*thresholds.SOUND, *recipes.stage(mutant.stage).gates)}
        assert {gate for _, gate in mutant.plants} <= gates, mutant.name


def test_three_commits_in_a_row_may_plant_them_all() -> None:
    thirds = [planting.third(name) for name in ("3fa0", "3fa1", "3fa2")]
    assert sorted(number for numbers in thirds for number in numbers) == [mutant.number for mutant in MUTANTS]


def test_the_page_is_what_the_code_says() -> None:
    text = PAGE.read_text()
    assert text.startswith(page.INTRODUCTION + page.gates() + page.SELFTEST), "run `make gates`"
    for mutant in MUTANTS:
        gates = ", ".join(dict.fromkeys(gate for _, gate in mutant.plants))
        assert f"| {mutant.number} {mutant.name} | {gates} |" in text
    assert f"{len(MUTANTS)} of {len(MUTANTS)} caught, unmutated run green" in text


@pytest.mark.slow
def test_planted_bugs_are_caught_and_nothing_else_is_red(capfd: pytest.CaptureFixture[str]) -> None:
    from muomni.cli import main

    with pytest.raises(SystemExit) as left:
        main(["selftest", "--only", "1", "--only", "8", "--only", "13", "--only", "15", "--json"])
    assert left.value.code == 0
    told = json.loads(capfd.readouterr().out)
    assert told["unmutated"] == "green"
    assert [row["caught_by"] for row in told["mutants"]] == ["causality", "gradient_reach, all_learn", "ranks", "order"]


@pytest.mark.slow
def test_a_recipe_whose_pictures_are_swapped_is_red_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from muomni.cli import main
    from muomni.selftest import world

    data = tmp_path / "run" / "data" / "world"
    world.build(data)
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    pictures = [row["messages"][0]["content"][0]["path"] for row in rows]
    for row, other in zip(rows, pictures[11:] + pictures[:11]):
        row["messages"][0]["content"][0]["path"] = other
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as left:
        main(["run", str(planting.RECIPE), "--out", str(tmp_path / "run")])
    assert left.value.code == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: stage omni: gate image_swap")
    assert "answers ignore the picture" in last


def test_the_play_book_knows_every_gate_and_no_other() -> None:
    rows = [line.split(" | ")[0] for line in (PAGE.parent / "playbook.md").read_text().splitlines() if line.startswith("| `")]
    told = re.findall(r"`(\w+)`", " ".join(rows))
    known = {gate.name for gates in (thresholds.START, thresholds.RUN, *thresholds.STAGES.values()) for gate in gates}
    assert sorted(told) == sorted(known)  # each once
