"""Files -> (line, row) pairs in the spelling of `sample.parse`; a line that can't be read comes as a
DataError in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.config import is_set
from muomni.data import parquet, shards, streams, tables, template, trees
from muomni.data.layouts import chat, cuts, fields, instructions, media
from muomni.data.reading import Reading
from muomni.data.sample import FIELDS, RATES, Quick, Sample
from muomni.data.source import Format, Recognised, Source
from muomni.data.streams import MAX_LINE_BYTES as MAX_LINE_BYTES
from muomni.data.streams import decode_json as decode_json
from muomni.data.streams import lines as lines
from muomni.errors import ConfigError, DataError, DataNote
from muomni.media.modality import MODALITIES

# A dict: a row of which nothing was left; a Sample: one whose line is spelt as ours are.
Rows = Iterator[tuple[int, Reading | dict[str, Any] | Sample | DataError]]

LOOKED_AT = 100  # rows in which a column of sides is looked for
SWAPPED_ROWS = 20  # that are looked at before a table is read
PARAGRAPHS_CHARACTERS = 2000  # a document of prose is closed before it grows beyond this
READ_EXTRA = frozenset(
    {"names", "text", "words", "kind", "kinds", "speaker", "speakers", "start_index", *RATES}
)  # keys beside ours that somebody reads from `extra`


def text(path: Path, source: Source) -> Rows:
    """One document a line, or, with `paragraphs`, whole paragraphs up to about 2000 characters; blank lines
    only separate."""
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


def objects(path: Path, quick: Quick | None = None) -> Iterator[tuple[int, Any]]:
    """Rows of any container, numbered from 1 or by line: JSON values, a table's or a parquet file's rows, a
    tar's samples.

    Of several files (a pattern, a folder of shards) the rows are numbered through, and their split is told by
    the files' names, where these say it. DataErrors stand in the places of rows that can't be read.
    Takes   quick: what makes samples of lines, where it can; of a lone file only, since rows of several learn
            something from its name.
    """
    parts = shards.parts(path)
    if len(parts) == 1 and parts[0] == path:
        yield from _objects(path, path.name, quick=quick)
        return
    top, sides, count = home(path), shards.sides(parts), 0
    if trees.common_voice(path) and len(parts) > 1 and (path / "validated.tsv").exists():
        names = ", ".join(part.name for part in parts)
        yield (
            1,
            DataNote(
                "repaired", f"{names} are read; validated.tsv, which holds their rows and others, is left"
            ),
        )
    for part in parts:
        inside = os.path.relpath(part.parent, top) if part.name in trees.TABLES and part.parent != top else ""
        for number, row in _objects(part, os.path.relpath(part, top), f"{part.name.partition('.')[0]}/"):
            if isinstance(row, DataError):
                row.message = f"{part.name}:{number}: {row.message}"
            elif isinstance(row, dict):
                if part in sides:
                    row.setdefault("split", sides[part])
                if inside:
                    row = {key: _placed(key, value, inside) for key, value in row.items()}
            count += not isinstance(row, DataNote)
            yield max(1, count), row


def _objects(
    path: Path, container: str, name: str = "", quick: Quick | None = None
) -> Iterator[tuple[int, Any]]:
    """Rows of one file. Takes container: its path from `home`; name: what stands before the ids that a tar
    gives."""
    suffix = streams.suffix(path)
    if suffix in tables.SUFFIXES:
        return tables.rows(path)
    if suffix == shards.TAR:
        return shards.rows(path, container, name)
    return parquet.rows(path, container) if suffix == shards.PARQUET else streams.values(path, quick)


def _placed(key: str, value: Any, inside: str) -> Any:
    """A field of a table in a folder of the set: what names files, as Hugging Face spells such columns, with
    that folder before it."""
    if isinstance(value, str) and (key == "file_name" or key.endswith("_file_name")):
        return f"{inside}/{value}"
    if isinstance(value, list) and (key == "file_names" or key.endswith("_file_names")):
        return [f"{inside}/{each}" if isinstance(each, str) else each for each in value]
    return value


def home(path: Path) -> Path:
    """The folder from which the media of a file, of a folder or of a pattern are named."""
    if path.is_dir():
        return path
    top = path.parent
    while shards.is_pattern(top) and not top.exists():
        top = top.parent
    return top


def folders(path: Path) -> list[Path]:
    """The folders of the files of a pattern: where their media may lie too."""
    return (
        sorted({part.parent for part in shards.parts(path)})
        if shards.is_pattern(path) and not path.exists()
        else []
    )


OBJECTS = (
    ".jsonl",
    ".json",
    shards.TAR,
    shards.PARQUET,
)  # suffixes of files whose rows are objects, not lines of cells


def is_table(path: Path) -> bool:
    """Whether a file, a pattern or a folder of shards holds objects, by its name."""
    return kind(path) in (*OBJECTS, *tables.SUFFIXES)


def kind(path: Path) -> str:
    """The suffix that says what a file holds, or each file of a pattern or of a folder of shards: `.jsonl` of
    `cuts.jsonl.gz`."""
    return streams.suffix(shards.parts(path)[0] if path.is_dir() and shards.is_set(path) else path)


def dicts(
    path: Path, source: Source, quick: Quick | None = None
) -> Iterator[tuple[int, dict[str, Any] | Sample | DataError]]:
    """The objects of a file, without the columns that the source ignores; what is no object is an error in
    its place."""
    ignored = [key for key in source.ignore if not key.startswith(("<", "["))]
    for number, row in objects(path, None if ignored else quick):
        if isinstance(row, dict):
            yield number, without(row, ignored) if ignored else row
        elif isinstance(row, DataError | Sample):
            yield number, row
        else:
            yield number, DataError("bad_row", f"row: expected a JSON object, got {type(row).__name__}")


def without(row: dict[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    """A row without some of its columns; those of its turns are left out too (`weight` of messages)."""
    kept = {key: value for key, value in row.items() if key not in ignored}
    for turns in ("messages", "conversations"):
        if isinstance(kept.get(turns), list):
            kept[turns] = [
                {k: v for k, v in turn.items() if k not in ignored} if isinstance(turn, dict) else turn
                for turn in kept[turns]
            ]
    return kept


def each(
    path: Path,
    source: Source,
    convert: Callable[[dict[str, Any]], Iterator[Reading]],
    quick: Quick | None = None,
) -> Rows:
    """Every row of a file as a layout reads it; what it raises stands in the row's place."""
    for number, row in dicts(path, source, quick):
        if not isinstance(row, dict):
            yield number, row
            continue
        try:
            for reading in convert(row):
                yield number, reading
        except DataError as error:
            yield number, error


