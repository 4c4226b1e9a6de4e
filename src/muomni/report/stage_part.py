"""The part of the page about one stage: verdict, gates, curves, facts and samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from muomni.media.modality import MODALITIES
from muomni.report import charts, meaning, samples, sweep, vlm
from muomni.report.charts import Bar
from muomni.report.curves import Curve, chart, spark
from muomni.report.gather import METERS, OLD_METERS, StageRun
from muomni.report.html import Html, h, number, seconds, short, words
from muomni.units import CONTENTS

NAME = "report.html"
TILES = 6


def badge(verdict: str) -> Html:
    """A verdict as a coloured word."""
    return h("span", verdict, cls=f"badge {verdict}")


def part(stage: StageRun, place: Path, *, others: list[StageRun] | None = None) -> Html:
    """The whole part of a stage, for a page in `place`; `others` are stages of another run, for its
    curves."""
    other = next((each for each in others or [] if each.name == stage.name), None)
    title = h(
        "summary",
        h("h2", stage.name),
        h("span", meaning.teaches(stage.name), cls="teaches"),
        badge(stage.verdict),
        _cost(stage),
    )
    blocks = [
        ("Points of the grid", sweep.part(stage, place, NAME)),
        ("Gates", gates(stage)),
        ("Waived below it", waived_below(stage)),
        ("Curves", curves(stage, other)),
        ("With the right media, and with others", ablations(stage)),
        ("By length of the answer", vlm.by_length(stage)),
        ("Right answers", by_kind(stage)),
        ("Classes named in free words", vlm.named(stage)),
        ("Taken for another: rows are truths, columns guesses", confusions(stage)),
        ("Codebooks", codebooks(stage)),
        ("Seen and heard", samples.gallery(stage)),
        ("Watched from checkpoint to checkpoint", vlm.watched(stage)),
        ("What was taught", vlm.taught(stage)),
    ]
    body = [h("section", h("h3", name), block) for name, block in blocks if block is not None]
    return h("details", title, tiles(stage), body, _more(stage), id=stage.name, open=True, cls="stage")


def _cost(stage: StageRun) -> Html:
    parts = [f"{seconds(stage.took_s)}"]
    for fact, unit in (("steps", "steps"), ("parameters", "parameters trained")):
        if (value := stage.value(fact)) is not None:
            parts.append(f"{short(value) if fact == 'parameters' else number(value)} {unit}")
    return h("span", " · ".join(parts), cls="cost")


def headline(stage: StageRun) -> list[str]:
    """The facts behind a stage's own gates, those of its recipe's `extra_gates` first."""
    own = [gate["name"] for gate in stage.gates if gate["name"] not in meaning.STRUCTURE]
    own.sort(key=lambda name: not name.startswith("demand_"))
    facts = dict.fromkeys(meaning.fact_of(stage.name, name) for name in own)
    return [fact for fact in facts if stage.value(fact) is not None]


def tiles(stage: StageRun) -> Html | None:
    """The key numbers of a stage, in large type."""
    tiles_html = []
    for fact in headline(stage)[:TILES]:
        row = stage.facts[fact]
        ci = f"95 % {number(row['ci'][0], 3)} … {number(row['ci'][1], 3)}" if row.get("ci") else None
        floor = f"floor {number(row['floor'], 3)}" if row.get("floor") is not None else None
        under = [h("small", each) for each in (floor, ci) if each]
        tiles_html.append(h("div", h("span", words(fact)), h("b", number(row["value"], 3)), under))
    return h("div", tiles_html, cls="tiles") if tiles_html else None


def gates(stage: StageRun) -> Html | None:
    """Verdicts with value, bound, and the interval of the fact drawn against the bound."""
    if not stage.gates:
        return None
    rows = []
    ordered = sorted(stage.gates, key=lambda gate: gate["name"] in meaning.STRUCTURE)
    for gate in ordered:
        name, verdict = str(gate["name"]), str(gate["verdict"])
        fact = stage.facts.get(meaning.fact_of(stage.name, name), {"value": gate.get("value")})
        is_sound = name in meaning.STRUCTURE
        drawn = None if is_sound else charts.interval(fact, str(gate["threshold"]), verdict)
        rows.append(
            h(
                "tr",
                h("td", h("i", cls=f"dot {verdict}"), words(name)),
                h("td", verdict, cls=f"verdict {verdict}"),
                h("td", number(gate.get("value")), cls="num"),
                h("td", gate["threshold"], cls="num"),
                h("td", drawn),
                h("td", number(fact.get("n")) if fact.get("n") else "", cls="num"),
                h("td", gate.get("why") or "", cls="why"),
                cls="always" if is_sound else None,
            )
        )
    head = h(
        "tr",
        [
            h("th", text)
            for text in ("gate", "verdict", "value", "should be", "value, interval and bound", "n", "why")
        ],
    )
    return h("table", h("thead", head), h("tbody", rows), cls="gates")


def waived_below(stage: StageRun) -> Html | None:
    """Waivers of the stages that this one builds on, with their reasons."""
    rows = [
        h("tr", [h("td", str(row.get(key, ""))) for key in ("stage", "gate", "why")])
        for row in stage.inherited
    ]
    head = h("tr", [h("th", text) for text in ("stage", "gate", "why")])
    return h("table", h("thead", head), h("tbody", rows), cls="gates") if rows else None


# what is told beside the losses, by its name in the metrics ("misses" stands in those of earlier builds)
SHARES = {
    "accuracy": "accuracy",
    "misses": "share missed",
    "cer": "character error rate, greedy",
    "wer": "word error rate, greedy",
}


def terms(stage: StageRun) -> list[str]:
    """The terms of the loss, without the loss itself."""
    names = {key.removeprefix("val_") for row in stage.metrics for key in row if "@" not in key}
    return sorted(names - {"step", "loss", *METERS, *OLD_METERS})


def points(stage: StageRun, key: str) -> list[tuple[float, float]]:
    """(step, value) of a metric."""
    return [
        (row["step"], row[key])
        for row in stage.metrics
        if isinstance(row.get(key), int | float) and "step" in row
    ]


def curves(stage: StageRun, other: StageRun | None = None) -> Html | None:
    """Losses large; rate, gradient, speed, waiting, MFU and memory small; another run's curves in a second
    colour."""
    if not stage.metrics:
        return None

    def both(key: str, name: str, colour: int) -> list[Curve]:
        theirs = [Curve(f"{name}, the other", points(other, key), 4, key.startswith("val_"))] if other else []
        return [Curve(name, points(stage, key), colour, key.startswith("val_")), *theirs]

    term_names = terms(stage)
    rates = [name for name in SHARES if name in term_names]
    perplexities = [name for name in term_names if name.endswith("perplexity")]
    parts = [name for name in term_names if name not in rates and name not in perplexities]
    charts_html = [
        chart("loss", [*both("loss", "training", 0), *both("val_loss", "held out", 1)], size="wide")
    ]
    if len(parts) > 1:
        lines = [Curve(name, points(stage, name), n % 6) for n, name in enumerate(parts)]
        lines += [
            Curve(f"{name} held out", points(stage, f"val_{name}"), n % 6, True)
            for n, name in enumerate(parts)
        ]
        charts_html.append(chart("terms of the loss", lines, size="wide"))
    for name in (*perplexities, *rates):
        lines = [*both(name, "training", 0), *both(f"val_{name}", "held out", 1)]
        charts_html.append(
            chart(
                SHARES.get(name, name.replace("_", ", ")), lines, size="wide" if len(parts) <= 1 else "half"
            )
        )
    small = [
        ("learning rate", "lr", ""),
        ("gradient norm", "grad_norm", ""),
        ("steps a second", "steps_per_s", ""),
        *((f"{told} a second", f"{unit}_per_s", "") for unit, told in CONTENTS.items()),
        ("waiting for data", "data_wait", "share"),
        ("MFU", "mfu", "of measured peak"),
        ("memory", "peak_memory_mb", "MB, the most so far"),
    ]
    shown = [row for row in small if points(stage, row[1])]
    little = [
        chart(
            title,
            both(key, title, 2),
            unit=unit,
            size="small" if place < len(shown) - 2 else "half",
            by_log=key == "grad_norm",
        )
        for place, (title, key, unit) in enumerate(shown)
    ]
    return h("div", [each for each in (*charts_html, *little) if each], cls="charts")


def ablations(stage: StageRun) -> Html | None:
    """Nats of answers with correct, swapped, zero and noise media by modality; of speech with right and wrong
    text."""
    rows_html = []
    for kind in MODALITIES:
        rows = [
            Bar(
                name,
                value,
                n=stage.facts[f"{kind}_nats_{name}"].get("n"),
                look="good" if name == "correct" else "",
            )
            for name in ("correct", "swapped", "zero", "noise")
            if (value := stage.value(f"{kind}_nats_{name}")) is not None
        ]
        if not rows:
            continue
        gap, wins = (stage.facts.get(f"{kind}_swap_{name}", {}) for name in ("gap_nats", "win_rate"))
        caption = f"swapping costs {number(gap.get('value'), 3)} nats" if gap else ""
        caption += f" (95 % {number(gap['ci'][0], 3)} … {number(gap['ci'][1], 3)})" if gap.get("ci") else ""
        caption += f" · the right one wins {number(wins.get('value'), 3)} of the time" if wins else ""
        order = [
            _against(stage.facts[fact], name)
            for name in ("zero", "noise")
            if (fact := f"{kind}_swap_over_{name}_nats") in stage.facts
        ]
        caption += f" · another's against {' and against '.join(order)}" if order else ""
        title = h("figcaption", h("b", kind), "nats a token of the answer")
        rows_html.append(h("figure", title, charts.bars(rows, unit="nats"), h("small", caption)))
    own, swapped = stage.value("nats_per_code"), stage.value("nats_per_code_swapped")
    if own is not None and swapped is not None:
        rows = [Bar("own text", own, look="good"), Bar("another's text", swapped)]
        rows_html.append(
            h(
                "figure",
                h("figcaption", h("b", "text"), "nats a code of the speech"),
                charts.bars(rows, unit="nats"),
            )
        )
    rates = [
        _bar(stage, fact, words(fact.replace("_swap_win_rate_", ": ")))
        for fact in stage.facts
        if "_swap_win_rate_" in fact
    ]
    if rates:
        rows_html.append(
            h(
                "figure",
                h("figcaption", h("b", "the right one wins"), "by task"),
                charts.bars(rates, most=1.0),
            )
        )
    return h("div", rows_html, cls="figures") if rows_html else None


def _against(fact: Mapping[str, Any], name: str) -> str:
    """By how much another's medium costs more than a blank one or noise."""
    ends = f" (95 % {number(fact['ci'][0], 3)} … {number(fact['ci'][1], 3)})" if fact.get("ci") else ""
    return f"{name} {number(fact.get('value'), 3)} nats{ends}"


