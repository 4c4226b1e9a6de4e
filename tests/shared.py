"""What is dear to make and only looked at afterwards: made once in a test run, whichever of its workers asks
first."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# what processes that are forked for tests hold from their start: whoever asks first starts the server that
# they come from, for all tests
LOADED = ["__main__", "muomni.selftest.run", "toy_training"]
TIMES = ("wall_s", "rtf", "format_gain")  # facts that a clock gives: measured anew, they differ


def timeless(facts: dict[str, Any]) -> dict[str, Any]:
    """Those facts that two runs of the same must have alike."""
    return {name: fact for name, fact in facts.items() if name not in TIMES}


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder of this name under the run's temporary one, filled by `make`; other workers wait until it is
    whole.

    What `make` left behind when it failed is taken away by the next who asks. Who wants to change something
    copies.
    """
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    home.mkdir(exist_ok=True)
    folder, made = home / name, home / f"{name}.made"
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


def benchmark(name: str) -> ModuleType:
    """A module of `benchmarks/`, which is no package that tests could import."""
    spec = importlib.util.spec_from_file_location(
        f"benchmarks.{name}", Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def swap_weights(folder: Path) -> None:
    """Another network of the same shapes in the place of the one that lies in a folder."""
    import torch

    from muomni.models import store

    network = store.load(folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)
    store.save(network, folder, extra=store.extra_of(folder))