def says_sides(path: Path, source: Source) -> bool:
    """Whether a column of a file's rows holds any of them out: one that is `train` throughout says nothing,
    and the hash decides."""
    keys: list[str] = []
    for number, row in enumerate(row for _, row in dicts(path, source) if isinstance(row, dict)):
        if number < LOOKED_AT and not keys:
            columns = fields.plan_of(tuple(row))
            keys = columns.splits + columns.sets
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

    Media and a system prompt beside the turns are put into them (see `layouts.chat`). The source's `prompt`
    is said where the user shows a medium without a word; its `class_name` goes to `extra`.
    """
    about, ignored = fields.About(source), frozenset(source.ignore)

    def convert(row: dict[str, Any]) -> Iterator[Reading]:
        left: dict[str, Any] = {}
        used: list[str] = []
        if "messages" not in row:
            if "text" in row and row.keys() <= FIELDS:
                yield Reading(row, row, left)
                return
            sample, used, left = _turns_or_document(row, ignored)
        elif chat.is_plain(row):
            sample = _asked(row, source)
            if source.prompt is None and source.class_name is None:
                yield Reading(row, row, left, "group" if row.get("group") is not None else "")
                return
        else:
            turns, used, left = chat.messages(row, ignored)
            sample = _asked({**row, "messages": turns}, source)
        sample = {key: value for key, value in sample.items() if key in FIELDS or key not in used}
        rest = {key: value for key, value in row.items() if key not in FIELDS}
        # Of one conversation: together they are what must not straddle a split.
        if several := _speakers(rest, sample):
            sample.setdefault("group", several)
        notes, whence = about.complete(sample, rest)
        used = [key for key in row if key in FIELDS or key in used or key in notes or key in READ_EXTRA]
        whence = "group" if sample.get("group") is not None and whence == "" else whence
        left = {**left_of(row, used), **left}
        yield Reading(
            {key: value for key, value in sample.items() if key not in notes or key in FIELDS},
            used,
            left,
            whence,
            frames=about.in_frames,
        )

    yield from each(
        path, source, convert, Quick() if source.prompt is None and source.class_name is None else None
    )


def _speakers(rest: dict[str, Any], sample: dict[str, Any]) -> str:
    """The names of a conversation's speakers as one group, "" where they are not several, or where the assistant says
    nothing aloud; `rest` then has them no more, since as the name of one person they can't be read."""
    named, messages = rest.get("speakers"), sample.get("messages")
    if not isinstance(named, list) or len(named) < 2 or not isinstance(messages, list):
        return ""
    said = [turn for turn in messages if isinstance(turn, dict) and turn.get("role") == "assistant"]
    if not fields.sounds({"messages": said}):
        return ""
    del rest["speakers"]
    return " + ".join(sorted(map(str, named)))


