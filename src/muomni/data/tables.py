"""Tables of cells as their writers meant them: the dialect is decided for each file by evidence, and every
row is held to it.

A row that breaks the dialect is refused with its line and the next line is read as a row of its own, so that
an open quotation mark swallows nothing. What can be read in two ways, and what was mended, is told
(`DataNote`).
"""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Literal

from muomni.data import streams
from muomni.errors import DataError, DataNote

Quotes = Literal["none", "doubled", "backslash"]
Rows = Iterator[tuple[int, dict[str, str] | DataError]]

SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
DELIMITERS = (",", "\t", ";", "|")
LOOKED_AT = 64  # lines that settle the delimiter
WINDOW_LINES = 2000  # lines from a quotation mark or a backslash on that are read in every dialect at once
WINDOWS, ENOUGH = 50, 3  # at most, and where they agree
CELL_LINES = 1000  # of one row: a cell of more lines was never closed
LONG_NAME = 100  # characters: what is longer is no column's name
FILES = re.compile(
    r"[^\s].*\.(wav|flac|ogg|mp3|opus|oga|aiff?|au|m4a|png|jpe?g|webp|bmp|gif|tiff?|mp4|mkv|webm)",
    re.IGNORECASE,
)
DOUBLED = re.compile(r'"((?:[^"]++|"")*+)"')
BACKSLASH = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
ESCAPED = re.compile(r'\\(["\\,;|\t\r\n])')
UNESCAPED = re.compile(r'\\.|(?<![^,;|\t\n ])"(?:[^"\\]|\\.)*"(?![^,;|\t\r\n])', re.DOTALL)
LONE = re.compile(r'\\(?!["\\,;|\t\r\n])')
NAMED: dict[str, str] = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
SAID: dict[Quotes, str] = {
    "none": "quotation marks are letters",
    "doubled": "quoted cells, a mark within doubled",
    "backslash": "a backslash before marks that are letters",
}
NULLS = {
    "nan",
    "NaN",
    "None",
    "NULL",
    "null",
    "N/A",
    "NA",
    "#N/A",
    "\\N",
    "<NA>",
}  # as programs write that there is nothing
OPEN = "a quotation mark is not closed"


