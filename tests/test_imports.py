"""Every module can be imported with the core dependencies alone."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = (
    "transformers",
    "peft",
    "espeakng_loader",
    "tensorboard",
    "datasets",
    "fastapi",
    "uvicorn",
    "starlette",
    "prometheus_client",
    "python_multipart",
    "openai",
    "gradio",
    "jiwer",
    "pocketsphinx",
    "pytest",
)

PROGRAM = f"""
import importlib, pkgutil, sys
for name in {EXTRAS!r}:
    sys.modules[name] = None  # importing it fails
import muomni
names = [found.name for found in pkgutil.walk_packages(muomni.__path__, "muomni.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_imports_without_extras() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 60


def test_importing_the_package_is_quick_and_loads_no_torch() -> None:
    program = "import sys, muomni; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.stdout.strip() == "False", done.stderr
