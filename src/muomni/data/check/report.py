"""The whole report of `data check`: counts, tables and findings, as JSON values and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from muomni.data.check.findings import REASONS, Finding, Severity, printable, severity

BINS = 10
SHOWN = 3  # examples of a reason in the lines


@dataclass
class Manifest:
    """One file that was read."""

    path: str
    format: str = ""
    read_as: str = ""  # the template or option that was recognised, "" where none was needed
    rows: int = 0  # read, good and bad
    samples: int = 0  # good
    columns: str = ""  # what of its columns was read and what was left, in a line
    read: dict[str, int] = field(default_factory=dict)  # column that was read -> rows
    left: dict[str, int] = field(default_factory=dict)  # column that was left -> rows
    said_sides: dict[str, int] = field(default_factory=dict)  # train, valid -> rows that say so themselves
    stages: dict[str, int] = field(default_factory=dict)  # stage -> rows that it can learn from
    refused: dict[str, dict[str, int]] = field(default_factory=dict)  # stage -> why it can't -> rows


@dataclass
class Report:
    """All that was found; `errors` must be mended, `warnings` should be known."""

    path: str
    manifests: list[Manifest] = field(default_factory=list)
    rows: int = 0
    samples: int = 0
    sides: dict[str, int] = field(default_factory=dict)  # train, valid -> samples
    groups: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # by reason
    pictures: int = 0
    sounds: int = 0
    sample_rates: dict[str, int] = field(default_factory=dict)  # "16000" -> sounds
    channels: dict[str, int] = field(default_factory=dict)  # "1" -> sounds
    durations_s: dict[str, Any] = field(default_factory=dict)
    picture_sides: dict[str, Any] = field(default_factory=dict)  # pixels of the longer side
    lengths_characters: dict[str, Any] = field(default_factory=dict)  # of documents and answers
    ctx_len: int = 512
    tokens: dict[str, Any] = field(default_factory=dict)  # of conversations
    is_estimate: bool = True  # tokens were guessed from bytes, for want of a tokenizer
    answers: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # task -> {samples, distinct, commonest, share}
    usable: Sequence[dict[str, Any]] = ()  # of each good row {where, id, stages}
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """`reason: file:line: what`, each."""
        return self._lines("error")

    @property
    def warnings(self) -> list[str]:
        """`reason: file:line: what`, each."""
        return self._lines("warning")

    def total(self, weight: Severity) -> int:
        """How many findings of a severity, those not kept too."""
        return sum(count for reason, count in self.counts.items() if severity(reason) == weight)

    def short(self, text: str) -> str:
        """The text with paths as they are seen from the folder that was checked."""
        path = printable(self.path)
        folder = (
            path if any(manifest.path != path for manifest in self.manifests) else path.rpartition("/")[0]
        )
        return text.replace(f"{folder}/", "") if folder else text

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        totals = {"errors": self.total("error"), "warnings": self.total("warning")}
        findings = [{**asdict(finding), "severity": finding.severity} for finding in self.findings]
        plain = asdict(replace(self, usable=(), findings=[]))
        return {**plain, **totals, "usable": list(self.usable), "findings": findings}

    def _lines(self, weight: Severity) -> list[str]:
        return [f"{finding.reason}: {finding}" for finding in self.findings if finding.severity == weight]


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Least, median, most, sum and ten equal bins; empty for no values."""
    if not values:
        return {}
    array = np.asarray(values)
    counts, edges = np.histogram(array, bins=BINS)
    return {
        "min": array.min().item(),
        "median": float(np.median(array)),
        "max": array.max().item(),
        "sum": array.sum().item(),
        "edges": [round(float(edge), 3) for edge in edges],
        "counts": [int(count) for count in counts],
    }


def forecast(tokens: Sequence[int], ctx_len: int) -> dict[str, Any]:
    """Percentiles of token counts, and the share that the context will cut; empty for no conversations."""
    if not tokens:
        return {}
    array = np.asarray(tokens)
    p50, p90, p99 = (int(value) for value in np.percentile(array, [50, 90, 99]))
    over = int((array > ctx_len).sum())
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": array.max().item(),
        "over": over,
        "share_over": over / len(array),
    }


