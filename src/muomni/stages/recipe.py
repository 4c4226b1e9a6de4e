"""A recipe: the stages of a curriculum with their settings, and the toy world where it needs one."""

from __future__ import annotations

import importlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from muomni import config, files
from muomni.config import Strict
from muomni.errors import ConfigError
from muomni.infer.folders import STAGES as STAGES
from muomni.stages.stage import Stage, StageSettings

SHIPPED = Path(__file__).parent.parent / "recipes"
RUN = "recipe.json"  # in a run's folder: what the run was made of


def stage(name: str) -> Stage:
    """The stage of that name; its module, and what it imports, is loaded only now. `sweep/POINT` is a run of the stage that is swept."""
    kind, _, point = name.partition("/")
    found: Stage = importlib.import_module(f"muomni.stages.{kind}").STAGE
    return found if not point or found.over is None else found.over


def needs(stages: Mapping[str, StageSettings], name: str) -> tuple[str, ...]:
    """The stages of a recipe that must be done before this one: those it builds upon, or the points that it chooses among."""
    points = tuple(other for other in stages if other.startswith(f"{name}/"))
    return points or (*stage(name).needs, *stages[name].needs)


def chosen(stages: Mapping[str, StageSettings], names: Sequence[str], *, alone: bool = False) -> list[str]:
    """The stages that a user names (none: all), a sweep with its points, unless `alone`.

    Raises  ConfigError for a name that the recipe does not have.
    """
    unknown = [name for name in names if name not in stages]
    if unknown:
        raise ConfigError(f"no stage {', '.join(unknown)} in the recipe", hint=f"it has {', '.join(stages)}")
    return [name for name in stages if not names or name in names or (not alone and name.split("/")[0] in names)]


class World(Strict):
    """The toy world that a recipe makes for itself; its sources then start with `{world}/`."""

    seed: int = Field(1, ge=0)
    size: Literal["tiny", "small", "quick", "full"] = "quick"


