"""Which build runs: version, git commit, and a digest of the source itself, so that two builds can be told
apart."""

from __future__ import annotations

import functools
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from muomni import files

PACKAGE = Path(__file__).parent


@functools.cache
def identity(package: Path = PACKAGE) -> dict[str, Any]:
    """{"version", "commit", "dirty", "source"}: commit and dirty are None outside of a git checkout of this
    package.

    source  sha256 over all .py files of the package: two trees with uncommitted changes have one commit and
            two of these
    """
    commit = (
        _git(package, "rev-parse", "HEAD")
        if _git(package, "ls-files", "--error-unmatch", "__init__.py")
        else None
    )
    dirty = bool(_git(package, "status", "--porcelain", "--", ".")) if commit else None
    sources = {
        path.relative_to(package).as_posix(): files.sha256_file(path)
        for path in sorted(package.rglob("*.py"))
    }
    return {
        "version": version("muomni"),
        "commit": commit or None,
        "dirty": dirty,
        "source": files.sha256_json(sources),
    }


def label(identity: Any) -> str:
    """The same in a few words, as a certificate holds it; older ones hold the version alone."""
    if not isinstance(identity, dict):
        return str(identity or "")
    commit = (
        f"commit {identity['commit'][:12]}{' with changes' if identity['dirty'] else ''}"
        if identity["commit"]
        else "no git checkout"
    )
    return f"{identity['version']}, {commit}, source {identity['source'][:12]}"


def _git(package: Path, *words: str) -> str | None:
    """What git says of the package's folder; None where there is no git, or it is in no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
