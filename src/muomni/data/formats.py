"""Files -> (line, row) pairs in the spelling of `sample.parse`; a line that can't be read comes as a DataError in its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.config import is_set
from muomni.data import template, trees
from muomni.data.layouts import chat, cuts, fields, instructions, media
from muomni.data.reading import Reading
from muomni.data.sample import FIELDS
from muomni.data.source import Format, Recognised, Source
from muomni.errors import ConfigError, DataError

Rows = Iterator[tuple[int, Reading | dict[str, Any] | DataError]]  # a dict: a row of which nothing was left

MAX_LINE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 512 * 2**20
LOOKED_AT = 100  # rows in which a column of sides is looked for
SWAPPED_ROWS = 20  # that are looked at before a table is read
PARAGRAPHS_CHARACTERS = 2000  # a document of prose is closed before it grows beyond this
IMAGE_SUFFIXES, AUDIO_SUFFIXES = media.IMAGE_SUFFIXES, media.AUDIO_SUFFIXES
READ_EXTRA = frozenset({"names", "text", "words", "kind", "kinds", "speaker"})  # keys beside ours that somebody reads from `extra`


def lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Lines of a text file from 1, without line ends and byte order mark; one of invalid UTF-8 or over 16 MiB is a DataError."""
    with path.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    continue
                yield number, DataError("too_large", f"line: expected at most {MAX_LINE_BYTES} bytes")
                continue
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            try:
                yield number, raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield number, DataError("undecodable", f"line: expected UTF-8, got byte 0x{raw[error.start]:02x} at {error.start}")


def decode_json(text: str) -> Any:
    """A JSON value.

    Raises  DataError (bad_row) on whatever the parser refuses: syntax, depth, endless numbers, half a surrogate pair; on a key given twice.
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise DataError("bad_row", "row: nested too deeply") from error
    except ValueError as error:
        raise DataError("bad_row", f"row: expected a JSON object, got {text[:60]!r} ({str(error)[:80]})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these keys; one that is given twice is an error, since a parser keeps but the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"key {twice[:40]!r} is given twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # `json.loads` would make one for each row


def text(path: Path, source: Source) -> Rows:
    """One document a line, or, with `paragraphs`, whole paragraphs up to about 2000 characters; blank lines only separate."""
    if not source.paragraphs:
        for number, line in lines(path):
            if isinstance(line, DataError):
                yield number, line
            elif line.strip():
                yield number, {"text": line}
        return
    document, first = "", 1
    for number, paragraph in _paragraphs(path):
        if isinstance(paragraph, DataError):
            yield number, paragraph
            continue
        if document and len(document) + len(paragraph) > PARAGRAPHS_CHARACTERS:
            yield first, {"text": document}
            document = ""
        first = first if document else number
        document = f"{document}\n\n{paragraph}" if document else paragraph
    if document:
        yield first, {"text": document}


def _paragraphs(path: Path) -> Iterator[tuple[int, str | DataError]]:
    block: list[str] = []
    first = 1
    for number, line in lines(path):
        if isinstance(line, DataError):
            yield number, line
        elif line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield first, "\n".join(block)
            block = []
    if block:
        yield first, "\n".join(block)


def objects(path: Path) -> Iterator[tuple[int, Any]]:
    """JSON values of a JSONL file (blank lines skipped) or of a JSON array; CSV rows as objects of strings."""
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from _table(path)
    elif _is_array(path):
        yield from _array(path)
    else:
        for number, line in lines(path):
            if isinstance(line, DataError):
                yield number, line
            elif line.strip():
                try:
                    yield number, decode_json(line)
                except DataError as error:
                    yield number, error


TABLES = (".jsonl", ".json", ".csv", ".tsv")


def is_table(path: Path) -> bool:
    """Whether a file holds objects, by its name."""
    return path.suffix.lower() in TABLES


def _is_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _array(path: Path) -> Iterator[tuple[int, Any]]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError("too_large", f"{path}: expected at most {MAX_JSON_BYTES} bytes of JSON", hint="write it as JSON lines")
    try:
        values = decode_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise DataError("undecodable", f"{path}: expected UTF-8, got byte 0x{error.object[error.start]:02x} at {error.start}") from error
    except DataError as error:
        raise DataError(error.reason, f"{path}: {error.message}", hint="is it JSON lines? then name it .jsonl") from error
    yield from enumerate(values, start=1)


def _table(path: Path) -> Iterator[tuple[int, Any]]:
    # Bytes that are no UTF-8 become surrogates, so that only their own row is lost.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        read: list[str] = []  # the lines of the row at hand

        def noted() -> Iterator[str]:
            for line in stream:
                read.append(line)
                yield line

        reader = csv.reader(noted(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header: list[str] | None = None
        while True:
            read.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, DataError("bad_row", f"csv: {error}")
                continue
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if "".join(read).count('"') % 2 and cells[-1].endswith("\n"):  # all that followed went into this cell
                first = reader.line_num - len(read) + 1
                yield first, DataError("bad_row", f"csv: a quote is not closed: {len(read)} lines were read as one cell")
                continue
            if any("\ud800" <= character <= "\udfff" for cell in cells for character in cell):
                yield reader.line_num, DataError("undecodable", "csv: expected UTF-8")
            elif header is None:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                yield (
                    reader.line_num,
                    DataError("bad_row", f"csv: expected {len(header)} cells ({', '.join(header)[:80]}), got {len(cells)}"),
                )
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))


def dicts(path: Path, source: Source) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """The objects of a file, without the columns that the source ignores; what is no object is an error in its place."""
    ignored = [key for key in source.ignore if not key.startswith(("<", "["))]
    for number, row in objects(path):
        if isinstance(row, dict):
            if ignored:
                row = without(row, ignored)
            yield number, row
        else:
            yield (
                number,
                row if isinstance(row, DataError) else DataError("bad_row", f"row: expected a JSON object, got {type(row).__name__}"),
            )


def without(row: dict[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    """A row without some of its columns; those of its turns are left out too (`weight` of messages)."""
    kept = {key: value for key, value in row.items() if key not in ignored}
    for turns in ("messages", "conversations"):
        if isinstance(kept.get(turns), list):
            kept[turns] = [{k: v for k, v in turn.items() if k not in ignored} if isinstance(turn, dict) else turn for turn in kept[turns]]
    return kept


def each(path: Path, source: Source, convert: Callable[[dict[str, Any]], Iterator[Reading]]) -> Rows:
    """Every row of a file as a layout reads it; what it raises stands in the row's place."""
    for number, row in dicts(path, source):
        if isinstance(row, DataError):
            yield number, row
            continue
        try:
            for reading in convert(row):
                yield number, reading
        except DataError as error:
            yield number, error