def _bar(stage: StageRun, fact: str, name: str) -> Bar:
    row = stage.facts[fact]
    return Bar(name, stage.value(fact) or 0.0, row.get("ci"), row.get("floor"), row.get("n"))


def _is_of_eyes(fact: str) -> bool:
    """Whether a fact is a probe of the vision tower; a task may be called probe, too."""
    return fact.startswith("zero_shot_") or (fact.endswith("_probe") and "_swap_win_rate_" not in fact)


def by_kind(stage: StageRun) -> Html | None:
    """Shares of exact answers by task and kind of question; the tick is chance."""
    groups: dict[str, list[Bar]] = defaultdict(list)
    tasks = sorted(
        (fact.removesuffix("_exact") for fact in stage.facts if fact.endswith("_exact")),
        key=len,
        reverse=True,
    )
    for fact, row in stage.facts.items():
        task = next((each for each in tasks if f"{fact}_".startswith(f"{each}_exact_")), None)
        if task is not None:
            kind = fact.removeprefix(f"{task}_exact").strip("_")
            value = stage.value(fact) or 0.0
            groups[task].append(
                Bar(
                    words(kind) or "all",
                    value,
                    row.get("ci"),
                    row.get("floor"),
                    row.get("n"),
                    "" if kind else "good",
                )
            )
    for task in groups:
        if stage.value(f"{task}_question_only") is not None:
            groups[task].append(_bar(stage, f"{task}_question_only", "from the question alone"))
    probes = [_bar(stage, fact, words(fact)) for fact in stage.facts if _is_of_eyes(fact)]
    probes += [
        _bar(stage, fact, words(fact)) for fact in ("retrieval_r1", "retrieval_r5") if fact in stage.facts
    ]
    probes += [_bar(stage, fact, words(fact)) for fact in stage.facts if fact.startswith("attribute_changed")]
    figures = [
        h("figure", h("figcaption", h("b", words(task))), charts.bars(rows, most=1.0))
        for task, rows in sorted(groups.items())
    ]
    figures += (
        [h("figure", h("figcaption", h("b", "what the eyes carry")), charts.bars(probes, most=1.0))]
        if probes
        else []
    )
    return h("div", figures, cls="figures") if figures else None


