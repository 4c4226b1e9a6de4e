"""Stages rows and mmpt end to end: the text is untouched, only new rows learn, every mismatch is refused by
name, LoRA and kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_recipe import write

from muomni import files
from muomni.errors import CheckpointError, ConfigError, GateRed, MuomniError, TokenSpaceError
from muomni.evaluate import certificate
from muomni.evaluate.samples import ROWS as ALBUM
from muomni.execution import runner
from muomni.infer.engine import Engine
from muomni.inspection import inspect
from muomni.models import lora, pretrained, rows, store
from muomni.report import explain
from muomni.report.build import report
from muomni.tokens.space import TOKEN_SPACE, TokenSpace
from muomni.train import checkpoint

pytestmark = pytest.mark.slow
NEEDED = ("thinker", "hearing", "codec", "image_codec", "rows")


def changed(recipe_file: Path, path: Path, **values: Any) -> Path:
    """The recipe with other settings of stage mmpt."""
    content = yaml.safe_load(recipe_file.read_text())
    content["mmpt"].update(values)
    return write(path / "tiny.yaml", content)


@pytest.fixture
def beside(finished: Path, tmp_path: Path) -> Path:
    """A run folder with all that mmpt needs: `rows` is a copy that may be spoilt."""
    folder = tmp_path / "run"
    folder.mkdir()
    for stage in NEEDED[:-1]:
        (folder / stage).symlink_to(finished / stage)
    shutil.copytree(finished / "rows", folder / "rows")
    return folder


# --- rows -----------------------------------------------------------------------------------------------------------------------


def test_text_scores_keep_every_bit_through_stage_rows(finished: Path) -> None:
    base = pretrained.open_decoder(finished / "thinker" / "final", dtype=torch.float32).eval()
    model, _, _ = rows.open_folder(finished / "rows" / "final")
    size = model.space.text_size
    ids_BT = torch.randint(size, (4, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = base.logits(base.hidden(base.embed(ids_BT)))[..., :size]
        after = model.logits(model.hidden(model.embed(ids_BT)))
    assert after.shape[-1] == model.space.size > size
    assert float((after[..., :size] - before).abs().max()) == 0.0
    assert torch.equal(after[..., :size], before)


def test_only_the_new_rows_have_state_and_are_kept(finished: Path) -> None:
    """Two tensors learn: checkpoints and final/ hold them, and the optimizer two moments of each, whatever
    the base's size."""
    stored = checkpoint.newest(finished / "rows")
    assert stored is not None
    account = files.read_json(finished / "rows" / "account.json")
    trained = {row["name"]: row["count"] for row in account if row["trains"]}
    assert {name.rpartition(".")[2] for name in trained} == {"new_embed", "new_head"}
    space = TokenSpace.load(finished / "rows" / "final")
    width = store.read_config(finished / "thinker" / "final")["hidden_size"]
    assert set(trained.values()) == {len(space.new_rows) * width}
    weights = load_file(stored / "weights.safetensors")
    assert {name.rpartition(".")[2] for name in weights} == {"new_embed", "new_head", "updates"}
    state = torch.load(stored / "train_state.pt", weights_only=False)["optimizer"]
    moments = [value for value in tensors_of(state) if value.numel() > 1]
    assert len(moments) == 4
    assert {value.numel() for value in moments} == set(trained.values())
    final = load_file(finished / "rows" / "final" / rows.ROWS)
    assert sum(tensor.numel() for tensor in final.values()) == sum(trained.values())
    names = {path.name for path in (finished / "rows" / "final").iterdir()}
    assert names == {rows.ROWS, rows.NOTE, TOKEN_SPACE}


def tensors_of(value: Any) -> list[torch.Tensor]:
    """All tensors within a state."""
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for each in inside for tensor in tensors_of(each)]


def test_what_rows_learned_is_what_a_model_of_the_folder_says(finished: Path) -> None:
    before = load_file(finished / "rows" / "final" / rows.ROWS)
    after = load_file(finished / "mmpt" / "final" / rows.ROWS)
    assert all(not before[name].equal(after[name]) for name in before), "mmpt taught them further"


# --- refusals -------------------------------------------------------------------------------------------------------------------


def other_range(final: Path) -> None:
    note = files.read_json(final / rows.NOTE)
    files.write_json(final / rows.NOTE, {**note, "row_end": note["row_end"] + 1})


