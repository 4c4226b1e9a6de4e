"""What a run will read first, told by its recipe before torch is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from muomni import config
from muomni.data import ahead
from muomni.data.check import media_pool
from muomni.errors import MuomniError
from muomni.train.settings import TrainSettings

ENOUGH_BYTES = 4 * 2**20  # of manifests: a process takes longer to begin than to read less


def read_ahead(
    recipe: str, stages: list[str], overrides: list[str], out: Path | None, *, fresh: bool
) -> None:
    """Begin to read the data of the first stage that will train, beside the imports.

    It is a guess: what is not plain here (a toy world, a run folder, a flat config, a mistake) is left to the
    run, which reads its data itself where it asks for something else.
    """
    path = Path(recipe)
    is_alone = (
        "torch" not in sys.modules and "WORLD_SIZE" not in os.environ
    )  # nothing to wait for; ranks read too
    if not (is_alone and sys.platform == "linux" and media_pool.cores() > 1 and path.is_file()):
        return
    try:
        values = config.override(config.read_yaml(path), overrides)
        folder = out or Path("runs") / str(values.get("name") or path.stem)
        chosen = {name: value for name, value in values.items() if not stages or name in stages}
        names = [name for name, value in chosen.items() if isinstance(value, dict) and "data" in value]
        is_due = {name: fresh or not (folder / name / "certificate.json").exists() for name in names}
        name = next((name for name in names if is_due[name]), None)
        if name is None or name == "hearing":  # which cuts its samples as its own settings say
            return
        keys = ("data", "val_split", "seed", "quarantine_limit")
        said = {key: value for key, value in values[name].items() if key in keys}
        settings = config.build(TrainSettings, {"seed": values.get("seed", 42), **said}, str(path))
        base = path.parent.resolve()
        files = [base / source.path for source in settings.data]
    except MuomniError:
        return
    if all(file.is_file() for file in files) and sum(file.stat().st_size for file in files) >= ENOUGH_BYTES:
        how = {"val_split": settings.val_split, "seed": settings.seed, "limit": settings.quarantine_limit}
        ahead.begin(settings.data, base=base, **how)
