"""Command audit: what the labels of any trainer teach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muomni.commands import console
from muomni.errors import ConfigError, GateRed


def audit(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="safetensors of one batch: input_ids, labels; audio_input_ids, audio_labels",
        ),
    ],
    loss: Annotated[
        str,
        typer.Option(
            help="shifts: it compares with the next place's label, as transformers' do; plain: with its own"
        ),
    ] = "shifts",
    end: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="closes a turn; may be given several times")
    ] = None,
    audio_end: Annotated[int | None, typer.Option(metavar="ID", help="closes a stream of codes")] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="IDS", help="what opens an answer, e.g. '128006 78191 128007'")
    ] = None,
    last: Annotated[
        bool,
        typer.Option("--last", help="only a row's last answer is to be learned; those before are references"),
    ] = False,
    placeholder: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", help="a word that stands for a step of codes; several times"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print JSON, and nothing else, on standard output")
    ] = False,
) -> None:
    """Audit a dump of labels: coverage, shift, ends, prompts; exit 1 on a red gate."""
    from muomni.evaluate import label_audit

    if loss not in ("shifts", "plain"):
        raise ConfigError(f"--loss: expected shifts or plain, got {loss!r}")
    try:
        opens = tuple(int(each) for each in (answer or "").replace(",", " ").split())
    except ValueError as error:
        raise ConfigError(f"--answer: expected ids, got {answer!r}") from error
    if last and not opens:
        raise ConfigError("--last has an effect with --answer")
    marks = label_audit.Marks(tuple(end or ()), audio_end, opens, last, tuple(placeholder or ()))
    tensors = label_audit.read(labels)
    for option, is_given, what in (
        ("--end", bool(end), "ends of turns"),
        ("--audio-end", audio_end is not None or "audio_labels" not in tensors, "ends of streams of codes"),
        ("--answer", bool(opens), "prompts"),
    ):
        if not is_given:
            console.note(f"note: {what} are not looked at without {option}")
    facts, judged = label_audit.audit(tensors, "plain" if loss == "plain" else "shifts", marks)
    is_red = any(row.verdict == "red" for row in judged)
    if as_json:
        console.result_json(
            {
                "stage": "labels",
                "verdict": "red" if is_red else "green",
                "facts": {name: fact.to_json() for name, fact in facts.items()},
                "gates": [row.to_json() for row in judged],
            }
        )
    else:
        console.verdicts(f"labels of {labels}", [row.to_json() for row in judged])
    if is_red:
        raise typer.Exit(GateRed.exit_code)