def says_sides(path: Path, source: Source) -> bool:
    """Whether a column of a file's rows holds any of them out: one that is `train` throughout says nothing, and the hash decides."""
    keys: list[str] = []
    for number, row in enumerate(row for _, row in dicts(path, source) if isinstance(row, dict)):
        if number < LOOKED_AT and not keys:
            plan = fields.plan_of(tuple(row))
            keys = plan.splits + plan.sets
        if not keys and number >= LOOKED_AT:
            return False
        if any(row.get(key) not in (None, "") and fields.holds_out(key, row[key]) for key in keys):
            return True
    return False


def left_of(row: dict[str, Any], used: Iterable[str]) -> dict[str, Any]:
    """The fields of a row that were not used."""
    names = set(used)
    return {key: value for key, value in row.items() if key not in names}


def samples(path: Path, source: Source) -> Rows:
    """Sample rows as they are; {"text"} documents; question and answer without media become one document.

    Media and a system prompt beside the turns are put into them (see `layouts.chat`). The source's `prompt` is said where the user shows a
    medium without a word; its `names` go to `extra`.
    """
    about, ignored = fields.About(source), frozenset(source.ignore)

    def convert(row: dict[str, Any]) -> Iterator[Reading]:
        left: dict[str, Any] = {}
        used: list[str] = []
        if "messages" not in row:
            if "text" in row and row.keys() <= FIELDS:
                yield Reading(row, row, left)
                return
            made, used, left = _turns_or_document(row, ignored)
        elif chat.is_plain(row):
            made = _asked(row, source)
            if source.prompt is None and source.names is None:
                yield Reading(row, row, left, "group" if row.get("group") is not None else "")
                return
        else:
            turns, used, left = chat.messages(row, ignored)
            made = _asked({**row, "messages": turns}, source)
        made = {key: value for key, value in made.items() if key in FIELDS or key not in used}
        told, whence = about.complete(made, {key: value for key, value in row.items() if key not in FIELDS})
        used = [key for key in row if key in FIELDS or key in used or key in told or key in READ_EXTRA]
        whence = "group" if made.get("group") is not None and whence == "" else whence
        left = {**left_of(row, used), **left}
        yield Reading(
            {key: value for key, value in made.items() if key not in told or key in FIELDS}, used, left, whence, frames=about.in_frames
        )

    yield from each(path, source, convert)


