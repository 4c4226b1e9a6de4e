"""Write the page as one file: markup, style and script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from muomni.report.html import Html, h, join


def page(title: str, body: Html, links: Sequence[tuple[str, str, str]] = ()) -> str:
    """A whole HTML document.

    Takes   links: (anchor, text, verdict) for the list at the side.
    """
    side = h(
        "nav",
        h("b", "muomni"),
        [
            h("a", h("i", cls=f"dot {verdict}") if verdict else None, text, href=f"#{anchor}")
            for anchor, text, verdict in links
        ],
        cls="side",
    )
    style, script = (Html(_own(name)) for name in ("page.css", "page.js"))
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'),
        h("title", title),
        h("style", style),
    )
    inside = [side, h("main", body), h("div", id="tip", hidden=True), h("script", script)]
    return f"<!doctype html>\n{h('html', h('head', head), h('body', inside), lang='en')}\n"


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
