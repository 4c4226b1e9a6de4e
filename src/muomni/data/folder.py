"""A folder of manifests: which of its files are manifests, which are media, and which are neither."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from muomni.data import formats, trees
from muomni.errors import UserError

TABLES = {".jsonl", ".csv", ".tsv"}
SEPARATORS = re.compile(rb'["/\\,\t\r\n]+')
ABOUT = re.compile(r"(readme|licen[cs]e|notice|copying|credits|changelog|requirements|sha256sums|md5sums|vocab)", re.IGNORECASE)


@dataclass
class Contents:
    """What a folder holds; hidden files and folders are passed over."""

    manifests: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)  # of a manifest's suffix, but none
    media: set[str] = field(default_factory=set)


def scan(path: Path) -> Contents | None:
    """The manifests of a folder and below it; None for a folder of images or a corpus of speech, which is its own manifest."""
    if formats.listing(path) != path or trees.is_librispeech(path):
        return None
    found = Contents()
    for file in sorted(path.absolute().rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(path.absolute()).parts) or not file.is_file():
            continue
        suffix = file.suffix.lower()
        if suffix in formats.IMAGE_SUFFIXES or suffix in formats.AUDIO_SUFFIXES:
            found.media.add(str(file))
        elif suffix in TABLES or suffix in (".json", ".txt"):
            (found.manifests if _is_manifest(file, suffix) else found.skipped).append(file)
    if found.media and all(file.suffix.lower() == ".txt" for file in found.manifests):
        return None  # notes beside pictures in class folders
    return found


def unnamed(media: set[str], manifests: list[Path]) -> list[str]:
    """Those of the media whose file names stand in no manifest, bad rows too: a row that can't be read still names its file."""
    names = {Path(name).name.encode(errors="surrogateescape") for name in media}
    for manifest in manifests if names else ():
        with manifest.open("rb") as stream:
            for line in iter(lambda: stream.readline(formats.MAX_LINE_BYTES), b""):
                names.difference_update(SEPARATORS.split(line))
    return sorted(name for name in media if Path(name).name.encode(errors="surrogateescape") in names)


def sounds(path: Path) -> set[str]:
    """The sounds of a folder and below it."""
    return {str(file) for file in path.absolute().rglob("*") if file.suffix.lower() in formats.AUDIO_SUFFIXES}


def _is_manifest(file: Path, suffix: str) -> bool:
    """Tables always; a JSON file unless it is one object of settings; a text unless its name says that it is about the data."""
    if suffix == ".txt":
        return not ABOUT.match(file.stem)
    if suffix != ".json":
        return True
    try:
        with file.open("rb") as stream:
            head = stream.read(formats.MAX_LINE_BYTES)
        value = formats.decode_json(head.decode())
    except (UserError, UnicodeDecodeError, OSError):
        return True  # broken, or many lines of JSON: its reader will say
    return not isinstance(value, dict) or bool({"messages", "text"} & value.keys())
