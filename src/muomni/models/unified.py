"""The unified tokenizer of a text tokenizer's folder and codecs' folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from muomni.errors import ConfigError
from muomni.models.codecs import open_codec
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import CodecEntry
from muomni.tokens.space import TokenSpace
from muomni.tokens.unified import UnifiedTokenizer


class CodecReference(NamedTuple):
    """Where a codec is, how many books of it are used (None: it has one choice), and how they become a
    row."""

    path: str
    codebooks: int | None = None
    layout: str = "interleaved"

    @classmethod
    def parse(cls, text: str) -> CodecReference:
        """`PATH`, `PATH:BOOKS` or `PATH:BOOKS:LAYOUT`.

        Raises  ConfigError for a number of books that is none.
        """
        path, _, rest = text.partition(":")
        books, _, layout = rest.partition(":")
        if books and not books.isdecimal():
            raise ConfigError(
                f"--codec {text}: expected a number of codebooks, got {books!r}",
                hint="PATH:BOOKS:LAYOUT, e.g. codec:4:delay",
            )
        return cls(path, int(books) if books else None, layout or "interleaved")


def open_unified(
    tokenizer: str, codecs: Sequence[CodecReference], device: torch.device | str = "cpu"
) -> UnifiedTokenizer:
    """The tokenizer over the token space that its parts make; it can be a `partial`, which other processes
    call.

    Raises  ConfigError, CheckpointError for folders that hold no tokenizer or codec, or two codecs of one
            modality.
    """
    text = Tokenizer.load(Path(tokenizer))
    opened = [open_codec(each.path, each.codebooks, device) for each in codecs]
    entries = [
        CodecEntry.of(codec, codec.kind, each.layout) for codec, each in zip(opened, codecs, strict=True)
    ]
    return UnifiedTokenizer(text, TokenSpace.of(text, entries), opened)


def to_json(tokenizer: str, codecs: Sequence[CodecReference]) -> dict[str, Any]:
    """The arguments of `open_unified` as JSON, paths absolute."""
    return {
        "tokenizer": str(Path(tokenizer).absolute()),
        "codecs": [
            [str(Path(each.path).absolute()) if Path(each.path).exists() else each.path, *each[1:]]
            for each in codecs
        ],
    }
