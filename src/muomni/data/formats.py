"""Files -> (line, row) pairs in the spelling of `sample.parse`; a line that can't be read comes as a DataError in its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.config import is_set
from muomni.data import llava, template, trees
from muomni.data.source import Format, Source
from muomni.errors import ConfigError, DataError

Rows = Iterator[tuple[int, dict[str, Any] | DataError]]

MAX_LINE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 512 * 2**20
SWAPPED_ROWS = 20  # that are looked at before a table is read
PARAGRAPHS_CHARACTERS = 2000  # a document of prose is closed before it grows beyond this
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"}
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".au", ".caf", ".w64", ".m4a", ".aac", ".wma", ".amr"}
MEDIA_KEYS = {"image", "audio", "path", "wav", "video", "image_url", "audio_url", "file_name"}


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


def samples(path: Path, source: Source) -> Rows:
    """Sample rows as they are; {"text"} documents; question and answer without media become one document.

    The source's `prompt` is said where the user shows a medium without a word; its `names` go to `extra`.
    """
    for number, row in objects(path):
        if isinstance(row, dict):
            try:
                row = _asked(row, source) if "messages" in row else _document(row)
            except DataError as error:
                row = error
        yield (
            number,
            row if isinstance(row, dict | DataError) else DataError("bad_row", f"row: expected a JSON object, got {type(row).__name__}"),
        )


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


def _document(row: dict[str, Any]) -> dict[str, Any] | DataError:
    media = sorted(MEDIA_KEYS & row.keys())
    if media:
        return DataError(
            "bad_row", f"row: has {', '.join(media)} but no messages", hint="give the source a `messages:` template (format rows)"
        )
    if "text" not in row and isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        rest = {key: value for key, value in row.items() if key not in ("question", "answer")}
        return {**rest, "text": f"{row['question']}\n{row['answer']}"}
    return row


def rows(path: Path, source: Source) -> Rows:
    """Flat rows filled into the source's template."""
    if not source.is_template:
        raise ConfigError(f"{path}: format rows: expected a `messages:` or `text:` template, got none")
    for number, row in objects(path):
        if isinstance(row, DataError):
            yield number, row
        elif not isinstance(row, dict):
            yield number, DataError("bad_row", f"row: expected a JSON object, got {type(row).__name__}")
        else:
            try:
                for filled in template.fill(source, row):
                    yield number, filled
            except DataError as error:
                yield number, error


def _pair(kind: str, path: Any, words: Any, source: Source, *, task: str) -> dict[str, Any] | DataError:
    """A medium from the user, words from the assistant."""
    if not isinstance(path, str) or not isinstance(words, str):
        return DataError("bad_row", f"row: expected {kind} and text as strings, got {path!r:.60} and {words!r:.60}")
    if not words.strip():
        return DataError("empty", "text: expected words, got none")
    content: list[dict[str, Any]] = [{"type": kind, "path": path}]
    if source.prompt:
        content.append({"type": "text", "text": source.prompt})
    return {"task": task, "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": words.strip()}]}


def pairs(medium: str, words: str, kind: str, task: str) -> Callable[[Path, Source], Rows]:
    """A reader of tables with a column of files and a column of words."""

    def read(path: Path, source: Source) -> Rows:
        _refuse_swapped(path, medium, words, AUDIO_SUFFIXES if kind == "audio" else IMAGE_SUFFIXES)
        for number, row in objects(path):
            if isinstance(row, DataError):
                yield number, row
            elif not isinstance(row, dict) or not {medium, words} <= row.keys():
                got = ", ".join(map(str, row))[:80] if isinstance(row, dict) else type(row).__name__
                yield number, DataError("bad_row", f"row: expected {medium} and {words}, got {got}")
            else:
                made = _pair(kind, row[medium], row[words], source, task=task)
                known = {key: row[key] for key in ("id", "group", "speaker", "split") if isinstance(row.get(key), str) and row[key]}
                if "speaker" in known:
                    speaker = known.pop("speaker")
                    known.setdefault("group", speaker)
                    if kind == "audio" and not isinstance(made, DataError):
                        made["messages"][0]["content"][0]["speaker"] = speaker
                yield number, made if isinstance(made, DataError) else {**known, **made}

    return read


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


def tts_csv(path: Path, source: Source) -> Rows:
    """Columns text, wav: the user's text, spoken by the assistant."""
    for number, row in pairs("wav", "text", "audio", "speak")(path, source):
        if isinstance(row, dict):
            user, assistant = row["messages"]
            spoken = [user["content"][0]]
            row["messages"] = [{"role": "user", "content": assistant["content"]}, {"role": "assistant", "content": spoken}]
        yield number, row


def conversations(path: Path, source: Source) -> Rows:
    """Rows of LLaVA-Pretrain and LLaVA-Instruct: `conversations` with `<image>` where the pictures stand, or a caption and an image."""
    taken: dict[str, int] = {}
    for number, row in objects(path):
        if not isinstance(row, dict):
            yield number, row if isinstance(row, DataError) else DataError("bad_row", f"row: expected an object, got {type(row).__name__}")
            continue
        given = row.get("id")
        known = {"id": llava.unique(str(given), taken)} if isinstance(given, str | int) and given != "" else {}
        try:
            yield number, {**known, **llava.convert(row, source.prompt), **template.about(source, row)}
        except DataError as error:
            yield number, error


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
        for number, row in objects(table):
            if isinstance(row, DataError) or not isinstance(row, dict):
                yield number, row if isinstance(row, DataError) else DataError("bad_row", "row: expected an object")
                continue
            yield number, _pair("image", row.get("file_name"), row.get("text", row.get("caption")), source, task="caption")
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
            yield number, _pair("image", str(inside), inside.parts[-2].replace("_", " "), source, task="caption")


READERS: dict[Format, Callable[[Path, Source], Rows]] = {
    "text": text,
    "samples": samples,
    "asr_csv": pairs("wav", "text", "audio", "transcribe"),
    "tts_csv": tts_csv,
    "ocr_csv": pairs("image", "text", "image", "ocr"),
    "captions": pairs("image", "caption", "image", "caption"),
    "images": images,
    "llava": conversations,
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
    "ljspeech": set(),
    "librispeech": {"prompt"},
    "rows": {"root", "told", *ABOUT, "id", "messages", "text", "negatives", "where", "expand"},
}


def refuse_idle(path: Path, source: Source) -> None:
    """Raises ConfigError for what a source says and its format has no use for."""
    kind = sniff(path, source)
    for name in sorted(set().union(*USES.values()) - USES[kind]):
        if is_set(source, name):
            of = ", ".join(sorted(other for other, used in USES.items() if name in used))
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
        first = next((row for _, row in objects(path) if isinstance(row, dict)), {})
        if isinstance(first.get("conversations"), list):
            return "llava"
        is_caption = {"image", "caption"} <= first.keys() and "messages" not in first
        return "captions" if is_caption else "samples"
    raise ConfigError(f"{path}: can't tell its format", hint=f"set format: one of {', '.join(READERS)}")
