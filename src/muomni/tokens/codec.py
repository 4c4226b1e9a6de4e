"""What tokens know of a codec: a medium <-> K streams of ids, and how a token space names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from muomni import files
from muomni.errors import CheckpointError, DataError, ShapeError, TokenRangeError

MOST_NUMBERS = 2**21  # samples or pixel values of one batch: 87 s at 24 kHz, or 10 pictures of 256 px


class Codec(Protocol):
    """A medium <-> K streams of ids, equal for equal input; each clip's codes are those that it has alone.

    kind            its name: muomni_codec, muomni_image_codec, encodec, mimi, dac, janus_vq (models.codecs)
    modality        "audio" or "image" (media.modality)
    codebooks       K
    codebook_size   ids of each book: 0 .. codebook_size - 1
    frame_rate_hz   frames of codes a second; None for images
    sample_rate_hz  of its waves; None for images
    size_px         side of its pictures; None for audio
    grid            rows and columns of an image's tokens, F = rows * columns, row by row; None for audio
    digest          sha256 of its weights and of what else changes codes (`digest_of`)
    """

    @property
    def kind(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def codebooks(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def frame_rate_hz(self) -> float | None: ...
    @property
    def sample_rate_hz(self) -> int | None: ...
    @property
    def size_px(self) -> int | None: ...
    @property
    def grid(self) -> tuple[int, int] | None: ...
    @property
    def digest(self) -> str: ...

    def encode(self, media: Tensor) -> Tensor:
        """Codes (B, K, F) int64.

        Takes   float32 on the codec's device: mono waves (B, S) at sample_rate_hz, all of one length and none
                of them padded; or pictures (B, 3, H, W) in [0, 1], H = W = size_px.
        Raises  ShapeError for another shape; DataError for values not finite, or pictures outside [0, 1].
        """
        ...

    def decode(self, codes_BKF: Tensor) -> Tensor:
        """The media of codes: waves (B, samples(F)), or pictures (B, 3, size_px, size_px) in [0, 1], float32.

        Raises  ShapeError for another shape; TokenRangeError for a code outside its book.
        """
        ...

    def encode_many(self, media: Sequence[Tensor]) -> list[Tensor]:
        """Codes (K, F) of each clip (S,) of any length, or picture (3, H, W): `encode_by_length`."""
        ...

    def frames(self, samples: int) -> int:
        """Frames of codes that a wave of so many samples gives; for images F, whatever is asked."""
        ...

    def samples(self, frames: int) -> int:
        """Samples of the wave that so many frames give back.

        Raises  ShapeError for a codec of images.
        """
        ...

    def code_vectors(self) -> list[Tensor]:
        """What its decoder reads of each code: a table (codebook_size, any width) float of every book.

        Codes whose vectors are near mean nearly the same. New rows of a language model begin as such
        neighbours.
        """
        ...


@dataclass(frozen=True)
class CodecEntry:
    """What a token space stores of a codec.

    name    of the codec in the space: a short word of the recipe
    layout  how K books become one stream: interleaved, delay, parallel
    """

    name: str
    kind: str
    modality: str
    codebooks: int
    codebook_size: int
    layout: str
    digest: str
    frame_rate_hz: float | None = None
    sample_rate_hz: int | None = None
    size_px: int | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def of(cls, codec: Codec, name: str, layout: str) -> CodecEntry:
        """The entry of a codec."""
        own = [field.name for field in fields(cls) if field.name not in ("name", "layout")]
        return cls(name=name, layout=layout, **{each: getattr(codec, each) for each in own})

    def to_json(self) -> dict[str, Any]:
        """As it stands in token_space.json."""
        return {**asdict(self), "grid": None if self.grid is None else list(self.grid)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CodecEntry:
        """The entry that `to_json` wrote.

        Raises  CheckpointError where a key is missing or unknown.
        """
        known = [field.name for field in fields(cls)]
        if wrong := sorted(set(known) ^ set(content)):
            message = f"codec entry: missing or unknown {', '.join(wrong)}"
            raise CheckpointError(message, hint=f"expected {', '.join(known)}")
        grid = content["grid"]
        return cls(**{**content, "grid": None if grid is None else (int(grid[0]), int(grid[1]))})

    def differences(self, codec: Codec) -> list[str]:
        """A line for each thing in which a codec is another than this entry names; empty where it is the
        one."""
        return self.unlike(CodecEntry.of(codec, self.name, self.layout))

    def unlike(self, now: CodecEntry) -> list[str]:
        """A line for each thing in which another entry differs; empty where they are equal."""
        pairs = ((field.name, getattr(self, field.name), getattr(now, field.name)) for field in fields(self))
        differ = [(name, _short(before), _short(after)) for name, before, after in pairs if before != after]
        return [f"{name}: expected {before}, got {after}" for name, before, after in differ]

    def require(self, codec: Codec, where: str) -> None:
        """Refuse another codec than this entry names.

        Raises  CheckpointError that says what differs; where: what was made with the codec of this entry.
        """
        if lines := self.differences(codec):
            raise CheckpointError(
                f"{where}: codec {self.name} is not the one that made it: {'; '.join(lines)}",
                hint="open the codec that made it, or tokenise the media again",
            )


def _short(value: object) -> str:
    """A value as a message shows it: digests by their beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def digest_of(kind: str, config: Mapping[str, Any], codebooks: int, weights: str) -> str:
    """The digest of a codec: of what changes its codes.

    Takes   config: all settings that change codes, as JSON; weights: a digest of its tensors (store.digest).
    """
    return files.sha256_json({"kind": kind, "config": config, "codebooks": codebooks, "weights": weights})


