"""Every reader through every stage that it is for, and a refusal with its reason from every other; the table
in docs/formats.md says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import own_data
import pytest
import soundfile

import device_recipe
from muomni.data import formats, readers, uses
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.errors import DataError, MuomniError
from muomni.evaluate import certificate
from muomni.execution import recipe as recipes
from muomni.execution import runner
from shared import once

pytestmark = pytest.mark.slow

STAGES = tuple(
    stage for stage in uses.RULES if stage not in ("mmpt", "voice")
)  # a sweep learns from what align does, mmpt from what rows does; voice has tests of its own (stages/test_voice_stage.py)
TOGETHER = {"align": "align, sweep", "rows": "rows, mmpt"}
ANY = (
    "samples",
    "rows",
)  # hold whatever their rows hold: these are run by the tiny curriculum and by the shipped recipes
# Replay: it goes with sources that have media, alone it proves nothing about these.
BESIDE = {(reader, stage) for reader in ("text", "alpaca") for stage in ("omni", "instruct")}
ELSEWHERE = {  # run whole by a shipped recipe (test_shipped_recipes.py)
    ("text", "thinker"): "muomni_12gb",
    ("text", "omni"): "muomni_12gb",
    ("asr_csv", "hearing"): "muomni_12gb",
    ("captions", "vision"): "muomni_12gb",
    ("tts_csv", "codec"): "muomni_12gb",
    ("tts_csv", "talker"): "muomni_12gb",
    ("llava", "align"): "vlm_qwen3_0.6b",
    ("llava", "instruct"): "vlm_qwen3_0.6b",
}
# What each reader's rows are for, as docs/formats.md has it.
GREEN = {
    "text": ("thinker", "omni", "instruct"),
    "asr_csv": ("hearing", "codec", "talker", "omni", "rows"),
    "tts_csv": ("hearing", "codec", "talker", "rows"),
    "ocr_csv": ("vision", "image_codec", "omni", "align", "instruct", "rows"),
    "captions": ("vision", "image_codec", "omni", "align", "instruct", "rows"),
    "images": ("vision", "image_codec", "omni", "align", "instruct", "rows"),
    "sounds": ("hearing", "codec", "talker", "omni", "rows"),
    "llava": ("vision", "image_codec", "omni", "align", "instruct", "rows"),
    "alpaca": ("thinker", "omni", "instruct"),
    "lhotse": ("hearing", "codec", "talker", "omni", "rows"),
    "ljspeech": ("hearing", "codec", "talker", "rows"),
    "librispeech": ("hearing", "codec", "talker", "omni", "rows"),
    "vctk": ("hearing", "codec", "talker", "omni", "rows"),
    "higgs": ("hearing", "codec", "talker", "rows"),
}
PAIRS = [(reader, stage) for reader, stages in GREEN.items() for stage in stages]


def source(reader: str, factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a format, made once, as a recipe names them."""
    write, named = own_data.SOURCES[reader]
    folder = once(factory, f"source-{reader}", write)
    return {key: str(folder / value) for key, value in named.items()}


