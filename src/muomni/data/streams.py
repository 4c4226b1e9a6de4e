"""The bytes of a manifest as lines or as JSON values, one after another: packed or plain, of any size, in
flat memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from muomni.errors import DataError, DataNote

MAX_LINE_BYTES = 16 * 2**20  # of a line, and of an element of a JSON array
CHUNK_BYTES = 1 << 18
HEAD_BYTES = 1 << 16
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
POINTERS = (
    b"version https://git-lfs.github.com/spec/",
    b"/annex/objects/",
    b"../.git/annex/objects/",
    b".git/annex/objects/",
)
ROWS_UNDER = ("data", "rows", "samples", "items", "examples", "instances", "records", "annotations", "train")
OF_A_ROW = {"messages", "conversations", "text"}  # what has one of these is a row, not a box of rows
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SPACE = re.compile(r"[ \t\r\n]*")
ENDS = re.compile(
    r"[ \t\r\n,:\]}]|.{8}", re.DOTALL
)  # what may stand behind a value, or anything that is long enough
HALVES = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, or one alone
ROWS = re.compile(r"\[[ \t\r\n]*\{")

Lines = Iterator[tuple[int, str | DataError]]


def suffix(path: Path) -> str:
    """What a file's name says that it holds: `.jsonl` of `cuts.jsonl.gz`, in lower case."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in PACKED else last


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file.

    Raises  DataError: undecodable (a pointer of git-lfs or git-annex in the file's place, or a packed file
            that is torn or none).
    """
    with path.open("rb") as plain:
        head = plain.read(64)
        plain.seek(0)
        if head.startswith(POINTERS):
            tool = "git-lfs" if head.startswith(b"version") else "git-annex"
            raise DataError(
                "undecodable",
                f"{path}: expected the file, got a pointer of {tool} to it",
                hint="`git lfs pull` brings the file"
                if tool == "git-lfs"
                else "`git annex get` brings the file",
            )
        unpack = PACKED.get(path.suffix.lower())
        if unpack is None:
            yield plain
            return
        try:
            with unpack(plain, "rb") as stream:
                yield stream
        except EOFError as error:
            raise DataError(
                "undecodable", f"{path}: torn, the packed file ends early", hint="copy or pack it again"
            ) from error
        except (OSError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(
                "undecodable", f"{path}: expected a {path.suffix} file, got another or a torn one ({error})"
            ) from error


def lines(path: Path, *, ends: bool = False) -> Lines:
    """Lines of a text file from 1, without byte order mark and, unless `ends`, without line ends.

    UTF-8, or UTF-16 where its byte order mark says so; where a file's lines end in a carriage return alone,
    they end there. A line of invalid UTF-8 or over 16 MiB is a DataError in its place.
    Raises  DataError: undecodable (UTF-16 that is torn or has no mark; what `opened` refuses).
    """
    with opened(path) as stream:
        head, stream = _peeked(stream)
        if head.startswith(UTF16):
            yield from _wide_lines(path, stream, ends=ends)
            return
        _refuse_unmarked(path, head)
        if b"\r" in head and b"\n" not in head:
            stream = io.BufferedReader(_Returns(stream), CHUNK_BYTES)
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    continue
                yield number, DataError("too_large", f"line: expected at most {MAX_LINE_BYTES} bytes")
                continue
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                what = f"line: expected UTF-8, got byte 0x{raw[error.start]:02x} at {error.start}"
                yield (
                    number,
                    DataError(
                        "undecodable", what, hint="save the file as UTF-8, e.g. iconv -f cp1252 -t utf-8"
                    ),
                )
                continue
            yield number, text if ends else text.rstrip("\r\n")


def _peeked(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first 64 KiB of a stream, and the stream from its beginning."""
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    return head, stream


def _refuse_unmarked(path: Path, head: bytes) -> None:
    """UTF-16 without its mark is letters with zeros between them, which every reader would take for UTF-8."""
    start = head[:64]
    for place, order in ((1, "LE"), (0, "BE")):
        if (
            len(start) >= 16
            and not any(start[place : len(start) & ~1 : 2])
            and all(start[1 - place : len(start) & ~1 : 2])
        ):
            raise DataError(
                "undecodable",
                f"{path}: expected UTF-8, got UTF-16{order} without its mark",
                hint="save the file as UTF-8",
            )
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) and len(head) % 4 == 0:
        raise DataError("undecodable", f"{path}: expected UTF-8, got UTF-32", hint="save the file as UTF-8")


