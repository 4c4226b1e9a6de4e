"""The part of the page about the whole recipe: score board, time, forgetting by later stages, data."""

from __future__ import annotations

from muomni import build_identity
from muomni.report import charts, meaning
from muomni.report.gather import Run, StageRun
from muomni.report.html import Html, h, number, seconds, words
from muomni.report.stage_part import badge, headline, trend


def part(run: Run) -> Html:
    """The whole part; what a run does not have is left out."""
    blocks = [
        ("The curriculum", strip(run) if run.is_whole else None),
        ("Score board", board(run)),
        ("Time", timeline(run) if run.is_whole else None),
        ("Remembered and forgotten", forgetting(run)),
        ("Data", data(run)),
    ]
    return h(
        "div",
        [h("section", h("h3", name), block) for name, block in blocks if block is not None],
        cls="overview",
        id="overview",
    )


def head(run: Run, *, title: str | None = None) -> Html:
    """Name, verdict, and what it was made with."""
    certificates = [stage.certificate for stage in run.stages if stage.certificate]
    last = certificates[-1] if certificates else {}
    machine = last.get("machine") or {}
    took = [stage.took_s or 0.0 for stage in run.stages]
    wall_s = run.board.get("wall_s")
    facts = [
        # The board tells how long the last command took: less than any stage, where finished ones were
        # reused.
        ("took", seconds(wall_s) if isinstance(wall_s, int | float) and wall_s > max(took) + 60 else None),
        ("stages, added up", seconds(sum(took)) if sum(took) else None),
        ("recipe", str(run.origin.get("recipe", "")).rsplit("/", 1)[-1] or None),
        ("code", build_identity.label(last.get("code"))),
        ("certificate", run.stages[-1].certificate_digest[:12] or None),
        ("torch", machine.get("torch")),
        ("machine", machine.get("system")),
        ("data", str(last.get("data", ""))[:12] or None),
        ("weights", str(last.get("weights", ""))[:12] or None),
    ]
    items = [h("span", h("small", name), str(value)) for name, value in facts if value]
    name = title or (run.name if run.is_whole else f"{run.name} / {run.stages[0].name}")
    return h("header", h("h1", name, " ", badge(run.verdict)), h("div", items, cls="meta"), cls="head")


def strip(run: Run) -> Html:
    """The stages as tiles: verdict, what each teaches, its first numbers and its loss as a line."""
    cards = []
    for stage in run.stages:
        first = [fact for fact in headline(stage) or ["steps"] if fact in stage.facts][:2]
        facts = [h("span", words(fact), h("b", number(stage.value(fact), 3))) for fact in first]
        title = h("div", h("b", stage.name), h("i", cls=f"dot {stage.verdict}", data_tip=stage.verdict))
        cards.append(
            h("a", title, h("small", meaning.teaches(stage.name)), trend(stage), facts, href=f"#{stage.name}")
        )
    return h("nav", cards, cls="strip")


def board(run: Run) -> Html | None:
    """The score board with least values, met or missed."""
    metrics = run.board.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        return None
    rows = []
    for name, value in metrics.items():
        least, more = meaning.least(name, run.board)
        stage, fact = meaning.source(name)
        stage_run = run.stage(stage)
        row = {**(stage_run.facts.get(fact, {}) if stage_run else {}), "value": value}
        verdict = (
            ""
            if least is None
            else "green"
            if value is not None and (value >= least if more else value <= least)
            else "red"
        )
        bound = "" if least is None else f"{'>=' if more else '<='} {least:g}"
        drawn = charts.interval(row, bound, verdict) if bound else None
        told = {"green": "met", "red": "missed"}.get(verdict, "told")
        link = h("a", name, href=f"#{stage}") if stage_run else name
        rows.append(
            h(
                "tr",
                h("td", h("i", cls=f"dot {verdict}"), link),
                h("td", number(value), cls="num"),
                h("td", bound, cls="num"),
                h("td", drawn),
                h("td", told, cls=f"verdict {verdict}"),
            )
        )
    columns = ("metric", "value", "should be", "value, interval and bound", "")
    return h(
        "table", h("thead", h("tr", [h("th", text) for text in columns])), h("tbody", rows), cls="gates board"
    )


