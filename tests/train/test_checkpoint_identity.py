"""A checkpoint is a start for the settings that it was trained with alone, and gives none of the rates that
settings say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training

from muomni import files
from muomni.errors import CheckpointError
from muomni.train import checkpoint, loop, optim
from muomni.train.checkpoint import Identity
from muomni.train.settings import TrainSettings

TORN = [b"", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b"\xff\xfe", b'{"a": ' * 9000]


def identity(lr: float, digest: str = "") -> Identity:
    return Identity(digest or f"of {lr}", toy_training.settings(lr=lr).model_dump(mode="json"))


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    """A toy run that stops after four of its steps."""
    steps = iter(range(10**6))
    with monkeypatch.context() as patched:
        patched.setattr(loop, "asked", lambda stop: next(steps) >= 4)
        with pytest.raises(loop.Interrupted):
            toy_training.fit(folder, **how)


@pytest.mark.parametrize(
    ("other", "named"), [(identity(0.01), "lr: 0.02 -> 0.01"), (identity(0.02, "other data"), "its data")]
)
def test_a_checkpoint_of_other_settings_is_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Identity, named: str
) -> None:
    interrupted(tmp_path, monkeypatch, identity=identity(0.02))
    with pytest.raises(CheckpointError) as error:
        toy_training.fit(tmp_path, identity=other)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in (named, "--fresh", "step_000004"))
    toy_training.fit(tmp_path, identity=identity(0.02))


def test_a_checkpoint_of_an_older_version_tells_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, monkeypatch)
    assert "settings" not in files.read_json(tmp_path / "step_000004" / "manifest.json")
    with pytest.raises(CheckpointError, match=r"lr: 0\.02 -> 0\.01"):
        toy_training.fit(tmp_path, identity=identity(0.01))
    assert toy_training.fit(tmp_path, identity=identity(0.02)).progress.step == 8


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_decay_and_betas_are_those_of_the_settings_whatever_a_checkpoint_says(
    tmp_path: Path, kind: Any
) -> None:
    """Before, a resumed run stepped by the rates of the run that had written the checkpoint."""
    model: Any = torch.nn.ModuleDict({"self_attn": torch.nn.Linear(4, 4), "embed": torch.nn.Embedding(4, 4)})
    made = {}
    for lr, wd in ((0.1, 0.3), (0.001, 0.0)):
        settings = TrainSettings(lr=lr, wd=wd, betas=(0.5, 0.6) if lr == 0.1 else (0.9, 0.95), optimizer=kind)
        made[lr] = optim.make_optimizer(model, optim.select(model, settings), settings)
    model["embed"](torch.tensor([1])).sum().backward()
    made[0.1].step()
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in made[0.001].param_groups
    ]
    state = made[0.1].state_dict()
    if len(made[0.1].param_groups) == len(groups):
        optim.go_on(made[0.001], state, where=tmp_path)
        assert [
            {key: value for key, value in group.items() if key != "params"}
            for group in made[0.001].param_groups
        ] == groups
        optim.set_lr(made[0.001], 1.0)
        assert {group["lr"] for group in made[0.001].param_groups} == {0.001}
    else:
        with pytest.raises(CheckpointError, match="parameter groups"):
            optim.go_on(made[0.001], state, where=tmp_path)


@pytest.mark.parametrize("content", [b'{"files": {}}', b'{"files": {"progress.json": "x"}}', *TORN])
def test_a_manifest_that_names_no_files_is_torn(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step_000001").mkdir()
    (tmp_path / "step_000001" / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="torn checkpoint"):
        checkpoint.verify(tmp_path / "step_000001")
    assert checkpoint.newest(tmp_path) is None
