"""What stands in a medium's place and is none: the pointer that git-lfs left, the page that a server sent
instead of the file."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 512


@dataclass(frozen=True)
class Foreign:
    """What a file is, and the way out."""

    what: str
    hint: str


DOWNLOAD = "download the file again; a login or another address may be needed"
LFS = Foreign(
    "a pointer of git-lfs, whose file was never fetched", "run `git lfs pull` in the data's repository"
)
PAGE = Foreign("a web page", DOWNLOAD)
ANSWER = Foreign("a server's answer in XML or JSON", DOWNLOAD)
SIGNS: list[tuple[bytes, Foreign]] = [
    (b"version https://git-lfs", LFS),
    (b"<!doctype html", PAGE),
    (b"<html", PAGE),
    (b"<head", PAGE),
    (b"<body", PAGE),
    (b"<svg", Foreign("a drawing in SVG", "render it to PNG")),
    (b"<?xml", ANSWER),
    (b"<error", ANSWER),
    (b"{", ANSWER),
    (b"%pdf", Foreign("a PDF document", "render its pages to PNG")),
    (b"%!ps", Foreign("a PostScript document", "render it to PNG")),
    (b"pk\x03\x04", Foreign("a zip archive", "unpack it")),
    (b"\x1f\x8b", Foreign("a gzip archive", "unpack it")),
    (b"7z\xbc\xaf", Foreign("a 7z archive", "unpack it")),
    (b"rar!", Foreign("a rar archive", "unpack it")),
    (b"\x80\x02", Foreign("a Python pickle", "save pictures and sounds as files")),
    (b"\x93numpy", Foreign("a numpy array", "save it as a picture or sound")),
    (b"\x89hdf", Foreign("an HDF5 file", "save its pictures and sounds as files")),
]


def explain(head: bytes) -> Foreign | None:
    """What a file is that begins so, where it is known and no medium."""
    start = head[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((foreign for sign, foreign in SIGNS if start.startswith(sign)), None)
    if kind is ANSWER and b"<svg" in start:
        return next(foreign for sign, foreign in SIGNS if sign == b"<svg")
    if kind is ANSWER and b"<html" in start:
        return PAGE
    return kind or (_text(start) if start else None)


def picture(head: bytes) -> Foreign | None:
    """What a file is that is a picture, or shows some, in a form that is not read here."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return Foreign("HEIC", "save it as JPEG or PNG")
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return Foreign("JPEG XL", "save it as JPEG or PNG")
    if brand or head[:4] == b"\x1aE\xdf\xa3" or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return Foreign("a video", "save its frames as JPEG or PNG")
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return Foreign("a sound", "name it as a sound")
    return None


def _text(start: bytes) -> Foreign | None:
    """Plain words, such as `404: Not Found`."""
    try:
        words = start.decode()
    except UnicodeDecodeError:
        return None
    line = words.partition("\n")[0]
    return (
        Foreign(f"text: {line[:40]!r}", DOWNLOAD)
        if words.isprintable() or all(c.isprintable() or c.isspace() for c in words)
        else None
    )
