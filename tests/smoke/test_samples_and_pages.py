"""The tiny curriculum's samples, pages, and explained samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import STAGES

from muomni import cli
from muomni.errors import CheckpointError, ConfigError
from muomni.evaluate import sample_writers
from muomni.evaluate.samples import MOST, ROWS
from muomni.execution import recipe as recipes
from muomni.execution import stage_run
from muomni.report import explain
from muomni.report.build import report
from muomni.report.explain import SampleChoice
from shared import timeless

pytestmark = pytest.mark.slow

KINDS = {
    "thinker": {"text"},
    "hearing": {"transcript", "confusion"},
    "vision": {"picture"},
    "codec": {"codebooks", "round_trip"},
    "image_codec": {"codebooks", "rebuilt"},
    "rows": {"token_text", "drawn", "token_speech"},
    "mmpt": {"token_text", "drawn", "token_speech"},
    "talker": {"speech"},
    "omni": {"answer", "confusion"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_its_samples_bounded(finished: Path, stage: str) -> None:
    rows = [json.loads(line) for line in (finished / stage / "samples" / ROWS).read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert KINDS[stage] <= set(kinds)
    assert max(map(kinds.count, kinds)) <= MOST
    for row in rows:
        for key in ("picture", "audio", "rebuilt", "other_picture"):
            assert key not in row or (finished / stage / "samples" / row[key]).is_file()
    assert sum(path.stat().st_size for path in (finished / stage / "samples").iterdir()) < 4_000_000


@pytest.mark.parametrize("stage", STAGES)
def test_looking_changes_no_fact_and_no_generator(
    finished: Path, measured: Callable[[str], dict[str, Any]], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, state = measured(stage)["told"]["facts"], measured(stage)["generator"]
    for name in (
        "texts",
        "transcripts",
        "pictures",
        "pictures_rebuilt",
        "round_trips",
        "said_aloud",
        "answers",
    ):
        monkeypatch.setattr(sample_writers, name, lambda *given, **how: None)
    blind = json.loads(json.dumps(stage_run.gate_stage(recipes.stored(finished, stage))["facts"]))
    assert torch.get_rng_state().tolist() == state
    assert timeless(looked) == timeless(blind)


def test_the_page_of_a_run_shows_its_samples(finished: Path, tmp_path: Path) -> None:
    path = report(finished, out=tmp_path / "report.html")
    text = path.read_text()
    assert path.stat().st_size < 15_000_000
    for title in (
        "Asked",
        "Heard",
        "Continued",
        "There and back",
        "what their codes give back",
        "Said, and understood",
        "captions that they find",
    ):
        assert title in text


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_sample_is_explained_as_its_stage_reads_it(finished: Path, stage: str, split: str) -> None:
    text = explain.of_stage(str(finished), stage, SampleChoice(index=1, split=split))
    wanted = {
        "thinker": ("Who looks at whom", "learned", "nats", "likeliest"),
        "hearing": ("Where it is heard", "As the ears read it", "<audio"),
        "vision": ("Captions, true and false", "similarity", "<img"),
        "codec": ("Rebuilt from the codes", "book 0", "<audio"),
        "image_codec": ("Rebuilt from the codes", "64 codes, one each 8 px", "row 7", "<img"),
        "rows": ("Ids, regions, labels", "img_start", "gen_text", "learned", "nats"),
        "mmpt": ("Ids, regions, labels", "learned", "nats"),
        "talker": ("The delayed grid", "nats 0", "Who looks at whom"),
        "omni": ("Who looks at whom", "nats", "learned"),
    }
    for each in wanted[stage]:
        assert each in text


def test_without_a_checkpoint_no_loss_is_told(recipe_file: Path) -> None:
    text = explain.of_stage(str(recipe_file), "hearing", SampleChoice())
    assert "none: no losses" in text
    assert "Where it is heard" not in text
    with pytest.raises(ConfigError, match="is built on"):
        explain.of_stage(str(recipe_file), "talker", SampleChoice())


def test_a_sample_is_found_by_its_id_or_refused(finished: Path) -> None:
    first = json.loads((finished / "omni" / "samples" / ROWS).read_text().splitlines()[-1])
    sample = str(first.get("id", "")).split("/")[0]
    assert sample in explain.of_stage(str(finished), "omni", SampleChoice(sample=sample))
    for stage in ("omni", "talker"):
        with pytest.raises(ConfigError, match="no sample"):
            explain.of_stage(str(finished), stage, SampleChoice(sample="nobody"))
    with pytest.raises(ConfigError, match="no stage thinkr"):
        explain.of_stage(str(finished), "thinkr", SampleChoice())
    with pytest.raises(ConfigError, match="expected a number"):
        explain.of_stage(str(finished), "vision", SampleChoice(index=10**9))


def test_the_command_line_explains(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(
            [
                "data",
                "explain",
                str(finished),
                "hearing",
                "--split",
                "valid",
                "--out",
                str(tmp_path / "sample.html"),
            ]
        )
    assert left.value.code == 0
    assert "Where it is heard" in (tmp_path / "sample.html").read_text()
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "explain", str(finished), "--out", str(tmp_path / "sample.html")])
    assert left.value.code == 2


def test_a_manifest_is_explained_by_a_tokenizer_alone(finished: Path, tiny_world: Path) -> None:
    text = explain.of_manifest(
        tiny_world / "questions.jsonl", finished / "thinker" / "final", SampleChoice(index=2)
    )
    assert "Who looks at whom" in text
    with pytest.raises(CheckpointError):
        explain.of_manifest(tiny_world / "questions.jsonl", tiny_world, SampleChoice())
