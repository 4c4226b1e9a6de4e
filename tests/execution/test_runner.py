"""What a run leaves where a stage is red."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni import files
from muomni.errors import GateRed
from muomni.execution import runner

STAGES = ("thinker", "hearing")


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, red: str) -> Path:
    """Run two stages that train nothing, one of them red; the run's folder."""
    (tmp_path / "data.jsonl").write_text("")
    stage = {"data": [{"path": str(tmp_path / "data.jsonl")}]}
    recipe = {"name": "r", "scoreboard": True, "device": "cpu", **dict.fromkeys(STAGES, stage)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    def run_stage(plan: Any, entry: Any, *_: Any, **__: Any) -> None:
        name = entry.name
        facts = {"bits_per_byte": {"value": 2.0}} if name == "thinker" else {"cer": {"value": 0.5}}
        certificate = {
            "stage": name,
            "verdict": "red" if name == red else "green",
            "gates": [],
            "facts": facts,
        }
        entry.folder.mkdir(exist_ok=True)
        files.write_json(entry.folder / "certificate.json", certificate)
        if name == red:
            raise GateRed(name)

    monkeypatch.setattr(runner, "run_stage", run_stage)
    with pytest.raises(GateRed, match=red):
        runner.run(str(tmp_path / "recipe.yaml"), out=tmp_path / "out")
    return tmp_path / "out"


def test_a_red_last_stage_has_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = files.read_json(run(tmp_path, monkeypatch, "hearing") / "scoreboard.json")
    assert board["metrics"] == {"thinker.bits_per_byte": 2.0, "hearing.cer": 0.5}


def test_a_red_stage_before_it_has_none_even_beside_older_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"stage": "hearing", "verdict": "green", "gates": [], "facts": {}}
    (tmp_path / "out" / "hearing").mkdir(parents=True)
    files.write_json(tmp_path / "out" / "hearing" / "certificate.json", older)
    assert not (run(tmp_path, monkeypatch, "thinker") / "scoreboard.json").exists()
