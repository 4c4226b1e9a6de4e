"""The token space: what each integer id means, as a contract that every file of ids carries and every reader
checks.

Regions follow each other without a gap: text, special, image, audio_0 .. audio_{K-1}. All ids and ranges
follow from the sizes, so two spaces are equal exactly if their `hash` is. The hash covers what gives an id
its meaning, and never a time, a path, a device or a name that somebody chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni import files
from muomni.errors import ConfigError, ShapeError, TokenRangeError, TokenSpaceError
from muomni.tokens import grid
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import CodecEntry

VERSION = "muomni_tokens_v1"
TOKEN_SPACE = "token_space.json"  # the file that lies beside shards and weights
SPECIALS = (
    "text_start",  # around a text
    "text_end",
    "img_start",  # around the codes of an image
    "img_end",
    "aud_start",  # around the codes of a sound
    "aud_end",
    "gen_text",  # asks for a text, an image or a sound, which follows
    "gen_img",
    "gen_aud",
    "pad_mm",  # fills rows, and streams that have not begun or have ended
)
SPECIAL_SIZE = 64  # ids kept for special tokens; those without a name are reserved
# By modality: what asks for it, starts and ends it.
FRAMING = {
    "text": ("gen_text", "text_start", "text_end"),
    "image": ("gen_img", "img_start", "img_end"),
    "audio": ("gen_aud", "aud_start", "aud_end"),
}
MEDIA = ("image", "audio")  # in the order of their regions


@dataclass(frozen=True)
class Region:
    """Ids start .. end, both included, that one codebook, the text or the special tokens own."""

    name: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """The last id."""
        return self.start + self.size - 1

    @property
    def ids(self) -> range:
        """All ids."""
        return range(self.start, self.start + self.size)

    def __str__(self) -> str:
        return f"{self.name} ({self.start}..{self.end})"


@dataclass(frozen=True)
class TokenSpace:
    """The sizes and digests from which every id of a model with media tokens follows.

    text_size     ids of the text tokenizer: its own count, never the rows of a language model's table
    tokenizer     digest of the text tokenizer (Tokenizer.digest)
    codecs        at most one for images and one for audio, in this order
    special_size  ids kept for special tokens
    """

    text_size: int
    tokenizer: str
    codecs: tuple[CodecEntry, ...] = ()
    special_size: int = SPECIAL_SIZE

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.special_size < len(SPECIALS):
            raise ConfigError(
                f"token space: expected text_size >= 1 and special_size >= {len(SPECIALS)}, got {self.text_size} and {self.special_size}"
            )
        order = [entry.modality for entry in self.codecs]
        if order != [name for name in MEDIA if name in order]:
            raise ConfigError(
                f"token space: expected at most one codec for each of {', '.join(MEDIA)}, in this order, got {order}"
            )
        for entry in self.codecs:
            grid.lags(entry.layout, entry.codebooks)  # refuses an unknown layout
            if entry.codebooks < 1 or entry.codebook_size < 1:
                raise ConfigError(
                    f"token space: codec {entry.name}: expected codebooks and codebook_size >= 1, "
                    f"got {entry.codebooks} and {entry.codebook_size}"
                )

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, codecs: Sequence[CodecEntry] = (), special_size: int = SPECIAL_SIZE
    ) -> TokenSpace:
        """The space of a text tokenizer and codecs, which may come in any order."""
        ordered = sorted(codecs, key=lambda entry: MEDIA.index(entry.modality))
        return cls(tokenizer.num_ids, tokenizer.digest, tuple(ordered), special_size)

    # --- regions ------------------------------------------------------------------------------------------------------

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """All regions in order; each begins where the one before ends."""
        sizes = [("text", self.text_size), ("special", self.special_size)]
        for entry in self.codecs:
            sizes += [(name, entry.codebook_size) for name in book_names(entry)]
        regions: list[Region] = []
        for name, size in sizes:
            regions.append(Region(name, regions[-1].end + 1 if regions else 0, size))
        return tuple(regions)

    @property
    def size(self) -> int:
        """All ids: one more than the highest."""
        return self.regions[-1].end + 1

    @property
    def new_rows(self) -> range:
        """The ids that a text model has no rows for: special tokens and media."""
        return range(self.text_size, self.size)

    def region(self, name: str) -> Region:
        """The region of a name: text, special, image, audio_0, ...

        Raises  TokenSpaceError for a name that this space does not have.
        """
        found = next((region for region in self.regions if region.name == name), None)
        if found is None:
            raise TokenSpaceError(
                f"token space: expected a region of {', '.join(r.name for r in self.regions)}, got {name!r}"
            )
        return found

    def region_of(self, token: int) -> Region:
        """The region in which an id lies.

        Raises  TokenRangeError for an id outside of the space.
        """
        found = next((region for region in self.regions if token in region.ids), None)
        if found is None:
            raise TokenRangeError(f"token space: expected ids in 0..{self.size - 1}, got {token}")
        return found

    @cached_property
    def specials(self) -> Mapping[str, int]:
        """Ids of the named special tokens."""
        first = self.region("special").start
        return {name: first + place for place, name in enumerate(SPECIALS)}

    def special(self, name: str) -> int:
        """The id of a special token, such as "img_start"."""
        return self.specials[name]

    @property
    def pad(self) -> int:
        """The id that fills rows and silent streams."""
        return self.specials["pad_mm"]

    # --- codecs -------------------------------------------------------------------------------------------------------

    def codec(self, modality: str) -> CodecEntry:
        """The codec of a modality.

        Raises  TokenSpaceError where this space has none.
        """
        found = next((entry for entry in self.codecs if entry.modality == modality), None)
        if found is None:
            kinds = ", ".join(entry.modality for entry in self.codecs) or "no media"
            raise TokenSpaceError(f"token space: it has no {modality} tokens, only {kinds}")
        return found

    def books(self, modality: str) -> tuple[Region, ...]:
        """The regions of a modality's codebooks, in order; raises as `codec`."""
        return tuple(self.region(name) for name in book_names(self.codec(modality)))

    def lags(self, modality: str) -> tuple[int, ...] | None:
        """How a modality's streams start (`grid.lags`), None for one stream; raises as `codec`."""
        entry = self.codec(modality)
        return grid.lags(entry.layout, entry.codebooks)

    @property
    def streams(self) -> int:
        """Streams of a row: 1, or as many as the codec has that lays its books side by side."""
        side_by_side = [
            entry.codebooks for entry in self.codecs if grid.lags(entry.layout, entry.codebooks) is not None
        ]
        return max(side_by_side, default=1)

    # --- ids and codes ------------------------------------------------------------------------------------------------

    def to_global(self, name: str, codes: Tensor) -> Tensor:
        """Ids of codes 0 .. size - 1 of a region, of the same shape, int64.

        Raises  TokenRangeError naming the position, the code and the range; ShapeError for floats.
        """
        region = self.region(name)
        codes = _whole(codes)
        _refuse_outside(
            codes,
            0,
            region.size - 1,
            lambda code: f"a code of {region.name} (0..{region.size - 1}), got {code}",
        )
        return codes + region.start

    def from_global(self, name: str, ids: Tensor) -> Tensor:
        """Codes of ids of a region, of the same shape, int64; raises as `to_global`."""
        region = self.region(name)
        ids = _whole(ids)
        _refuse_outside(
            ids, region.start, region.end, lambda token: f"an id of {region}, got {self.describe(token)}"
        )
        return ids - region.start

    def ids_of(self, modality: str, codes_KF: Tensor) -> Tensor:
        """A medium's codes as ids, laid out: (F * K,) for one stream, else (K, columns) with pads where a
        stream is silent.

        Raises  ShapeError for other than K books of at least one frame (of an image: of its own F);
                TokenRangeError as `to_global`, with the book in the message.
        """
        entry, codes_KF = self.codec(modality), _whole(codes_KF)
        if (
            codes_KF.ndim != 2
            or codes_KF.shape[0] != entry.codebooks
            or not self._is_length(entry, codes_KF.shape[1])
        ):
            expected = f"({entry.codebooks}, {_frames(entry) or 'F >= 1'})"
            raise ShapeError(f"{modality} codes: expected {expected}, got {tuple(codes_KF.shape)}")
        ids_KF = torch.stack(
            [self.to_global(book.name, row) for book, row in zip(self.books(modality), codes_KF)]
        )
        if (lags := self.lags(modality)) is None:
            return grid.interleave(ids_KF[None])[0]
        return grid.delay(ids_KF[None], self.pad)[0] if any(lags) else ids_KF

    def codes_of(self, modality: str, ids: Tensor) -> Tensor:
        """The codes (K, F) of a medium's ids, laid out as `ids_of` does; every id is checked, those of silent
        streams too.

        Raises  TokenRangeError naming the first position whose id is not of the book that belongs there, or
                the position at which a span was cut off; ShapeError for another number of streams.
        """
        entry, ids, lags = self.codec(modality), _whole(ids), self.lags(modality)
        streams = () if lags is None else (entry.codebooks,)
        if ids.shape[:-1] != streams or ids.ndim != len(streams) + 1:
            raise ShapeError(f"{modality} ids: expected {(*streams, 'T')}, got {tuple(ids.shape)}")
        self._refuse_length(modality, ids.shape[-1])
        if lags is None:
            ids_KF = grid.deinterleave(ids[None], entry.codebooks)[0]
        else:
            ids_KF = grid.undelay(ids[None])[0] if any(lags) else ids
        books = self.books(modality)
        start_K1, end_K1 = torch.tensor(
            [[(book.start,), (book.end,)] for book in books], device=ids.device
        ).unbind(1)
        if bool((wrong_KF := (ids_KF < start_K1) | (ids_KF > end_K1)).any()):
            late = range(entry.codebooks) if lags is None else lags
            per_frame = entry.codebooks if lags is None else 1
            at, book, frame = min((f * per_frame + late[k], k, f) for k, f in wrong_KF.nonzero().tolist())
            place = f"{at}" if lags is None else f"{at} of stream {book}"
            found = self.describe(int(ids_KF[book, frame]))
            raise TokenRangeError(
                f"{modality} span: position {place}: expected an id of {books[book]}, got {found}"
            )
        codes_KF = ids_KF - start_K1
        if bool((noise := self.ids_of(modality, codes_KF) != ids).any()):  # only where streams are silent
            stream, at = noise.nonzero()[0].tolist()
            found = self.describe(int(ids[stream, at]))
            raise TokenRangeError(
                f"{modality} span: position {at} of stream {stream}: expected pad_mm ({self.pad}), for it is silent there, got {found}"
            )
        return codes_KF

    def _refuse_length(self, modality: str, length: int) -> None:
        """Raise TokenRangeError for a span that ends within a frame, too early or too late."""
        entry, lags = self.codec(modality), self.lags(modality)
        per_frame, tail = (entry.codebooks, 0) if lags is None else (1, max(lags))
        whole, cut = divmod(length - tail, per_frame)
        wanted = _frames(entry)
        if cut or whole < (wanted or 1):
            book = self.books(modality)[cut]
            rest = f"{wanted} frames" if wanted else "whole frames, at least one"
            raise TokenRangeError(
                f"{modality} span: position {length}: expected an id of {book}, got the end; "
                f"it is cut off: it needs {rest} of {entry.codebooks} ids"
            )
        if wanted is not None and whole > wanted:
            last = wanted * per_frame + tail
            raise TokenRangeError(
                f"{modality} span: position {last}: expected the end after {wanted} frames, got {length - last} more"
            )

    def names(self) -> list[str]:
        """How a text tokenizer may spell the ids behind the text's, in order: `<|img_start|>`, `<|special_10|>`,
        `<|image_0|>`, `<|audio_1_5|>` (book 1, code 5)."""
        specials = {token: name for name, token in self.specials.items()}
        spelled = []
        for region in self.regions[1:]:
            for number, token in enumerate(region.ids):
                name = specials.get(token, f"{region.name}_{number}")
                spelled.append(f"<|{name}|>")
        return spelled

    def describe(self, token: int) -> str:
        """An id for people: its number, and what it means here."""
        if not 0 <= token < self.size:
            return f"{token}, which is no id of this space (0..{self.size - 1})"
        name = next((name for name, own in self.specials.items() if own == token), None)
        return f"{token}, which is {name}" if name else f"{token}, which is of {self.region_of(token).name}"

    def _is_length(self, entry: CodecEntry, frames: int) -> bool:
        wanted = _frames(entry)
        return frames >= 1 if wanted is None else frames == wanted

    # --- identity -----------------------------------------------------------------------------------------------------

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical content, hex."""
        return files.sha256_json(self._canonical())

    def _canonical(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "tokenizer": self.tokenizer,
            "regions": [[region.name, region.start, region.size] for region in self.regions],
            "special_tokens": dict(self.specials),
            "codecs": {entry.modality: _meaning(entry) for entry in self.codecs},
        }

    def differences(self, other: TokenSpace) -> list[str]:
        """A line for each thing in which another space differs from this one; empty where ids mean the same
        in both."""
        lines = _pairs(
            "region",
            {r.name: f"{r.start}..{r.end}" for r in self.regions},
            {r.name: f"{r.start}..{r.end}" for r in other.regions},
        )
        lines += _pairs("special token", self.specials, other.specials)
        lines += _pairs("text", {"tokenizer": self.tokenizer}, {"tokenizer": other.tokenizer})
        for modality in MEDIA:
            own, others = (
                [_meaning(entry) for entry in space.codecs if entry.modality == modality]
                for space in (self, other)
            )
            lines += _pairs(f"{modality} codec", own[0] if own else {}, others[0] if others else {})
        return lines

    def require(self, other: TokenSpace, where: str) -> None:
        """Refuse a space in which ids mean something else; where: what carries the other space.

        Raises  TokenSpaceError that names each difference.
        """
        if lines := self.differences(other):
            raise TokenSpaceError(
                f"{where}: its token space is another one: {'; '.join(lines)}",
                hint="use what was made with one token space, or make it again with this one",
            )

    def require_hash(self, found: object, where: str) -> None:
        """Refuse a hash that is not this space's, where no more than the hash is known (a sample of a shard).

        Raises  TokenSpaceError with both.
        """
        if found != self.hash:
            raise TokenSpaceError(
                f"{where}: expected ids of token space {self.hash[:12]}, got {str(found)[:12]}",
                hint=f"compare the {TOKEN_SPACE} beside it with this one's: `require` says what differs",
            )

    # --- on disk ------------------------------------------------------------------------------------------------------

    def to_json(self, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of token_space.json; provenance: where it came from, which is no part of what it is."""
        return {
            "version": VERSION,
            "hash": self.hash,
            "size": self.size,
            "tokenizer": self.tokenizer,
            "regions": {r.name: {"start": r.start, "end": r.end, "size": r.size} for r in self.regions},
            "special_tokens": dict(self.specials),
            "codecs": [entry.to_json() for entry in self.codecs],
            "provenance": dict(provenance or {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = TOKEN_SPACE) -> TokenSpace:
        """The space that `to_json` wrote.

        Raises  TokenSpaceError where keys are missing, or what it says of itself (ranges, special ids, hash)
                is not what follows from its sizes: it was changed by hand, or by another version.
        """
        if content.get("version") != VERSION:
            raise TokenSpaceError(
                f"{where}: expected version {VERSION}, got {content.get('version')!r}",
                hint="a uti_v1 file is read by tokens.uti.read, with its tokenizer and codecs",
            )
        try:
            regions = {
                str(name): (int(each["start"]), int(each["end"]), int(each["size"]))
                for name, each in content["regions"].items()
            }
            codecs = tuple(CodecEntry.from_json(each) for each in content["codecs"])
            space = cls(regions["text"][2], str(content["tokenizer"]), codecs, regions["special"][2])
            specials = {str(name): int(token) for name, token in content["special_tokens"].items()}
            stored = (str(content["hash"]), int(content["size"]))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise TokenSpaceError(f"{where}: no token space: {type(error).__name__} {error}") from error
        ranges = {region.name: (region.start, region.end, region.size) for region in space.regions}
        lines = _pairs("region", ranges, regions) + _pairs("special token", space.specials, specials)
        lines += _pairs("", {"hash": space.hash, "size": space.size}, {"hash": stored[0], "size": stored[1]})
        if lines:
            raise TokenSpaceError(
                f"{where}: it contradicts itself: {'; '.join(lines)}",
                hint="it was changed after it was written: copy it again",
            )
        return space

    def save(self, folder: Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write `folder/token_space.json`."""
        files.write_json(Path(folder) / TOKEN_SPACE, self.to_json(provenance))

    @classmethod
    def load(cls, folder: Path) -> TokenSpace:
        """Open `folder/token_space.json`; raises TokenSpaceError as `from_json`, UserError where the file is
        missing or torn."""
        path = Path(folder) / TOKEN_SPACE
        return cls.from_json(
            files.read_stored(path, dict, hint="copy it from where the ids were made"), str(path)
        )


def book_names(entry: CodecEntry) -> list[str]:
    """The regions of a codec's books: "image" for the one book of an image, else the modality and the book's
    number."""
    if entry.modality == "image" and entry.codebooks == 1:
        return ["image"]
    return [f"{entry.modality}_{book}" for book in range(entry.codebooks)]


def _frames(entry: CodecEntry) -> int | None:
    """Frames of every medium of a codec, None where they vary."""
    return None if entry.grid is None else entry.grid[0] * entry.grid[1]


def _meaning(entry: CodecEntry) -> dict[str, Any]:
    """What of a codec gives ids their meaning: all but the name that somebody chose for it."""
    content = {key: value for key, value in entry.to_json().items() if key != "name"}
    rate_hz = content["frame_rate_hz"]
    return {
        **content,
        "frame_rate_hz": None if rate_hz is None else float(rate_hz),
    }  # 50 and 50.0 are one rate


def _pairs(what: str, own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """A line for each name whose value is not the same in both."""
    return [
        f"{what} {name}: expected {_short(own.get(name, 'none'))}, got {_short(other.get(name, 'none'))}".strip()
        for name in dict.fromkeys((*own, *other))
        if own.get(name, "none") != other.get(name, "none")
    ]


def _short(value: object) -> str:
    """A value as a message shows it: digests by their beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _whole(ids: Tensor) -> Tensor:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ShapeError(f"token space: expected whole numbers, got {ids.dtype}")
    return ids.long()


def _refuse_outside(ids: Tensor, low: int, high: int, expected: Any) -> None:
    """Raise TokenRangeError at the first entry outside of low..high."""
    outside = (ids < low) | (ids > high)
    if bool(outside.any()):
        at = outside.nonzero()[0].tolist()
        place = at[0] if len(at) == 1 else tuple(at)
        raise TokenRangeError(f"position {place}: expected {expected(int(ids[tuple(at)]))}")