def samples(reader: str, factory: pytest.TempPathFactory) -> list[Sample]:
    """What stands in them, the format told from the files."""
    found = Source.model_validate(source(reader, factory))
    assert formats.sniff(Path(found.path), found) == reader
    return list(readers.read(found, Path(), Quarantine(limit=0.0)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stages are built on, trained for a few steps: a recipe, and its run in `run`."""
    os.environ["MUOMNI_PLAIN"] = "1"

    def make(folder: Path) -> None:
        content = {**device_recipe.recipe(folder), "device": "cpu"}
        recipe = device_recipe.write(folder / "recipe.yaml", content)
        for stage in ("thinker", "hearing", "vision", "codec", "image_codec", "align"):
            runner.run(
                str(recipe),
                stages=[stage],
                out=folder / "run",
                waive=device_recipe.learned(stage),
                reason="a tiny test",
            )

    return once(tmp_path_factory, "bases", make)


def run(base: Path, folder: Path, stage: str, sources: list[dict[str, Any]], **more: Any) -> Path:
    """The stage, upon these bases and with these sources; its folder."""
    content = device_recipe.read(base / "recipe.yaml")
    content[stage] = {
        **content[stage],
        "data": sources,
        "quarantine_limit": 0.0,
        "max_steps": 2,
        "val_freq": 2,
        **more,
    }
    if stage in ("align", "instruct"):
        content[stage]["max_seq_len"] = 128
    out = folder / "run"
    out.mkdir()
    for name in device_recipe.NEEDS[stage]:
        (out / name).symlink_to(base / "run" / name)
    recipe = device_recipe.write(folder / "recipe.yaml", content)
    runner.run(str(recipe), stages=[stage], out=out, waive=device_recipe.learned(stage), reason="a tiny test")
    return out / stage


def tasks_of(sample: Sample) -> dict[str, float]:
    """The tasks over tokens that samples like this serve."""
    return {"i2t": 1.0, "t2i": 0.5} if sample.media[0].type == "image" else {"a2t": 1.0, "t2a": 0.5}


def test_every_reader_stands_in_the_table() -> None:
    assert {*GREEN, *ANY} == set(formats.READERS)
    assert set(ELSEWHERE) | BESIDE <= set(PAIRS)
    assert uses.RULES["mmpt"] is uses.RULES["rows"]


@pytest.mark.parametrize("reader", GREEN)
def test_the_rules_say_for_whom_a_readers_rows_are(
    reader: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for sample in samples(reader, tmp_path_factory):
        assert tuple(stage for stage in STAGES if uses.refusal(stage, sample) is None) == GREEN[reader]


@pytest.mark.parametrize(("reader", "stage"), [pair for pair in PAIRS if pair not in ELSEWHERE])
def test_a_reader_goes_through_a_stage(
    base: Path, reader: str, stage: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    others = [source("captions", tmp_path_factory)] if (reader, stage) in BESIDE else []
    how = {"tasks": tasks_of(samples(reader, tmp_path_factory)[0])} if stage == "rows" else {}
    own = run(base, tmp_path, stage, [source(reader, tmp_path_factory), *others], **how)
    found: Any = certificate.read(own)
    assert "red" not in {gate["verdict"] for gate in found["gates"]}
    assert found["facts"]["steps"]["value"] == 2
    assert found["facts"]["label_coverage"]["value"] == 1.0
    assert not (own / "quarantine.jsonl").exists()


@pytest.mark.parametrize(("reader", "stage"), ELSEWHERE)
def test_what_a_shipped_recipe_runs_is_what_the_table_says(reader: str, stage: str) -> None:
    told = [source.format for source in recipes.read(ELSEWHERE[reader, stage]).stages[stage].settings.data]
    assert reader in told or reader == "llava"  # whose rows tell themselves


@pytest.mark.parametrize("reader", GREEN)
def test_a_reader_is_refused_by_every_other_stage_before_anything_is_spent(
    base: Path, reader: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = samples(reader, tmp_path_factory)[0]
    for stage in STAGES:
        if stage in GREEN[reader]:
            continue
        (tmp_path / stage).mkdir()
        with pytest.raises(DataError) as caught:
            run(base, tmp_path / stage, stage, [source(reader, tmp_path_factory)])
        assert caught.value.exit_code == 2
        assert str(caught.value).startswith(f"{stage}: expected samples that it can learn from, got none")
        assert str(uses.refusal(stage, first)) in str(caught.value)
        assert not (tmp_path / stage / "run" / stage / "metrics.jsonl").exists()


@pytest.mark.parametrize("stage", sorted({stage for _, stage in BESIDE}))
def test_text_alone_proves_nothing_about_media(
    base: Path, stage: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(MuomniError) as caught:
        run(base, tmp_path, stage, [source("text", tmp_path_factory)])
    assert caught.value.exit_code in (1, 2)


def test_long_transcripts_are_cut_or_left_out_and_told(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real data have long rows: stage hearing goes on without those that it can't cut, and its certificate
    says how many they are."""
    rows = []
    for n in range(12):
        words = own_data.PHRASES[n % 6]
        row = {"id": f"s{n}", "audio": own_data.speech(tmp_path, f"{n}.wav", words, n), "text": words}
        length_s = soundfile.info(tmp_path / f"{n}.wav").duration
        spelt = words.split()
        if n % 4:  # evenly laid: what counts here is that they are
            edges = [length_s * k / len(spelt) for k in range(len(spelt) + 1)]
            row["words"] = [[word, a, b] for word, a, b in zip(spelt, edges, edges[1:], strict=False)]
        rows.append(row)
    own_data.jsonl(tmp_path / "long.jsonl", rows)
    template = [{"user": [{"audio": "{audio}"}]}, {"assistant": "{text}"}]
    source = {
        "path": str(tmp_path / "long.jsonl"),
        "id": "{id}",
        "group": "{id}",
        "task": "transcribe",
        "messages": template,
    }
    own = run(base, tmp_path, "hearing", [source], max_text_len=10)
    found: Any = certificate.read(own)
    told = "8 transcripts of more than 10 characters: 5 cut between words into 10 pieces; 3 left out (3 without word times)"
    assert told in capfd.readouterr().err
    assert found["facts"]["left_out"]["value"] == 3
    assert found["facts"]["left_out"]["n"] == 12
    assert told in found["facts"]["left_out"]["note"]
    assert not (own / "quarantine.jsonl").exists()


def cell(reader: str, stage: str, sample: Sample) -> str:
    """What the docs say of a pair."""
    if (reason := uses.refusal(stage, sample)) is not None:
        return reason
    return "beside others" if (reader, stage) in BESIDE else "**yes**"


def test_the_table_in_the_docs_is_this_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    rows = [
        f"| reader | {' | '.join(TOGETHER.get(stage, stage) for stage in STAGES)} |",
        "|---" * (len(STAGES) + 1) + "|",
    ]
    for reader in GREEN:
        sample = samples(reader, tmp_path_factory)[0]
        rows.append(f"| {reader} | {' | '.join(cell(reader, stage, sample) for stage in STAGES)} |")
    assert "\n".join(rows) in docs, "\n" + "\n".join(rows)
