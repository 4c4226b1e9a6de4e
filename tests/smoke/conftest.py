"""A finished curriculum, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_recipe import recipe, write

from muomni.stages import runner
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
    """The run folder of all six stages; tests that change something copy it."""
    os.environ["MUOMNI_PLAIN"] = "1"
    return once(tmp_path_factory, "finished", lambda folder: runner.run(str(recipe_file), out=folder))