def codebooks(stage: StageRun) -> Html | None:
    """How often each entry was used, or, where no album is left, the shares alone."""
    figures: list[Html] = []
    for row in stage.of_kind("codebooks")[:1]:
        figures = [
            charts.histogram([int(n) for n in counts], f"codebook {book}")
            for book, counts in enumerate(row.get("counts", []))
        ]
    if not figures:
        rows = [_bar(stage, fact, words(fact)) for fact in stage.facts if fact.startswith("usage_")]
        figures = (
            [h("figure", h("figcaption", h("b", "entries used")), charts.bars(rows, most=1.0))]
            if rows
            else []
        )
    return h("div", figures, cls="charts") if figures else None


def confusions(stage: StageRun) -> Html | None:
    """Which word was taken for which, for tasks of single words."""
    figures = [
        charts.confusion(words(str(row.get("task"))), row.get("counts", []))
        for row in stage.of_kind("confusion")
    ]
    return h("div", figures, cls="confusions") if figures else None


def _more(stage: StageRun) -> list[Html]:
    """Folded details: parameters, facts, settings, skipped updates."""
    out = []
    if stage.account:
        out.append(h("details", h("summary", "what trained"), account(stage), cls="fold"))
    if stage.skipped:
        rows = [
            h("li", f"step {row.get('step')}: {row.get('reason')} {row.get('module') or ''}")
            for row in stage.skipped[:50]
        ]
        out.append(
            h(
                "details",
                h("summary", f"{len(stage.skipped)} updates were skipped"),
                h("ul", rows),
                cls="fold",
            )
        )
    if stage.facts:
        rows = [_fact_row(name, row) for name, row in stage.facts.items()]
        head = h(
            "tr", h("th", "fact"), [h("th", text, cls="num") for text in ("value", "95 %", "floor", "n")]
        )
        out.append(
            h(
                "details",
                h("summary", f"all {len(rows)} facts"),
                h("table", h("thead", head), h("tbody", rows)),
                cls="fold",
            )
        )
    if stage.settings:
        text = yaml.safe_dump(stage.settings, sort_keys=False, allow_unicode=True, width=100)
        out.append(h("details", h("summary", "settings"), h("pre", text), cls="fold"))
    return out


