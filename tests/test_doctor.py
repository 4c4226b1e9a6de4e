from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from muomni import doctor

NAMES = [
    "python",
    "torch",
    "cores",
    "threads",
    "bf16",
    "memory",
    "disk",
    "cuda",
    *doctor.EXTRAS,
    "data",
    "sound",
]


def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}


def test_every_finding_is_there_once_and_in_one_line() -> None:
    listed = doctor.examine()
    assert [finding.name for finding in listed] == NAMES
    assert all(finding.detail and "\n" not in finding.detail + finding.hint for finding in listed)
    assert all(finding.hint for finding in listed if not finding.ok)


def test_this_machine_can_run_muomni() -> None:
    found = findings()
    assert found["python"].ok
    assert found["torch"].ok
    assert "FLAC" in found["sound"].detail


@pytest.mark.parametrize(
    ("module", "ill"), [("torch", {"torch", "threads", "bf16", "cuda"}), ("soundfile", {"sound"})]
)
def test_a_missing_library_is_a_finding_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, module: str, ill: set[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = findings()
    assert list(found) == NAMES
    assert {name for name in ill if not found[name].ok} == ill
    assert found["python"].ok
    assert found["disk"].ok


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = sys.modules.setdefault("torch", __import__("torch"))
    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    found = findings()["torch"]
    assert not found.ok
    assert "2.11" in found.hint


def test_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    assert "OMP_NUM_THREADS" in findings()["threads"].hint


def test_absent_extras_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    found = findings()
    assert all(found[module].ok and "pip install" in found[module].hint for module in doctor.EXTRAS)


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MUOMNI_DATA", str(tmp_path))
    assert findings()["data"].ok
    monkeypatch.setenv("MUOMNI_DATA", str(tmp_path / "none"))
    assert not findings()["data"].ok


def test_a_container_quota_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "cpu.max": "100000 100000",
        "memory.max": str(doctor.GIB),
        "memory.current": str(doctor.GIB // 2),
    }
    known = doctor._read
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path.name) or known(path))
    found = findings()
    assert found["cores"].detail.startswith("1 usable")
    assert found["memory"].detail.startswith("0.5 GiB free of 1.0")
    assert not found["memory"].ok


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert not findings()["disk"].ok


def test_importing_doctor_and_inspection_is_cheap() -> None:
    code = "import sys, muomni.doctor, muomni.inspection; print({'torch', 'numpy', 'soundfile', 'PIL'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900
    )
    assert done.stdout.strip() == "set()"
