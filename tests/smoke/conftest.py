"""A finished curriculum, made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import recipe, write

from muomni import files
from muomni.evaluate import certificate
from muomni.execution import runner
from shared import once


@pytest.fixture(scope="session")
def recipe_file(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The curriculum's recipe, its world beside it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        write(folder / "tiny.yaml", recipe(tiny_world))

    return once(tmp_path_factory, "curriculum", make) / "tiny.yaml"


@pytest.fixture(scope="session")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of all stages of the tiny recipe; tests that change something copy it."""
    os.environ["MUOMNI_PLAIN"] = "1"
    return once(tmp_path_factory, "finished", lambda folder: runner.run(str(recipe_file), out=folder))


@pytest.fixture(scope="session")
def measured(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What `muomni gate` tells of a stage, the certificate's digests before and after, and where it leaves
    torch's generator."""

    def of(stage: str) -> dict[str, Any]:
        def make(folder: Path) -> None:
            folder.mkdir()
            before = files.sha256_file(finished / stage / certificate.NAME)
            told = runner.gate(finished / stage)
            after = files.sha256_file(finished / stage / certificate.NAME)
            content = {
                "told": told,
                "before": before,
                "after": after,
                "generator": torch.get_rng_state().tolist(),
            }
            files.write_json(folder / "told.json", content)

        content: dict[str, Any] = files.read_json(
            once(tmp_path_factory, f"measured-{stage}", make) / "told.json"
        )
        return content

    return of
