"""Flat JSON configs of the source systems, written as one YAML recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from muomni.errors import ConfigError
from muomni.execution import flat
from muomni.execution import recipe as recipes
from muomni.stages import registry


def recipe(names: Sequence[str], assignments: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The text of a recipe that trains what these configs train, in the order of the stages, and what the
    user should know of each.

    Takes   assignments: of the command line, made in every config.
    Raises  ConfigError for a file that is no flat config, or two that train one stage.
    """
    if not names:
        raise ConfigError("migrate: no file is named", hint="muomni migrate thinker_tiny.json")
    stages: dict[str, dict[str, Any]] = {}
    header: dict[str, Any] = {}
    owner: dict[str, str] = {}
    notes: list[str] = []
    for name in names:
        path = recipes.find(name)
        written = recipes.read_written(path, list(assignments))
        values, flat_config = written.values, written.flat
        if flat_config is None:
            raise ConfigError(
                f"{path}: no flat config: it names stages, as a recipe does", hint="muomni run it as it is"
            )
        recipes.read(
            name, list(assignments), is_part=True
        )  # every fault is told now, not when the recipe is run
        for key, settings in values.items():
            if key not in registry.names():
                header[key] = settings
                continue
            if key in stages:
                raise ConfigError(
                    f"{path}: stage {key} is that of {owner[key]} already", hint="migrate them one by one"
                )
            stages[key], owner[key] = settings, path.name
        notes += [f"{path.name}: {line}" for line in flat_config.notes if not line.startswith("save_dir")]
    ordered = {name: stages[name] for name in registry.names() if name in stages}
    head = [
        f"# Made by `muomni migrate` of {', '.join(Path(name).name for name in names)}. Its paths start where those of the configs do."
    ]
    lacking = {needed for name in ordered for needed in recipes.stage(name).needs} - ordered.keys()
    if lacking:
        head.append(
            f"# It builds on {', '.join(sorted(lacking))}, as runs/{flat.NAME} holds them; or migrate their configs along with it."
        )
        header = {"name": flat.NAME, **header}  # so it goes where they are
    return "\n".join([*head, yaml.safe_dump({**header, **ordered}, sort_keys=False)]), notes