class Header(Strict):
    """What a recipe says beside its stages; each stage stands under its own name.

    jobs        stages that may run side by side, each with its share of the cores
    threads     threads of each stage; None: cores / jobs
    scoreboard  whether there is one at the end; least values by row name make the run red where a row lacks them
    """

    name: str | None = None
    seed: int = Field(42, ge=0)
    jobs: int = Field(1, ge=1, le=16)
    threads: int | None = Field(None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    world: World | None = None
    scoreboard: bool | dict[str, float] = False


@dataclass(frozen=True)
class Recipe:
    """A recipe, read and checked.

    source, overrides   the file that it was written in, and what the command line changed
    values              what both say together: what repeats it
    home                the run folder, where no other is asked for
    """

    name: str
    base: Path
    header: Header
    stages: dict[str, StageSettings]
    source: Path
    overrides: list[str]
    values: dict[str, Any]
    home: Path

    @property
    def threads(self) -> int:
        """Threads of one stage."""
        return self.header.threads or max(1, (os.cpu_count() or 1) // self.header.jobs)


def find(name: str) -> Path:
    """The file of a recipe: a path, a run folder (its `recipe.json`, which repeats the run), or the name of one that is shipped.

    Raises  ConfigError
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / RUN).is_file():
        return path / RUN
    shipped = SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in (Path("."), Path("recipes")) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    raise ConfigError(f"{name}: no such recipe", hint=f"give a YAML file, a run folder, or one of {known}")


def _written(path: Path) -> tuple[Path, Path, list[str], dict[str, Any]]:
    """The file in which a recipe was written, the folder in which its data paths start, what was overridden, and what it says.

    Raises  ConfigError where a run folder does not say how it was made.
    """
    if path.name != RUN:
        return path, path.parent.resolve(), [], config.read_yaml(path)
    origin = files.read_json(path)
    if not isinstance(origin, dict) or not isinstance(origin.get("values"), dict):
        raise ConfigError(f"{path}: does not hold what the run was made of (it is of an older version)", hint="give the recipe itself")
    return Path(origin["recipe"]), Path(origin["base"]), origin["overrides"], origin["values"]


def read(name: str, overrides: list[str] | None = None, *, out: Path | None = None) -> Recipe:
    """Read and check a recipe with the command line's overrides.

    Takes   out: the run folder, in which `{world}` lies; default runs/<name>.
    Raises  ConfigError naming file, key, value and the nearest valid key.
    """
    found = find(name)
    path, base, before, values = _written(found)
    values = config.override(values, overrides or [])
    header_keys = set(Header.model_fields)
    header = config.build(Header, {k: v for k, v in values.items() if k in header_keys}, str(path))
    title = header.name or path.stem
    folder = (out or (found.parent if found.name == RUN else Path("runs") / title)).resolve()
    stages: dict[str, StageSettings] = {}
    for key, settings in values.items():
        if key in header_keys:
            continue
        if key not in STAGES:
            import difflib

            near = difflib.get_close_matches(str(key), [*STAGES, *header_keys], n=1)
            raise ConfigError(
                f"{path}: {key}: no such stage or key" + (f"; did you mean {near[0]}?" if near else f"; stages: {', '.join(STAGES)}")
            )
        if not isinstance(settings, dict | None):
            raise ConfigError(f"{path}: {key}: expected settings, got {settings!r}")
        declared = stage(key)
        if declared.like is not None and declared.like not in values:
            raise ConfigError(f"{path}: {key} does as {declared.like} does, which the recipe does not have")
        like = (values[declared.like] or {}) if declared.like is not None else {}
        filled = {"seed": header.seed, **_placed({**like, **(settings or {})}, folder / "data" / "world")}
        made = config.build(declared.settings, filled, f"{path}: {key}")
        if declared.over is not None:
            for point, changes in grid_points(made).items():
                of_point = {k: v for k, v in filled.items() if k != "grid"} | changes
                stages[f"{key}/{point}"] = config.build(declared.over.settings, of_point, f"{path}: {key}/{point}")
        stages[key] = made
    if not stages:
        raise ConfigError(f"{path}: no stages", hint=f"name at least one of {', '.join(STAGES)}")
    return Recipe(title, base, header, _ordered(stages, path), path.resolve(), [*before, *(overrides or [])], values, folder)


def grid_points(settings: Any) -> dict[str, dict[str, Any]]:
    """Every combination of a sweep's grid by a name that is also a folder's, e.g. lr-0.0001_vision_ln-off.

    Raises  ConfigError where two would have one name.
    """
    keys = list(settings.grid)
    combined = [dict(zip(keys, values)) for values in itertools.product(*(settings.grid[key] for key in keys))]
    points: dict[str, dict[str, Any]] = {}
    for point in combined:
        told = "_".join(f"{key}-{'off' if value is False else value}" for key, value in point.items())
        name = re.sub(r"[^\w.+-]+", "-", told)  # hub ids have slashes, lists have commas
        if name in points:
            raise ConfigError(f"grid: {points[name]} and {point} would share the folder {name}", hint="give values that differ in letters")
        points[name] = point
    return points


def _ordered(stages: dict[str, StageSettings], path: Path) -> dict[str, StageSettings]:
    """The stages as they are written, but each after those that it needs.

    Raises  ConfigError where a needed stage is not in the recipe.
    """
    ordered: dict[str, StageSettings] = {}

    def place(key: str) -> None:
        for needed in needs(stages, key):
            if needed not in stages:
                raise ConfigError(f"{path}: {key} needs stage {needed}, which the recipe does not have")
            place(needed)
        ordered[key] = stages[key]

    for key in stages:
        place(key)
    return ordered


def _placed(value: Any, world: Path) -> Any:
    """Settings with `{world}` replaced by its folder."""
    if isinstance(value, dict):
        return {key: _placed(part, world) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, world) for part in value]
    return value.replace("{world}", str(world)) if isinstance(value, str) else value


def digest(settings: StageSettings, needed: dict[str, str], sources: str) -> str:
    """What a stage's result depends on: settings that matter, the weights it builds upon, and its data."""
    return files.sha256_json([result_settings(settings), needed, sources])


# Settings that change how a run looks or is kept, not its weights (but for their last bits, where threads sum in another order), and not
# which of them are the best: `val_batches` decides that.
HARMLESS = frozenset(
    {
        "print_freq",
        "tensorboard",
        "keep_checkpoints",
        "checkpoint_freq",
        "num_workers",
        "cache_mb",
        "threads",
        "gates",
        "demands",
        "eval_items",
        "quarantine_limit",
    }
)


def harmless(settings: StageSettings) -> frozenset[str]:
    """The settings with other values of which a stage may be reused or go on."""
    return HARMLESS - settings.decides


def result_settings(settings: StageSettings) -> dict[str, Any]:
    """The settings that matter to the weights."""
    dumped = settings.model_dump(mode="json")
    for source in dumped["data"]:
        source.pop("path"), source.pop("root")  # what a source holds counts, not where it lies
    return {key: value for key, value in dumped.items() if key not in harmless(settings)}
