"""Text, images and sounds <-> ids of one token space, with what else is needed to go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muomni.errors import DataError, TokenSpaceError
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec, CodecEntry
from muomni.tokens.space import TokenSpace

Meta = dict[str, Any]
"""JSON values that, with the ids, suffice to decode a medium."""


class UnifiedTokenizer:
    """A text tokenizer and codecs behind the ids of one token space.

    Takes   codecs: those that are at hand; a modality of the space without one can't be encoded or decoded
            here.
    Raises  TokenSpaceError where the tokenizer or a codec is not the one that the space names; it says what
            differs.
    """

    def __init__(self, text: Tokenizer, space: TokenSpace, codecs: Sequence[Codec] = ()) -> None:
        self.text, self.space = text, space
        self.codecs: Mapping[str, Codec] = {codec.modality: codec for codec in codecs}
        found = TokenSpace.of(text, special_size=space.special_size)
        expected = TokenSpace(space.text_size, space.tokenizer, special_size=space.special_size)
        expected.require(found, "text tokenizer")
        for codec in codecs:
            entry = space.codec(codec.modality)
            if lines := entry.differences(codec):
                raise TokenSpaceError(
                    f"{codec.modality} codec: not the one of the token space: {'; '.join(lines)}",
                    hint="open the codec that the space names, or make a new space and tokenise again",
                )

    # --- text ---------------------------------------------------------------------------------------------------------

    @property
    def words(self) -> tuple[range, ...]:
        """The ids of plain text: without the special ids of the text tokenizer's own."""
        marks, size = self.text.special_tokens, self.space.text_size
        plain = range(marks.words_from, size if marks.words_to is None else marks.words_to)
        return (plain, *(range(token, token + 1) for token in sorted(marks.spelled) if token not in plain))

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, never a special one; raises as `Tokenizer.encode`."""
        return self.text.encode(text)

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of ids, without the tokenizer's own special ids.

        Raises  TokenRangeError for an id that is no text, the framing tokens among them.
        """
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        return self.text.decode(self.space.from_global("text", tokens).tolist())

    # --- media --------------------------------------------------------------------------------------------------------

    def encode_image(self, pixels_3HW: Tensor) -> tuple[Tensor, Meta]:
        """Ids (`TokenSpace.ids_of`) of a picture, and what decoding needs.

        Takes   (3, H, W) float32 in [0, 1], H = W = the codec's size_px.
        Raises  as `Codec.encode`; TokenSpaceError without a codec.
        """
        return self.encode_images([pixels_3HW])[0]

    def encode_images(self, pixels: Sequence[Tensor]) -> list[tuple[Tensor, Meta]]:
        """`encode_image` of each picture, batched."""
        codes = self._codec("image").encode_many(pixels)
        return [self._with_meta("image", codes_KF, {}) for codes_KF in codes]

    def decode_image(self, ids: Tensor, meta: Meta) -> Tensor:
        """The picture (3, size_px, size_px) float32 in [0, 1] of ids.

        Raises  TokenRangeError for ids out of place (`TokenSpace.codes_of`); TokenSpaceError where meta
                speaks of another codec; DataError where it is torn.
        """
        codes_KF = self._codes("image", ids, meta)
        return self._codec("image").decode(codes_KF[None])[0]

    def encode_audio(self, wave_S: Tensor, rate_hz: int) -> tuple[Tensor, Meta]:
        """Ids (`TokenSpace.ids_of`) of a sound, and what decoding needs.

        Takes   (S,) float32 mono at the codec's sample_rate_hz: read files at that rate (media.audio.read).
        Raises  DataError for another rate; as `Codec.encode`; TokenSpaceError without a codec.
        """
        return self.encode_audios([wave_S], rate_hz)[0]

    def encode_audios(self, waves: Sequence[Tensor], rate_hz: int) -> list[tuple[Tensor, Meta]]:
        """`encode_audio` of each sound; they may have any lengths, and each gets the ids that it has
        alone."""
        codec = self._codec("audio")
        if rate_hz != codec.sample_rate_hz:
            raise DataError(
                "sample_rate",
                f"audio: expected waves at {codec.sample_rate_hz} Hz, got {rate_hz} Hz",
                hint="read the file at the codec's rate: media.audio.read(path, rate_hz)",
            )
        codes = codec.encode_many(waves)
        extra = [{"samples": len(wave_S), "sample_rate_hz": rate_hz} for wave_S in waves]
        return [self._with_meta("audio", codes_KF, each) for codes_KF, each in zip(codes, extra)]

    def decode_audio(self, ids: Tensor, meta: Meta) -> tuple[Tensor, int]:
        """The sound of ids: wave (S,) float32 of as many samples as were encoded, and its rate in Hz; raises
        as `decode_image`."""
        codes_KF = self._codes("audio", ids, meta)
        codec = self._codec("audio")
        wave_S = codec.decode(codes_KF[None])[0]
        return wave_S[: meta["samples"]], int(codec.sample_rate_hz or 0)

    def meta_of(self, modality: str, codes_KF: Tensor) -> Meta:
        """The meta of codes that a model wrote: a sound has all samples that its frames give."""
        if modality == "image":
            return self._with_meta("image", codes_KF, {})[1]
        codec = self._codec("audio")
        extra = {"samples": codec.samples(codes_KF.shape[1]), "sample_rate_hz": codec.sample_rate_hz}
        return self._with_meta("audio", codes_KF, extra)[1]

    def _codec(self, modality: str) -> Codec:
        if modality not in self.codecs:
            raise TokenSpaceError(
                f"{modality}: no codec was opened for the {self.space.codec(modality).kind} of the token space"
            )
        return self.codecs[modality]

    def _with_meta(self, modality: str, codes_KF: Tensor, extra: Meta) -> tuple[Tensor, Meta]:
        ids = self.space.ids_of(modality, codes_KF.cpu())
        entry = self.space.codec(modality)
        shape = {} if entry.grid is None else {"grid": list(entry.grid), "size_px": entry.size_px}
        return ids, {**_named(entry), "frames": int(codes_KF.shape[1]), **shape, **extra}

    def _codes(self, modality: str, ids: Tensor, meta: Meta) -> Tensor:
        """The codes of ids, once meta is seen to speak of the same codec and of as many frames."""
        named = _named(self.space.codec(modality))
        needed = (*named, "frames", *(("samples", "sample_rate_hz") if modality == "audio" else ()))
        if missing := [key for key in needed if key not in meta]:
            raise DataError(
                "bad_meta",
                f"{modality} meta: missing {', '.join(missing)}",
                hint="ids without it can't be decoded",
            )
        if lines := [
            f"{key}: expected {value}, got {meta[key]}" for key, value in named.items() if meta[key] != value
        ]:
            raise TokenSpaceError(f"{modality} meta: of another codec: {'; '.join(lines)}")
        codes_KF = self.space.codes_of(modality, ids)
        if codes_KF.shape[1] != meta["frames"]:
            raise DataError(
                "bad_meta",
                f"{modality} meta: expected {meta['frames']} frames, got ids of {codes_KF.shape[1]}",
            )
        return codes_KF


def _named(entry: CodecEntry) -> Meta:
    """The codec of an entry, as meta names it."""
    return {
        "modality": entry.modality,
        "codec": entry.kind,
        "codec_digest": entry.digest,
        "layout": entry.layout,
        "codebooks": entry.codebooks,
    }
