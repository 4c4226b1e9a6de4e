"""Compare two runs: facts, verdicts and settings."""

from __future__ import annotations

from typing import Any

from muomni import config
from muomni.report import meaning
from muomni.report.gather import Run, StageRun
from muomni.report.html import Html, h, join, number, words


def part(run: Run, other: Run) -> Html:
    """Score board, gates and settings of both runs; each difference is marked better or worse."""
    boards = _board(run, other)
    blocks: list[tuple[str, Html | None]] = [("Score boards", boards)]
    for stage in run.stages:
        theirs = other.stage(stage.name)
        blocks += (
            [
                (f"{stage.name}: gates", _gates(stage, theirs)),
                (f"{stage.name}: settings", _settings(stage, theirs)),
            ]
            if theirs
            else []
        )
    alone = [stage.name for stage in run.stages if other.stage(stage.name) is None]
    lacking = [stage.name for stage in other.stages if run.stage(stage.name) is None]
    notes = [f"only in {run.name}: {', '.join(alone)}"] if alone else []
    notes += [f"only in {other.name}: {', '.join(lacking)}"] if lacking else []
    notes_html = [h("p", note, cls="quiet") for note in notes]
    legend = h(
        "p",
        f"{run.name} first, {other.name} second; arrows tell what {run.name} does better or worse.",
        cls="quiet",
    )
    sections = [h("section", h("h3", name), block) for name, block in blocks if block is not None]
    return h("div", legend, notes_html, sections, id="against")


def change(ours: dict[str, Any], theirs: dict[str, Any], *, more_is_better: bool) -> Html:
    """The difference of a fact, better or worse, and a note if the 95 % intervals overlap."""
    a, b = ours.get("value"), theirs.get("value")
    if not isinstance(a, int | float) or not isinstance(b, int | float):
        return h("span", "–", cls="same")
    if a == b:
        return h("span", "equal", cls="same")
    is_better = (a > b) == more_is_better
    text = f"{'▲' if a > b else '▼'} {a - b:+.3g} {'better' if is_better else 'worse'}"
    one, two = ours.get("ci"), theirs.get("ci")
    if one and two and one[0] <= two[1] and two[0] <= one[1]:
        return h("span", text, h("small", " intervals overlap"), cls="same")
    return h("span", text, cls="up" if is_better else "down")


def _board(run: Run, other: Run) -> Html | None:
    ours, theirs = run.board.get("metrics") or {}, other.board.get("metrics") or {}
    rows = []
    for name in dict.fromkeys([*ours, *theirs]) if ours and theirs else []:
        bound, more = meaning.least(name, run.board)
        stage, fact = meaning.source(name)
        facts = []
        for each, metrics in ((run, ours), (other, theirs)):
            stage_run = each.stage(stage)
            facts.append({**(stage_run.facts.get(fact, {}) if stage_run else {}), "value": metrics.get(name)})
        should = "" if bound is None else f"{'>=' if more else '<='} {bound:g}"
        rows.append(_row(name, "", facts[0], facts[1], should, more_is_better=more))
    return _table(run.name, other.name, rows) if rows else None


def _gates(stage: StageRun, theirs: StageRun) -> Html | None:
    rows = []
    named = {gate["name"]: gate for gate in theirs.gates}
    for gate in stage.gates:
        name = str(gate["name"])
        if name in meaning.STRUCTURE and gate["verdict"] == named.get(name, gate)["verdict"]:
            continue
        fact = meaning.fact_of(stage.name, name)
        ours = stage.facts.get(fact, {"value": gate.get("value")})
        other = theirs.facts.get(fact, {"value": named.get(name, {}).get("value")})
        verdicts = (
            f"{gate['verdict']} / {named[name]['verdict']}" if name in named else f"{gate['verdict']} / –"
        )
        rows.append(
            _row(
                words(name),
                verdicts,
                ours,
                other,
                str(gate["threshold"]),
                more_is_better=str(gate["threshold"]).startswith(">"),
            )
        )
    if not rows:
        return None
    return join(_data(stage, theirs), _table(stage.folder.parent.name, theirs.folder.parent.name, rows))


def _data(stage: StageRun, theirs: StageRun) -> Html | None:
    """A warning if the two were measured on different data, where a difference does not say which is
    better."""
    digests = [str(each.certificate.get("data", "")) for each in (stage, theirs)]
    if digests[0] == digests[1]:
        return None
    return h(
        "p",
        f"measured on different data ({digests[0][:12]} and {digests[1][:12]}): no fair comparison",
        cls="verdict waived",
    )


def _row(
    name: str,
    verdicts: str,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    should: str,
    *,
    more_is_better: bool,
) -> Html:
    values = [h("td", number(each.get("value")), cls="num") for each in (ours, theirs)]
    moved = h("td", change(ours, theirs, more_is_better=more_is_better))
    return h("tr", h("td", name), h("td", verdicts), values, h("td", should, cls="num"), moved)


def _table(ours: str, theirs: str, rows: list[Html]) -> Html:
    titles = [
        h("th", text, cls=look)
        for text, look in (("", ""), ("", ""), (ours, "num"), (theirs, "num"), ("should be", "num"), ("", ""))
    ]
    return h("table", h("thead", h("tr", titles)), h("tbody", rows), cls="against")


def _settings(stage: StageRun, theirs: StageRun) -> Html | None:
    lines = config.difference(_brief(theirs.settings), _brief(stage.settings))
    summary = h("summary", f"{len(lines)} settings differ; {theirs.folder.parent.name}'s first")
    return h("details", summary, h("pre", "\n".join(lines)), open=len(lines) <= 12) if lines else None


def _brief(value: Any) -> Any:
    """Settings without the defaults of sources; paths by their last part, which is equal for a moved run."""
    if isinstance(value, list):
        return [_brief(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "path" in value and "val_split" in value:
        set_values = {key: each for key, each in value.items() if each not in (None, [], {}, False, 1.0)}
        return {**set_values, "path": str(value["path"]).rsplit("/", 1)[-1]}
    return {key: _brief(each) for key, each in value.items()}