def timeline(run: Run) -> Html | None:
    """When each stage ran; where the files' times can't be true (a copied run), one after another."""
    timed = [stage for stage in run.stages if stage.took_s is not None]
    if not timed:
        return None
    spans = [(stage, *stage.span) for stage in timed if stage.span is not None]
    if len(spans) < len(timed) or not _plausible(spans, run.board.get("wall_s")):
        at, spans = 0.0, []
        for stage in timed:
            took = stage.took_s or 0.0
            spans.append((stage, at, at + took))
            at += took
    start = min(begin for _, begin, _ in spans)
    ordered = sorted(spans, key=lambda span: span[1])
    return charts.timeline(
        [(stage.name, begin - start, end - start, stage.verdict) for stage, begin, end in ordered]
    )


def _plausible(spans: list[tuple[StageRun, float, float]], wall_s: object) -> bool:
    """No stage began before one that it needs ended, and there are no idle days between.

    Points of a sweep that ran side by side took less than they did together, so a sweep is not asked when it
    began.
    """
    ends = {stage.name: end for stage, _, end in spans}
    begins = {stage.name: begin for stage, begin, _ in spans}
    needs = {stage.name: meaning.needs(stage.name, stage.settings) for stage, *_ in spans if not stage.points}
    after = all(
        begins[name] >= ends[other] - 5
        for name, others in needs.items()
        if name in begins
        for other in others
        if other in ends
    )
    whole, busy = max(ends.values()) - min(begins.values()), sum(end - begin for _, begin, end in spans)
    return after and whole <= 1.5 * busy


def forgetting(run: Run) -> Html | None:
    """Forgetting: earlier abilities, measured before and after a later stage trained."""
    rows = []
    for stage in run.stages:
        for name in stage.facts:
            if name.endswith("_before"):
                base = name.removesuffix("_before")
                after = base if base in stage.facts else f"{base}_after"
                rows.append((stage, base, stage.value(name), stage.value(after)))
            elif name.endswith("_after") and f"{name.removesuffix('_after')}_before" not in stage.facts:
                base = name.removesuffix("_after")
                rows.append((stage, base, _taught(run, stage, base), stage.value(name)))
    rows_html = []
    for stage, name, was, is_now in rows:
        cells = [
            number(was),
            number(is_now),
            f"{is_now - was:+.4g}" if was is not None and is_now is not None else "–",
        ]
        rows_html.append(
            h(
                "tr",
                h("td", words(name)),
                h("td", f"after {stage.name}"),
                [h("td", cell, cls="num") for cell in cells],
            )
        )
    if not rows_html:
        return None
    columns = (("ability", ""), ("", ""), ("before", "num"), ("after", "num"), ("change", "num"))
    return h(
        "table",
        h("thead", h("tr", [h("th", text, cls=look) for text, look in columns])),
        h("tbody", rows_html),
        cls="forgetting",
    )


def _taught(run: Run, stage: StageRun, base: str) -> float | None:
    """The same fact as its own stage measured it: `hearing_cer` is hearing's `cer`, `retrieval` vision's
    `retrieval_r1`."""
    for other in run.stages:
        for fact in (base, base.removeprefix(f"{other.name}_"), f"{base}_r1"):
            if other.name != stage.name and (number := other.value(fact)) is not None:
                return number
    return None


def data(run: Run) -> Html | None:
    """The data of each stage, and how much was left out and why."""
    rows = []
    for stage in run.stages:
        sources = [
            str(source.get("path", "")).rsplit("/", 1)[-1]
            for source in stage.settings.get("data", [])
            if isinstance(source, dict)
        ]
        tokens = " + ".join(
            f"{number(row.get('tokens'))} tokens in {number(row.get('documents'))} texts"
            for row in stage.corpora
        )
        bad = ", ".join(f"{count} {reason}" for reason, count in stage.quarantined.most_common())
        fact = stage.facts.get("quarantined", {})
        drawn = f"{number(fact.get('n'))}" if fact.get("n") else ""
        split = stage.settings.get("val_split")
        cells = (
            stage.name,
            ", ".join(sources),
            number(split) if split is not None else "",
            drawn,
            tokens,
            bad or "none",
        )
        digest = h("code", str(stage.certificate.get("data", ""))[:12])
        rows.append(h("tr", [h("td", cell) for cell in cells], h("td", digest)))
    columns = ("stage", "sources", "held out", "samples drawn", "text", "set aside", "digest")
    return (
        h("table", h("thead", h("tr", [h("th", text) for text in columns])), h("tbody", rows), cls="data")
        if rows
        else None
    )