def _turns_or_document(row: dict[str, Any], ignored: frozenset[str]) -> chat.Made:
    """A row without messages: another layout's turns among ours, or a document."""
    if "text" in row:
        return _document(row)
    if chat.turns_key(row) is not None:
        sample, used, left = chat.convert(row, ignored)
    elif instructions.knows(row):
        sample, used, left = instructions.convert(row, ignored)
    else:
        return _document(row)
    return {**row, **sample}, used, left


def _asked(row: dict[str, Any], source: Source) -> dict[str, Any]:
    """A sample row with what the source adds to it."""
    if source.class_name is not None:
        extra = row.get("extra")
        row = {
            **row,
            "extra": {
                **(extra if isinstance(extra, dict) else {}),
                "names": template.text(source.class_name, row),
            },
        }
    if source.prompt is not None and isinstance(row["messages"], list):
        row = {**row, "messages": [_with_words(message, source.prompt) for message in row["messages"]]}
    return row


def _with_words(message: Any, prompt: str) -> Any:
    """A user's message of media alone with the prompt behind them; any other as it is."""
    parts = message.get("content") if isinstance(message, dict) and message.get("role") == "user" else None
    if not isinstance(parts, list) or not parts:
        return message
    if not all(isinstance(part, dict) and part.get("type") in MODALITIES for part in parts):
        return message
    return {**message, "content": [*parts, {"type": "text", "text": prompt}]}


def _document(row: dict[str, Any]) -> chat.Made:
    """A row without turns as a document.

    Raises  DataError (bad_row) where it names media: they would be dropped.
    """
    named = sorted(
        key for key, value in row.items() if value and key not in FIELDS and media.names_media(key, value)
    )
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
        for sample, used, whence in filled.fill(row):
            yield Reading(sample, used, left_of(row, used), whence, is_chosen, filled.in_frames)

    yield from each(path, source, convert)


def pairs(medium: str, words: str, kind: str, task: str) -> Callable[[Path, Source], Rows]:
    """A reader of tables with a column of files and a column of words: a template over these two."""

    def read(path: Path, source: Source) -> Rows:
        _refuse_swapped(path, medium, words, MODALITIES[kind].suffixes)
        return rows(path, paired(source, medium, words, kind, task))

    return read


def paired(source: Source, medium: str, words: str, kind: str, task: str) -> Recognised:
    """The template of a medium and its words; for `speak` the assistant says them, else it writes them."""
    shown, answer = {kind: f"{{{medium}}}"}, f"{{{words}}}"
    user_parts = [shown, *([source.prompt] if source.prompt else [])]
    turns = (
        [{"user": answer}, {"assistant": [shown]}]
        if task == "speak"
        else [{"user": user_parts}, {"assistant": answer}]
    )
    return Recognised.of(source, task=task, messages=turns)


def _refuse_swapped(path: Path, medium: str, words: str, suffixes: frozenset[str]) -> None:
    """Stop where in all first rows of a table the words look like files and the files like words.

    Raises  ConfigError, which says so in a line.
    """
    if kind(path) not in tables.SUFFIXES:
        return
    rows = [row for _, row in islice(objects(path), SWAPPED_ROWS) if isinstance(row, dict)]
    pairs = [
        (row[medium], row[words])
        for row in rows
        if isinstance(row.get(medium), str) and isinstance(row.get(words), str)
    ]
    if pairs and all(
        _looks_like_a_file(text, suffixes) and not _looks_like_a_file(name, suffixes) for name, text in pairs
    ):
        name, text = pairs[0]
        raise ConfigError(
            f"{path}: columns {medium} and {words} are swapped: {medium} holds {name[:40]!r}, {words} holds {text[:40]!r}",
            hint=f"swap their names in the first line, or their cells: {medium} names the file",
        )


def _looks_like_a_file(cell: str, suffixes: frozenset[str]) -> bool:
    """Whether a cell names a medium; words may end in `.wav` only by an accident of spelling."""
    return Path(cell.strip()).suffix.lower() in suffixes if len(cell) < 4096 else False


def conversations(path: Path, source: Source) -> Rows:
    """Rows of LLaVA, ShareGPT and LLaMA-Factory: `conversations` with `<image>` where the media stand, or a
    caption and an image."""
    return _turned(path, source, lambda row, ignored: chat.convert(row, ignored, source.prompt))