def _wide_lines(path: Path, stream: BinaryIO, *, ends: bool) -> Lines:
    """Lines of UTF-16 with its mark, as Excel's "Unicode text" has them."""
    text = io.TextIOWrapper(stream, encoding="utf-16", newline="\n")
    number = 0
    try:
        while line := text.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith("\n"):
                raise DataError(
                    "too_large", f"{path}:{number}: expected a line of at most {MAX_LINE_BYTES} characters"
                )
            yield number, line if ends else line.rstrip("\r\n")
    except UnicodeError as error:
        raise DataError(
            "undecodable", f"{path}:{number + 1}: expected UTF-16, as its mark says, got other bytes: {error}"
        ) from error
    finally:
        text.detach()


class _Returns(io.RawIOBase):
    """A stream whose lines end in a carriage return alone, with line feeds in their places."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(piece)] = piece
        return len(piece)


# JSON


def decode_json(text: str) -> Any:
    """A JSON value.

    Raises  DataError (bad_row) on whatever the parser refuses: syntax, depth, endless numbers, half a
            surrogate pair; on a key given twice.
    """
    try:
        value = _DECODER.decode(text)
        if HALVES.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise DataError("bad_row", "row: nested too deeply") from error
    except ValueError as error:
        raise DataError(
            "bad_row", f"row: expected a JSON object, got {text[:60]!r} ({str(error)[:80]})"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these keys; one that is given twice is an error, since a parser keeps but the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(_twice(pairs))
    return content


def _twice(pairs: list[tuple[str, Any]]) -> str:
    keys = [key for key, _ in pairs]
    return f"key {next(key for place, key in enumerate(keys) if key in keys[:place])[:40]!r} is given twice"


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # `json.loads` would make one for each row


def values(path: Path, quick: Callable[[str], Any] | None = None) -> Iterator[tuple[int, Any]]:
    """JSON values of a file with their numbers, those that can't be read as DataErrors in their places.

    Takes   quick: what makes something of a line without decoding it, or None of one that must be decoded.

    JSON lines (numbered by line; blank lines skipped), one array (numbered by element), one object that holds
    the rows in a list under
    `data` or the like, or objects that stand one behind the other over several lines each (numbered by the
    line of their beginning).
    Raises  DataError where the rest of the file can't be read: a torn array, a comma too many, a second
            array; what `opened` refuses.
    """
    shape = _shape(path)
    if shape == "lines":
        yield from _of_lines(path, quick)
        return
    with opened(path) as stream:
        text = _Text(path, stream)
        if shape == "array":
            yield from text.array()
        elif shape == "box":
            yield from text.box()
        else:
            yield from text.several()


def _of_lines(path: Path, quick: Callable[[str], Any] | None) -> Iterator[tuple[int, Any]]:
    for number, line in lines(path):
        if isinstance(line, DataError):
            yield number, line
        elif quick is not None and (value := quick(line)) is not None:
            yield number, value
        elif line and not line.isspace():
            try:
                yield number, decode_json(line)
            except DataError as error:
                yield number, error


def _shape(path: Path) -> str:
    """How the values of a file stand in it: `array`, `box` (one object around a list of rows), `several`
    objects, or `lines`."""
    is_lines = suffix(path) == ".jsonl"
    with opened(path) as stream:
        text = _Text(path, stream, "replace")
        first = text.peek()
        if first != "{":
            return "array" if first == "[" else "lines"
        line = text.line
        try:
            value = text.value()
        except DataError:
            value = None
        else:
            is_one_line = text.line == line
            if not is_lines and _is_box(value) and not text.peek():
                return "box"
            return "lines" if is_one_line else "several"
    with opened(path) as stream:
        return (
            "box" if not is_lines and _Text(path, stream, "replace").opens_box() else "lines"
        )  # of lines each says its own fault


def _is_box(value: Any) -> bool:
    """Whether an object looks as if its rows stood in a list of it."""
    return (
        isinstance(value, dict)
        and not OF_A_ROW & value.keys()
        and any(_is_rows(value.get(key)) for key in ROWS_UNDER)
    )


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


class _Text:
    """The text of a file as far as it is needed, read value by value."""

    def __init__(self, path: Path, stream: BinaryIO, errors: str = "strict") -> None:
        head, self._stream = _peeked(stream)
        _refuse_unmarked(path, head)
        self.path = path
        self.decoder = json.JSONDecoder(object_pairs_hook=self._pairs)
        self._unpack = codecs.getincrementaldecoder("utf-16" if head.startswith(UTF16) else "utf-8-sig")(
            errors
        )
        self._buffer, self._place, self._lines_before, self._is_end = "", 0, 0, False
        self._doubled = ""

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs) and not self._doubled:
            self._doubled = _twice(pairs)
        return content

    # The text

    def _more(self) -> None:
        """Read on; twice as much as is left, so that a long value is not tried at each of its chunks."""
        left = self._buffer[self._place :]
        self._lines_before += self._buffer.count("\n", 0, self._place)
        piece = self._stream.read(max(CHUNK_BYTES, len(left)))
        self._is_end = not piece
        try:
            self._buffer, self._place = left + self._unpack.decode(piece, final=self._is_end), 0
        except UnicodeDecodeError as error:
            got = (
                f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else "a torn end"
            )
            where = f"on line {1 + self._lines_before + left.count(chr(10)) + bytes(error.object[: error.start]).count(10)}"
            raise DataError(
                "undecodable",
                f"{self.path}: expected UTF-8, got {got} {where}",
                hint="save the file as UTF-8, e.g. iconv -f cp1252 -t utf-8",
            ) from error

    @property
    def line(self) -> int:
        """The line on which the place at hand lies."""
        return 1 + self._lines_before + self._buffer.count("\n", 0, self._place)

    def peek(self) -> str:
        """The next character that is no space, which stays; "" at the end."""
        while True:
            if self._place < len(self._buffer) and (character := self._buffer[self._place]) > " ":
                return character
            space = SPACE.match(self._buffer, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._buffer):
                return self._buffer[self._place]
            if self._is_end:
                return ""
            self._more()

    def value(self) -> Any:
        """The next value; a DataError in its place where it has a key twice or half a surrogate pair.

        Raises  DataError (bad_row, too_large) where it can't be told where it ends.
        """
        self.peek()
        while True:
            self._doubled = ""
            try:
                value, end = self.decoder.raw_decode(self._buffer, self._place)
                if (
                    self._is_end or ENDS.match(self._buffer, end) or isinstance(value, dict | list)
                ):  # else a number may go on: -2 of -2.5
                    break
                problem: ValueError | RecursionError | None = None
            except (ValueError, RecursionError) as error:
                problem = error
            if self._is_end and problem is not None:
                self._refuse(problem)
            if len(self._buffer) - self._place > MAX_LINE_BYTES:
                if (
                    isinstance(problem, json.JSONDecodeError)
                    and problem.pos - self._place < MAX_LINE_BYTES // 2
                ):
                    self._refuse(problem)
                raise DataError(
                    "too_large",
                    f"{self.path}:{self.line}: expected values of at most {MAX_LINE_BYTES} characters",
                )
            if isinstance(problem, RecursionError):
                self._refuse(problem)
            self._more()
        place, self._place = self._place, end
        if self._doubled:
            return DataError("bad_row", f"row that ends on line {self.line}: {self._doubled}")
        if HALVES.search(self._buffer, place, end):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                return DataError("bad_row", f"row that ends on line {self.line}: {str(error)[:80]}")
        return value

    def _refuse(self, problem: Exception) -> None:
        got = self._buffer[self._place : self._place + 60]
        if isinstance(problem, RecursionError):
            raise DataError("bad_row", f"{self.path}:{self.line}: row: nested too deeply") from problem
        if isinstance(problem, json.JSONDecodeError):
            line = self.line + self._buffer.count("\n", self._place, problem.pos)
            is_torn = not self._buffer[problem.pos :].strip() or problem.msg.startswith("Unterminated string")
            what = "torn, the file ends within this value" if is_torn else problem.msg
            near = self._buffer[max(self._place, problem.pos - 20) : problem.pos + 20]
            raise DataError(
                "bad_row",
                f"{self.path}:{line}: expected JSON, got {near or got!r} ({what})",
                hint=_TORN if is_torn else _HINT,
            ) from problem
        raise DataError(
            "bad_row",
            f"{self.path}:{self.line}: expected JSON, got {got!r} ({str(problem)[:80]})",
            hint=_HINT,
        ) from problem

    def _fail(self, expected: str) -> DataError:
        got = self._buffer[self._place : self._place + 20]
        what, hint = (f"got {got!r}", _HINT) if got else ("the file ends: is it torn?", _TORN)
        return DataError("bad_row", f"{self.path}:{self.line}: expected {expected}, {what}", hint=hint)

    # Values around values

    def array(self) -> Iterator[tuple[int, Any]]:
        """The elements of the array that begins here, which is all that the file holds."""
        yield from self._elements()
        if self.peek():
            raise self._fail("the end of the file behind its array")

    def _elements(self) -> Iterator[tuple[int, Any]]:
        self.peek()
        self._place += 1
        if self.peek() == "]":
            self._place += 1
            return
        for number in _from_1():
            if self.peek() in ("]", ",", ""):
                raise self._fail(f"element {number} of an array")
            yield number, self.value()
            mark = self.peek()
            if mark not in (",", "]") or not mark:
                raise self._fail(f"a comma or the end of the array behind element {number}")
            self._place += 1
            if mark == "]":
                return

    def several(self) -> Iterator[tuple[int, Any]]:
        """Values one behind the other, numbered by the line on which each begins."""
        while self.peek():
            line = self.line
            yield line, self.value()

    def _keys(self) -> Iterator[str]:
        """The keys of the object that begins here; whoever walks through them takes each value."""
        self.peek()
        self._place += 1
        while True:
            if self.peek() != '"':
                raise self._fail("a key")
            key = self.value()
            if self.peek() != ":":
                raise self._fail("a colon behind a key")
            self._place += 1
            yield str(key)
            mark = self.peek()
            if mark not in (",", "}") or not mark:
                raise self._fail(f"a comma or the end of the object behind {str(key)[:40]!r}")
            self._place += 1
            if mark == "}":
                return

    def _holds_rows(self) -> bool:
        """Whether a list of objects begins here."""
        while len(self._buffer) - self._place < 4096 and not self._is_end:
            self._more()
        return ROWS.match(self._buffer, self._place) is not None

    def opens_box(self) -> bool:
        """Whether the object that begins here has a list of objects before anything that makes it a row; the
        text is used up by it."""
        try:
            for key in self._keys():
                if key in OF_A_ROW:
                    return False
                self.peek()
                if self._holds_rows():
                    return True
                self.value()
        except DataError:
            return False
        return False

    def box(self) -> Iterator[tuple[int, Any]]:
        """The rows in the list of an object; its other keys are told.

        Raises  DataError where no key or several hold rows.
        """
        kind, others = "", []
        for key in self._keys():
            self.peek()
            if not self._holds_rows():
                self.value()
                others.append(key)
            elif key in ROWS_UNDER and not kind:
                kind = key
                yield from self._elements()
            else:
                raise DataError(
                    "bad_row",
                    f"{self.path}:{self.line}: expected a list of rows, or an object with one under {', '.join(ROWS_UNDER[:4])}, "
                    f"got an object with rows under {f'{kind!r} and {key!r}' if kind else repr(key)}",
                    hint="write the rows themselves, one JSON object a line",
                )
        if self.peek():
            raise self._fail("the end of the file behind its object")
        if not kind:
            raise DataError(
                "bad_row", f"{self.path}: expected a list of rows, got an object of {', '.join(others)[:80]}"
            )
        if others:
            yield (
                1,
                DataNote(
                    "repaired",
                    f"{self.path}: the rows are those under {kind!r}; left: {', '.join(others)[:200]}",
                ),
            )


_TORN = "make or copy the file anew"
_HINT = "is it JSON lines? then name it .jsonl"


def _from_1() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number
