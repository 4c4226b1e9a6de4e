"""Codecs of a few lines that give equal codes on every machine, and a small set of clips and pictures for
tests of shards."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from muomni.data.source import Source
from muomni.media import audio
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import CodecEntry, check_codes, check_media, encode_by_length
from muomni.tokens.space import TokenSpace
from muomni.tokens.unified import UnifiedTokenizer

WORDS = ["the red star is big", "a blue ring", "two green squares", "it is seven", "say yes", "draw it"]


class MeanCodec:
    """Codes of a frame: its mean (book 0) and its spread (book 1), in steps; decoding gives the mean as a
    constant."""

    kind, modality, codebooks, codebook_size = "mean", "audio", 2, 32
    frame_rate_hz, sample_rate_hz, size_px, grid = 50.0, 8000, None, None
    hop = 160

    def __init__(self, digest: str = "a" * 64, swapped: bool = False) -> None:
        self.digest, self.swapped = digest, swapped

    def encode(self, media: Tensor) -> Tensor:
        check_media(self, media)  # type: ignore[arg-type]
        x_BFS = torch.nn.functional.pad(media, (0, -media.shape[1] % self.hop)).unflatten(1, (-1, self.hop))
        books = [(x_BFS.mean(2) * 4 + 16), (x_BFS.std(2) * 60)]
        codes = torch.stack(
            [each.long().clamp(0, 31) for each in (reversed(books) if self.swapped else books)], 1
        )
        return codes

    def decode(self, codes_BKF: Tensor) -> Tensor:
        check_codes(self, codes_BKF)  # type: ignore[arg-type]
        return ((codes_BKF[:, 0].float() - 15.5) / 4).repeat_interleave(self.hop, 1)

    def encode_many(self, media: list[Tensor]) -> list[Tensor]:
        return encode_by_length(self, media)  # type: ignore[arg-type]

    def frames(self, samples: int) -> int:
        return -(-samples // self.hop)

    def samples(self, frames: int) -> int:
        return frames * self.hop


class PatchCodec:
    """A token for each of 4 x 4 patches: its mean grey in 64 steps."""

    kind, modality, codebooks, codebook_size = "patch", "image", 1, 64
    frame_rate_hz, sample_rate_hz, size_px, grid = None, None, 16, (4, 4)

    def __init__(self, digest: str = "b" * 64) -> None:
        self.digest = digest

    def encode(self, media: Tensor) -> Tensor:
        check_media(self, media)  # type: ignore[arg-type]
        grey = torch.nn.functional.avg_pool2d(media.mean(1, keepdim=True), 4).flatten(2)
        return (grey * 63.999).long()

    def decode(self, codes_BKF: Tensor) -> Tensor:
        check_codes(self, codes_BKF)  # type: ignore[arg-type]
        grey = (
            (codes_BKF.float() + 0.5)
            .div(64)
            .unflatten(2, (4, 4))
            .repeat_interleave(4, 2)
            .repeat_interleave(4, 3)
        )
        return grey.expand(-1, 3, -1, -1)

    def encode_many(self, media: list[Tensor]) -> list[Tensor]:
        return encode_by_length(self, media)  # type: ignore[arg-type]

    def frames(self, samples: int) -> int:
        return 16

    def samples(self, frames: int) -> int:
        raise AssertionError


def unified(text: Tokenizer, layout: str = "interleaved", **codec: Any) -> UnifiedTokenizer:
    """A unified tokenizer over both codecs."""
    codecs: list[Any] = [PatchCodec(), MeanCodec(**codec)]
    entries = [
        CodecEntry.of(each, each.kind, layout if each.modality == "audio" else "interleaved")
        for each in codecs
    ]
    return UnifiedTokenizer(text, TokenSpace.of(text, entries), codecs)


def text_tokenizer() -> Tokenizer:
    return Tokenizer.train(WORDS * 3, 300)


def opener(**how: Any) -> partial[UnifiedTokenizer]:
    """What opens the tokenizer in any process."""
    return partial(_opened, text_tokenizer().to_json(), how)


def _opened(text: str, how: dict[str, Any]) -> UnifiedTokenizer:
    return unified(Tokenizer.from_json(text), **how)


def make_data(folder: Path, count: int, bad: tuple[int, ...] = (), captions: int = 1) -> list[Source]:
    """`count` samples of the four tasks in turn; sample numbers in `bad` have a torn medium, each medium has
    so many captions."""
    rng = np.random.default_rng(count)
    (folder / "media").mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as stream:
        for number in range(count):
            task, medium = ("i2t", "a2t", "t2i", "t2a")[number % 4], number // captions * captions
            kind = "image" if number % 2 == 0 else "audio"
            path = folder / "media" / f"{medium}.{'png' if kind == 'image' else 'wav'}"
            if not path.exists() and kind == "image":
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(path)
            elif not path.exists():
                wave = rng.normal(0, 0.1, int(rng.integers(800, 3200))).astype(np.float32)
                audio.write(path, wave + 0.2 * np.sin(np.arange(len(wave)) / 30), 8000)
            if number in bad:
                path.write_bytes(path.read_bytes()[:30])
            part, words = {"type": kind, "path": f"media/{path.name}"}, WORDS[int(rng.integers(len(WORDS)))]
            asked, said = ([part], words) if task.endswith("2t") else (words, [part])
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            stream.write(
                json.dumps(
                    {
                        "id": f"row.{number}",
                        "task": "caption" if task.endswith("2t") else "draw",
                        "messages": turns,
                    }
                )
                + "\n"
            )
    return [Source(path=str(folder / "rows.jsonl"))]