def _turns_or_document(row: dict[str, Any], ignored: frozenset[str]) -> chat.Made:
    """A row without messages: another layout's turns among ours, or a document."""
    if "text" in row:
        return _document(row)
    if chat.turns_key(row) is not None:
        made, used, left = chat.convert(row, ignored)
    elif instructions.knows(row):
        made, used, left = instructions.convert(row, ignored)
    else:
        return _document(row)
    return {**row, **made}, used, left


def _asked(row: dict[str, Any], source: Source) -> dict[str, Any]:
    """A sample row with what the source adds to it."""
    if source.names is not None:
        extra = row.get("extra")
        row = {**row, "extra": {**(extra if isinstance(extra, dict) else {}), "names": template.text(source.names, row)}}
    if source.prompt is not None and isinstance(row["messages"], list):
        row = {**row, "messages": [_with_words(message, source.prompt) for message in row["messages"]]}
    return row


def _with_words(message: Any, prompt: str) -> Any:
    """A user's message of media alone with the prompt behind them; any other as it is."""
    parts = message.get("content") if isinstance(message, dict) and message.get("role") == "user" else None
    if not isinstance(parts, list) or not parts or not all(isinstance(p, dict) and p.get("type") in template.MEDIA for p in parts):
        return message
    return {**message, "content": [*parts, {"type": "text", "text": prompt}]}


def _document(row: dict[str, Any]) -> chat.Made:
    """A row without turns as a document.

    Raises  DataError (bad_row) where it names media: they would be dropped.
    """
    named = sorted(key for key, value in row.items() if value and key not in FIELDS and media.names_media(key, value))
    if named:
        for key in named:
            media.paths_of(key, row[key])  # which says by name what can't be read at all
        raise DataError(
            "bad_row",
            f"row: has {', '.join(named)} but no messages, and no words for it in a column that is known",
            hint="give the source a `messages:` template (format rows)",
        )
    chat.refuse(row)
    if "text" not in row and isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        rest = {key: value for key, value in row.items() if key not in ("question", "answer")}
        return {**rest, "text": f"{row['question']}\n{row['answer']}"}, ["question", "answer"], {}
    return row, [], {}


def rows(path: Path, source: Source) -> Rows:
    """Flat rows filled into the source's template."""
    if not source.is_template:
        raise ConfigError(f"{path}: format rows: expected a `messages:` or `text:` template, got none")
    filled = template.Template(source, honours_split=says_sides(path, source))
    is_chosen = not isinstance(source, Recognised)

    def convert(row: dict[str, Any]) -> Iterator[Reading]:
        for made, used, whence in filled.fill(row):
            yield Reading(made, used, left_of(row, used), whence, is_chosen, filled.in_frames)

    yield from each(path, source, convert)


def pairs(medium: str, words: str, kind: str, task: str) -> Callable[[Path, Source], Rows]:
    """A reader of tables with a column of files and a column of words: a template over these two."""

    def read(path: Path, source: Source) -> Rows:
        _refuse_swapped(path, medium, words, AUDIO_SUFFIXES if kind == "audio" else IMAGE_SUFFIXES)
        return rows(path, paired(source, medium, words, kind, task))

    return read


def paired(source: Source, medium: str, words: str, kind: str, task: str) -> Recognised:
    """The template of a medium and its words; for `speak` the assistant says them, else it writes them."""
    shown, said = {kind: f"{{{medium}}}"}, f"{{{words}}}"
    asked = [shown, *([source.prompt] if source.prompt else [])]
    turns = [{"user": said}, {"assistant": [shown]}] if task == "speak" else [{"user": asked}, {"assistant": said}]
    return Recognised.of(source, task=task, messages=turns)


