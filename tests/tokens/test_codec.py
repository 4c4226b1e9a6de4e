"""What tokens know of a codec: batches by equal length only, refusals that name what is wrong, entries of a
token space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from muomni.errors import CheckpointError, DataError, ShapeError, TokenRangeError
from muomni.tokens import codec
from muomni.tokens.codec import CodecEntry


class Counting:
    """Codes of a wave are its samples by tens: book 0 the tens, book 1 the ones. `batches` says what it was
    asked."""

    kind, modality, codebooks, codebook_size = "counting", "audio", 2, 10
    frame_rate_hz, sample_rate_hz, size_px, grid = 100.0, 100, None, None
    digest = "0" * 64

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def encode(self, media: Tensor) -> Tensor:
        codec.check_media(self, media)
        self.batches.append(tuple(media.shape))
        return torch.stack([media // 10, media % 10], 1).long()

    def decode(self, codes_BKF: Tensor) -> Tensor:
        codec.check_codes(self, codes_BKF)
        return (10 * codes_BKF[:, 0] + codes_BKF[:, 1]).float()

    def encode_many(self, media: Sequence[Tensor]) -> list[Tensor]:
        return codec.encode_by_length(self, media)

    def frames(self, samples: int) -> int:
        return samples

    def samples(self, frames: int) -> int:
        return frames


class Pictures(Counting):
    modality, size_px, grid, codebooks = "image", 4, (2, 2), 1  # type: ignore[assignment]
    frame_rate_hz = sample_rate_hz = None  # type: ignore[assignment]


def clip(length: int, first: int = 0) -> Tensor:
    return (torch.arange(length) + first).float() % 100


def test_clips_are_batched_with_their_equals_and_come_back_in_order() -> None:
    own = Counting()
    clips = [clip(5), clip(3, 40), clip(5, 70), clip(3, 90), clip(5, 20), clip(1, 99)]
    codes = own.encode_many(clips)
    for each, told in zip(clips, codes):
        assert torch.equal(own.decode(told[None])[0], each)
    assert own.batches == [(3, 5), (2, 3), (1, 1)]


def test_a_batch_holds_no_more_rows_than_said_and_no_more_numbers_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Counting()
    codes = codec.encode_by_length(own, [clip(5, start) for start in range(5)], most=2)
    assert own.batches == [(2, 5), (2, 5), (1, 5)]
    assert torch.equal(torch.stack(codes)[:, 1, 0], torch.arange(5))
    monkeypatch.setattr(codec, "MOST_NUMBERS", 11)
    own.batches.clear()
    codec.encode_by_length(own, [clip(5)] * 3 + [clip(50)])
    assert own.batches == [(2, 5), (1, 5), (1, 50)]
    assert codec.encode_by_length(own, []) == []


@pytest.mark.parametrize(
    "media", [torch.zeros(3), torch.zeros(2, 0), torch.zeros(1, 1, 5), torch.zeros(1, 5, dtype=torch.int64)]
)
def test_waves_of_another_shape_are_refused(media: Tensor) -> None:
    with pytest.raises(ShapeError, match="mono waves"):
        Counting().encode(media)


def test_numbers_that_are_none_are_refused() -> None:
    wave = torch.zeros(1, 5)
    wave[0, 3] = torch.nan
    with pytest.raises(DataError) as refused:
        Counting().encode(wave)
    assert refused.value.reason == "nonfinite"


def test_pictures_have_the_codecs_size_and_lie_between_0_and_1() -> None:
    own = Pictures()
    codec.check_media(own, torch.ones(2, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"\(B, 3, 4, 4\)"):
        codec.check_media(own, torch.ones(2, 3, 4, 5))
    with pytest.raises(DataError, match=r"0 to 255.*divide bytes by 255"):
        codec.check_media(own, 255 * torch.tensor([0.0, 1.0]).repeat(2, 3, 4, 2))
    with pytest.raises(ShapeError, match=r"\(B, 1, 4\)"):
        codec.check_codes(own, torch.zeros(1, 1, 3, dtype=torch.int64))


def test_a_code_outside_its_book_is_named() -> None:
    codes = torch.zeros(2, 2, 4, dtype=torch.int64)
    codes[1, 1, 2] = 10
    with pytest.raises(TokenRangeError, match=r"0 to 9, got 10 \(row 1, book 1, frame 2\)"):
        Counting().decode(codes)
    codes[1, 1, 2] = -1
    with pytest.raises(TokenRangeError, match="got -1"):
        Counting().decode(codes)
    for wrong in (torch.zeros(1, 3, 4), torch.zeros(1, 2, 0), torch.zeros(2, 4), torch.zeros(1, 2, 4)):
        with pytest.raises(ShapeError):
            Counting().decode(wrong)


def test_an_entry_goes_through_json_and_back() -> None:
    for own in (Counting(), Pictures()):
        entry = CodecEntry.of(own, "voice", "delay")
        assert CodecEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
        entry.require(own, "shards")
    content = CodecEntry.of(Counting(), "voice", "delay").to_json()
    del content["digest"]
    with pytest.raises(CheckpointError, match="digest"):
        CodecEntry.from_json(content)
    with pytest.raises(CheckpointError, match="colour"):
        CodecEntry.from_json({**content, "digest": "", "colour": 1})


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("digest", "1" * 64),
        ("codebooks", 3),
        ("codebook_size", 11),
        ("frame_rate_hz", 50.0),
        ("sample_rate_hz", 8000),
        ("kind", "mimi"),
    ],
)
def test_a_stale_entry_is_refused_and_says_what_differs(key: str, other: object) -> None:
    entry = replace(CodecEntry.of(Counting(), "voice", "delay"), **{key: other})
    with pytest.raises(
        CheckpointError, match=f"shards: codec voice is not the one that made it: {key}: expected"
    ):
        entry.require(Counting(), "shards")


def test_a_digest_names_all_that_changes_codes() -> None:
    made = {
        codec.digest_of(kind, {"stride": stride}, codebooks, weights)
        for kind in ("a", "b")
        for stride in (1, 2)
        for codebooks in (1, 2)
        for weights in ("x", "y")
    }
    assert len(made) == 16
    assert codec.digest_of("a", {"b": 1, "c": 2}, 1, "x") == codec.digest_of("a", {"c": 2, "b": 1}, 1, "x")
