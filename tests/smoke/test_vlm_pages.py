"""Stages align and instruct, trained for a few updates: their pages, explained samples, and what is handed
on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from muomni import files
from muomni.errors import ConfigError, GateRed
from muomni.execution import runner
from muomni.report import explain
from muomni.report.build import report
from muomni.report.explain import SampleChoice
from muomni.tokens.bpe import Tokenizer
from seeing_run import save_qwen, save_siglip

pytestmark = pytest.mark.slow
pytest.importorskip("peft")
pytest.importorskip("transformers")

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
GAPS = ("swap_gap", "swap_share", "swap_sure", "swap_wins", "zero_sure", "noise_sure", "pairs")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on a tiny Qwen3 and SigLIP, with bounds that a few updates can meet."""
    folder = tmp_path_factory.mktemp("seeing")
    save_qwen(folder / "qwen")
    save_siglip(folder / "siglip")
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        name = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        asked = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "which colour?"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": name}]
        rows.append(
            {"id": f"c{number}", "group": str(number), "task": "colour", "messages": turns, "names": name}
        )
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "words.txt").write_text(
        "".join(f"the {name} one is number {number}\n" for number, name in enumerate(list(COLOURS) * 6))
    )
    common = {
        "data": [{"path": "colours.jsonl"}],
        "regression_texts": [{"path": "words.txt"}],
        "batch_size": 4,
        "max_steps": 4,
        "warmup_steps": 1,
        "checkpoint_freq": 2,
        "val_freq": 2,
        "val_batches": 2,
        "eval_items": 8,
        "watched_items": 4,
        "max_new_tokens": 6,
        "max_seq_len": 64,
        "gates": {"overfits": 9.0, "held_out_gap": 99.0, **{f"image_{gate}": -9.0 for gate in GAPS}},
    }
    connector = {"connector": {"tokens": 4, "width": 16, "heads": 2, "depth": 1}}
    content = {
        "seed": 1,
        "threads": 1,
        "device": "cpu",
        "align": {**common, **connector, "llm": "qwen", "vision_tower": "siglip"},
        "instruct": {
            **common,
            "connector": "align",
            "lora": {"r": 4, "alpha": 8},
            "exact_match_tasks": ["colour"],
        },
    }
    content["instruct"]["gates"] = {**common["gates"], "above_question": -9.0}  # type: ignore[index,dict-item]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    return runner.run(str(recipe), out=recipe.parent / "run")


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_sample_is_explained_with_the_marks_of_its_own_vocabulary(
    trained: Path, recipe: Path, stage: str
) -> None:
    text = explain.of_stage(str(trained), stage, SampleChoice(sample="c7"))
    for piece in (
        "im_start",
        "im_end",
        "vision_start",
        "image_pad ×4",
        "vision_end",
        "nats on average",
        "as the eyes read it",
    ):
        assert piece in text
    words = Tokenizer.load(recipe.parent / "qwen").encode("grey")
    assert text.count('class="learned"') == len(words) + 1  # and the end of the turn
    assert "nats on average" in explain.of_stage(
        str(recipe), stage, SampleChoice(index=1), checkpoint=trained
    )


def test_before_training_there_are_no_losses_and_a_missing_connector_is_named(recipe: Path) -> None:
    assert "none: no losses" in explain.of_stage(str(recipe), "align", SampleChoice())
    with pytest.raises(ConfigError, match="built on align"):
        explain.of_stage(str(recipe), "instruct", SampleChoice())
    with pytest.raises(ConfigError, match="sweep"):
        explain.of_stage(str(recipe), "sweep", SampleChoice())


def test_their_pages_show_what_was_measured(trained: Path) -> None:
    for stage, parts in {"align": ["step 4"], "instruct": ["step 4", "from the question alone"]}.items():
        text = report(trained / stage).read_text()
        for part in (
            "By length of the answer",
            "With the right media",
            "Watched",
            "What was taught",
            "Asked",
            *parts,
        ):
            assert part in text


def test_a_sweep_is_gated_by_its_winner_and_its_points_have_pages_and_samples(
    recipe: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["sweep"] = {"grid": {"lr": [0.001]}}
    swept = recipe.parent / "swept.yaml"
    swept.write_text(
        yaml.safe_dump(
            {key: content[key] for key in ("seed", "threads", "device", "align", "sweep")}, sort_keys=False
        )
    )
    with contextlib.suppress(GateRed):  # whether a few updates were enough to look is not asked here
        runner.run(str(swept), stages=["sweep"], out=tmp_path / "run")
    table = tmp_path / "run" / "sweep" / "table.json"
    for wins in (True, False):
        files.write_json(table, [{**row, "wins": wins} for row in files.read_json(table)])
        found = runner.gate(tmp_path / "run" / "sweep")
        assert isinstance(found, dict)
        names = [row["name"] for row in found["gates"]]
        assert found["stage"] == "sweep"
        assert "winner" in names
        assert ("image_swap_sure" in names) == wins
    assert "nats on average" in explain.of_stage(str(tmp_path / "run"), "sweep/lr-0.001", SampleChoice())
    report(tmp_path / "run")
    assert "Watched" in (tmp_path / "run" / "sweep" / "lr-0.001" / "report.html").read_text()
