"""Words that stand for a medium: `<image>`, `<audio>` and their like in chat data, as trainers and models
spell them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Kind = Literal["image", "audio", "video"]
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("image", "images", "img", "picture", "photo", "vision"), "image"),
    **dict.fromkeys(("audio", "audios", "sound", "speech", "voice", "wav"), "audio"),
    **dict.fromkeys(("video", "videos"), "video"),
}
_NAME = "|".join(sorted(KINDS, key=len, reverse=True))
_ROLE = "out|placeholder|pad|token|soft_token|context|here|patch|content|embeds?|features?|path|file|url|start|end|bos|eos|begin"
# One medium: <|vision_start|><|image_pad|><|vision_end|>, <im_start><image><im_end>, <img>a.png</img>,
# <image>, <|image_1|>, [IMG], ...
TOKEN = rf"<\|?(?:start_of_)?(?P<name>{_NAME})(?:[_\- ]?(?:{_ROLE}))?(?:[_\- ]?\d{{1,3}})?\|?>"
# Beginnings and ends of a medium that stand around its own mark.
_BEGIN = r"<\|(?:vision|image|img|audio|video)_(?:start|bos)\|>|<(?:im_start|img_start)>"
_END = rf"<\|(?:vision|image|img|audio|video)_(?:end|eos)\|>|<(?:im_end|img_end)>|</(?:{_NAME})>"
PLACEHOLDER = re.compile(
    rf"<(?P<around>{_NAME})><\w+here></(?P=around)>"
    rf"|<(?P<tag>img|image|audio|video|speech)>(?P<path>[^<>\n]{{1,1024}})</(?P=tag)>"
    rf"|(?:{_BEGIN})?(?:{TOKEN}|\[(?P<square>IMG|IMAGE|AUDIO|VIDEO)\])(?:{_END})?",
    re.IGNORECASE,
)


MARK = re.compile(r"[<\[]")  # what each of them begins with


@dataclass(frozen=True)
class Placeholder:
    """A place in words: from `start` to `stop` stands a medium of this kind, with its path where the words
    give it."""

    kind: Kind
    start: int
    stop: int
    spelt: str
    path: str | None = None


def may_hold(words: str) -> bool:
    """Whether a text has a character that each placeholder begins with."""
    return "<" in words or "[" in words


@lru_cache(maxsize=16)  # the words of a turn are asked for their number first, and then put apart
def find(words: str) -> tuple[Placeholder, ...]:
    """The placeholders of a text, in their order."""
    placeholders: list[Placeholder] = []
    for mark in MARK.finditer(words):
        if placeholders and mark.start() < placeholders[-1].stop:
            continue
        match = PLACEHOLDER.match(words, mark.start())
        if match is None or (match["square"] and not match["square"].isupper()):
            continue
        name = (match["around"] or match["tag"] or match["name"] or match["square"]).casefold()
        start, stop, spelt, path = match.start(), match.end(), match[0], None
        if match["path"] is not None:
            spelt = words[start : start + len(name) + 2]
            if looks_like_a_path(match["path"]):
                path = match["path"].strip()
            elif match["path"].strip() != "./":  # MiniCPM-V writes (<image>./</image>)
                stop = start + len(spelt)
        placeholders.append(Placeholder(KINDS[name], start, stop, spelt, path))
    return tuple(placeholders)


def looks_like_a_path(text: str) -> bool:
    """Whether what stands between two tags could name a file."""
    text = text.strip()
    return bool(re.fullmatch(r"\S+\.\w{2,5}|data:\S+|(?:\.{0,2}/)\S+|[^<>\n]*/[^<>\n]*\.\w{2,5}", text))
