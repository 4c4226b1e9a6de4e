"""The two quickstarts: what the command runs, the least values of their boards, and the boards that their
recipes' heads tell."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni import cli, files
from muomni.errors import ConfigError, GateRed
from muomni.execution import recipe as recipes
from muomni.execution import runner, scoreboard
from muomni.stages import registry

RECIPES = Path(recipes.__file__).parents[1] / "recipes"


def head(path: Path) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The table in a recipe's head comment: its columns, and each row's values by column; a dash is none."""
    comment = [line.removeprefix("#").strip() for line in path.read_text().split("\nname:")[0].splitlines()]
    columns = next(line.split()[1:] for line in comment if line.startswith("row "))
    rows = {line.split()[0]: line.split()[1:] for line in comment if re.match(r"\w+\.\w+ ", line)}
    assert all(len(values) == len(columns) for values in rows.values()), rows
    return columns, {
        name: {c: float(v) for c, v in zip(columns, values, strict=True) if v != "-"}
        for name, values in rows.items()
    }


@pytest.mark.parametrize("size", runner.QUICKSTARTS)
def test_the_head_of_a_quickstart_tells_a_board_that_its_recipe_accepts(size: str, tmp_path: Path) -> None:
    path = RECIPES / f"{runner.QUICKSTARTS[size]}.yaml"
    columns, board = head(path)
    asked = scoreboard.least_values(recipes.read(str(path), out=tmp_path))
    assert columns[-1] == "least"
    assert len(columns) > 1
    assert set(board) <= set(registry.board())
    for name, values in board.items():
        more = registry.board()[name][1].more_is_better
        assert values.get("least") == asked[name], name
        for column in columns[:-1]:
            seen, least = values.get(column), values.get("least")
            assert seen is None or least is None or (seen >= least if more else seen <= least), (name, column)
    if size == "small":  # the recipe was run whole, so every row is known
        stages = recipes.read(str(path), out=tmp_path).stages
        assert set(board) == {name for name, (stage, _) in registry.board().items() if stage in stages}
        assert columns[0] == "seed_1"
        assert all(set(values) >= set(columns[:-1]) for values in board.values())


def test_least_values_are_the_headers_then_what_is_demanded_then_those_of_the_table(tmp_path: Path) -> None:
    data = [{"path": "a.txt"}]
    content = {
        "scoreboard": {"omni.speech_to_speech_exact": 0.3, "hearing.cer": 0.2},
        "hearing": {"data": data, "extra_gates": {"cer": "<= 0.5", "digit_exact": ">= 0.5"}},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    least = scoreboard.least_values(recipes.read(str(tmp_path / "r.yaml"), out=tmp_path))
    assert (least["omni.speech_to_speech_exact"], least["hearing.cer"], least["hearing.digit_exact"]) == (
        0.3,
        0.2,
        0.5,
    )
    assert (least["vision.shape_probe"], least["thinker.bits_per_byte"]) == (0.80, None)


def test_a_row_that_no_board_has_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"scoreboard": {"omni.sight": 0.3}, "thinker": {"data": [{"path": "a.txt"}]}})
    )
    with pytest.raises(ConfigError, match=r"omni\.sight.*"):
        runner.run(str(tmp_path / "r.yaml"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "is_red"), [(0.5, False), (0.3, True), (math.nan, True), (None, True)])
def test_a_run_is_red_where_its_board_lacks_what_the_header_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float | None, is_red: bool
) -> None:
    recipe = {
        "device": "cpu",
        "scoreboard": {"hearing.digit_exact": 0.4},
        "hearing": {"data": [{"path": str(tmp_path / "d.jsonl")}]},
    }
    (tmp_path / "d.jsonl").write_text("")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))

    def run_stage(plan: Any, entry: Any, *_: Any, **__: Any) -> None:
        facts = {} if value is None else {"digit_exact": {"value": value}}
        files.write_json(
            entry.folder / "certificate.json",
            {"stage": entry.name, "verdict": "green", "gates": [], "facts": facts},
        )

    monkeypatch.setattr(runner, "run_stage", run_stage)
    if is_red:
        with pytest.raises(GateRed, match=r"hearing\.digit_exact"):
            runner.run(str(tmp_path / "r.yaml"), out=tmp_path / "out")
    else:
        runner.run(str(tmp_path / "r.yaml"), out=tmp_path / "out")
    assert (tmp_path / "out" / "scoreboard.json").exists()


@pytest.mark.parametrize(
    ("words", "recipe", "out"),
    [
        ((), "quickstart", None),
        (("--size", "full"), "quickstart_full", None),
        (("--out", "there"), "quickstart", Path("there")),
    ],
)
def test_the_command_runs_the_recipe_of_its_size(
    words: tuple[str, ...], recipe: str, out: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path | None]] = []

    def run(name: str, *, out: Path | None = None) -> Path:
        asked.append((name, out))
        files.write_json(
            tmp_path / "scoreboard.json",
            {"wall_s": 1.0, "metrics": {"hearing.cer": 0.5}, "least": {"hearing.cer": None}},
        )
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run", run)
    with pytest.raises(SystemExit) as left:
        cli.main(["quickstart", *words])
    assert not left.value.code
    assert asked == [(recipe, out)]
    assert (
        recipes.read(recipe).name
        == {"quickstart": "quickstart", "quickstart_full": "quickstart-full"}[recipe]
    )  # runs/<name>


def test_another_size_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["quickstart", "--size", "huge"])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "huge" in told
    assert "small, full" in told


def test_the_package_gives_quickstart() -> None:
    import muomni

    assert muomni.quickstart is runner.quickstart
