"""The page at `/` as one text: markup, style and script, and the header that lets it ask nobody but this server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

ROOTS = re.compile(r":root \{(.*?)\}", re.DOTALL)
# Of the report, whose script and style stand within it. It can't ask anybody, nor act in the name of this server.
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-popups"
)


@cache
def text() -> str:
    """The page."""
    script = _own(__package__, "page.js")
    return _own(__package__, "page.html").replace("/*STYLE*/", _style()).replace("/*SCRIPT*/", script)


@cache
def headers() -> dict[str, str]:
    """Of the page: its own style and script by their digests, this server, and media that lie in memory. Styles of
    elements are those of the report's bars."""
    policy = (
        f"default-src 'none'; script-src '{_digest(_own(__package__, 'page.js'))}'; "
        f"style-src '{_digest(_style())}'; style-src-attr 'unsafe-inline'; connect-src 'self'; "
        "img-src data: blob:; media-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {**guarded(policy), "Permissions-Policy": "microphone=(self), camera=(self)"}


def guarded(policy: str) -> dict[str, str]:
    """Headers of an HTML answer with that policy."""
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


@cache
def _style() -> str:
    """The report's looks, then the page's; the palette by the page's switch."""
    theirs = _own("muomni.report", "page.css")
    light, dark = ROOTS.findall(theirs)[:2]
    switch = "".join(
        f':root[data-theme="{name}"] {{{palette} color-scheme: {name}; }}\n'
        for name, palette in (("light", light), ("dark", dark))
    )
    return f"{theirs}\n{switch}\n{_own(__package__, 'page.css')}"


def _own(package: str | None, name: str) -> str:
    assert package is not None
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