def _refuse_swapped(path: Path, medium: str, words: str, suffixes: set[str]) -> None:
    """Stop where in all first rows of a table the words look like files and the files like words.

    Raises  ConfigError, which says so in a line.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        return
    rows = [row for _, row in islice(objects(path), SWAPPED_ROWS) if isinstance(row, dict)]
    pairs = [(row[medium], row[words]) for row in rows if isinstance(row.get(medium), str) and isinstance(row.get(words), str)]
    if pairs and all(_looks_like_a_file(text, suffixes) and not _looks_like_a_file(name, suffixes) for name, text in pairs):
        name, text = pairs[0]
        raise ConfigError(
            f"{path}: columns {medium} and {words} are swapped: {medium} holds {name[:40]!r}, {words} holds {text[:40]!r}",
            hint=f"swap their names in the first line, or their cells: {medium} names the file",
        )


def _looks_like_a_file(cell: str, suffixes: set[str]) -> bool:
    """Whether a cell names a medium; words may end in `.wav` only by an accident of spelling."""
    return Path(cell.strip()).suffix.lower() in suffixes if len(cell) < 4096 else False


def conversations(path: Path, source: Source) -> Rows:
    """Rows of LLaVA, ShareGPT and LLaMA-Factory: `conversations` with `<image>` where the media stand, or a caption and an image."""
    return _turned(path, source, lambda row, ignored: chat.convert(row, ignored, source.prompt))


def told_instructions(path: Path, source: Source) -> Rows:
    """Rows of Alpaca and its like: instruction, input, output."""
    return _turned(path, source, instructions.convert)


def _turned(path: Path, source: Source, convert: Callable[[dict[str, Any], frozenset[str]], chat.Made]) -> Rows:
    """Rows that a layout makes turns of, with ids that are made unique and what the source says of them."""
    about, unique, ignored = fields.About(source, honours_split=says_sides(path, source)), chat.Unique(), frozenset(source.ignore)
    said = {name for key in ("group", "task", "split", "names") for name in template.names(getattr(source, key))} | {"id"}

    def one(row: dict[str, Any]) -> Iterator[Reading]:
        given = row.get("id")
        name = unique(str(given)) if isinstance(given, str | int) and given != "" else None
        made, used, inside = convert(row, ignored)
        if name is not None:
            made["id"] = name
        made |= template.about(source, row)
        told, whence = about.complete(made, row)
        names = {*used, *told, *said}
        left = {key: value for key, value in row.items() if key not in names}
        yield Reading(made, [key for key in row if key in names], {**left, **inside} if inside else left, whence, frames=about.in_frames)

    yield from each(path, source, one)


def lhotse(path: Path, source: Source) -> Rows:
    """Lhotse's cuts: a sample for each supervision."""
    about = fields.About(source, honours_split=says_sides(path, source))

    def convert(row: dict[str, Any]) -> Iterator[Reading]:
        for made, used, left in cuts.convert(row, source.prompt):
            used = used + about.split(made, row)
            yield Reading(made, used, {**cuts.left_of(row), **left}, "person" if "group" in made else "")

    yield from each(path, source, convert)


def ljspeech(path: Path, source: Source) -> Rows:
    """LJSpeech: the folder, or its metadata.csv: `id|text|text as it is read` a line, without header or quotes, beside wavs/."""
    for number, line in lines(listing(path)):
        try:
            if isinstance(line, DataError):
                raise line
            if line.strip():
                yield number, trees.ljspeech(line)
        except DataError as error:
            yield number, error


def librispeech(path: Path, source: Source) -> Rows:
    """LibriSpeech: its folder, or one of a part, a speaker or a chapter; rows are numbered through all transcript files."""
    if not path.is_dir():
        raise DataError("missing", f"{path}: expected a folder with SPEAKER/CHAPTER/{trees.LIBRI_TEXTS}")
    count = 0
    for file in trees.transcripts(path):
        for number, line in lines(file):
            count += 1
            try:
                if isinstance(line, DataError):
                    raise line
                if line.strip():
                    yield count, trees.librispeech(line, path, file.relative_to(path), source.prompt)
            except DataError as error:
                yield count, DataError(error.reason, f"{file.relative_to(path)}:{number}: {error.message}")


def listing(path: Path) -> Path:
    """The file in which a manifest's rows stand: the metadata of a folder of images, where it has one; else itself."""
    names = ("metadata.jsonl", "metadata.csv") if path.is_dir() else ()
    return next((path / name for name in names if (path / name).exists()), path)


