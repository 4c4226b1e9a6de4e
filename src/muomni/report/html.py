"""HTML by nested function calls; text is escaped unless it is markup already."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable


class Html(str):
    """Markup: text that was escaped, or made by `h`."""

    __slots__ = ()


def h(tag: str, *children: object, **attributes: object) -> Html:
    """One element. Children that are not Html are escaped, None is left out, lists are flattened.

    Takes   attributes: `cls` is class, `_` becomes `-`; None and False are left out, True stands alone.
    """
    attributes_text = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{attributes_text}>{''.join(_texts(children))}</{tag}>")


def join(*children: object) -> Html:
    """Children without an element around them, escaped as in `h`."""
    return Html("".join(_texts(children)))


def _name(key: str) -> str:
    return "class" if key == "cls" else key.rstrip("_").replace("_", "-")


def _texts(children: Iterable[object]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            yield child
        elif isinstance(child, list | tuple):
            yield from _texts(child)
        else:
            yield html.escape(str(child))


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: four significant digits, thousands separated, a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u2009")
    if abs(value) >= 10_000:
        return f"{value:,.0f}".replace(",", "\u2009")
    return f"{value:.{digits}g}"


def short(value: float) -> str:
    """A short number: 4.3M, 12k, 0.03."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """1 h 03 m, 4 m 12 s, 8.1 s."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


def words(name: str) -> str:
    """A fact's or gate's name as words."""
    return name.replace("_", " ")
