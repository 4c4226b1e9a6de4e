"""Weights under a server stay what they were: copied where they are small, watched where not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from served import Running, http, serving
from test_refusals import ASKED, error_of, post

from muomni import files
from muomni.infer.engine import Engine
from muomni.serve import weights

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 12}


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def other(path: Path) -> bytes:
    """A file of the same tensors with other numbers, as a training that goes on would leave."""
    with safe_open(path, "pt") as stream:
        tensors = {name: torch.randn(stream.get_tensor(name).shape) for name in stream.keys()}  # noqa: SIM118
    return save(tensors, metadata={"format": "pt"})


def overwrite(folder: Path) -> int:
    """All weights of a run, written over in place; gives how many files."""
    paths = sorted(folder.rglob("*.safetensors"))
    for path in paths:
        content = other(path)
        with path.open("r+b") as stream:
            stream.write(content)
            stream.truncate()
    return len(paths)


def answer(running: Running) -> Any:
    return post(running, CHAT, BODY).json()["choices"][0]["message"]["content"]


def test_a_mapped_network_changes_under_who_writes_in_place(folder: Path) -> None:
    """The fault itself: without it, the rest of this file would prove nothing."""
    engine = Engine.load(folder)
    assert engine.parts.thinker is not None
    before = engine.parts.thinker.state_dict()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    overwrite(folder)
    assert any(not torch.equal(kept[name], before[name]) for name in kept)


def test_weights_are_copied_where_they_are_small(folder: Path) -> None:
    with serving(Engine.load(folder)) as running:
        first = answer(running)
        assert not [path for path in weights.mapped() if path.is_relative_to(folder)]
        assert overwrite(folder) > 5
        assert answer(running) == first
        for path, body in (
            ("/v1/embeddings", {"model": "tiny", "input": "red"}),
            ("/v1/audio/speech", {"model": "tiny", "input": "red", "voice": "default"}),
        ):
            assert post(running, path, body).status_code == 200


def test_large_weights_are_watched_and_refused_once_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "COPIED_SHARE", 0.0)
    with serving(Engine.load(folder)) as running:
        watched = [path for path in running.server.weights.files if path.is_relative_to(folder)]
        assert watched
        assert answer(running) is not None
        assert http.get(f"{running.url}/health").json()["status"] == "ok"
        overwrite(folder)
        response = post(running, CHAT, BODY)
        assert response.status_code == 503
        assert error_of(response)["code"] == "weights_changed"
        health = http.get(f"{running.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "weights_changed")


def test_a_file_that_takes_anothers_name_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "COPIED_SHARE", 0.0)
    with serving(Engine.load(folder)) as running:
        first = answer(running)
        for path in sorted(folder.rglob("*.safetensors")):
            files.write_bytes(path, other(path))  # as everything of ours is written
        assert answer(running) == first
        assert http.get(f"{running.url}/health").json()["status"] == "ok"


def test_the_folder_may_go_while_it_is_served(folder: Path) -> None:
    with serving(Engine.load(folder)) as running:
        first = answer(running)
        shutil.rmtree(folder)
        assert answer(running) == first
        assert post(running, "/v1/embeddings", {"model": "tiny", "input": "red"}).status_code == 200
        assert os.getpid()
