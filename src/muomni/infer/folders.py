"""Which trained parts a folder holds: a recipe's run, one stage of it, or a stage's `final/`."""

from __future__ import annotations

from pathlib import Path

from muomni import files
from muomni.errors import CheckpointError

SEEING = (
    "instruct",
    "sweep",
    "align",
)  # stages that leave what stage omni leaves, but on networks that lie elsewhere; the last one first
OMNI = "omni.json"
WRITING = (
    "mmpt",
    "rows",
)  # stages that leave a token model: new rows, by reference to base and codecs; the last one first
ROWS = "trainable_rows.json"
VOICE = "talker"  # within an exported model: the Talker with all that it needs to speak
# model_type in a folder's config.json -> the stage that ends in such a folder
KINDS = {
    "qwen3": "thinker",
    "qwen3_moe": "thinker",
    "muomni_audio_encoder": "hearing",
    "muomni_vision_encoder": "vision",
    "muomni_codec": "codec",
    "muomni_image_codec": "image_codec",
    "muomni_talker": "talker",
}


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
    for place in (folder, folder / "final"):
        if stage := kind(place):
            return {stage: place, **({"talker": place / VOICE} if kind(place / VOICE) == "talker" else {})}
    answering = (*dict.fromkeys(KINDS.values()), "omni")
    stages = {name: folder / name / "final" for name in answering if kind(folder / name / "final") == name}
    for name in SEEING:
        if kind(folder / name / "final") == "omni":
            stages.setdefault("omni", folder / name / "final")
    for name in WRITING:
        if kind(folder / name / "final") == "rows":
            stages.setdefault("rows", folder / name / "final")
    if not stages:
        places = f"{folder.name}/{{{','.join((*answering, *SEEING, *WRITING))}}}/final"
        raise CheckpointError(
            f"{folder}: holds no finished stage (expected {places}, a stage's final/, or one of these)",
            hint="train it: muomni run RECIPE",
        )
    return stages


def kind(folder: Path) -> str | None:
    """The stage whose `final/` this folder is, None where it is none."""
    if (folder / OMNI).is_file():
        return "omni"
    if (folder / ROWS).is_file():
        return "rows"
    try:
        content = files.read_json(folder / "config.json")
    except (OSError, ValueError):
        return None
    return KINDS.get(content.get("model_type", "")) if isinstance(content, dict) else None


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