def images(path: Path, source: Source) -> Rows:
    """A folder of images: metadata.jsonl or .csv (file_name, text or caption), else class folders whose names are the captions."""
    if not path.is_dir():
        raise DataError("missing", f"{path}: expected a folder of images")
    if (table := listing(path)) != path:
        found = source if source.is_template else paired(source, "file_name", "text", "image", "caption")
        yield from rows(table, found)
        return
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    for number, file in enumerate(files, start=1):
        inside = file.relative_to(path)
        if len(inside.parts) < 2:
            yield (
                number,
                DataError("bad_row", f"{inside}: expected it in a class folder", hint="or add metadata.jsonl with file_name and text"),
            )
        else:
            shown: list[dict[str, Any]] = [{"type": "image", "path": str(inside)}]
            asked = [*shown, {"type": "text", "text": source.prompt}] if source.prompt else shown
            said = inside.parts[-2].replace("_", " ")
            yield number, {"task": "caption", "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


READERS: dict[Format, Callable[[Path, Source], Rows]] = {
    "text": text,
    "samples": samples,
    "asr_csv": pairs("wav", "text", "audio", "transcribe"),
    "tts_csv": pairs("wav", "text", "audio", "speak"),
    "ocr_csv": pairs("image", "text", "image", "ocr"),
    "captions": pairs("image", "caption", "image", "caption"),
    "images": images,
    "llava": conversations,
    "alpaca": told_instructions,
    "lhotse": lhotse,
    "ljspeech": ljspeech,
    "librispeech": librispeech,
    "rows": rows,
}


ABOUT = {"group", "task", "split", "names"}  # what a source says of each row, beside its template
SHOWN = {"root", "prompt"}
# What a source may say that is of use to some formats only.
USES: dict[Format, set[str]] = {
    "text": {"paragraphs"},
    "samples": {*SHOWN, "told", "names"},
    "asr_csv": SHOWN,
    "tts_csv": {"root"},
    "ocr_csv": {*SHOWN, "told"},
    "captions": {*SHOWN, "told"},
    "images": {*SHOWN, "told"},
    "llava": {*SHOWN, "told", *ABOUT},
    "alpaca": {"root", "told", *ABOUT},
    "lhotse": SHOWN,
    "ljspeech": set(),
    "librispeech": {"prompt"},
    "rows": {"root", "told", *ABOUT, "id", "messages", "text", "negatives", "where", "expand"},
}


def refuse_idle(path: Path, source: Source, recognised: Source | None = None) -> None:
    """Raises ConfigError for what a source says and its format has no use for.

    Takes   recognised: the source as its columns were recognised, with a template of which a prompt is part.
    """
    kind = sniff(path, recognised or source)
    used = USES[kind] | ({"prompt"} if isinstance(recognised, Recognised) else set())
    for name in sorted(set().union(*USES.values()) - used):
        if is_set(source, name):
            of = ", ".join(sorted(other for other, uses in USES.items() if name in uses))
            raise ConfigError(f"{path}: {name} has no effect on format {kind}", hint=f"it is of {of}; leave it out")


def sniff(path: Path, source: Source) -> Format:
    """The format of a file by its name, its header and its first row.

    Raises  ConfigError if nothing fits.
    """
    if source.format is not None:
        return source.format
    if source.is_template:
        return "rows"
    suffix = path.suffix.lower()
    if trees.is_ljspeech(path):
        return "ljspeech"
    if path.is_dir():
        return "librispeech" if listing(path) == path and trees.is_librispeech(path) else "images"
    if suffix == ".txt":
        return "text"
    if suffix in (".csv", ".tsv"):
        first = next((row for _, row in objects(path) if isinstance(row, dict)), {})
        columns = list(first)
        if {"wav", "text"} <= set(columns):
            return "asr_csv" if columns.index("wav") < columns.index("text") else "tts_csv"
        if {"image", "text"} <= set(columns):
            return "ocr_csv"
        if {"image", "caption"} <= set(columns):
            return "captions"
    if suffix in (".json", ".jsonl"):
        return told_by(next((row for _, row in dicts(path, source) if isinstance(row, dict)), {}))
    raise ConfigError(f"{path}: can't tell its format", hint=f"set format: one of {', '.join(READERS)}")


def told_by(row: dict[str, Any]) -> Format:
    """The format of a file of objects by one of them."""
    if "messages" in row:
        return "samples"
    if chat.turns_key(row) is not None:
        return "llava"
    if cuts.knows(row):
        return "lhotse"
    if instructions.knows(row):
        return "alpaca"
    return "captions" if {"image", "caption"} <= row.keys() else "samples"
