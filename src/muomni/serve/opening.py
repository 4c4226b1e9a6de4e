"""A folder of a finished run -> a server that is ready to answer."""

from __future__ import annotations

import os
from pathlib import Path

from muomni.errors import UserError
from muomni.infer.engine import Engine
from muomni.models import integrity
from muomni.serve.abilities import Abilities
from muomni.serve.metrics import Metrics
from muomni.serve.server import Server
from muomni.serve.settings import ServeSettings
from muomni.serve.weights import Weights, private
from muomni.serve.work import Work

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def opened(engine: Engine, work: Work, settings: ServeSettings) -> Server:
    """All that a run can do, opened, its weights out of reach of other programs.

    Raises  CheckpointError for what is there and can't be opened.
    """
    with private(list(engine.parts.stages.values())):
        abilities = Abilities(engine)
    return Server(
        engine=engine,
        work=work,
        abilities=abilities,
        name=settings.name or name_of(engine.parts.where),
        limits=settings.limits,
        weights=Weights(),
        metrics=Metrics(),
    )


def name_of(folder: Path) -> str:
    """What clients call a run: its folder's name."""
    place = folder.resolve()
    return place.parent.name if place.name == integrity.FINAL else place.name or os.sep


def require_extra() -> None:
    """Raises  UserError where the packages of the extra `serve` are missing."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"serve: {', '.join(missing)} not installed", hint="pip install 'muomni[serve]'")
