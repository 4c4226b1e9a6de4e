"""The command `muomni`. Heavy imports happen inside of the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from muomni.commands import console, data, plan, use
from muomni.commands.audit import audit
from muomni.commands.export import export
from muomni.commands.migrate import migrate
from muomni.commands.report import report, with_pages
from muomni.commands.serve import serve
from muomni.commands.voice import voice_train
from muomni.errors import GateRed, InternalError, MuomniError, UserError
from muomni.units import format_seconds

app = typer.Typer(
    name="muomni",
    help="Staged training of omni-modal models (text, image, audio in and out) by a trainer that refuses to lie.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on standard output")]


@app.command()
def quickstart(
    size: Annotated[
        str, typer.Option(help="small (minutes) or full (a larger world, larger networks)")
    ] = "small",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="where the run goes; runs/quickstart or runs/quickstart-full if left out"
        ),
    ] = None,
) -> None:
    """Make the toy world, train all six stages on it, and print the score board."""
    from muomni.execution import runner

    with with_pages() as trained:
        folder = runner.run(runner.quickstart_recipe(size), out=out)
        trained(folder)
    board = runner.board_of(folder)
    rows = [[name, "-" if value is None else f"{value:.4g}"] for name, value in board["metrics"].items()]
    console.table(f"score board, after {format_seconds(board['wall_s'])}", ["metric", "value"], rows)


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(help="a recipe's name or file, or a flat JSON config (docs/flat.md)")
    ],
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE...] [STAGE.KEY=VALUE...]", help="all stages if none is named"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="run folder; runs/<recipe's name>, of a flat config runs/flat, if left out"
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin anew, whatever is there")] = False,
    waive: Annotated[
        list[str] | None,
        typer.Option(metavar="GATE", help="let this gate be red; may be given several times"),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="why the gate is waived; it shows in every report")
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="of a flat JSON config whose keys do not tell its stage"),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", hidden=True)
    ] = False,  # a sweep without its points: they run side by side
) -> None:
    """Run a recipe, some of its stages, or a flat JSON config; finished stages are reused, interrupted ones resume."""
    from muomni.commands.early import read_ahead
    from muomni.data.indexed import seldom_collected

    stages = [arg for arg in args or [] if "=" not in arg]
    overrides = [*([f"stage={stage}"] if stage else []), *(arg for arg in args or [] if "=" in arg)]
    read_ahead(recipe, stages, overrides, out, fresh=fresh)
    with seldom_collected():  # torch makes 200,000 objects as it is imported
        from muomni.execution import runner

    how: dict[str, Any] = {"fresh": fresh, "waive": waive or [], "reason": reason, "alone": alone}
    with with_pages(stages, alone=alone) as trained:
        folder = runner.run(recipe, stages=stages, out=out, overrides=overrides, **how)
        trained(folder)
    console.result(str(folder))


@app.command()
def gate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder or a finished stage's")],
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="an earlier --json report: what is worse now is red")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure and judge a finished stage, or all of a run; exit 1 on a red gate."""
    from muomni.execution import runner

    results = runner.gate(folder, baseline=baseline)
    stages = results if isinstance(results, list) else [results]
    if as_json:
        console.result_json(results)
    else:
        for stage in stages:
            inherited = [
                [f"{row['gate']} of {row['stage']}", "waived", "", "", row["why"]]
                for row in stage.get("inherited", [])
            ]
            console.verdicts(f"{stage['stage']}: {stage['verdict']}", stage["gates"], inherited)
    if any(stage["verdict"] == "red" for stage in stages):
        raise typer.Exit(GateRed.exit_code)


@app.command()
def selftest(
    only: Annotated[
        list[int] | None, typer.Option(metavar="N", help="this mutant alone; may be given several times")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs side by side")] = 2,
    as_json: Json = False,
) -> None:
    """Plant the known bugs one by one and show which gate catches each; exit 1 if one is not caught."""
    from muomni.selftest import run as planting

    results = planting.selftest(only or None, jobs=jobs, say=console.note)
    caught = sum(row["caught_by"] is not None for row in results["mutants"])
    if as_json:
        console.result_json(results)
    else:
        rows = [
            [row["name"], row["caught_by"] or "NOT CAUGHT", f"{row['seconds']:.0f}", row["told"]]
            for row in results["mutants"]
        ]
        rows += [[row["name"], "SKIPPED", "", row["why"]] for row in results["skipped"]]
        skipped = f"{len(results['skipped'])} SKIPPED, " if results["skipped"] else ""
        console.table(
            f"unmutated: {results['unmutated']} {results['why']}",
            ["planted", "caught by", "s", "what was seen"],
            rows,
        )
        console.result(
            f"{caught} of {len(results['mutants'])} caught, {skipped}unmutated run {results['unmutated']}, "
            f"{format_seconds(results['seconds'])}"
        )
    if results["unmutated"] != "green" or caught < len(results["mutants"]):
        raise typer.Exit(GateRed.exit_code)


app.command()(migrate)
app.command()(plan.plan)
app.command()(use.chat)
app.command()(use.transcribe)
app.command()(use.speak)
app.command()(use.draw)
app.command()(use.trace)
app.command()(serve)
app.command()(voice_train)
app.command()(audit)
app.command()(report)
app.command()(export)
app.add_typer(data.app, name="data")


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="a file or folder")], as_json: Json = False) -> None:
    """Describe a file or folder."""
    from muomni import inspection

    description = inspection.inspect(path)
    if as_json:
        console.result_json(description)
    else:
        console.table(
            str(path), ["what", "value"], [[name, _plain(value)] for name, value in description.items()]
        )


@app.command()
def doctor() -> None:
    """Check this machine: Python, torch, cores, memory, disk, extras."""
    from muomni.doctor import examine

    rows = [[each.name, "ok" if each.ok else "act", each.detail, each.hint] for each in examine()]
    console.table("doctor", ["what", "", "found", "what to do"], rows)


def _plain(value: Any) -> str:
    """A value of an inspection, long lists and objects shortened to their beginning."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]} ... (--json shows all)"


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a gate is red, 2 a fault of the user's input, 3 a bug of ours."""
    argv = sys.argv[1:] if argv is None else argv
    code = _exit_code(argv or ["--help"])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _closed()
    sys.exit(code)


def _exit_code(argv: list[str]) -> int:
    try:
        done = app(argv, standalone_mode=False)
        return done if isinstance(done, int) else 0
    except MuomniError as error:
        console.problem(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.note("stopped")
        return 130
    except SystemExit:  # the command line library leaves so when nobody reads our output any more
        return _closed()
    except BrokenPipeError:
        return _closed()
    except OSError as error:
        console.problem(error)
        return UserError.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error, whichever library typer is built on
            console.problem(f"{error.format_message()} (see muomni --help)")
            return UserError.exit_code
        if os.environ.get("MUOMNI_DEBUG") == "1":
            traceback.print_exc()
        console.problem(f"{type(error).__name__}: {error} (our fault; MUOMNI_DEBUG=1 shows where)")
        return InternalError.exit_code


def _closed() -> int:
    """The reader of our output has closed it: exit with the shell's code for SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