def summary(report: Report) -> Iterator[tuple[str, str]]:
    """The rows of the table that people read first."""
    for manifest in report.manifests:
        read_as = f"; read as: {manifest.read_as}" if manifest.read_as else ""
        yield (
            report.short(manifest.path),
            f"{manifest.samples} of {manifest.rows} rows usable, format {manifest.format or 'unknown'}{read_as}",
        )
        if manifest.columns:
            yield f"{report.short(manifest.path)}: columns", printable(manifest.columns)
        if manifest.said_sides:
            sides = ", ".join(f"{side} {count}" for side, count in sorted(manifest.said_sides.items()))
            yield (
                f"{report.short(manifest.path)}: split",
                f"said by the rows ({sides}), which counts before any val_split",
            )
        if manifest.samples:
            yield f"{report.short(manifest.path)}: for stages", "; ".join(_uses(manifest)) or "none"
    if len(report.manifests) > 1:
        yield "all", f"{report.samples} of {report.rows} rows usable in {len(report.manifests)} manifests"
    yield "tasks", printable(", ".join(f"{task} {count}" for task, count in report.tasks.items()))
    yield (
        "split",
        f"{', '.join(f'{side} {count}' for side, count in report.sides.items())}; {report.groups} groups",
    )
    if report.sounds:
        spread = report.durations_s
        yield (
            "sounds",
            f"{report.sounds}: {spread['min']:.2f} .. {spread['max']:.2f} s, median {spread['median']:.2f}, all {spread['sum']:.0f} s",
        )
        yield (
            "rates, channels",
            f"{_counts(report.sample_rates, ' Hz')}; {_counts(report.channels, ' channel')}",
        )
    if report.pictures:
        spread = report.picture_sides
        yield (
            "pictures",
            f"{report.pictures}: longer side {spread['min']} .. {spread['max']} pixels, median {spread['median']:.0f}",
        )
    if report.lengths_characters:
        spread = report.lengths_characters
        yield "text", f"{spread['min']} .. {spread['max']} characters, median {spread['median']:.0f}"
    if report.tokens:
        tokens = report.tokens
        how = "about, by their bytes" if report.is_estimate else "by the tokenizer"
        yield (
            f"tokens ({how})",
            f"median {tokens['p50']}, 90 % {tokens['p90']}, 99 % {tokens['p99']}, most {tokens['max']}; "
            f"{tokens['share_over']:.1%} over {report.ctx_len}",
        )
    for task, tokens in report.answers.items():
        yield (
            printable(f"answers of {task}"),
            f"{tokens['distinct']} distinct, {tokens['share']:.0%} {tokens['commonest']!r}",
        )


def _uses(manifest: Manifest) -> Iterator[str]:
    """Each stage that can learn from a manifest, with how many rows, and why not from the others."""
    for stage, count in manifest.stages.items():
        others = ", ".join(f"{rows} {why}" for why, rows in manifest.refused.get(stage, {}).items())
        yield f"{stage} {count}{f' (not {others})' if others else ''}"


def _counts(table: dict[str, int], unit: str) -> str:
    return ", ".join(f"{count} x {name}{unit}" for name, count in table.items())


def lines(report: Report) -> Iterator[str]:
    """Errors, then warnings: each reason with its count and meaning, a few examples, and how many more there
    are; a verdict last."""
    for weight in ("error", "warning"):
        for reason in (reason for reason in report.counts if severity(reason) == weight):
            about = REASONS.get(reason)
            yield f"{weight}: {report.counts[reason]} {reason}{f' - {about.meaning}; {about.remedy}' if about else ''}"
            examples = [finding for finding in report.findings if finding.reason == reason][:SHOWN]
            yield from (f"  {report.short(str(finding))}" for finding in examples)
            if (more := report.counts[reason] - len(examples)) > 0:
                yield f"  ... and {more} more (--json shows all)"
    notes = ", ".join(
        f"{count} {reason}" for reason, count in report.counts.items() if severity(reason) == "note"
    )
    if notes:
        yield f"noted: {notes} (--json shows all)"
    errors, warnings = report.total("error"), report.total("warning")
    yield f"{'red' if errors else 'green'}: {errors} errors, {warnings} warnings in {report.rows} rows"