def other_base(final: Path) -> None:
    note = files.read_json(final / rows.NOTE)
    note["base"]["digest"] = "0" * 64
    files.write_json(final / rows.NOTE, note)


def with_space(**change: Any) -> Callable[[Path], None]:
    """Another token space in the place of the folder's; `says`: the note of the rows names it too, as a
    forger would have it."""

    def plant(final: Path) -> None:
        space = TokenSpace.load(final)
        entries = tuple(
            type(entry).from_json({**entry.to_json(), **change.get(entry.modality, {})})
            for entry in space.codecs  # the codecs with some of what is said of them changed
        )
        tokenizer = change.get("tokenizer", space.tokenizer)
        size = change.get("special_size", space.special_size)
        other = TokenSpace(space.text_size, tokenizer, entries, size)
        other.save(final)
        if change.get("says", True):
            files.write_json(
                final / rows.NOTE, {**files.read_json(final / rows.NOTE), "token_space": other.hash}
            )

    return plant


def stale_space(final: Path) -> None:
    """The space is another one than the rows' note names."""
    note = files.read_json(final / rows.NOTE)
    files.write_json(final / rows.NOTE, {**note, "token_space": "0" * 64})


MISMATCHES: dict[str, tuple[Callable[[Path], None], str]] = {
    "range": (other_range, r"expected rows \d+\.\.\d+, got"),
    "base": (other_base, r"other weights: expected 0000|expected digest 0000"),
    "hash": (stale_space, "0000"),
    "special": (with_space(special_size=80), "expected ids of token space"),
    "codec": (with_space(audio={"digest": "f" * 64}), "expected ids of token space|digest.*ffff"),
    # The layout stands nowhere but in the space, whose hash the rows' note holds.
    "layout": (
        with_space(audio={"layout": "delay"}, says=False),
        r"trainable_rows\.json.* token space|layout",
    ),
    "tokenizer": (with_space(tokenizer="e" * 64), "tokenizer.*eeee"),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_every_mismatch_is_refused_by_the_stage_and_by_the_engine(
    beside: Path, recipe_file: Path, mismatch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, message = MISMATCHES[mismatch]
    plant(beside / "rows" / "final")
    with pytest.raises(
        (GateRed, MuomniError)
    ) as seen:  # its certificate knows the files: it is refused before they are read
        runner.run(str(recipe_file), stages=["mmpt"], out=beside)
    assert rows.NOTE in str(seen.value) or TOKEN_SPACE in str(seen.value)
    (
        beside / "rows" / "certificate.json"
    ).unlink()  # whoever has none is still refused, by what the files say
    with pytest.raises((CheckpointError, TokenSpaceError, ConfigError), match=message) as caught:
        Engine.load(beside / "rows", "cpu").draw(["red"])
    assert caught.value.exit_code == 2
    settings = changed(recipe_file, beside, rows=str(beside / "rows" / "final"))
    with pytest.raises((CheckpointError, TokenSpaceError, ConfigError), match=message) as caught:
        runner.run(str(settings), stages=["mmpt"], out=beside)
    assert caught.value.exit_code == 2
    assert not (beside / "mmpt" / "metrics.jsonl").exists()


def test_a_lora_of_another_stage_is_no_start(finished: Path, beside: Path, recipe_file: Path) -> None:
    (beside / "rows" / "final" / rows.ADAPTER).mkdir()
    settings = changed(recipe_file, beside, rows=str(beside / "rows" / "final"))
    with pytest.raises(ConfigError, match="has a LoRA of its own"):
        runner.run(str(settings), stages=["mmpt"], out=beside)


# --- rows, a second phase ---------------------------------------------------------------------------------------------------------

PHASES: list[dict[str, Any]] = [
    {"pattern": "*", "from_step": 3, "lr": 1e-3, "wd": 0.0},
    {"pattern": "*.new_*", "from_step": 0, "lr": 1e-2, "wd": 0.0},
]


def run_rows(finished: Path, recipe_file: Path, folder: Path, **values: Any) -> Path:
    """Stage rows alone, with other settings, in a folder with all that it needs."""
    folder.mkdir()
    for stage in NEEDED[:-1]:
        (folder / stage).symlink_to(finished / stage)
    content = yaml.safe_load(recipe_file.read_text())
    content["rows"].update(values)
    return runner.run(str(write(folder / "tiny.yaml", content)), stages=["rows"], out=folder)


def test_a_second_phase_frees_the_base(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = run_rows(
        finished, recipe_file, tmp_path / "run", train=["*"], param_groups=PHASES, keep_checkpoints=9
    )
    found: Any = certificate.read(run / "rows")
    verdicts = {gate["name"]: gate["verdict"] for gate in found["gates"]}
    assert (verdicts["rests"], verdicts["joins"], verdicts["frozen"]) == ("green", "green", "green")
    assert verdicts["saved"] == "green"
    assert found["facts"]["rested_moved"]["n"] == found["facts"]["joined_still"]["n"] > 10
    # Checkpoints are as light as the deliverable of a stage whose base rests, until it learns.
    first, later = (
        load_file(run / "rows" / checkpoint.name(step) / "weights.safetensors") for step in (2, 4)
    )
    assert {name.rpartition(".")[2] for name in first} == {"new_embed", "new_head", "updates"}
    final = run / "rows" / "final"
    base, own = (
        load_file(folder / "model.safetensors")
        for folder in (finished / "thinker" / "final", final / rows.THINKER)
    )
    counts = [sum(tensor.numel() for tensor in tensors.values()) for tensors in (first, later, base)]
    assert counts[1] == counts[0] + counts[2], "the rows, and the whole base"
    assert base.keys() == own.keys()
    assert all(not base[name].equal(own[name]) for name in base)
    model, _, note = rows.open_folder(final)
    assert note.base["digest"] == pretrained.digest(final / rows.THINKER)
    assert all(
        torch.equal(tensor, own[name]) for name, tensor in model.decoder.state_dict().items() if name in own
    )
    assert inspect(final)["thinker"]["parameters"] > 0
    again: Any = runner.gate(run / "rows")
    assert {gate["name"]: gate["verdict"] for gate in again["gates"]} == verdicts
    assert again["facts"]["i2t_nats"]["value"] == found["facts"]["i2t_nats"]["value"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": ["*"], "param_groups": [{"pattern": "*.layers.0.*", "from_step": 3}]},
            "the language model rests at first",
        ),
        ({"train": ["*"], "param_groups": PHASES[:1]}, "rests at first"),
        (
            {"train": ["*"], "param_groups": [PHASES[0], {**PHASES[1], "from_step": 2}]},
            "nothing trains|new rows are what this stage teaches",
        ),
    ],
)
def test_a_base_that_would_not_rest_is_refused(
    finished: Path, recipe_file: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_rows(finished, recipe_file, tmp_path / "run", **values)


# --- mmpt by LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_lora(finished: Path, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose mmpt trains LoRA, on texts that lie beside it."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    folder.mkdir()
    for stage in NEEDED:
        (folder / stage).symlink_to(finished / stage)
    replayed = yaml.safe_load(recipe_file.read_text())["mmpt"]["replay"][0]["path"]
    shutil.copy(replayed, folder / "text.jsonl")
    path = changed(
        recipe_file, folder, lora={"r": 4, "alpha": 8}, replay=[{"path": str(folder / "text.jsonl")}]
    )
    return runner.run(str(path), stages=["mmpt"], out=folder)


def test_lora_is_saved_light_and_opens(finished: Path, by_lora: Path) -> None:
    final = by_lora / "mmpt" / "final"
    names = {path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_file()}
    assert names == {
        rows.ROWS,
        rows.NOTE,
        TOKEN_SPACE,
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
    }
    found: Any = certificate.read(by_lora / "mmpt")
    assert found["verdict"] == "green", certificate.reasons(found)
    assert found["facts"]["frozen_moved"]["value"] == 0.0
    stored = checkpoint.newest(by_lora / "mmpt")
    assert stored is not None
    kept = load_file(stored / "weights.safetensors")
    assert all("lora_" in name or name.endswith(("new_embed", "new_head", "updates")) for name in kept)
    model, _, _ = rows.open_folder(final)
    plain, _, _ = rows.open_folder(finished / "rows" / "final")
    ids_BT = torch.arange(8)[None]
    with torch.no_grad():
        assert not torch.equal(model(ids_BT), plain(ids_BT)), "the adapter is merged"
    assert len(Engine.load(by_lora, "cpu").draw(["red"])) == 1
    assert "lora" in inspect(final)


def test_a_saved_lora_that_is_another_is_found(by_lora: Path, tmp_path: Path) -> None:
    """Gate `saved` compares the adapter, and a folder's digest names it."""
    final = by_lora / "mmpt" / "final"
    decoder = lora.load(pretrained.open_decoder(rows.base_of(final), dtype=torch.float32), final / "lora")
    assert lora.changed(decoder, final / "lora") == []
    other = Path(shutil.copytree(final, tmp_path / "final"))
    file = other / "lora" / lora.WEIGHTS
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})
    assert lora.changed(decoder, other / "lora") == [name]
    assert rows.digest(other) != rows.digest(final)


