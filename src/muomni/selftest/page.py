"""docs/gates.md, written from the table of gates and the result of a selftest (`make gates`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from muomni import files
from muomni.evaluate import thresholds
from muomni.evaluate.gates import Gate
from muomni.stages import registry, sweep

INTRODUCTION = """# Gates

This page is generated (`make gates`). The gates of every stage stand in `src/muomni/evaluate/thresholds.py`, those of one
in its own file (`src/muomni/stages`), the mutants in `src/muomni/selftest/mutants.py`.

A stage's certificate holds **facts**, numbers measured by code on held-out data with n, 95 % interval and floor, and **verdicts**,
rules over facts. A fact that was not measured is red. The gates of the start are judged before the first step: what they refuse
costs seconds. A recipe may set a bound anew (`gates: {name: bound}`) and demand more (`extra_gates: {fact: ">= 0.9"}`);
`--waive GATE --reason "..."` lets one be red, and says so in every report. A gate on a modality applies where the data hold it.

`muomni gate DIR --json` gives for a stage (a list of these for a run)
`{"stage", "verdict", "facts": {name: {"value", "n", "ci", "floor", "note"?}}, "gates": [...]}`, a gate being
`{"name", "verdict", "value", "threshold", "why"}`. `--baseline FILE` compares with such a report: a fact that has a gate and is worse
by more than 2 %, and by more than half of the stored interval, is red as `baseline_<fact>`.

What to do about a red one: docs/playbook.md.

**An order that is no gate.** Right medium below another's, below a blank one, below noise: each of the three is a gate. What another's
costs against a blank one and against noise is told, paired and with intervals (`image_swap_over_zero_nats`, `image_swap_over_noise_nats`,
`audio_...`), and judged by none, for its sign belongs to the data. Stage omni of two quickstarts, 160 held-out items, nats of right,
another's, blank, noise: pictures 0.30, 1.95, 1.37, 1.22 and 0.23, 1.93, 1.65, 1.27; sounds 0.21, 3.39, 1.73, 1.66 and 0.20, 3.08, 1.76,
1.78: who answers in a word and believes what is shown is surely wrong about another's, and only unsure before nothing. The source's
captions, 100 items: 3.52, 4.40, 5.29, 5.67, the other way round, since a caption's words live on there being some picture. A bound on
either side would refuse one of two sound models. A recipe whose data settle the order asks for it:
`extra_gates: {image_swap_over_zero_nats: ">= 0"}`.
"""

SELFTEST = """
## The gates' own test
`muomni selftest` plants each bug in a tiny run (`src/muomni/selftest/recipe.yaml`) and looks which gates are red. The run without a bug,
stopped and resumed once, and once by two ranks, must be green. CI plants them all (`make selftest`).

"""


# settings under which a gate applies, in words
WHEN = {
    "last_phase": "a part rests at first",
    "packs": "packed rows",
    "ema_decay": "a moving average (`ema_decay`)",
    "num_negatives": "changed captions",
    "probe_data": "probe data",
    "checked_tasks": "tasks named by `checked_tasks`",
    "spoken_tasks": "tasks named by `spoken_tasks`",
    "exact_match_tasks": "tasks named by `exact_match_tasks`",
    "has_names": "answers that name a class",
    "has_experts": "a model with experts",
    "teaches_language": "a language model that learns",
    **{f"teaches_{task}": f"task {task}" for task in ("i2t", "a2t", "t2i", "t2a")},
    "reads": "a task that reads a medium",
    "writes": "a task that writes a medium",
}


def bound(gate: Gate) -> str:
    """A gate's bound in words."""
    if gate.at_least is not None:
        text = f">= {gate.at_least:g}"
    elif gate.at_most is not None:
        text = f"<= {gate.at_most:g}"
    elif gate.more_than is not None:
        text = f"> {gate.more_than:g}"
    elif gate.below_floor is not None:
        text = f"< {gate.below_floor:g} x floor"
    else:
        text = f">= floor + {gate.above_floor:g}"
    return text + (" by the interval's worse end" if gate.by_ci else "")


def table(gates: tuple[Gate, ...]) -> str:
    """Gates as a table."""
    lines = ["| gate | fact | bound | from | red means |", "|---|---|---|---|---|"]
    for gate in gates:
        where = (
            f" (data with {gate.modality})" if gate.modality else f" ({WHEN[gate.when]})" if gate.when else ""
        )
        lines.append(f"| `{gate.name}`{where} | {gate.fact} | {bound(gate)} | {gate.source} | {gate.why} |")
    return "\n".join(lines) + "\n"


def gates() -> str:
    """All gates, by when they are judged and of which stage."""
    parts = [
        "\n## Every stage, before the first step\n",
        table(thresholds.START),
        "\n## Every stage, of its run\n",
        table(thresholds.RUN),
    ]
    for name in registry.OURS:
        parts += [
            f"\n## {name}\n",
            table((sweep.WINNER,) if name == sweep.NAME else registry.find(name).gates),
        ]
    return "".join(parts)


def mutants(result: dict[str, Any]) -> str:
    """The table of a selftest."""
    lines = ["| planted | caught by |", "|---|---|"]
    lines += [f"| {row['name']} | {row['caught_by'] or '**not caught**'} |" for row in result["mutants"]]
    lines += [f"| {row['name']} | **skipped**: {row['why']} |" for row in result["skipped"]]
    caught = sum(row["caught_by"] is not None for row in result["mutants"])
    return (
        "\n".join(lines)
        + f"\n\n{caught} of {len(result['mutants']) + len(result['skipped'])} caught, "
        + f"unmutated run {result['unmutated']}.\n"
    )


def main() -> None:
    """Write the page to standard output."""
    print(INTRODUCTION + gates() + SELFTEST + mutants(files.read_json(Path(sys.argv[1]))), end="")


if __name__ == "__main__":
    main()
