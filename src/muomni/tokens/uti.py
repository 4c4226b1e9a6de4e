"""The `token_space.json` of version uti_v1: a layout of others, read and written.

It names no digests, so a reader must bring the tokenizer and codecs that it means; ranges and sizes are
compared with them. Its hash covers the time and paths within it, so equal layouts have different ones: it is
written, never compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muomni import files
from muomni.errors import TokenSpaceError
from muomni.tokens.codec import CodecEntry
from muomni.tokens.space import TOKEN_SPACE, TokenSpace

VERSION = "uti_v1"
HASH = "token_space.sha256"
SERIALIZATION = "flatten_by_time_interleaved_codebooks"  # its only layout


def content(
    space: TokenSpace,
    *,
    created_utc: str,
    base_text_model: str,
    image_tokenizer: Mapping[str, Any] | None = None,
    audio_codec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of a space.

    Takes   image_tokenizer, audio_codec: further settings of theirs; sizes and layout are the space's.
    Raises  TokenSpaceError for a layout that uti_v1 does not have.
    """
    ranges = {_name(region.name): _range(region.start, region.size) for region in space.regions}
    blocks: dict[str, dict[str, Any]] = {
        "image_tokenizer": dict(image_tokenizer or {}),
        "audio_codec": dict(audio_codec or {}),
    }
    for entry in space.codecs:
        if space.lags(entry.modality) is not None:
            raise TokenSpaceError(f"{VERSION}: expected the layout interleaved, got {entry.layout}")
        if entry.modality == "image":
            blocks["image_tokenizer"] |= {"codebook_size": entry.codebook_size}
        else:
            blocks["audio_codec"] |= {
                "n_codebooks": entry.codebooks,
                "codebook_size": entry.codebook_size,
                "sample_rate": entry.sample_rate_hz,
                "serialization": SERIALIZATION,
            }
    return {
        "version": VERSION,
        "created_utc": created_utc,
        "base_text_model": base_text_model,
        "text_vocab_size": space.text_size,
        "special_tokens": {f"<|{name}|>": token for name, token in space.specials.items()},
        "ranges": ranges,
        **blocks,
        "vocab_size_total": space.size,
    }


def write(space: TokenSpace, folder: Path, **settings: Any) -> None:
    """Write token_space.json and its token_space.sha256; settings as `content` takes them."""
    found = content(space, **settings)
    files.write_json(Path(folder) / TOKEN_SPACE, found)
    files.write_text(Path(folder) / HASH, own_hash(found) + "\n")


def own_hash(found: Mapping[str, Any]) -> str:
    """The hash that uti_v1 gives a file's content, time and paths included."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def read(path: Path, *, tokenizer: str, codecs: Sequence[CodecEntry]) -> TokenSpace:
    """The space of a uti_v1 file.

    Takes   tokenizer: digest of the text tokenizer that it was made with; codecs: entries of its codecs.
    Raises  TokenSpaceError where the file's version, ranges, special ids or sizes are not what follows from
            these.
    """
    found = files.read_stored(Path(path), dict, hint="expected a token_space.json of version uti_v1")
    if found.get("version") != VERSION:
        raise TokenSpaceError(f"{path}: expected version {VERSION}, got {found.get('version')!r}")
    try:
        text_size, special_size = int(found["text_vocab_size"]), int(found["ranges"]["SPECIAL"]["size"])
        space = TokenSpace(text_size, tokenizer, tuple(codecs), special_size)
        expected = content(space, created_utc="", base_text_model="")
        lines = [
            f"{key} {name}: expected {own.get(name, 'none')}, got {other.get(name, 'none')}"
            for key, own, other in ((key, expected[key], found[key]) for key in ("ranges", "special_tokens"))
            for name in dict.fromkeys((*own, *other))
            if own.get(name) != other.get(name)
        ]
        for key in ("image_tokenizer", "audio_codec"):
            known = {name: value for name, value in (found.get(key) or {}).items() if name in expected[key]}
            own = {name: expected[key][name] for name in known}
            lines += [
                f"{key} {name}: expected {own[name]}, got {known[name]}"
                for name in known
                if own[name] != known[name]
            ]
        if found["vocab_size_total"] != space.size:
            lines.append(f"vocab_size_total: expected {space.size}, got {found['vocab_size_total']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenSpaceError(
            f"{path}: no token space of {VERSION}: {type(error).__name__} {error}"
        ) from error
    if lines:
        raise TokenSpaceError(f"{path}: not the space of this tokenizer and these codecs: {'; '.join(lines)}")
    return space


def _range(start: int, size: int) -> dict[str, int]:
    return {"start": start, "end": start + size - 1, "size": size}


def _name(region: str) -> str:
    """audio_0 -> AUDIO_CB0."""
    return region.upper().replace("AUDIO_", "AUDIO_CB")
