"""Which trained parts a folder holds: a recipe's run, one stage of it, or a stage's `final/`."""

from __future__ import annotations

from pathlib import Path

from muomni import files, plugins
from muomni.errors import CheckpointError
from muomni.models import integrity, rows, store

OMNI = "omni.json"  # says how media become tokens of a language model
VOICE = "talker"  # within an exported model: the Talker with all that it needs to speak


def find(folder: Path | str) -> dict[str, Path]:
    """Stage name -> its `final/`, for every finished stage that the folder holds.

    Raises  CheckpointError where there is no such folder, or nothing finished in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise CheckpointError(
            f"{folder}: expected a run, stage or final folder, found {what}",
            hint="train one: muomni run RECIPE",
        )
    for place in (folder, folder / integrity.FINAL):
        if stage := kind(place):
            return {stage: place, **({"talker": place / VOICE} if kind(place / VOICE) == "talker" else {})}
    names = plugins.STAGES.names()
    finals = [folder / name / integrity.FINAL for name in names]
    # Several may leave what omni leaves, or rows: one that holds its language model is taken, else the last.
    finals.sort(key=lambda final: (final / "thinker").is_dir())
    stages = {stage: at for at in finals if (stage := kind(at)) in ("omni", "rows", at.parent.name)}
    if not stages:
        places = f"{folder.name}/{{{','.join(names)}}}/{integrity.FINAL}"
        raise CheckpointError(
            f"{folder}: holds no finished stage (expected {places}, a stage's final/, or one of these)",
            hint="train it: muomni run RECIPE",
        )
    return stages


def kind(folder: Path) -> str | None:
    """The stage that this `final/` is of, None where it is none: omni for what reads media (align and others
    leave one too), rows for a token model, else what its network says (`store.CLASSES`)."""
    if (folder / OMNI).is_file():
        return "omni"
    if (folder / rows.NOTE).is_file():
        return "rows"
    try:
        content = files.read_json(folder / store.CONFIG)
    except (OSError, ValueError):
        return None
    network = store.CLASSES.find(str(content.get("model_type"))) if isinstance(content, dict) else None
    return getattr(network, "trained_by", None)


def require(stages: dict[str, Path], *names: str, ability: str, where: Path | str) -> tuple[str, Path]:
    """The first of the wanted stages that is there, by name and folder.

    Raises  CheckpointError naming the ability that is asked for, what is there, and the stage to run.
    """
    for name in names:
        if name in stages:
            return name, stages[name]
    raise CheckpointError(
        f"{where}: to {ability}, stage {' or '.join(names)} must be there, found {', '.join(stages)}",
        hint=f"train it: muomni run RECIPE {names[-1]}; or point at the recipe's run folder",
    )
