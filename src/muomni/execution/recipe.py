"""A recipe: the stages of a curriculum with their settings, and the toy world where it needs one."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from muomni import config, files
from muomni.config import Strict
from muomni.errors import ConfigError, UserError, did_you_mean
from muomni.execution import flat, flat_keys
from muomni.execution.parallel import in_order
from muomni.models import integrity
from muomni.stages import registry, sweep
from muomni.stages.stage import Entry, Stage, StageSettings

SHIPPED = Path(__file__).parent.parent / "recipes"
RUN = "recipe.json"  # in a run's folder: what the run was made of


def stage(name: str) -> Stage:
    """The stage that runs under that name, in a recipe and in a run's folder."""
    return sweep.SWEPT if sweep.is_point(name) else registry.find(name)


class World(Strict):
    """The toy world that a recipe makes for itself; its sources then start with `{world}/`."""

    seed: int = Field(1, ge=0)
    size: Literal["tiny", "small", "tokens", "quick", "full"] = "quick"


class Header(Strict):
    """What a recipe says beside its stages; each stage stands under its own name.

    jobs        stages that may run side by side, each with its share of the cores
    threads     threads of each stage; None: cores / jobs
    scoreboard  whether there is one at the end; least values by row name make the run red where a row lacks
                them
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

    base     the folder in which its paths start
    folder   the run's
    source, overrides   the file that it was written in, and what the command line changed
    values   what both say together: what repeats it
    notes    what a flat config leaves out, and what was found for it; told when it is run
    links    (name, what it names), made when it is run
    """

    name: str
    base: Path
    header: Header
    stages: dict[str, Entry]
    folder: Path
    source: Path
    overrides: list[str]
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    links: list[tuple[Path, Path]] = field(default_factory=list)

    @property
    def threads(self) -> int:
        """Threads of one stage."""
        return self.header.threads or max(1, (os.cpu_count() or 1) // self.header.jobs)

    def entry(self, name: str) -> Entry:
        """The stage of that name.

        Raises  ConfigError where the recipe does not have it.
        """
        if name not in self.stages:
            raise ConfigError(f"{self.source}: no stage {name}", hint=f"it has {', '.join(self.stages)}")
        return self.stages[name]

    def chosen(self, names: Sequence[str], *, alone: bool = False) -> list[Entry]:
        """The stages that a user names (none: all), each with the points that it picks from, unless `alone`.

        Raises  ConfigError for a name that the recipe does not have.
        """
        named = [self.entry(name) for name in names]
        points = set[str]() if alone else {point for each in named for point in each.points}
        return [each for each in self.stages.values() if not names or each in named or each.name in points]


def find(name: str) -> Path:
    """The file of a recipe: a path, a run folder (its `recipe.json`, which repeats the run), or the name of
    one that is shipped.

    Raises  ConfigError
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / RUN).is_file():
        return path / RUN
    if name and path.is_dir():
        inside = ", ".join(
            sorted(file.name for file in path.iterdir() if file.suffix in (".yaml", ".json"))[:6]
        )
        raise ConfigError(
            f"{name}: no such recipe: a folder, where a file is meant",
            hint=f"it holds {inside}" if inside else "",
        )
    shipped = SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent in (Path("."), Path("recipes")) and shipped.is_file():
        return shipped
    shipped_names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    raise ConfigError(
        f"{name}: no such recipe", hint=f"give a YAML file, a run folder, or one of {shipped_names}"
    )


def read(
    name: str, overrides: list[str] | None = None, *, out: Path | None = None, is_part: bool = False
) -> Recipe:
    """Read and check a recipe, or a flat config of the source systems, with the command line's overrides.

    Takes   out: the run folder, in which `{world}` lies; default runs/<name>, of flat configs runs/flat;
            is_part: of a flat config that is read for itself, whatever it builds on.
    Raises  ConfigError naming file, key, value and the nearest valid key.
    """
    written = read_written(find(name), overrides, out=out)
    path, values, flat_config = written.source, written.values, written.flat
    header_keys = set(Header.model_fields)
    header = config.build(Header, {k: v for k, v in values.items() if k in header_keys}, str(path))
    title = header.name or path.stem
    folder = (out or written.folder or Path("runs") / (title if flat_config is None else flat.NAME)).resolve()
    stages: dict[str, Entry] = {}
    stage_names = registry.names()
    for key, settings in values.items():
        if key in header_keys:
            continue
        if key not in stage_names:
            way = did_you_mean(key, [*stage_names, *header_keys], f"stages: {', '.join(stage_names)}")
            raise ConfigError(f"{path}: {key}: no such stage or key; {way}")
        if not isinstance(settings, dict | None):
            raise ConfigError(f"{path}: {key}: expected settings, got {settings!r}")
        where, settings = f"{path}: {key}", settings or {}
        if key == sweep.NAME:
            settings = sweep.with_those_of_align(settings, values, where)
        filled = {"seed": header.seed, **_placed(settings, folder / "data" / "world")}
        settings_made = Entry(key, stage(key), config.build(stage(key).settings, filled, where), folder)
        if (
            settings_made.settings.epoch_duration is not None
            and settings_made.settings.samples_per_epoch is not None
        ):
            raise ConfigError(
                f"{where}: epoch_duration and samples_per_epoch say the same thing twice",
                hint="leave one of them out",
            )
        entries = sweep.expand(settings_made, filled, where) if key == sweep.NAME else [settings_made]
        stages |= {each.name: each for each in entries}
    if not stages:
        raise ConfigError(f"{path}: no stages", hint=f"name at least one of {', '.join(stage_names)}")
    if is_part:
        ordered = stages
    else:
        links = [] if flat_config is None else flat_config.links
        there = {name.name for name, _ in links if name.parent == folder} | {
            n for n in stage_names if (folder / n / integrity.FINAL).is_dir()
        }
        ordered = _ordered(stages, path, folder, there)
    made_of = (path.resolve(), written.overrides, values)
    if flat_config is None:
        return Recipe(title, written.base, header, ordered, folder, *made_of)
    return Recipe(
        title, written.base, header, ordered, folder, *made_of, flat_config.notes, flat_config.links
    )


@dataclass(frozen=True)
class Written:
    """What a recipe's file says, with the command line's overrides.

    source   where it was written: of a run's `recipe.json` the file that the run was made of
    base     the folder in which its data paths start
    flat     of a flat config, how it became a recipe
    folder   the run's, where it is told by the file itself
    """

    source: Path
    base: Path
    overrides: list[str]
    values: dict[str, Any]
    flat: flat.Flat | None = None
    folder: Path | None = None


def stored_settings(own: Path, model: type[BaseModel]) -> dict[str, Any]:
    """The settings that lie in a stage's folder, each key by its name of today.

    Raises  ConfigError where their file is torn.
    """
    path, hint = own / "config.yaml", "--fresh deletes the stage and starts it anew"
    try:
        stored_values = config.read_yaml(path)
    except (ConfigError, RecursionError) as error:
        raise ConfigError(getattr(error, "message", f"{path}: nested too deeply"), hint=hint) from error
    if not stored_values:
        raise ConfigError(f"{path}: torn: it holds no settings", hint=hint)
    stored: dict[str, Any] = config.current(stored_values, model)
    return stored


def stored(run: Path, name: str) -> Entry:
    """A stage as it lies in a run's folder.

    Raises  ConfigError where its settings can't be read.
    """
    path, declared = run / name / "config.yaml", stage(name)
    settings = config.build(declared.settings, config.read_yaml(path), str(path), is_stored=True)
    points = tuple(sweep.grid_points(settings, path.parent)) if name == sweep.NAME else ()
    return Entry(name, declared, settings, run, points, sweep.is_point(name))


def origin(run: Path, *needed: str) -> dict[str, Any]:
    """What a run's folder says of how it was made: recipe, base, device, threads, overrides, values.

    Takes   needed: those of its keys that are asked for.
    Raises  ConfigError where it is torn, or lacks one of these (it was written by an older version).
    """
    path, hint = run / RUN, "give the recipe itself: muomni run RECIPE writes it anew"
    try:
        record = files.read_stored(path, dict, hint=hint)
    except UserError as error:
        raise ConfigError(error.message, hint=hint) from error
    record = {"device": "auto", "threads": 1, "overrides": [], **record}
    kinds = {"recipe": str, "base": str, "overrides": list, "values": dict, "device": str, "threads": int}
    if odd := [key for key in needed if not isinstance(record.get(key), kinds[key])]:
        raise ConfigError(
            f"{path}: does not hold what the run was made of ({', '.join(odd)}): torn, or of an older version",
            hint=hint,
        )
    return record


def read_written(path: Path, overrides: list[str] | None = None, *, out: Path | None = None) -> Written:
    """What a recipe's file says; of a flat config the recipe that it comes to.

    Of a flat config, assignments to its own keys (`max_steps=20`) are made before, those to a stage's
    (`codec.lr=1e-3`) after.
    Raises  ConfigError where a run folder does not say how it was made.
    """
    assignments = [_current_assignment(each) for each in overrides or []]
    if path.name == RUN:
        record = origin(path.parent, "recipe", "base", "overrides", "values")
        values = config.override(_current(record["values"], path), assignments)
        return Written(
            Path(record["recipe"]),
            Path(record["base"]),
            [*record["overrides"], *assignments],
            values,
            folder=path.parent,
        )
    values = config.read_yaml(path)
    header = frozenset(Header.model_fields)
    if not flat.is_flat(path, values, header):
        if any(each.startswith("stage=") for each in assignments):
            raise ConfigError(
                f"{path}: --stage says what a flat JSON config is for",
                hint=f"of a recipe, name stages: muomni run {path} thinker",
            )
        return Written(
            path, path.parent.resolve(), assignments, config.override(_current(values, path), assignments)
        )
    of_recipes = {*header, *registry.names()} - {"seed"}  # which a flat config says of its stage
    later = [each for each in assignments if each.partition("=")[0].partition(".")[0] in of_recipes]
    values = config.override(values, [each for each in assignments if each not in later])
    settings = {name: stage(name).settings for name in flat_keys.STAGES}
    root = (out or Path("runs") / flat.NAME).resolve()
    of_recipe: dict[str, Any] = {
        key: values.pop(key) for key in ("name", "jobs", "threads", "device") if key in values
    }
    flat_config = flat.read(path, values, root, settings)
    return Written(
        path,
        flat_config.base,
        assignments,
        config.override({**of_recipe, **flat_config.stages}, later),
        flat_config,
    )


def _current(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A recipe's values with old keys of its stages replaced by their new names, so that overrides meet
    them."""
    stage_names = registry.names()
    return {
        key: config.current(settings, stage(key).settings, f"{path}: {key}")
        if key in stage_names
        else settings
        for key, settings in values.items()
    }


def _current_assignment(assignment: str) -> str:
    """An override `STAGE.KEY=VALUE` with old keys replaced by their new names."""
    path, equals, value = assignment.partition("=")
    name, dot, rest = path.partition(".")
    if name not in registry.names() or not dot:
        return assignment
    return f"{name}.{config.current_path(rest, stage(name).settings, repr(assignment))}{equals}{value}"


def _ordered(stages: dict[str, Entry], path: Path, folder: Path, there: Collection[str]) -> dict[str, Entry]:
    """The stages as they are written, but each after those that it needs.

    Takes   there: stages that the run folder holds, finished by another recipe or flat config.
    Raises  ConfigError where a needed stage is neither in the recipe nor there, or needs form a cycle.
    """
    needed = {key: entry.needs for key, entry in stages.items()}
    for key, other in ((key, other) for key, before in needed.items() for other in before):
        if other not in stages and other not in there:
            raise ConfigError(
                f"{path}: {key} needs stage {other}, which the recipe does not have, nor is it finished in {folder}",
                hint=f"run the recipe or the config of stage {other} first",
            )
    try:
        return {key: stages[key] for key in in_order(needed)}
    except CycleError as error:
        cycle = " needs ".join(reversed(error.args[1]))  # graphlib gives each before what needs it
        raise ConfigError(f"{path}: stages need each other in a circle: {cycle}") from error


def _placed(value: Any, world: Path) -> Any:
    """Settings with `{world}` replaced by its folder."""
    if isinstance(value, dict):
        return {key: _placed(part, world) for key, part in value.items()}
    if isinstance(value, list):
        return [_placed(part, world) for part in value]
    return value.replace("{world}", str(world)) if isinstance(value, str) else value


def digest(
    settings: StageSettings,
    needed: dict[str, str],
    sources: str,
    stored: dict[str, Any] | None = None,
    *,
    without: Collection[str] = (),
) -> str:
    """What a stage's result depends on: settings that matter, the weights it builds on, and its data.

    It is taken over the first name that each key had, and without options that are not used and that the
    stage's `stored` settings lack. So a finished run outlives a renamed key and a new option.

    Takes   without: settings that are left out as well.
    """
    values = result_settings(settings)
    if stored is not None:
        values = config.as_stored(values, stored, type(settings))
    values = {key: value for key, value in values.items() if key not in without}
    return files.sha256_json([config.first_names(values, type(settings)), needed, sources])


# Settings that change how a run looks or is kept, not its weights (but for their last bits, where threads sum
# in another order), and not which of them are the best: `val_batches` decides that.
HARMLESS = frozenset(
    {
        "print_freq",
        "tensorboard",
        "keep_checkpoints",
        "checkpoint_freq",
        "num_workers",
        "shard",
        "cache_mb",
        "threads",
        "gates",
        "extra_gates",
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
    # What a later version can ask for, and this stage doesn't, leaves the digests of runs from before it as
    # they were.
    unasked = {key for key in ("epoch_duration", "samples_per_epoch") if dumped[key] is None}
    return {key: value for key, value in dumped.items() if key not in harmless(settings) | unasked}
