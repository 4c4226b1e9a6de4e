"""A tiny world and a finished curriculum, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_recipe import recipe, write

from muomni.data.world.build import build
from muomni.stages import runner


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smoke") / "world"
    build(out, seed=1, size="tiny")
    return out


@pytest.fixture(scope="session")
def recipe_file(tiny_world: Path) -> Path:
    return write(tiny_world.parent / "tiny.yaml", recipe(tiny_world))


@pytest.fixture(scope="session")
def finished(recipe_file: Path) -> Path:
    """The run folder of all six stages; tests that change something copy it."""
    os.environ["MUOMNI_PLAIN"] = "1"
    return runner.run(str(recipe_file), out=recipe_file.parent / "run")