def encode_by_length(codec: Codec, media: Sequence[Tensor], *, most: int | None = None) -> list[Tensor]:
    """Codes (K, F) of clips or pictures, batched with others of exactly equal shape, in the order given.

    Never padded: a clip that is padded in a batch gets other codes than alone from EnCodec, Mimi and DAC,
    whatever mask is given (tests/models/test_residual_codecs.py). What is left is the rounding of a batch's
    matrix products, which can turn a code whose two nearest entries are equally near; evaluate.codec_audit
    measures it, and most=1 rules it out.

    Takes   most: rows of a batch, None: as many as MOST_NUMBERS allows.
    Raises  as `Codec.encode`.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, each in enumerate(media):
        by_shape.setdefault(tuple(each.shape), []).append(number)
    codes: dict[int, Tensor] = {}
    for numbers in by_shape.values():
        fit = max(1, MOST_NUMBERS // max(1, media[numbers[0]].numel()))
        rows = fit if most is None else min(most, fit)
        for first in range(0, len(numbers), rows):
            some = numbers[first : first + rows]
            codes.update(zip(some, codec.encode(torch.stack([media[number] for number in some]))))
    return [codes[number] for number in range(len(media))]


def check_media(codec: Codec, media: Tensor) -> None:
    """Refuse media that a codec can't encode.

    Raises  ShapeError for another shape than `Codec.encode` takes; DataError as there.
    """
    if codec.modality == "image":
        size = codec.size_px
        fits = media.ndim == 4 and media.shape[1:] == (3, size, size)
        expected = f"pictures (B, 3, {size}, {size})"
    else:
        fits = media.ndim == 2 and media.shape[1] > 0
        expected = f"mono waves (B, S) at {codec.sample_rate_hz} Hz"
    if not fits or not media.is_floating_point():
        raise ShapeError(f"{codec.kind}: expected {expected}, floats, got {media.dtype} {tuple(media.shape)}")
    if not bool(media.isfinite().all()):
        raise DataError("nonfinite", f"{codec.kind}: the media hold NaN or infinite values")
    if codec.modality == "image" and media.numel() and (float(media.min()) < 0 or float(media.max()) > 1):
        span = f"{float(media.min()):.3g} to {float(media.max()):.3g}"
        raise DataError(
            "range", f"{codec.kind}: expected pictures in [0, 1], got {span}", hint="divide bytes by 255"
        )


def check_codes(codec: Codec, codes_BKF: Tensor) -> None:
    """Refuse codes that a codec can't decode.

    Raises  ShapeError where they are not (B, K, F >= 1), or not an image's F; TokenRangeError naming the
            book.
    """
    count, size = codec.codebooks, codec.codebook_size
    wanted = None if codec.grid is None else codec.grid[0] * codec.grid[1]
    length = codes_BKF.shape[2] if codes_BKF.ndim == 3 else 0
    is_long_enough = length >= 1 if wanted is None else length == wanted
    if codes_BKF.ndim != 3 or codes_BKF.shape[1] != count or not is_long_enough:
        shape = f"(B, {count}, {'F >= 1' if wanted is None else wanted})"
        raise ShapeError(f"{codec.kind}: expected codes {shape}, got {tuple(codes_BKF.shape)}")
    if codes_BKF.is_floating_point():
        raise ShapeError(f"{codec.kind}: expected codes of whole numbers, got {codes_BKF.dtype}")
    if not codes_BKF.numel():
        return
    outside_BKF = (codes_BKF < 0) | (codes_BKF >= size)
    if bool(outside_BKF.any()):
        row, book, frame = (int(each) for each in outside_BKF.nonzero()[0])
        place = f"row {row}, book {book}, frame {frame}"
        raise TokenRangeError(
            f"{codec.kind}: expected codes 0 to {size - 1}, got {int(codes_BKF[row, book, frame])} ({place})",
            hint="cut start, end and pad symbols off first, and take each book's ids back to 0",
        )
