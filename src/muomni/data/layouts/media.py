"""Fields that name media, by their names and values, and media put where the words of a conversation say."""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from muomni.data.layouts import placeholders
from muomni.data.layouts.fields import fold
from muomni.data.layouts.placeholders import Kind
from muomni.errors import DataError
from muomni.media.modality import MODALITIES

OTHER_SUFFIXES = {  # of media that a field may name and that no reader of ours may know
    *(".ark", ".npy", ".npz", ".pt"),
    *(
        ".heic",
        ".heif",
        ".jfif",
        ".svg",
        ".ppm",
        ".pgm",
        ".psd",
        ".mp4",
        ".mkv",
        ".webm",
        ".mov",
        ".avi",
        ".mpg",
        ".mpeg",
    ),
}
SUFFIXES = OTHER_SUFFIXES.union(*(row.suffixes for row in MODALITIES.values()))
SUFFIX = re.compile(rf"\.(?:{'|'.join(sorted(suffix[1:] for suffix in SUFFIXES))})$", re.IGNORECASE)
_NOUNS: dict[Kind, tuple[str, ...]] = {
    "image": ("image", "img", "picture", "pic", "photo", "jpg", "jpeg", "png", "pixelvalues"),
    "audio": (
        "audio",
        "wav",
        "sound",
        "speech",
        "recording",
        "mp3",
        "flac",
        "clip",
        "voice",
        "utterancefile",
        "waveform",
    ),
    "video": ("video", "mp4", "movie"),
}
_ENDINGS = (
    "",
    "s",
    "path",
    "paths",
    "file",
    "files",
    "filepath",
    "filepaths",
    "filename",
    "filenames",
    "url",
    "urls",
    "uri",
    "list",
    "name",
    "names",
    "bytes",
)
KEYS: dict[str, Kind] = {
    noun + ending: kind for kind, nouns in _NOUNS.items() for noun in nouns for ending in _ENDINGS
}
SOFT = {
    "voice",
    "speech",
    "sound",
    "clip",
    "photo",
    "picture",
    "pic",
    "recording",
    "waveform",
    "movie",
    "vision",
}
PROVENANCE = re.compile(
    r"source|origin|licen[cs]e|credit|attribution|url|link|homepage|provenance|citation", re.IGNORECASE
)
ARRAY = {"array", "samplingrate"}
MESSAGE_KEYS = {"role", "content"}


@lru_cache(maxsize=4096)
def kind_of_key(key: str) -> Kind | None:
    """Which kind of media a field holds, by its name; None where the name says nothing."""
    return KEYS.get(fold(key))


@lru_cache(maxsize=4096)
def is_soft(key: str) -> bool:
    """Whether a field may hold a word as well as a file, by its name: `voice: amy`."""
    return fold(key).removesuffix("s") in SOFT or fold(key).endswith(("name", "names"))


def is_word(key: str, value: Any) -> bool:
    """Whether a field that could hold a file holds a word."""
    return isinstance(value, str) and is_soft(key) and not has_suffix(value) and "/" not in value


@lru_cache(maxsize=4096)
def is_provenance(key: str) -> bool:
    """Whether a field tells where a row comes from: a file of somebody else's that it names need not be
    here."""
    return PROVENANCE.search(key) is not None


FILE_KEYS = {
    "path",
    "paths",
    "file",
    "files",
    "filename",
    "filenames",
    "filepath",
    "filepaths",
    "relpath",
    "relativepath",
    "relativefilepath",
    "location",
    "uri",
    "src",
}


@lru_cache(maxsize=4096)
def is_file_key(key: str) -> bool:
    """Whether a field names files, of whatever kind, by its name."""
    return fold(key) in FILE_KEYS or kind_of_key(key) is not None


def names_media(key: str, value: Any) -> bool:
    """Whether a field of a row without turns names media."""
    if fold(key) in FILE_KEYS:  # the file of a document of code may stand beside it
        return not isinstance(value, str) or has_suffix(value) or "." not in value
    return (
        kind_of_key(key) is not None and not isinstance(value, bool | int | float) and not is_word(key, value)
    )


def has_suffix(value: str) -> bool:
    """Whether a text ends as a medium's file does."""
    return SUFFIX.search(value.strip()[-6:]) is not None


def collect(
    row: dict[str, Any], columns: Iterable[tuple[str, Kind]]
) -> tuple[dict[Kind, list[str]], list[str]]:
    """The media that fields of a row name, by kind and in their order, and these fields.

    Takes   columns: the fields that hold media, by their names, and of which kind.
    Raises  DataError (bad_row): a value that is no path, two fields of one kind that both hold some, a video.
    """
    media_paths: dict[Kind, list[str]] = {}
    used: list[str] = []
    whence: dict[Kind, str] = {}
    for key, kind in columns:
        value = row[key]
        if isinstance(value, bool) or is_word(key, value):
            continue
        paths = paths_of(key, value)
        used.append(key)
        if not paths:
            continue
        if kind == "video":
            hint = f"`ignore: [{key}]` leaves it out"
            raise DataError(
                "bad_row", f"{key}: expected pictures and sounds, got a video, {paths[0]!r:.60}", hint=hint
            )
        if media_paths.setdefault(kind, paths) != paths:
            hint = f"leave one out: `ignore: [{key}]`"
            raise DataError(
                "bad_row", f"row: expected one list of {kind}s, got {whence[kind]} and {key}", hint=hint
            )
        whence.setdefault(kind, key)
    return media_paths, used