def _fact_row(name: str, row: dict[str, Any]) -> Html:
    ci = f"{number(row['ci'][0], 3)} … {number(row['ci'][1], 3)}" if row.get("ci") else ""
    floor, n = row.get("floor"), row.get("n")
    cells = (
        number(row.get("value")),
        ci,
        number(floor) if floor is not None else "",
        number(n) if n is not None else "",
    )
    note = h("small", f" {row['note']}") if row.get("note") else None
    return h("tr", h("td", words(name), note), [h("td", cell, cls="num") for cell in cells])


def account(stage: StageRun) -> Html:
    """Parameters by part, trained and frozen."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rates: dict[str, set[str]] = defaultdict(set)
    for row in stage.account:
        name = ".".join(str(row.get("name")).split(".")[:3])
        sums[name][0 if row.get("trains") else 1] += int(row.get("count", 0))
        if row.get("trains"):
            later = f" from step {row['from_step'] + 1}" if row.get("from_step") else ""
            rates[name].add(f"{float(row.get('lr') or 0):.2g}{later}")
    most = max([sum(pair) for pair in sums.values()] + [1])
    rows = []
    for name, (trains, frozen) in sums.items():
        bar = h(
            "div",
            h("i", cls="fill good", style=f"width:{100 * trains / most:.2f}%"),
            h(
                "i",
                cls="fill frozen",
                style=f"left:{100 * trains / most:.2f}%;width:{100 * frozen / most:.2f}%",
            ),
            cls="track",
        )
        rate = ", ".join(sorted(rates[name]))
        rows.append(
            h(
                "tr",
                h("td", name),
                h("td", number(trains + frozen), cls="num"),
                h("td", bar),
                h("td", rate or "frozen"),
            )
        )
    head = h("tr", [h("th", text) for text in ("part", "parameters", "", "rate")])
    return h("table", h("thead", head), h("tbody", rows), cls="account")


def trend(stage: StageRun) -> Html | None:
    """The loss as a small line."""
    return spark(points(stage, "val_loss") if len(points(stage, "val_loss")) > 3 else points(stage, "loss"))
