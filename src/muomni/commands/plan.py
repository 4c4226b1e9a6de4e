"""`muomni plan`: memory, time and disk of a recipe, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from muomni.commands import console
from muomni.units import CONTENTS, format_bytes, format_count, format_seconds


def plan(
    recipe: Annotated[str, typer.Argument(help="a recipe's name or file")],
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STAGE...] [STAGE.KEY=VALUE...]", help="all stages if none is named"),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="propose micro-batches that fit, e.g. 12GB")
    ] = None,
    epoch: Annotated[
        str | None, typer.Option(metavar="TIME", help="how many samples an epoch of this time holds, e.g. 1h")
    ] = None,
    probe: Annotated[
        int,
        typer.Option(
            metavar="N", help="time so many real updates a stage, after 10 s no more than 50; 0: none"
        ),
    ] = 200,
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="samples of an epoch, where the data are not there yet")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="run folder, read for finished stages; runs/<name> if left out"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on standard output")
    ] = False,
) -> None:
    """Show what trains, and what it needs in memory, time and disk; nothing is written."""
    from muomni.planning import forecast

    stages = [arg for arg in args or [] if "=" not in arg]
    overrides = [arg for arg in args or [] if "=" in arg]
    forecasted = forecast.plan(
        recipe,
        stages=stages,
        overrides=overrides,
        out=out,
        memory=memory,
        epoch=epoch,
        probe=probe,
        samples=samples,
        say=console.note,
    )
    if as_json:
        console.result_json(forecasted)
        return
    for stage in forecasted["stages"]:
        console.table(
            f"{stage['stage']} ({stage['number_format']} on {stage['device']})",
            ["what", "", "how"],
            [*_trains(stage), *_needs(stage)],
        )
    for stage in forecasted["stages"]:
        for line in stage["notes"]:
            console.result(f"{stage['stage']}: {line}")
    for stage in forecasted["stages"]:
        if stage["proposal"]:
            console.result(f"{stage['stage']}: {_proposal(stage)}")
    total = "not timed" if forecasted["total_s"] is None else format_seconds(forecasted["total_s"])
    console.result(f"together: {total}, {format_bytes(forecasted['disk'])} of disk")


def _trains(stage: dict[str, Any]) -> list[list[str]]:
    """Rows about what trains, on what."""
    parts, data = stage["parameters"], stage["data"]
    rows = [
        [
            "parameters",
            format_count(parts["all"]),
            f"{format_count(parts['trained'])} train, {format_count(parts['frozen'])} are frozen",
        ]
    ]
    for part in parts["parts"]:
        rates = (
            "frozen" if not part["trained"] else f"lr {_list(part['rates'])}, decay {_list(part['decays'])}"
        )
        rows.append([f"  {part['part']}", format_count(part["count"]), rates])
    each = f"{', '.join(f'{amount:.3g} {CONTENTS[unit]}' for unit, amount in data['per_sample'].items()) or 'rows'} each"
    if data["samples"] is None:
        rows.append(["samples", "not there", f"assumed: {each}"])
    else:
        epoch = f"{data['batches_per_epoch']} batches, {data['updates_per_epoch']} updates an epoch"
        rows.append(["samples", format_count(data["samples"]), f"{each}; {epoch}"])
    epochs = "" if data["epochs"] is None else f", {data['epochs']:.3g} epochs"
    batches = f"{stage['batch_size']} x {stage['gradient_accumulation_steps']} samples an update{epochs}"
    updates = "as the epochs say" if data["updates"] is None else str(data["updates"])
    return [*rows, ["updates", updates, batches]]


def _needs(stage: dict[str, Any]) -> list[list[str]]:
    """Rows about memory, time and disk."""
    memory, speed, disk = stage["memory"], stage["speed"], stage["disk"]
    holds = ("weights", *(["codecs"] if memory["codecs"] else []), "gradients", "optimizer", "activations")
    rows = [
        ["arithmetic", f"{format_count(stage['flops_per_update'])}FLOP", "an update, forward and backward"],
        [
            "memory, device",
            format_bytes(memory["device"]),
            ", ".join(f"{name} {format_bytes(memory[name])}" for name in holds)
            + f", CUDA {format_bytes(memory['context'])}",
        ],
    ]
    if "process" in memory:
        apart = f"{format_bytes(memory['base'])} of it the process itself, {format_bytes(memory['allocator'])} its allocator"
        rows.append(["memory, process", format_bytes(memory["process"]), apart])
        if memory["caches"]:
            rows.append(
                [
                    "decoded media",
                    format_bytes(memory["caches"]),
                    "kept in a file beside it, for all workers (cache_mb)",
                ]
            )
    run = (
        "the largest batch was run"
        if memory["rows_run"] >= stage["batch_size"]
        else f"from {memory['rows_run']} rows, in a line"
    )
    rows.append(["", "", f"{run} of {stage['batch_size']}" if "line" in run else run])
    if speed is not None:
        wait = "" if speed["data_wait"] is None else f", {speed['data_wait']:.0%} of it waiting for data"
        timed = f"median of {speed['updates_timed']}{wait}"
        if speed["rows_timed"] < stage["batch_size"]:
            timed += f"; {speed['rows_timed']} rows timed, extrapolated to {stage['batch_size'] * stage['gradient_accumulation_steps']}"
        rows.append(["an update", format_seconds(speed["update_s"]), timed])
        rows += [
            ["speed", format_count(speed[f"{unit}_per_s"]), f"{words} a second"]
            for unit, words in CONTENTS.items()
            if f"{unit}_per_s" in speed
        ]
        if speed["mfu"] is not None:  # of what is drawn out it is not known
            fastest = "arithmetic against the fastest matrix products that were measured"
            rows.append(["MFU", f"{speed['mfu']:.0%}", fastest])
        points = "" if stage["points"] == 1 else f"{stage['points']} points, "
        total = "not known" if stage["total_s"] is None else format_seconds(stage["total_s"])
        rows.append(["the stage", total, f"{points}updates alone; validation and measuring come on top"])
        if stage["epoch"]:
            epoch = stage["epoch"]
            rows.append(
                [
                    f"{format_seconds(epoch['target_s'])} epoch",
                    f"{epoch['samples']} samples",
                    f"{epoch['updates']} updates",
                ]
            )
    points = "" if stage["points"] == 1 else f"{stage['points']} points of "
    kept = f"{points}{disk['checkpoints_kept']} checkpoints of {format_bytes(disk['checkpoint'])}, final {format_bytes(disk['final'])}"
    return [*rows, ["disk", format_bytes(disk["total"]), kept]]


def _proposal(stage: dict[str, Any]) -> str:
    """What fits the memory, in the words of a recipe."""
    proposal, now = stage["proposal"], (stage["batch_size"], stage["gradient_accumulation_steps"])
    usage = f"{format_bytes(proposal['need'])} of {format_bytes(proposal['limit'])}"
    if proposal["batch_size"] is None:
        return f"does not fit, not even by rows of one ({format_bytes(proposal['bytes'])}): make the network or its context smaller"
    proposed = (proposal["batch_size"], proposal["gradient_accumulation_steps"])
    as_it_is = f"as it is ({now[0]} x {now[1]}): {'fits' if proposal['fits'] else 'does not fit'}, {usage}"
    if proposed == now:
        return as_it_is
    return f"batch_size: {proposed[0]}, gradient_accumulation_steps: {proposed[1]} needs {format_bytes(proposal['bytes'])}; {as_it_is}"


def _list(numbers: list[float]) -> str:
    return " and ".join(f"{number:g}" for number in numbers)