def instruction_rows(path: Path, source: Source) -> Rows:
    """Rows of Alpaca and its like: instruction, input, output."""
    return _turned(path, source, instructions.convert)


def _turned(
    path: Path, source: Source, convert: Callable[[dict[str, Any], frozenset[str]], chat.Made]
) -> Rows:
    """Rows that a layout makes turns of, with ids that are made unique and what the source says of them."""
    about, unique, ignored = (
        fields.About(source, honours_split=says_sides(path, source)),
        chat.Unique(),
        frozenset(source.ignore),
    )
    used_names = {
        name
        for key in ("group", "task", "split", "class_name")
        for name in template.names(getattr(source, key))
    } | {"id"}

    def one(row: dict[str, Any]) -> Iterator[Reading]:
        own_id = row.get("id")
        name = unique(str(own_id)) if isinstance(own_id, str | int) and own_id != "" else None
        sample, used, inside = convert(row, ignored)
        if name is not None:
            sample["id"] = name
        sample |= template.about(source, row)
        notes, whence = about.complete(sample, row)
        names = {*used, *notes, *used_names}
        left = {key: value for key, value in row.items() if key not in names}
        yield Reading(
            sample,
            [key for key in row if key in names],
            {**left, **inside} if inside else left,
            whence,
            frames=about.in_frames,
        )

    yield from each(path, source, one)


def lhotse(path: Path, source: Source) -> Rows:
    """Lhotse's cuts: a sample for each supervision."""
    about = fields.About(source, honours_split=says_sides(path, source))

    def convert(row: dict[str, Any]) -> Iterator[Reading]:
        for sample, used, left in cuts.convert(row, source.prompt):
            used = used + about.split(sample, row)
            yield Reading(sample, used, {**cuts.left_of(row), **left}, "person" if "group" in sample else "")

    yield from each(path, source, convert)


def ljspeech(path: Path, source: Source) -> Rows:
    """LJSpeech: the folder, or its metadata.csv: `id|text|text as it is read` a line, without header or
    quotes, beside wavs/."""
    for number, line in lines(listing(path)):
        try:
            if isinstance(line, DataError):
                raise line
            if line.strip():
                yield number, trees.ljspeech(line)
        except DataError as error:
            yield number, error


def librispeech(path: Path, source: Source) -> Rows:
    """LibriSpeech: its folder, or one of a part, a speaker or a chapter; rows are numbered through all
    transcript files."""
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
    """The file in which a manifest's rows stand: the one table of a folder of media, where it has one; else
    itself."""
    if path.is_dir() and trees.is_higgs(path):
        return path / trees.HIGGS_TABLE
    tables = shards.parts(path) if path.is_dir() else []
    return tables[0] if len(tables) == 1 and tables[0].name in trees.TABLES else path


def images(path: Path, source: Source) -> Rows:
    """A folder of pictures: metadata (file_name, text or caption), its own or of each split, else class
    folders named by the captions."""
    return _folder(path, source, "image", ("text", "caption"), "caption")


def sounds(path: Path, source: Source) -> Rows:
    """A folder of sounds: metadata (file_name, transcription or text), its own or of each split, else class
    folders named by the labels."""
    return _folder(path, source, "audio", ("transcription", "text"), "transcribe", "label")


def _folder(
    path: Path, source: Source, medium: str, words: tuple[str, str], task: str, of_classes: str | None = None
) -> Rows:
    if not path.is_dir():
        raise DataError("missing", f"{path}: expected a folder of {MODALITIES[medium].noun}s")
    if shards.is_set(path):
        yield from rows(
            path, source if source.is_template else paired(source, "file_name", words[0], medium, words[1])
        )
        return
    for number, entry in enumerate(trees.classes(path, MODALITIES[medium].suffixes), start=1):
        if isinstance(entry, DataError):
            yield number, entry
            continue
        inside, class_name, side = entry
        if medium == "audio" and (path / inside).with_suffix(".txt").exists():
            what = f"{inside}: expected a folder of classes, got a text beside the sound: {inside.with_suffix('.txt').name}"
            yield (
                number,
                DataError(
                    "bad_row",
                    what,
                    hint="write its words into a metadata.csv with file_name and transcription",
                ),
            )
            continue
        shown: list[dict[str, Any]] = [{"type": medium, "path": str(inside)}]
        user_parts = [*shown, {"type": "text", "text": source.prompt}] if source.prompt else shown
        turns = [{"role": "user", "content": user_parts}, {"role": "assistant", "content": class_name}]
        row = {"task": of_classes or task, "messages": turns}
        yield number, {**row, "split": side} if side else row


