"""Where `init_from` is found, and that embeddings come with the words that they mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from muomni import files
from muomni.errors import CheckpointError
from muomni.models import store
from muomni.stages import initial_weights
from muomni.tokens.bpe import Tokenizer
from muomni.train import checkpoint
from muomni.train.objective import Objective


class Tables(Objective):
    """An embedding table, and a layer beside it."""

    def __init__(self, rows: int = 5) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(rows, 3), nn.Linear(3, 2)


def stage(folder: Path, objective: Objective | None = None, *, step: int = 4) -> Objective:
    """A stage's folder with a checkpoint of an objective."""
    made = objective or Tables()
    checkpoint.save(folder / checkpoint.name(step), made, checkpoint.State({"step": step}, {}, {}, {}))
    return made


def words(folder: Path, text: str = "the red star") -> Tokenizer:
    made = Tokenizer.train([text] * 3, 280)
    made.save(folder)
    return made


def test_it_is_found_from_the_recipes_folder_first_and_else_from_the_working_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, here = tmp_path / "recipes" / "own", tmp_path / "work"
    for folder in (base / "runs" / "a", here / "runs" / "a", here / "runs" / "b"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert initial_weights.locate(Path("runs/a"), base) == base / "runs" / "a"
    assert initial_weights.locate(Path("runs/b"), base) == here / "runs" / "b"
    assert initial_weights.locate(here / "runs" / "b", base) == here / "runs" / "b"


@pytest.mark.parametrize("named", ["runs/a", "runs/a/nowhere", "runs/a/hearing/final"])
def test_the_hint_names_what_would_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    stage(tmp_path / "runs" / "a" / "hearing")
    (tmp_path / "runs" / "a" / "hearing" / "final").mkdir()
    with pytest.raises(CheckpointError, match=f"these would do: {tmp_path}/runs/a/hearing") as caught:
        initial_weights.take_over(Tables(), Path(named), tmp_path / "recipes", tmp_path / "own", is_main=True)
    assert "\n" not in str(caught.value)


def test_nothing_near_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no such folder, looked in .*recipes and .*give the folder of a stage"
    ):
        initial_weights.locate(Path("runs/x"), tmp_path / "recipes")


def test_weights_are_taken_and_what_they_were_is_kept(tmp_path: Path) -> None:
    theirs, own = stage(tmp_path / "old"), tmp_path / "own"
    mine = Tables(rows=7)
    fact = initial_weights.take_over(mine, Path("old"), tmp_path, own, is_main=True)
    assert torch.equal(mine.layer.weight, theirs.layer.weight)  # type: ignore[attr-defined]
    assert fact.value == pytest.approx(2 / 3)
    record = initial_weights.origin(own)
    assert record is not None
    assert (record["folder"], record["checkpoint"], record["taken"], record["of"]) == (
        str(tmp_path / "old"),
        "step_000004",
        2,
        3,
    )
    assert record["digest"] == files.sha256_file(tmp_path / "old" / "step_000004" / "weights.safetensors")
    assert "table.weight" in record["left"]


def test_a_begun_stage_goes_on_from_the_weights_that_it_began_from(tmp_path: Path) -> None:
    own = tmp_path / "own"
    stage(tmp_path / "old")
    initial_weights.take_over(Tables(), Path("old"), tmp_path, own, is_main=True)
    before = initial_weights.origin(own)
    stage(own)
    initial_weights.take_over(Tables(), Path("old"), tmp_path, own, is_main=True)  # as it was: it goes on
    torch.manual_seed(9)
    stage(tmp_path / "old", step=8)
    with pytest.raises(
        CheckpointError, match=r"began from weights .*step_000004.* now holds .*step_000008.*--fresh"
    ):
        initial_weights.take_over(Tables(), Path("old"), tmp_path, own, is_main=True)
    assert initial_weights.origin(own) == before


def test_the_tokenizer_of_the_weights_comes_with_them(tmp_path: Path) -> None:
    stage(tmp_path / "vision")
    assert initial_weights.tokenizer(None, tmp_path) is None
    with pytest.raises(CheckpointError, match=r"holds no tokenizer.*to its end"):
        initial_weights.tokenizer(Path("vision"), tmp_path)
    theirs = words(tmp_path / "vision" / "final")
    found = initial_weights.tokenizer(Path("vision"), tmp_path)
    assert found is not None
    assert found.digest == theirs.digest
    words(tmp_path / "omni" / "final" / "thinker")
    assert initial_weights.tokenizer(Path("omni"), tmp_path) is not None


def test_weights_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    theirs = words(tmp_path / "talker" / "final")
    initial_weights.demand_tokenizer(Path("talker"), tmp_path, theirs, "thinker")
    initial_weights.demand_tokenizer(None, tmp_path, theirs, "thinker")
    other = words(tmp_path / "other", "where is the blue ring")
    assert other.vocab_size == theirs.vocab_size, "shapes agree: nothing else would tell them apart"
    with pytest.raises(CheckpointError, match=r"another tokenizer than stage thinker") as caught:
        initial_weights.demand_tokenizer(Path("talker"), tmp_path, other, "thinker")
    assert "\n" not in str(caught.value)


def test_stores_are_no_stages(tmp_path: Path) -> None:
    """A folder of weights alone (an exported network) has no checkpoint to start from: said in one line."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / store.WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        initial_weights.take_over(Tables(), Path("net"), tmp_path, tmp_path / "own", is_main=True)