def test_a_killed_lora_ends_with_the_same_weights(by_lora: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for stage in NEEDED:
        (folder / stage).symlink_to((by_lora / stage).resolve())
    recipe = str(by_lora / "tiny.yaml")
    died = multiprocessing.get_context("spawn").Process(
        target=tiny_recipe.die, args=(recipe, folder, "mmpt", 4)
    )
    died.start()
    died.join(timeout=600)
    assert died.exitcode == -signal.SIGKILL
    stored = checkpoint.newest(folder / "mmpt")
    assert stored is not None
    assert stored.name == checkpoint.name(2)
    runner.run(recipe, stages=["mmpt"], out=folder)
    for file in sorted((by_lora / "mmpt" / "final").rglob("*.safetensors")):
        whole, broken = (
            load_file(file),
            load_file(folder / "mmpt" / "final" / file.relative_to(by_lora / "mmpt" / "final")),
        )
        assert all(whole[name].equal(broken[name]) for name in whole), file.name
    assert len([path for path in os.listdir(folder / "mmpt") if path.startswith("step_")]) >= 1


def test_a_replayed_file_that_changes_is_seen(by_lora: Path) -> None:
    """It is learned from like the data, though it is not among them."""
    text = by_lora / "text.jsonl"
    before = text.read_text()
    text.write_text("".join(before.splitlines(keepends=True)[:-1]))
    try:
        with pytest.raises(ConfigError, match="--fresh"):
            runner.run(str(by_lora / "tiny.yaml"), stages=["mmpt"], out=by_lora)
    finally:
        text.write_text(before)


# --- what people see ------------------------------------------------------------------------------------------------------------


def test_what_was_drawn_said_and_written_stands_on_the_page(finished: Path, tmp_path: Path) -> None:
    shown = [json.loads(line) for line in (finished / "mmpt" / "samples" / ALBUM).read_text().splitlines()]
    kinds = {row["kind"] for row in shown}
    assert {"drawn", "token_speech", "token_text"} <= kinds
    assert {row["task"] for row in shown if row["kind"] == "token_text"} == {"i2t", "a2t"}
    assert any("seen" in row for row in shown if row["kind"] == "drawn")
    assert all("heard" in row for row in shown if row["kind"] == "token_speech")
    text = report(finished, out=tmp_path / "report.html").read_text()
    for title in (
        "Drawn from words",
        "Spoken from words",
        "Written of images and sounds",
        "the checker sees",
    ):
        assert title in text


def test_a_folder_of_rows_is_inspected(finished: Path) -> None:
    found = inspect(finished / "rows" / "final")
    space = TokenSpace.load(finished / "rows" / "final")
    assert found["kind"] == "rows"
    assert found["verdict"] == "green"
    assert found["token_space"]["hash"] == space.hash
    assert set(found["bases"]) == {"thinker", "image", "audio"}
    assert inspect(finished / "mmpt" / "final")["thinker"]["parameters"] > 0
    shards = next((finished / "rows" / "shards").iterdir())
    told = inspect(shards)
    assert told["kind"] == "token shards"
    assert told["sides"]["train"]["samples"] > 0
    assert inspect(shards / TOKEN_SPACE)["hash"] == space.hash


def test_a_row_of_tokens_is_explained(finished: Path) -> None:
    text = explain.of_stage(str(finished), "mmpt", explain.SampleChoice(index=0))
    for each in ("gen_text", "img_start", "learned", "nats", "Task i2t", "<img"):
        assert each in text
    sample = json.loads((finished / "mmpt" / "samples" / ALBUM).read_text().splitlines()[0])["id"]
    assert "Ids, regions, labels" in explain.of_stage(
        str(finished), "mmpt", explain.SampleChoice(sample=sample)
    )
