"""The first lines of a stage: parameters that train, data, length of the run; ten lines at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muomni.stages.stage import StageSettings, Training
from muomni.train import account, optim
from muomni.units import format_count

SOURCES = 4  # whose columns are told
NOTES = 3  # of what was read otherwise than it stands
PARTS = 4  # of what trains and of what is frozen, the largest first


def lines(
    training: Training[Any], settings: StageSettings, rows: Sequence[optim.Row], world: int, steps: int | None
) -> list[str]:
    """What trains and what is frozen, with rates and counts; vocabulary; samples of both sides; steps and
    epochs; what is kept.

    Takes   rows: the account of what trains; world: ranks; steps: None where it is still to be measured how
            long an epoch is.
    """
    table = account.parameters(rows)
    lines_out = [f"trains {_count(table['trained'])} parameters: {_named(table['parts'], trains=True)}"]
    if table["frozen"]:
        lines_out.append(
            f"frozen {_count(table['frozen'])} parameters: {_named(table['parts'], trains=False)}"
        )
    if later := sorted({row.from_step for row in rows if row.from_step}):
        counts = [(step, sum(row.count for row in rows if row.from_step == step)) for step in later]
        lines_out += [f"{_count(count)} of these rest for {step:,} steps first" for step, count in counts]
    if training.words:
        lines_out.append(f"vocabulary: {training.words}")
    rows_train, rows_valid = (
        len(training.train.dataset),
        0 if training.valid is None else len(training.valid.dataset),
    )
    as_rows = (
        f", as {rows_train:,} and {rows_valid:,} rows" if rows_train != len(training.corpus.train) else ""
    )
    lines_out.append(
        f"samples: {len(training.corpus.train):,} to learn from, {len(training.corpus.valid):,} held out{as_rows}"
    )
    lines_out += columns(training, settings)
    if steps is not None:
        per_step, per_epoch = (
            settings.gradient_accumulation_steps * world,
            training.train.order.batches_per_epoch,
        )
        each = (
            " x ".join(
                str(n) for n in (settings.batch_size, settings.gradient_accumulation_steps, world) if n > 1
            )
            or "1"
        )
        lines_out.append(
            f"{steps:,} steps of {each} samples: {steps * per_step / per_epoch:.3g} times through the data"
        )
    if training.valid is not None:
        batches = min(settings.val_batches, training.valid.order.batches_per_epoch)
        patience = (
            "" if settings.patience is None else f"; ends after {settings.patience} of these without gain"
        )
        handed = "the best of these" if settings.final == "best" else "the last weights"
        lines_out.append(
            f"validated every {settings.val_freq:,} steps on {batches} batches, the best kept in best/{patience}; hands on {handed}"
        )
    return lines_out


def columns(training: Training[Any], settings: StageSettings) -> list[str]:
    """Which columns of the sources were read and which were left, and whether the data or `val_split` say the
    sides."""
    lines = []
    accounts = list(training.corpus.accounts)
    for path, source in accounts[:SOURCES]:
        if columns_text := "; ".join(
            one for one in (source.describe(), source.describe_split(settings.val_split)) if one
        ):
            lines.append(f"{path}: {columns_text}")
    if len(accounts) > SOURCES:
        lines.append(f"... and of {len(accounts) - SOURCES} more sources: `muomni data check` says it")
    notes = training.corpus.notes
    lines += notes[:NOTES]
    if len(notes) > NOTES:
        lines.append(f"... and {len(notes) - NOTES} more of this kind: `muomni data check` says them")
    return lines


def _named(parts: Sequence[dict[str, Any]], *, trains: bool) -> str:
    """The largest parts that train, with their rates, or those that rest."""
    named: list[tuple[int, str]] = []
    for part in parts:
        size = part["trained"] if trains else part["count"] - part["trained"]
        rates = " at " + ", ".join(f"{rate:g}" for rate in part["rates"]) if trains else ""
        named.append((size, f"{part['part']} {_count(size)}{rates}"))
    named = sorted((row for row in named if row[0]), key=lambda row: -row[0])
    more = f" and {len(named) - PARTS} more" if len(named) > PARTS else ""
    return ", ".join(name for _, name in named[:PARTS]) + more


def _count(number: float) -> str:
    """15.2M."""
    return format_count(number).replace(" ", "")
