"""Read a run folder without opening a model; what is missing, torn or older is None or empty."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from muomni import config, files, units
from muomni.errors import ConfigError
from muomni.evaluate.samples import ROWS
from muomni.execution import recipe as recipes
from muomni.stages import registry, sweep

# Rows of metrics.jsonl hold these beside the terms of the loss.
METERS = ("lr", "grad_norm", *units.METERS)
OLD_METERS = (
    "targets_per_s",
    "memory_mb",
)  # of runs before 2026-12, whose pages leave them out: targets were counted twice


@dataclass(frozen=True)
class StageRun:
    """One stage's folder.

    golden   the watched answers of each checkpoint, by its step
    points   the runs among which a sweep chooses, and its `table` of them
    """

    name: str
    folder: Path
    certificate: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    account: list[dict[str, Any]] = field(default_factory=list)
    quarantined: Counter[str] = field(default_factory=Counter)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    album: list[dict[str, Any]] = field(default_factory=list)
    corpora: list[dict[str, Any]] = field(default_factory=list)
    golden: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    points: list[StageRun] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """green, red, waived, or unfinished."""
        return str(self.certificate.get("verdict", "unfinished"))

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts by name."""
        return dict(self.certificate.get("facts", {}))

    @property
    def gates(self) -> list[dict[str, Any]]:
        """Judged gates."""
        return list(self.certificate.get("gates", []))

    def value(self, fact: str) -> float | None:
        """The value of a fact, None where it was not measured."""
        number = self.facts.get(fact, {}).get("value")
        return float(number) if isinstance(number, int | float) else None

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The rows of the album of that kind."""
        return [row for row in self.album if row.get("kind") == kind]

    def media(self, name: object) -> Path | None:
        """A media file of the album, None where it is not there (or no plain name)."""
        path = self.folder / "samples" / str(name)
        return path if name and "/" not in str(name) and path.is_file() else None

    @property
    def certificate_digest(self) -> str:
        """sha256 of its certificate, which names every file of its `final/`; empty without one."""
        path = self.folder / "certificate.json"
        return files.sha256_file(path) if path.is_file() else ""

    @property
    def inherited(self) -> list[dict[str, Any]]:
        """What was waived of the stages that it stands on."""
        return [row for row in self.certificate.get("inherited") or [] if isinstance(row, dict)]

    @property
    def took_s(self) -> float | None:
        """How long it took, a sweep as long as its points together."""
        return sum(point.took_s or 0.0 for point in self.points) if self.points else self.value("wall_s")

    @property
    def span(self) -> tuple[float, float] | None:
        """When it ran, by the time of its `final/` and how long it took."""
        took, final = self.took_s, self.folder / "final"
        return (
            (final.stat().st_mtime - took, final.stat().st_mtime)
            if took is not None and final.exists()
            else None
        )


@dataclass(frozen=True)
class Run:
    """A recipe's folder, or a lone stage of one."""

    folder: Path
    name: str
    stages: list[StageRun]
    origin: dict[str, Any]
    board: dict[str, Any]
    is_whole: bool

    @property
    def verdict(self) -> str:
        """The worst of the stages'."""
        verdicts = {stage.verdict for stage in self.stages}
        return next(
            (each for each in ("red", "unfinished", "waived", "green") if each in verdicts), "unfinished"
        )

    def stage(self, name: str) -> StageRun | None:
        """The stage of that name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def gather(folder: Path) -> Run:
    """Read a run folder, or a stage's folder in one.

    Raises  ConfigError where it is neither.
    """
    folder = folder.resolve()
    folder = folder.parent if folder.name == "final" else folder
    if _is_stage(folder) or _is_point(folder):
        run = folder.parent.parent if _is_point(folder) else folder.parent
        return Run(
            folder,
            run.name,
            [_stage(folder, str(folder.relative_to(run)))],
            _object(run / "recipe.json"),
            {},
            False,
        )
    stages = [_stage(folder / name, name) for name in registry.names() if _is_stage(folder / name)]
    if not stages:
        raise ConfigError(
            f"{folder}: no run folder and no stage's", hint="give runs/<recipe> or runs/<recipe>/<stage>"
        )
    return Run(
        folder,
        folder.name,
        stages,
        _object(folder / "recipe.json"),
        _object(folder / "scoreboard.json"),
        True,
    )


def _is_stage(folder: Path) -> bool:
    return folder.name in registry.names() and (_has_run(folder) or bool(_points(folder)))


def _is_point(folder: Path) -> bool:
    return sweep.is_point(f"{folder.parent.name}/{folder.name}") and _has_run(folder)


def _has_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("certificate.json", "config.yaml"))


def _points(folder: Path) -> list[Path]:
    """The folders of a sweep's points."""
    return (
        sorted(path for path in folder.iterdir() if path.is_dir() and _is_point(path))
        if folder.is_dir()
        else []
    )


def _stage(folder: Path, name: str) -> StageRun:
    rows, meta = (
        _lines(folder / "quarantine.jsonl"),
        [_object(path) for path in sorted(folder.glob("tokens/*/corpus.json"))],
    )
    return StageRun(
        name,
        folder,
        certificate=_object(folder / "certificate.json"),
        settings=_settings(folder / "config.yaml", name),
        metrics=_lines(folder / "metrics.jsonl"),
        account=[row for row in _list(folder / "account.json") if isinstance(row, dict)],
        quarantined=Counter(str(row.get("reason", "?")) for row in rows),
        skipped=_lines(folder / "skipped.jsonl"),
        album=_lines(folder / "samples" / ROWS),
        corpora=[each for each in meta if each],
        golden=[
            (int(path.stem[5:]), _lines(path))
            for path in sorted(folder.glob("golden/step_*.jsonl"))
            if path.stem[5:].isdigit()
        ],
        points=[_stage(path, f"{name}/{path.name}") for path in _points(folder)],
        table=[row for row in _list(folder / "table.json") if isinstance(row, dict)],
    )


def _value(path: Path, default: Any) -> Any:
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return default


def _object(path: Path) -> dict[str, Any]:
    value = _value(path, {})
    return value if isinstance(value, dict) else {}


def _list(path: Path) -> list[Any]:
    value = _value(path, [])
    return value if isinstance(value, list) else []


def _settings(path: Path, name: str) -> dict[str, Any]:
    """The settings in a stage's folder, each key by its name of today; empty where they can't be read."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    settings: dict[str, Any] = (
        config.current(value, recipes.stage(name).settings) if isinstance(value, dict) else {}
    )
    return settings


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; torn lines are left out."""
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return rows
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
