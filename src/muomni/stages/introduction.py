"""What a stage tells before its first step: what it is, what trains, on what, and for how long; ten lines at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muomni.stages.stage import StageSettings, Training
from muomni.train import account, optim
from muomni.units import told_count

SOURCES = 4  # whose columns are told
NOTES = 3  # of what was read otherwise than it stands
PARTS = 4  # of what trains and of what is frozen, the largest first


def lines(built: Training[Any], settings: StageSettings, rows: Sequence[optim.Row], world: int, steps: int | None) -> list[str]:
    """What trains and what is frozen, with rates and counts; vocabulary; samples of both sides; steps and epochs; what is kept.

    Takes   rows: the account of what trains; world: ranks; steps: None where it is still to be measured how long an epoch is.
    """
    table = account.parameters(rows)
    told = [f"trains {_count(table['trained'])} parameters: {_named(table['parts'], trains=True)}"]
    if table["frozen"]:
        told.append(f"frozen {_count(table['frozen'])} parameters: {_named(table['parts'], trains=False)}")
    if built.words:
        told.append(f"vocabulary: {built.words}")
    rows_train, rows_valid = len(built.train.dataset), 0 if built.valid is None else len(built.valid.dataset)
    as_rows = f", as {rows_train:,} and {rows_valid:,} rows" if rows_train != len(built.corpus.train) else ""
    told.append(f"samples: {len(built.corpus.train):,} to learn from, {len(built.corpus.valid):,} held out{as_rows}")
    told += columns(built, settings)
    if steps is not None:
        per_step, per_epoch = settings.gradient_accumulation_steps * world, built.train.order.batches_per_epoch
        each = " x ".join(str(n) for n in (settings.batch_size, settings.gradient_accumulation_steps, world) if n > 1) or "1"
        told.append(f"{steps:,} steps of {each} samples: {steps * per_step / per_epoch:.3g} times through the data")
    if built.valid is not None:
        batches = min(settings.val_batches, built.valid.order.batches_per_epoch)
        patience = "" if settings.patience is None else f"; ends after {settings.patience} of these without gain"
        handed = "the best of these" if settings.final == "best" else "the last weights"
        told.append(
            f"validated every {settings.val_freq:,} steps on {batches} batches, the best kept in best/{patience}; hands on {handed}"
        )
    return told


def columns(built: Training[Any], settings: StageSettings) -> list[str]:
    """Which columns of the sources were read and which were left, and whether the data or `val_split` say the sides."""
    lines = []
    accounts = list(built.corpus.accounts)
    for path, source in accounts[:SOURCES]:
        if told := "; ".join(one for one in (source.told(), source.told_split(settings.val_split)) if one):
            lines.append(f"{path}: {told}")
    if len(accounts) > SOURCES:
        lines.append(f"... and of {len(accounts) - SOURCES} more sources: `muomni data check` says it")
    notes = built.corpus.notes
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
    return told_count(number).replace(" ", "")
