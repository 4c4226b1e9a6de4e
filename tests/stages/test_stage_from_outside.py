"""A stage of another package (colour.py, beside this file) is run, planned, measured again, shown: nothing in
src knows its name."""

from __future__ import annotations

import json
import os
import re
import runpy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni import files, inspection, plugins
from muomni.errors import CheckpointError, ConfigError, GateRed
from muomni.evaluate import certificate
from muomni.execution import recipe as recipes
from muomni.execution import runner
from muomni.infer import folders
from muomni.infer.engine import Engine
from muomni.models import store
from muomni.planning import forecast, walk
from muomni.report import explain
from muomni.report.build import report
from muomni.report.explain import SampleChoice
from muomni.selftest import world
from muomni.stages import registry

STEPS = 60


def install(
    name: str, source: Path, site: Path, monkeypatch: pytest.MonkeyPatch, network: str | None = None
) -> None:
    """A stage, installed as a package brings it: by entry points, in this process and in those that it
    starts; `network`: the class by which its folders are opened."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = f"[muomni.stages]\n{name} = {name}:STAGE\n"
    points += f"[muomni.networks]\n{name} = {name}:{network}\n" if network else ""
    (about / "entry_points.txt").write_text(points)
    for place in (site, source):
        monkeypatch.syspath_prepend(str(place))
    paths = [str(site), str(source), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("colour", Path(__file__).parent, tmp_path / "site", monkeypatch, "Namer")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    world.build(tmp_path / "world")
    settings = {
        "data": [{"path": str(tmp_path / "world" / "captions.jsonl")}],
        "max_steps": STEPS,
        "lr": 0.02,
        "val_split": 0.25,
    }
    settings |= {"warmup_steps": 2, "val_freq": 30, "print_freq": 10, "use_amp": False}
    path = tmp_path / "colours.yaml"
    path.write_text(
        yaml.safe_dump({"seed": 3, "threads": 1, "device": "cpu", "scoreboard": True, "colour": settings})
    )
    return path


def test_a_stage_from_outside_has_the_whole_life_of_one_of_ours(
    brought: None, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(GateRed, match="named"):  # it is judged by its own gate
        runner.run(
            str(recipe),
            out=tmp_path / "short",
            overrides=["colour.max_steps=1", "colour.lr=1e-9", "colour.gates={overfits: 9}"],
        )
    runner.run(str(recipe), out=out)
    made: Any = certificate.read(out / "colour")
    assert made["verdict"] == "green"
    assert made["facts"]["named"]["value"] > 0.5
    assert json.loads((out / "scoreboard.json").read_text())["metrics"] == {
        "colour.named": made["facts"]["named"]["value"]
    }

    again: Any = runner.gate(out / "colour")
    assert again["facts"]["named"]["value"] == made["facts"]["named"]["value"]

    runner.run(str(recipe), out=out)  # reused
    told = inspection.inspect(out)
    assert told["stages"] == {"colour": "green"}
    assert inspection.inspect(out / "colour")["verdict"] == "green"

    final = out / "colour" / "final"
    assert inspection.inspect(final)["model_type"] == "colour"
    for place in (out, out / "colour", final):  # what an engine opens
        assert folders.find(place) == {"colour": final}
        with pytest.raises(CheckpointError, match="omni or thinker must be there, found colour"):
            Engine.load(place).answer("a")
    network = store.load(final)
    assert type(network).__name__ == "Namer"
    assert not store.changed(network, final)

    page = report(out).read_text()
    assert "the names of colours" in page
    assert "colour.named" in page


def test_it_is_planned_traced_and_explained(brought: None, recipe: Path, tmp_path: Path) -> None:
    planned = forecast.plan(str(recipe), out=tmp_path / "run", probe=2, probe_s=0.1)
    (stage,) = planned["stages"]
    assert (stage["stage"], stage["data_found"], stage["data"]["updates"]) == ("colour", True, STEPS)
    assert stage["parameters"]["trained"] == (3 + 1) * 16 + (16 + 1) * 8
    nowhere = forecast.plan(
        str(recipe), overrides=["colour.data=[{path: nowhere.jsonl}]"], out=tmp_path / "run", probe=0
    )
    assert nowhere["stages"][0]["data_found"] is False

    hops, _ = walk.trace(str(recipe), "colour", out=tmp_path / "run")
    assert [hop.name for hop in hops] == ["pixels_BHW3", "names_B", "term name", "loss"]
    shown = explain.of_stage(str(recipe), "colour", SampleChoice(index=2))
    assert "All that it reads" in shown
    assert re.search(r"red \d+, green \d+, blue \d+", shown)


def test_without_the_package_there_is_no_such_stage(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colour: no such stage or key"):
        recipes.read(str(recipe))
    with pytest.raises(ConfigError, match="no such stage"):
        registry.find("colour")
    files.write_json(tmp_path / "run" / "colour" / "final" / "config.json", {"model_type": "colour"})
    with pytest.raises(CheckpointError, match="no finished stage"):
        folders.find(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"model_type must be one of .*, got 'colour'"):
        store.load(tmp_path / "run" / "colour" / "final")


def test_what_ours_name_by_words_is_there() -> None:
    for name in registry.OURS:
        assert plugins.load(registry.find(name).anatomy).__module__ == "muomni.report.anatomy", name
    networks = {kind: store.CLASSES.find(kind) for kind in store.CLASSES.ours}
    ends = {getattr(network, "trained_by", None) for network in networks.values()}
    assert ends - {None} == {"thinker", "hearing", "vision", "codec", "image_codec", "talker"}
    assert ends - {None} <= set(registry.OURS)


def test_the_exercise_of_the_page_is_a_stage_of_60_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (
        (Path(__file__).parents[2] / "docs" / "architecture.md")
        .read_text()
        .split("## Exercise: add a stage in 60 lines")[1]
    )
    (code, content) = re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 60
    (tmp_path / "words.py").write_text(code)
    (tmp_path / "words.yaml").write_text(content)
    install("words", tmp_path, tmp_path / "site", monkeypatch)
    runner.run(str(tmp_path / "words.yaml"), out=tmp_path / "run")
    made: Any = certificate.read(tmp_path / "run" / "words")
    assert made["verdict"] == "green"
    shown = explain.of_stage(str(tmp_path / "run"), "words", SampleChoice())
    assert "What the batch holds" in shown  # it says nothing of how it is shown
    assert "counts_BV" in shown
    again: Any = runner.gate(tmp_path / "run" / "words")
    assert again["facts"]["words_off"]["value"] == made["facts"]["words_off"]["value"]

    # What the page says of breaking it: a mean in place of a sum, and a row that is not counted.
    breaks = {
        "errors_B.abs().sum()": ("errors_B.abs().mean()", "accumulation"),
        "batch.words_B.numel()": ("batch.words_B.numel() - 1", "counts"),
    }
    words = import_module("words")
    for right, (wrong, gate) in breaks.items():
        assert code.count(right) == 1
        (tmp_path / "broken.py").write_text(code.replace(right, wrong))
        for name, value in runpy.run_path(str(tmp_path / "broken.py")).items():
            monkeypatch.setattr(words, name, value, raising=False)
        with pytest.raises(GateRed, match=f"gate {gate} is red"):
            runner.run(str(tmp_path / "words.yaml"), out=tmp_path / "run", fresh=True)
