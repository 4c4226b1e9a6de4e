"""Reading recipes: every fault before anything is spent."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni.errors import ConfigError
from muomni.evaluate import thresholds
from muomni.execution import recipe
from muomni.stages.registry import OURS as STAGES


def write(folder: Path, content: Any, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return str(path)


DATA = [{"path": "a.txt"}]


def test_stages_come_in_the_order_in_which_they_build_on_each_other(tmp_path: Path) -> None:
    content = {name: {"data": DATA} for name in reversed(STAGES)}
    read = recipe.read(write(tmp_path, content))
    assert read.name == "mine"
    assert read.base == tmp_path.resolve()
    found = list(read.stages)
    assert sorted(name for name in found if "/" not in name) == sorted(STAGES)
    for name in found:
        assert all(found.index(needed) < found.index(name) for needed in read.stages[name].needs)
    as_written = ["vision", "codec", "thinker", "hearing", "talker", "omni"]
    assert (
        list(recipe.read(write(tmp_path, {name: {"data": DATA} for name in as_written})).stages) == as_written
    )


def test_stages_that_need_each_other_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"thinker": ("codec",), "codec": ("hearing",), "hearing": ("thinker",), "vision": ()}
    monkeypatch.setattr(recipe.Entry, "needs", property(lambda entry: needs[entry.name]))
    with pytest.raises(ConfigError, match="in a circle") as caught:
        recipe.read(write(tmp_path, {name: {"data": DATA} for name in needs}))
    told = str(caught.value).partition("circle: ")[2].partition("\n")[0].split(" needs ")
    assert told[0] == told[-1]
    assert all(needs[one] == (other,) for one, other in itertools.pairwise(told))
    assert len(told) == 4


def test_the_seed_of_the_recipe_is_that_of_its_stages(tmp_path: Path) -> None:
    read = recipe.read(
        write(tmp_path, {"seed": 5, "thinker": {"data": DATA}, "codec": {"data": DATA, "seed": 9}})
    )
    assert (read.stages["thinker"].settings.seed, read.stages["codec"].settings.seed) == (5, 9)


def test_the_world_is_put_in_its_place(tmp_path: Path) -> None:
    content = {
        "world": {"size": "tiny"},
        "thinker": {"data": [{"path": "{world}/text.jsonl", "tasks": ["{world}"]}]},
    }
    read = recipe.read(write(tmp_path, content), out=tmp_path / "out")
    world = (tmp_path / "out" / "data" / "world").resolve()
    assert read.stages["thinker"].settings.data[0].path == str(world / "text.jsonl")
    assert (
        recipe.read(write(tmp_path, content))
        .stages["thinker"]
        .settings.data[0]
        .path.endswith("runs/mine/data/world/text.jsonl")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"thinkr": {"data": DATA}}, ["thinkr", "did you mean thinker?"]),
        ({"thinker": {"data": DATA}, "sead": 3}, ["sead", "did you mean seed?"]),
        ({"qqqqqq": {}}, ["qqqqqq", "stages: thinker"]),
        ({"thinker": {"data": DATA, "learning_rat": 1}}, ["thinker", "learning_rat"]),
        ({"thinker": {"data": DATA, "max_step": 1}}, ["max_step", "did you mean max_steps?"]),
        ({"thinker": {"model": {"wdth": 3}}}, ["model.wdth", "did you mean width?"]),
        ({"thinker": [1]}, ["thinker", "expected settings"]),
        ({"thinker": "fast"}, ["thinker", "expected settings"]),
        ({"seed": 3}, ["no stages"]),
        ({}, ["no stages"]),
        ({"omni": {"data": DATA}}, ["omni needs stage thinker"]),
        ({"thinker": {"data": DATA}, "talker": {"data": DATA}}, ["talker needs stage codec"]),
        ({"thinker": {"data": DATA}, "jobs": 0}, ["jobs", "0"]),
        ({"thinker": {"data": DATA}, "world": {"size": "huge"}}, ["world.size", "huge"]),
        ({"thinker": {"data": [{"paht": "x"}]}}, ["data.0.paht", "did you mean path?"]),
        ({1: {"data": DATA}}, ["1"]),
        ({True: 1}, ["True"]),
        ({None: 1}, ["None"]),
    ],
)
def test_faults_are_one_line_that_helps(tmp_path: Path, content: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe.read(write(tmp_path, content))
    said = str(caught.value)
    assert "mine.yaml" in said
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"thinker": {"data": DATA}})
    read = recipe.read(
        path, ["thinker.max_steps=20", "thinker.lr=3e-3", "thinker.data.0.path=b.txt", "seed=8"]
    )
    settings = read.stages["thinker"].settings
    assert (settings.max_steps, settings.lr, settings.data[0].path, settings.seed) == (20, 3e-3, "b.txt", 8)
    with pytest.raises(ConfigError, match="did you mean max_steps"):
        recipe.read(path, ["thinker.max_stps=20"])
    with pytest.raises(ConfigError, match="no such stage"):
        recipe.read(path, ["thinkr.max_steps=20"])


def test_a_recipe_is_found_by_path_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"thinker": {"data": DATA}})
    assert recipe.find(path) == Path(path)
    monkeypatch.setattr(recipe, "SHIPPED", tmp_path)
    monkeypatch.chdir("/")
    for name in ("mine", "mine.yaml", "recipes/mine.yaml"):
        assert recipe.find(name) == tmp_path / "mine.yaml"
    for name in ("yours", "elsewhere/mine.yaml", "", str(tmp_path)):
        with pytest.raises(ConfigError, match="no such recipe"):
            recipe.find(name)


def settings(folder: Path, **values: Any) -> Any:
    return recipe.read(write(folder, {"hearing": {"data": DATA, **values}})).stages["hearing"].settings


def test_the_digest_changes_with_what_changes_the_result_only(tmp_path: Path) -> None:
    usual = recipe.digest(settings(tmp_path), {"a": "1"}, "d")
    for harmless in (
        {"print_freq": 3},
        {"checkpoint_freq": 3},
        {"num_workers": 2},
        {"gates": {"cer": 1.0}},
        {"keep_checkpoints": 9},
    ):
        assert recipe.digest(settings(tmp_path, **harmless), {"a": "1"}, "d") == usual, harmless
    assert recipe.digest(settings(tmp_path, data=[{"path": "elsewhere/a.txt"}]), {"a": "1"}, "d") == usual, (
        "only what it holds counts"
    )
    for other in (
        {"lr": 1.0},
        {"seed": 2},
        {"max_steps": 77},
        {"model": {"width": 96}},
        {"batch_size": 3},
        {"data": [{"path": "a.txt", "weight": 2.0}]},
    ):
        assert recipe.digest(settings(tmp_path, **other), {"a": "1"}, "d") != usual, other
    assert recipe.digest(settings(tmp_path), {"a": "2"}, "d") != usual
    assert recipe.digest(settings(tmp_path), {"a": "1"}, "e") != usual


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_says_what_it_is(name: str) -> None:
    stage = recipe.stage(name)
    assert stage.name == name
    assert stage.teaches
    names = [gate.name for gate in (*thresholds.SOUND, *stage.gates)]
    assert len(names) == len(set(names))
    for gate in stage.gates:
        bounds = [gate.at_least, gate.at_most, gate.more_than, gate.below_floor, gate.above_floor]
        assert sum(bound is not None for bound in bounds) == 1, gate.name
        assert gate.why


def test_shipped_recipes_can_be_read() -> None:
    found = sorted(recipe.SHIPPED.glob("*.yaml"))
    for path in found:
        read = recipe.read(str(path))
        for entry in read.stages.values():
            known = {gate.name for gate in (*thresholds.SOUND, *entry.stage.gates)}
            assert set(entry.settings.gates) <= known, path