def paths_of(key: str, value: Any) -> list[str]:
    """Files of a field: a path, a list of them, or of what Hugging Face's `datasets` and others write in
    their place; none for null.

    Raises  DataError (bad_row).
    """
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    return [path for one in (value if isinstance(value, list) else [value]) if (path := path_of(key, one))]


def path_of(key: str, value: Any) -> str:
    """One file: a path, `{"path"}`, `{"url"}` or `{"bytes"}`, as a `data:` URI; "" for null.

    Raises  DataError (bad_row).
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray):
        return as_uri(bytes(value))
    if isinstance(value, dict):
        names = {fold(name) for name in value}
        content = value.get("bytes")
        if isinstance(content, bytes | bytearray) and content:
            return as_uri(bytes(content))
        named = next(
            (
                value[name]
                for name in ("path", "url", "file", "file_name", "image", "audio")
                if isinstance(value.get(name), str)
            ),
            None,
        )
        if named and content is None:
            return str(named)
        if names >= ARRAY:
            raise DataError(
                "bad_row",
                f"{key}: expected a file, got samples in the row (array, sampling_rate)",
                hint="write each sound to a file, or cast the column with Audio(decode=False)",
            )
    raise DataError("bad_row", f"{key}: expected a path or a list of paths, got {value!r:.60}")


def as_uri(content: bytes) -> str:
    """Bytes as a `data:` URI."""
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"


def is_bare(part: dict[str, Any]) -> bool:
    """Whether a part is a place for a medium that the row names elsewhere: `{"type": "image"}`."""
    return part.get("type") in ("image", "audio", "video") and not any(
        value for key, value in part.items() if key not in ("type", "text", "index")
    )


def paths_in(row: dict[str, Any]) -> set[str]:
    """The files that the turns of a row name."""
    contents = [message.get("content") for message in row.get("messages") or () if isinstance(message, dict)]
    parts = [
        part
        for content in contents
        if isinstance(content, list)
        for part in content
        if isinstance(part, dict)
    ]
    return {part["path"] for part in parts if isinstance(part.get("path"), str)}


def at_places(parts: list[dict[str, Any]], ignored: frozenset[str]) -> list[dict[str, Any]]:
    """The parts of a turn with its media moved to where its words have as many places for them; as they are
    where the numbers differ."""
    words = [part["text"] for part in parts if part["type"] == "text"]
    places = [
        one.kind
        for text in words
        for one in placeholders.find(text)
        if one.path is None and one.spelt not in ignored
    ]
    shown = {kind: deque(part for part in parts if part["type"] == kind) for kind in set(places)}
    if not places or any(places.count(kind) != len(paths) for kind, paths in shown.items()):
        return parts
    filler = Places({kind: [""] * len(paths) for kind, paths in shown.items()}, ignored)
    out: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] in shown:
            continue
        filled = filler.fill(part["text"]) if part["type"] == "text" else [part]
        pieces: list[dict[str, Any]] = (
            [{"type": "text", "text": filled}] if isinstance(filled, str) else filled
        )
        for piece in pieces:
            kind: placeholders.Kind = piece["type"]
            out.append(shown[kind].popleft() if piece.get("path") == "" else piece)
    return out


class Places:
    """Puts the media of a row where its turns say, one after another.

    strips   words lose their outer blanks where they hold no place too
    """

    def __init__(
        self, media: dict[Kind, list[str]], ignored: frozenset[str] = frozenset(), *, strips: bool = True
    ) -> None:
        self._left = {kind: deque(paths) for kind, paths in media.items()}
        self._ignored, self._strips = ignored, strips

    def fill(self, content: Any) -> list[dict[str, Any]] | str:
        """What a turn holds as parts, or as words where it holds no media."""
        if isinstance(content, str):
            return self._parts(content)
        out: list[Any] = []
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, dict) and is_bare(part):
                out.append({"type": part["type"], "path": self._left[part["type"]].popleft()})
                continue
            words = (
                part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
            )
            filled = self._parts(words) if isinstance(words, str) else [part]
            out += [{"type": "text", "text": filled}] if isinstance(filled, str) else filled
        return out

    def _parts(self, words: str) -> list[dict[str, Any]] | str:
        if not placeholders.may_hold(words):
            return words.strip() if self._strips else words
        placeholders_found = [
            one
            for one in placeholders.find(words)
            if one.spelt not in self._ignored and (one.path is not None or self._left.get(one.kind))
        ]
        if not placeholders_found:
            return words.strip() if self._strips else words
        parts: list[dict[str, Any]] = []
        at = 0
        for one in placeholders_found:
            if piece := words[at : one.start].strip():
                parts.append({"type": "text", "text": piece})
            parts.append(
                {
                    "type": one.kind,
                    "path": one.path if one.path is not None else self._left[one.kind].popleft(),
                }
            )
            at = one.stop
        if piece := words[at:].strip():
            parts.append({"type": "text", "text": piece})
        return parts