def vctk(path: Path, source: Source) -> Rows:
    """VCTK's folder: a row a text of txt/, with the sound of its first microphone."""
    if not trees.is_vctk(path):
        raise DataError(
            "missing", f"{path}: expected a folder with txt/ and wav48_silence_trimmed/ or wav48/"
        )
    yield from enumerate(trees.vctk(path, source.prompt), start=1)


def higgs(path: Path, source: Source) -> Rows:
    """Sets of Higgs Audio trainers: the folder, or its metadata.json, beside sounds and texts."""
    table = listing(path)
    try:
        content = decode_json(table.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError("undecodable", f"{table}: expected UTF-8: {error.reason}") from error
    except DataError as error:
        raise DataError(error.reason, f"{table}: {error.message}") from error
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise DataError("bad_row", f"{table}: expected an object with a list of samples, got none")
    for number, row in enumerate(samples, start=1):
        try:
            sample, used = trees.higgs(row, table.parent)
        except DataError as error:
            yield number, error
            continue
        whence = "person" if "group" in sample else ""
        yield number, Reading(sample, used, left_of(row, used), whence)


READERS: dict[Format, Callable[[Path, Source], Rows]] = {
    "text": text,
    "samples": samples,
    "asr_csv": pairs("wav", "text", "audio", "transcribe"),
    "tts_csv": pairs("wav", "text", "audio", "speak"),
    "ocr_csv": pairs("image", "text", "image", "ocr"),
    "captions": pairs("image", "caption", "image", "caption"),
    "images": images,
    "sounds": sounds,
    "llava": conversations,
    "alpaca": instruction_rows,
    "lhotse": lhotse,
    "ljspeech": ljspeech,
    "librispeech": librispeech,
    "vctk": vctk,
    "higgs": higgs,
    "rows": rows,
}


ABOUT = {"group", "task", "split", "class_name"}  # what a source says of each row, beside its template
SHOWN = {"root", "prompt"}
# What a source may say that is of use to some formats only.
USES: dict[Format, set[str]] = {
    "text": {"paragraphs"},
    "samples": {*SHOWN, "captions_as_text", "class_name"},
    "asr_csv": SHOWN,
    "tts_csv": {"root"},
    "ocr_csv": {*SHOWN, "captions_as_text"},
    "captions": {*SHOWN, "captions_as_text"},
    "images": {*SHOWN, "captions_as_text"},
    "sounds": SHOWN,
    "llava": {*SHOWN, "captions_as_text", *ABOUT},
    "alpaca": {"root", "captions_as_text", *ABOUT},
    "lhotse": SHOWN,
    "ljspeech": set(),
    "librispeech": {"prompt"},
    "vctk": {"prompt"},
    "higgs": set(),
    "rows": {"root", "captions_as_text", *ABOUT, "id", "messages", "text", "negatives", "where", "expand"},
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
            raise ConfigError(
                f"{path}: {name} has no effect on format {kind}", hint=f"it is of {of}; leave it out"
            )


def sniff(path: Path, source: Source) -> Format:
    """The format of a file by its name, its header and its first row.

    Raises  ConfigError if nothing fits.
    """
    if source.format is not None:
        return source.format
    if source.is_template:
        return "rows"
    suffix = kind(path)
    if trees.is_ljspeech(path):
        return "ljspeech"
    if trees.is_higgs(path):
        return "higgs"
    if path.is_dir() and not shards.is_whole(path):
        if not shards.is_set(path) and trees.is_librispeech(path):
            return "librispeech"
        if trees.is_vctk(path):
            return "vctk"
        return "sounds" if trees.sounds_alone(path) else "images"
    if suffix == ".txt":
        return "text"
    if suffix in tables.SUFFIXES:
        first = next((row for _, row in objects(path) if isinstance(row, dict)), {})
        columns = list(first)
        if {"wav", "text"} <= set(columns):
            return "asr_csv" if columns.index("wav") < columns.index("text") else "tts_csv"
        if {"image", "text"} <= set(columns):
            return "ocr_csv"
        if {"image", "caption"} <= set(columns):
            return "captions"
    if suffix in OBJECTS:
        return format_of_row(next((row for _, row in dicts(path, source) if isinstance(row, dict)), {}))
    raise ConfigError(f"{path}: can't tell its format", hint=f"set format: one of {', '.join(READERS)}")


def format_of_row(row: dict[str, Any]) -> Format:
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