@dataclass(frozen=True)
class Dialect:
    """How the rows of one table are written."""

    delimiter: str
    quotes: Quotes
    names: tuple[str, ...]  # of the columns; those without one are `column 3`
    first: int  # line of the first row behind the header
    ends: str  # of the header's line
    keeps_backslashes: bool = False  # a backslash before anything but a mark is a letter, two of them are two
    is_spaced: bool = False  # a space follows each delimiter
    is_sure: bool = False  # rows that make sense in no other way show that cells are quoted
    notes: tuple[tuple[int, DataNote], ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{NAMED.get(self.delimiter, repr(self.delimiter))} between cells, {SAID[self.quotes]}"


def dialect(path: Path) -> Dialect | None:
    """The dialect of a table; None for one without a header.

    Raises  DataError: bad_row (a column twice, a first line that is a row), undecodable.
    """
    status = os.stat(path)
    return _dialect(path, status.st_size, status.st_mtime_ns)


def rows(path: Path) -> Rows:
    """Rows as objects of strings, each with the line on which it begins; DataErrors and DataNotes in their
    places.

    Raises  DataError, as `dialect` does.
    """
    dialect_found = dialect(path)
    if dialect_found is None:
        return
    yield from dialect_found.notes
    names, width, delimiter = dialect_found.names, len(dialect_found.names), dialect_found.delimiter
    has_quotes, has_escapes = dialect_found.quotes != "none", dialect_found.quotes == "backslash"
    noted: set[str] = set()
    source = _Source(path, dialect_found.first)
    unnamed = [name for name in names if name.startswith("column ")]
    for number, line in source:
        if isinstance(line, DataError):
            yield number, line
            continue
        text = line[:-1] if line.endswith("\n") else line
        if text.endswith("\r"):
            text = text[:-1]
            if dialect_found.ends == "\n" and "ends" not in noted and number > dialect_found.first - 1:
                noted.add("ends")
                what = "table: the header's line ends in a line feed, this one in a carriage return too, which is left out"
                yield number, DataNote("repaired", what)
        if has_quotes and ('"' in text or (has_escapes and "\\" in text)):
            parsed = _quoted(text, line, number, dialect_found, source)
            if isinstance(parsed, DataError):
                yield number, parsed
                continue
            cells = parsed
        else:
            cells = text.split(delimiter)
        if "\0" in text:
            yield (
                number,
                DataError(
                    "bad_row", "table: expected text, got a NUL byte", hint="the file may be torn, or UTF-16"
                ),
            )
            continue
        if dialect_found.is_spaced:
            cells = [cell.removeprefix(" ") for cell in cells]
        if len(cells) != width:
            if not text.strip():
                continue
            if len(cells) > width and not any(cells[width:]):
                if "extra" not in noted:
                    noted.add("extra")
                    what = f"table: {len(cells)} cells under {width} names: the empty ones at the end are left out, here and below"
                    yield number, DataNote("repaired", what)
                cells = cells[:width]
            else:
                yield number, _ragged(cells, dialect_found)
                continue
        if "nulls" not in noted and not NULLS.isdisjoint(cells):
            noted.add("nulls")
            column, cell = next(
                (name, cell) for name, cell in zip(names, cells, strict=True) if cell in NULLS
            )
            what = f"table: {column} holds {cell!r}, which programs write for nothing: it is read as a word, here and below"
            yield number, DataNote("ambiguous", what, hint="leave such cells empty, or remove their rows")
        row = dict(zip(names, cells))
        for name in unnamed:
            if not row[name]:
                del row[name]
        if cells[0].strip() or any(map(str.strip, cells)):
            yield number, row


def _ragged(cells: list[str], dialect: Dialect) -> DataError:
    names = ", ".join(dialect.names)[:80]
    hint = f"read with {dialect}"
    if len(cells) == 1 and cells[0].lstrip().startswith("#"):
        hint = "a comment? only those before the header are passed over"
    elif len(cells) > len(dialect.names) and dialect.quotes in ("none", "doubled"):
        hint = f"a cell that holds {NAMED.get(dialect.delimiter, dialect.delimiter)} must stand in quotation marks; {hint}"
    return DataError(
        "bad_row", f"table: expected {len(dialect.names)} cells ({names}), got {len(cells)}", hint=hint
    )


class _Source:
    """The lines of a file behind its header, of which some can be put back."""

    def __init__(self, path: Path, first: int) -> None:
        self._lines = (each for each in streams.lines(path, ends=True) if each[0] >= first)
        self._back: list[tuple[int, str | DataError]] = []

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> tuple[int, str | DataError]:
        return self._back.pop() if self._back else next(self._lines)

    def back(self, lines: list[tuple[int, str | DataError]]) -> None:
        """Put lines back, to be read again in their order."""
        self._back.extend(reversed(lines))


def _quoted(text: str, line: str, number: int, dialect: Dialect, source: _Source) -> list[str] | DataError:
    """The cells of a row that begins in this line, with the lines that it takes besides; those of a row that
    is refused are put back."""
    if dialect.quotes == "doubled" and not dialect.is_spaced:
        with contextlib.suppress(csv.Error):  # the same in C; what it refuses is looked at here
            return next(csv.reader((text,), delimiter=dialect.delimiter, strict=True))
    cells, problem = _cells(text, dialect)
    if problem != OPEN:
        return cells if problem is None else _broken(problem, dialect)
    taken: list[tuple[int, str | DataError]] = []
    whole, size = line, len(line)
    for number_of, more in islice(source, CELL_LINES):
        taken.append((number_of, more))
        if isinstance(more, DataError):
            break
        whole, size = whole + more, size + len(more)
        if size > streams.MAX_LINE_BYTES:
            break
        if '"' not in more and dialect.quotes == "doubled":
            continue
        cells, problem = _cells(_without_end(whole, dialect.ends), dialect)
        if problem is None:
            physical = [line, *(str(each) for _, each in taken)]
            if _may_be_rows(physical, dialect):
                what = f"table: lines {number} to {number_of} may be one row with a quotation mark around line ends, or {len(physical)} rows"
                return DataError(
                    "bad_row",
                    what,
                    hint="double the marks that are letters and quote their cells, or remove them",
                )
            return cells
        if problem != OPEN:
            break
    source.back(taken)
    return _broken(problem if problem is not None else OPEN, dialect)


def _may_be_rows(lines: list[str], dialect: Dialect) -> bool:
    """Whether the lines of a quoted cell may be rows of their own: each has as many cells, and names a file
    where the first one does.

    Where rows name no files, and nothing else in the table shows that its writer quotes cells, the number of
    cells is enough.
    """
    width = len(dialect.names)
    if width < 2 or any(line.count(dialect.delimiter) != width - 1 for line in lines):
        return False
    cells = [_without_end(line).split(dialect.delimiter) for line in lines]
    named = [place for place, cell in enumerate(cells[0]) if FILES.fullmatch(cell.strip())]
    if not named:
        return not dialect.is_sure
    return any(FILES.fullmatch(each[place].strip()) for place in named for each in cells[1:])


def _without_end(text: str, ends: str = "\r\n") -> str:
    text = text[:-1] if text.endswith("\n") else text
    return text[:-1] if ends == "\r\n" and text.endswith("\r") else text


def _broken(problem: str, dialect: Dialect) -> DataError:
    return DataError(
        "bad_row",
        f"table: {problem}",
        hint=f"read with {dialect}; double the marks that are letters and quote their cells",
    )


def _cells(text: str, dialect: Dialect) -> tuple[list[str], str | None]:
    """The cells of a text that begins where a row does, and what breaks the dialect: OPEN where the row may
    go on in the next line."""
    pattern = DOUBLED if dialect.quotes == "doubled" else BACKSLASH
    cells: list[str] = []
    delimiter, place = dialect.delimiter, 0
    skip = 1 if dialect.is_spaced else 0
    while True:
        start = place + skip if skip and cells and text.startswith(" ", place) else place
        if text.startswith('"', start):
            match = pattern.match(text, start)
            if match is None:
                return cells, OPEN
            place = match.end()
            if place < len(text) and text[place] != delimiter:
                near = text[max(0, place - 10) : place + 10]
                return (
                    cells,
                    f"expected {delimiter!r} or the end of the line behind a closing quotation mark, got {near!r}",
                )
            cell = match[1]
            if dialect.quotes == "doubled":
                cell = cell.replace('""', '"')
            elif "\\" in cell:
                cell = _plain(cell, dialect)
            cells.append(cell)
        else:
            if dialect.quotes == "backslash":
                end = _end_of_unquoted(text, place, delimiter)
                if end < 0:
                    return cells, OPEN
                cell = text[place:end]
                cell = _plain(cell, dialect) if "\\" in cell else cell
            else:
                end = text.find(delimiter, place)
                end = end if end >= 0 else len(text)
                cell = text[place:end]
            cells.append(cell)
            place = end
        if place >= len(text):
            return cells, None
        place += 1
        if place == len(text):
            cells.append("")
            return cells, None


def _plain(cell: str, dialect: Dialect) -> str:
    """A cell without what stands before its marks."""
    if dialect.keeps_backslashes:
        return re.sub(rf'\\(["{re.escape(dialect.delimiter)}])', r"\1", cell)
    return ESCAPED.sub(r"\1", cell)


def _end_of_unquoted(text: str, place: int, delimiter: str) -> int:
    """Where the next delimiter stands that no backslash precedes, or the text ends; -1 where a backslash
    takes the line's end along."""
    while place < len(text):
        letter = text[place]
        if letter == delimiter:
            return place
        place += 2 if letter == "\\" else 1
    return place if place == len(text) else -1


# What decides


@functools.lru_cache(maxsize=64)
def _dialect(path: Path, size: int, changed: int) -> Dialect | None:
    head: list[tuple[int, str]] = []
    for number, line in islice(streams.lines(path, ends=True), LOOKED_AT):
        if isinstance(line, DataError):
            if not head:
                raise DataError(line.reason, f"{path}:{number}: the header: {line.message}", hint=line.hint)
            continue
        if line.strip():
            head.append((number, line))
    if not head:
        return None
    notes: list[tuple[int, DataNote]] = []
    forced = None
    if match := re.fullmatch(r'"?sep=(.)"?', head[0][1].strip("\r\n"), re.IGNORECASE):
        forced = match[1]
        head = head[1:]
    head = _without_comments(head, forced or SUFFIXES.get(streams.suffix(path), ","), notes)
    if not head:
        return None
    number, line = head[0]
    text = _without_end(line)
    delimiter, other = _delimiter(
        [_without_end(each) for _, each in head], SUFFIXES.get(streams.suffix(path), ",")
    )
    if forced is not None:
        delimiter = forced
    elif other is not None:
        what = f"table: {NAMED[delimiter]} or {NAMED[other]} may part the cells: it is read with {NAMED[delimiter]}"
        notes.append((number, DataNote("ambiguous", what, hint="name the columns without such marks")))
    if "\\" + delimiter in text:
        what = f"table: backslashes before {NAMED.get(delimiter, repr(delimiter))} in the header are read as letters"
        notes.append((number, DataNote("ambiguous", what, hint="name the columns without such marks")))
    header, problem = _cells(text, Dialect(delimiter, "doubled", (), 0, "\n"))
    if problem is not None:
        header = text.split(delimiter)
    names = [name.strip() for name in header]
    is_spaced = len(names) > 1 and all(_is_spaced(_without_end(each), delimiter) for _, each in head)
    _refuse_header(path, number, names)
    named = tuple(name or f"column {place}" for place, name in enumerate(names, start=1))
    ends = "\r\n" if line.endswith("\r\n") else "\n"
    first = Dialect(delimiter, "none", named, number + 1, ends, is_spaced=is_spaced)
    judged = _Evidence(path, first, is_quoted_header=text.startswith('"') and '"' in text[1:])
    quotes, keeps = judged.quotes()
    is_sure = judged.is_quoted_header or judged.twos > 0 or judged.bad["none"] > judged.bad[quotes]
    return Dialect(
        delimiter, quotes, named, number + 1, ends, keeps, is_spaced, is_sure, tuple(notes + judged.notes)
    )


def _is_spaced(text: str, delimiter: str) -> bool:
    outside = DOUBLED.sub('""', text)
    return delimiter in outside and outside.count(delimiter) == outside.count(delimiter + " ")


def _without_comments(
    head: list[tuple[int, str]], delimiter: str, notes: list[tuple[int, DataNote]]
) -> list[tuple[int, str]]:
    """The lines from the header on. Comments stand before it; one whose cells are as many as those of a row
    below is the header."""
    count = next((place for place, (_, line) in enumerate(head) if not line.startswith("#")), len(head))
    if not count:
        return head
    number, last = head[count - 1]
    below = [_without_end(line) for _, line in head[count : count + 1]]
    for mark in (delimiter, *DELIMITERS):
        width = last.count(mark)
        if (
            width
            and below
            and below[0].count(mark) == width
            and any(FILES.fullmatch(cell.strip()) for cell in below[0].split(mark))
        ):
            notes.append(
                (
                    number,
                    DataNote(
                        "repaired", f"table: the columns' names stand behind a #: {last.strip()[:80]!r}"
                    ),
                )
            )
            return [(number, last.lstrip("#").lstrip(" ")), *head[count:]]
    if below:
        notes.append(
            (
                head[0][0],
                DataNote("repaired", f"table: {count} lines of comments before the header are passed over"),
            )
        )
        return head[count:]
    return head


def _delimiter(lines: list[str], usual: str) -> tuple[str, str | None]:
    """What parts the cells: what the file's name says, unless another mark parts the header and most rows
    into as many cells.

    Gives  the delimiter, and another mark that parts them no worse, or None.
    """
    shares: dict[str, float] = {}
    for mark in dict.fromkeys((usual, *DELIMITERS)):
        counts = [DOUBLED.sub("", line).count(mark) for line in lines]
        if counts[0]:
            shares[mark] = (
                sum(count == counts[0] for count in counts[1:]) / max(1, len(counts) - 1)
                if len(counts) > 1
                else 1.0
            )
    if not shares:
        return usual, None
    best = usual if shares.get(usual, 0.0) >= 0.5 else max(shares, key=lambda mark: shares[mark])
    best = best if shares[best] > shares.get(usual, -1.0) else usual
    # cells of several lines, and rows that break, take from a mark's share: one that parts every line is sure
    least = 1.0 if shares[best] == 1.0 else 0.01
    parts = {mark: DOUBLED.sub("", lines[0]).count(mark) for mark in shares}
    others = (
        mark for mark in shares if mark != best and (shares[mark] >= least or parts[mark] > parts[best])
    )
    return best, next(others, None) if len(lines) > 1 else None


def _refuse_header(path: Path, number: int, names: list[str]) -> None:
    """Raises DataError for a column that stands twice, and for a first line that is a row."""
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise DataError(
            "bad_row",
            f"{path}:{number}: expected each column once, got {twice[:40]!r} twice",
            hint="rename or remove one of the two",
        )
    odd = next((name for name in names if FILES.fullmatch(name) or len(name) > LONG_NAME), None)
    if odd is not None:
        raise DataError(
            "bad_row",
            f"{path}:{number}: expected the columns' names in the first line, got a row: {odd[:60]!r}",
            hint="write a first line with a name for each column, e.g. wav,text",
        )


def _holds(path: Path, *marks: bytes) -> bool:
    """Whether a file has any of these bytes."""
    with streams.opened(path) as stream:
        while chunk := stream.read(1 << 20):
            if any(mark in chunk for mark in marks):
                return True
    return False


@dataclass
class _Trial:
    """What one dialect makes of a window: rows with marks or backslashes, each with its line."""

    rows: list[tuple[float, list[str]]] = field(default_factory=list)
    kept: list[tuple[float, list[str]]] | None = None  # the same where backslashes before other letters stay
    bad: int = 0  # rows that it refuses
    end: float = math.inf  # the line from which it can't be told within the window


def _as_read(cells: list[str], dialect: Dialect) -> list[str]:
    return [cell.removeprefix(" ") for cell in cells] if dialect.is_spaced else cells


def _has_pieces(plain: _Trial, quoted: _Trial) -> bool:
    """Whether lines within quoted cells would be rows without a file where all the quoted rows name one."""
    starts = {number for number, _ in quoted.rows}
    pieces = [cells for number, cells in plain.rows if number not in starts and number < quoted.end]
    if not pieces:
        return False
    named = (
        [place for place, cell in enumerate(quoted.rows[0][1]) if FILES.fullmatch(cell)]
        if quoted.rows
        else []
    )
    named = [place for place in named if all(FILES.fullmatch(cells[place]) for _, cells in quoted.rows)]
    return any(not FILES.fullmatch(cells[place]) for place in named for cells in pieces)


class _Evidence:
    """What the lines with quotation marks and backslashes say about how a table's writer quoted."""

    def __init__(self, path: Path, plain: Dialect, *, is_quoted_header: bool) -> None:
        self.path, self.plain, self.is_quoted_header = path, plain, is_quoted_header
        self.notes: list[tuple[int, DataNote]] = []
        self.bad: dict[Quotes, int] = dict.fromkeys(("none", "doubled", "backslash"), 0)
        self.needed = 0  # quoted cells that hold what only a quoted cell can
        self.twos = 0  # of these, cells with a doubled mark
        self.lines = 0  # of these, cells of several lines
        self.bare = 0  # marks in cells that are not quoted, which no writer that quotes leaves there
        self.odd = 0  # quoted cells that no writer that quotes where it must would quote
        self.first_odd = (0, "")
        self.escapes = 0  # backslashes before a mark or a delimiter
        self.lone = 0  # backslashes before a letter
        self.pairs = 0  # backslashes that come by two
        self.joins = 0  # backslashes before a line's end, or before a delimiter of other tables
        self.unescaped = 0  # rows with a mark that neither quotes nor stands behind a backslash
        self.has_pieces = False  # lines of quoted cells that, as rows, would name no file where the others do
        self.differ: dict[
            tuple[frozenset[Quotes], bool], int
        ] = {}  # two dialects, keeps_backslashes; the line where they first differ

    def quotes(self) -> tuple[Quotes, bool]:
        """How cells are quoted, and whether backslashes stay where no mark follows."""
        self._read()
        best = min(self.bad.values())
        left: set[Quotes] = {name for name, count in self.bad.items() if count == best}
        chosen, keeps = self._choose(left, keeps=self.lone > 0)
        if not self.notes and not best:  # else something is refused, which is told
            for other in sorted(left - {chosen}):
                if (self.is_quoted_header or self.has_pieces) and {chosen, other} == {"none", "doubled"}:
                    continue
                number = self.differ.get((frozenset((chosen, other)), self.lone > 0))
                if number is not None:
                    self._tell(
                        f"other cells come out, from here on, with {SAID[other]}: it is read with {SAID[chosen]}",
                        number,
                    )
                    break
        return chosen, keeps

    def _choose(self, left: set[Quotes], *, keeps: bool) -> tuple[Quotes, bool]:
        """The dialect among those that make most rows whole, and whether it keeps backslashes; choices
        without a reason are told."""
        if self.escapes and "backslash" in left and not (self.unescaped or ("doubled" in left and self.twos)):
            if "doubled" in left or "none" in left:
                self._tell(
                    "backslashes before marks may be letters: they are read as standing before a mark that is a letter"
                )
            return "backslash", keeps
        if left == {"backslash"}:
            return "backslash", keeps
        if (self.pairs and not keeps) or self.joins:
            self._tell("backslashes may stand before what is a letter: they are read as letters")
        if not (self.needed or self.bare or self.odd or any(self.bad.values())):
            return "none", False
        if not {"doubled", "none"} <= left:
            return ("doubled" if "doubled" in left else "none"), False
        if self.lines and len(self.plain.names) == 1 and not (self.twos or self.is_quoted_header):
            self._tell("marks around several lines may be quoting or letters: they are read as quoting")
        if self.needed or self.is_quoted_header:
            return "doubled", False
        chosen: Quotes = "none" if self.bare or self.plain.delimiter != "," else "doubled"
        if self.odd:
            number, cell = self.first_odd
            how = "letters" if chosen == "none" else "quoting"
            self._tell(
                f"marks around cells such as {cell[:40]!r} may be quoting or letters: they are read as {how}",
                number,
            )
        return chosen, False

    def _tell(self, what: str, number: int = 0) -> None:
        note = DataNote("ambiguous", f"table: {what}", hint="quote all cells, the header too, to settle it")
        self.notes.append((number or self.plain.first, note))

    def _read(self) -> None:
        """Look at every line that holds a quotation mark or a backslash, in windows of whole lines."""
        if not _holds(self.path, b'"', b"\\"):
            return
        may_escape = _holds(self.path, b'\\"', b'\\\0"', b'\\\0\0"', b"\\" + self.plain.delimiter.encode())
        window: list[tuple[int, str]] = []
        windows = 0
        for number, line in streams.lines(self.path, ends=True):
            if number < self.plain.first or isinstance(line, DataError):
                continue
            if window or '"' in line or "\\" in line:
                window.append((number, line))
                if len(window) >= WINDOW_LINES:
                    self._weigh(window)
                    window, windows = [], windows + 1
                    if windows >= WINDOWS or (
                        windows >= ENOUGH
                        and self.needed
                        and not may_escape
                        and self.bad["none"] > self.bad["doubled"]
                    ):
                        return
        self._weigh(window)

    def _weigh(self, window: list[tuple[int, str]]) -> None:
        """Read a window in each dialect: count the rows that each refuses, and note where two of them give
        other cells."""
        trials: dict[Quotes, _Trial] = {
            "none": self._try(window, "none"),
            "doubled": self._try(window, "doubled"),
        }
        if not any("\\" in line for _, line in window):
            self.bad["backslash"] += trials["doubled"].bad
        else:
            text = "".join(line for _, line in window).replace("\r\n", "\n")
            self.pairs += text.count("\\\\")
            text = text.replace("\\\\", "")
            self.lone += len(LONE.findall(text))
            self.escapes += text.count('\\"') + text.count("\\" + self.plain.delimiter)
            self.joins += text.count("\\\r") + (
                len(re.findall(r"\\[\n,;|\t]", text)) if len(self.plain.names) == 1 else 0
            )
            trials["backslash"] = self._try(window, "backslash")
            self.bad["backslash"] += trials["backslash"].bad
            self._compare(frozenset(("none", "backslash")), trials["none"], trials["backslash"])
            self._compare(frozenset(("doubled", "backslash")), trials["doubled"], trials["backslash"])
        self.bad["none"] += trials["none"].bad
        self.bad["doubled"] += trials["doubled"].bad
        self._compare(frozenset(("none", "doubled")), trials["none"], trials["doubled"])
        self.has_pieces = self.has_pieces or _has_pieces(trials["none"], trials["doubled"])

    def _compare(self, names: frozenset[Quotes], one: _Trial, other: _Trial) -> None:
        """Note the first line where two dialects give other cells, as far as both read the window."""
        end = min(one.end, other.end)
        for keeps, rows_of in (
            (False, other.rows),
            (True, other.kept if other.kept is not None else other.rows),
        ):
            if (names, keeps) in self.differ or one.rows == rows_of:
                continue
            for (number, cells), (number_of, cells_of) in zip_longest(one.rows, rows_of, fillvalue=(end, [])):
                if min(number, number_of) >= end:
                    break
                if number != number_of or cells != cells_of:
                    self.differ[names, keeps] = int(min(number, number_of))
                    break

    def _try(self, window: list[tuple[int, str]], quotes: Quotes) -> _Trial:
        """The rows of a window with marks or backslashes as a dialect reads them, and how many it would
        refuse."""
        trial = Dialect(
            self.plain.delimiter, quotes, self.plain.names, 0, self.plain.ends, is_spaced=self.plain.is_spaced
        )
        keeping = replace(trial, keeps_backslashes=True)
        result = _Trial(kept=[] if quotes == "backslash" else None)
        width, place = len(self.plain.names), 0
        while place < len(window):
            number, line = window[place]
            place += 1
            if '"' not in line and "\\" not in line:
                continue
            whole, text = line, _without_end(line)
            cells, problem = _cells(text, trial) if quotes != "none" else (text.split(trial.delimiter), None)
            stop = place
            while problem == OPEN and stop < len(window) and stop - place < CELL_LINES:
                whole += window[stop][1]
                stop += 1
                if '"' in window[stop - 1][1] or quotes == "backslash":
                    text = _without_end(whole, trial.ends)
                    cells, problem = _cells(text, trial)
            if (
                problem == OPEN
                and stop == len(window)
                and stop - place < CELL_LINES
                and len(window) == WINDOW_LINES
            ):
                result.end = number  # it may be closed behind the window
                return result
            is_whole = len(cells) == width or (
                quotes != "none" and len(cells) > width and not any(cells[width:])
            )
            if problem is not None or not is_whole:
                result.bad += 1
                continue
            place = stop
            result.rows.append((number, _as_read(cells, trial)))
            if result.kept is not None:
                result.kept.append(
                    (number, _as_read(_cells(text, keeping)[0] if "\\" in text else cells, trial))
                )
            if quotes == "doubled":
                self._tally(number, text, trial)
            elif quotes == "backslash":
                self.unescaped += '"' in UNESCAPED.sub("", text)
        return result

    def _tally(self, number: int, text: str, trial: Dialect) -> None:
        """What the cells of one row, whole in the doubled dialect, say about its writer."""
        place, delimiter = 0, trial.delimiter
        is_first = True
        while place <= len(text):
            if trial.is_spaced and not is_first and text.startswith(" ", place):
                place += 1
            is_first = False
            match = DOUBLED.match(text, place) if text.startswith('"', place) else None
            if match is not None:
                cell = match[1]
                if '""' in cell or delimiter in cell or "\n" in cell or "\r" in cell:
                    self.needed += 1
                    self.twos += '""' in cell
                    self.lines += "\n" in cell
                else:
                    self.odd += 1
                    if not self.first_odd[0]:
                        self.first_odd = (number, match[0])
                place = match.end() + 1
            else:
                end = text.find(delimiter, place)
                end = end if end >= 0 else len(text)
                cell = text[place:end]
                if '"' in cell.replace('\\"', ""):
                    self.bare += 1
                place = end + 1
