"""`muomni migrate`: flat JSON configs of the source systems as one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muomni.commands import console


def migrate(
    configs: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY=VALUE...]", help="flat JSON configs, one or several")
    ],
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="of a config whose keys do not tell its stage")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where the recipe goes; standard output if left out")
    ] = None,
) -> None:
    """Write flat JSON configs as one recipe that trains the same."""
    from muomni import files
    from muomni.execution import migration

    names = [each for each in configs if "=" not in each]
    assignments = [*([f"stage={stage}"] if stage else []), *(each for each in configs if "=" in each)]
    text, notes = migration.recipe(names, assignments)
    for line in notes:
        console.note(line)
    if out is None:
        console.result(text.rstrip("\n"))
    else:
        files.write_text(out, text)
        console.result(str(out))
