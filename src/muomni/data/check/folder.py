"""A folder of manifests: which of its files are manifests, which are media, and which are neither."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from muomni.data import formats, shards, streams, trees
from muomni.errors import UserError
from muomni.media.modality import of_suffix

SEPARATORS = re.compile(rb'["/\\,\t\r\n]+')
ABOUT = re.compile(
    r"(readme|licen[cs]e|notice|copying|credits|changelog|requirements|sha256sums|md5sums|vocab)",
    re.IGNORECASE,
)


@dataclass
class Contents:
    """What a folder holds; hidden files and folders are passed over."""

    manifests: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)  # of a manifest's suffix, but none
    media: set[str] = field(default_factory=set)


def scan(path: Path) -> Contents | None:
    """The manifests of a folder and below it; None for one that is its own manifest: of media with a table or
    in classes, or a corpus."""
    knows = (trees.is_librispeech, trees.is_vctk, trees.is_ljspeech, trees.is_higgs)
    if shards.is_set(path) or any(known(path) for known in knows):
        return None
    contents = Contents()
    for file in trees.files(path.absolute()):
        suffix = streams.suffix(file)
        if of_suffix(suffix):
            contents.media.add(str(file))
        elif formats.is_table(file) or suffix == ".txt":
            (
                contents.manifests if file.is_file() and _is_manifest(file, suffix) else contents.skipped
            ).append(file)
    if contents.media and all(file.suffix.lower() == ".txt" for file in contents.manifests):
        return None  # notes beside pictures in class folders
    return contents


def unnamed(media: set[str], manifests: list[Path]) -> list[str]:
    """Those of the media whose file names stand in no manifest, bad rows too: a row that can't be read still
    names its file."""
    names = {Path(name).name.encode(errors="surrogateescape") for name in media}
    for manifest in manifests if names else ():
        with manifest.open("rb") as stream:
            for line in iter(lambda: stream.readline(formats.MAX_LINE_BYTES), b""):
                names.difference_update(SEPARATORS.split(line))
    return sorted(name for name in media if Path(name).name.encode(errors="surrogateescape") in names)


def sounds(path: Path) -> set[str]:
    """The sounds of a folder and below it; of two microphones the second is not counted."""
    paths = {str(file) for file in trees.files(path.absolute()) if of_suffix(file.suffix.lower()) == "audio"}
    return {name for name in paths if "_mic2." not in name or name.replace("_mic2.", "_mic1.") not in paths}


def _is_manifest(file: Path, suffix: str) -> bool:
    """Tables always; a JSON file unless it is one object of settings; a text unless its name says that it is
    about the data."""
    if suffix == ".txt":
        return not ABOUT.match(file.stem)
    if suffix != ".json":
        return True
    try:
        first: Any = next(iter(streams.values(file)), (1, {}))[1]
    except (UserError, OSError):
        return True  # broken: its reader will say
    return (
        not isinstance(first, dict)
        or bool({"messages", "text", "conversations"} & first.keys())
        or not _is_one_object(file)
    )


def _is_one_object(file: Path) -> bool:
    """Whether a file of JSON holds one object alone, as settings do."""
    with streams.opened(file) as stream:
        if stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
            return False
    try:
        return len(list(islice(streams.values(file), 2))) < 2
    except UserError:
        return False
