"""Talker: a language model over code frames that speaks a text. [text tokens | start | frames], text bound to
frames by shared time."""

from __future__ import annotations

import sys
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from muomni.errors import ConfigError, DataError, ShapeError, TokenRangeError
from muomni.media.text import spoken
from muomni.models.causal import CausalLM
from muomni.models.duration import DurationModel
from muomni.nn import masks, rope
from muomni.nn.block import Block
from muomni.nn.cache import KVCache
from muomni.nn.head import IGNORE, BookHeads
from muomni.nn.norm import RMSNorm
from muomni.tokens import grid
from muomni.tokens.alphabet import Alphabet
from muomni.tokens.bpe import Tokenizer

NO_VOICE = -1  # among the numbers of speakers: a voice that has no row, or none at all


class TalkerConfig(BaseModel):
    """Sizes of the Talker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_vocab: int = Field(ge=1)
    text_units: Literal["bpe", "char"] = "bpe"
    codebooks: int = Field(default=2, ge=1)
    codebook_size: int = Field(default=128, ge=2)
    layout: Literal["delay", "parallel"] = "delay"
    width: int = Field(default=192, ge=1)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=3, ge=1)
    ffn_width: int = Field(default=768, ge=1)
    rope_theta: float = Field(default=1e4, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    condition_width: int = Field(
        default=0, ge=0
    )  # width of the Thinker's hidden states; 0 = the Talker reads text tokens alone
    condition_dropout: float = Field(
        default=0.2, ge=0, le=1
    )  # training rows that must do without hidden states
    num_speakers: int = Field(default=0, ge=0)  # voices with a row of their own; 0 = one voice
    speaker_dropout: float = Field(
        default=0.1, ge=0, lt=1
    )  # training rows whose voice is not told: they teach the voice of nobody
    code_noise: float = Field(default=0.1, ge=0, lt=1)  # input codes replaced by random ones in training
    guard_frames_per_token: int = Field(default=30, ge=1)  # upper guard only: the learned end symbol decides

    @property
    def end(self) -> int:
        """The symbol of book 0 that says the speech is over."""
        return self.codebook_size

    @property
    def pad(self) -> int:
        """The input symbol where a delayed book has not begun, or is over."""
        return self.codebook_size + 1

    @property
    def lags(self) -> tuple[int, ...]:
        """Steps by which each book starts late."""
        return tuple(range(self.codebooks)) if self.layout == "delay" else (0,) * self.codebooks

    @property
    def tail(self) -> int:
        """Steps that a grid has more than frames: room for the end symbol and for the delay."""
        return max(1, self.lags[-1])

    def lay_out(self, codes_BKF: Tensor, frames_B: Tensor) -> Tensor:
        """Grid (B, K, F + tail) of codes, with `end` in book 0 and `pad` elsewhere: what the steps say, and
        then read.

        Raises  ShapeError on another number of books; TokenRangeError for a code outside its book.
        """
        books, entries = self.codebooks, self.codebook_size
        if codes_BKF.dim() != 3 or codes_BKF.shape[1] != books:
            raise ShapeError(f"codes: expected (B, {books}, F), got {tuple(codes_BKF.shape)}")
        length = codes_BKF.shape[-1]
        real_BF = torch.arange(length, device=codes_BKF.device) < frames_B[:, None]
        codes_BKF = codes_BKF.masked_fill(~real_BF[:, None], self.pad)
        if bool(((codes_BKF < 0) | (codes_BKF >= entries)).logical_and(real_BF[:, None]).any()):
            raise TokenRangeError(f"codes: expected 0 to {entries - 1} in every real frame")
        laid = grid.delay(codes_BKF, self.pad) if self.layout == "delay" else codes_BKF
        laid = nn.functional.pad(laid, (0, length + self.tail - laid.shape[-1]), value=self.pad)
        laid[torch.arange(len(laid), device=laid.device), 0, frames_B] = self.end
        return laid

    def said(self, grid_BKS: Tensor) -> Tensor:
        """The labels of a laid-out grid: its codes, and `end` in book 0; -100 elsewhere."""
        sizes_K1 = torch.tensor([[self.codebook_size + (book == 0)] for book in range(self.codebooks)])
        return grid_BKS.masked_fill(grid_BKS >= sizes_K1.to(grid_BKS.device), IGNORE)


class SpeechCache(KVCache):
    """Keys and values of a text and the frames said so far; it knows the text's places in time."""

    text_at_BT: Tensor | None = None  # float, of the text's tokens; None: nothing stands before the frames

    @property
    def text(self) -> int:
        """Positions that are text."""
        return 0 if self.text_at_BT is None else self.text_at_BT.shape[1]


class Talker(CausalLM):
    """Causal over frames, with the whole text in view.

    Symbols of its own: a learned start vector; in every input table `end` = entries and `pad` = entries + 1
    (the corner of the delay pattern); `end` is also the last class of head 0, the other heads know codes
    only. Every codebook has its own table and head.

    A text token's rotary position is the middle of the time in which it is likely spoken, in frames (see
    `Pace`); step t has position t. So "which word now" becomes "which word is near", which is learned in a
    fraction of the steps. Source: SPEC section 7.
    """

    model_type = "muomni_talker"
    trained_by = "talker"

    def __init__(self, config: TalkerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_table = nn.Embedding(config.text_vocab, width)
        self.start = nn.Parameter(torch.randn(width) * 0.3)
        self.tables = nn.ModuleList(
            nn.Embedding(config.codebook_size + 2, width) for _ in range(config.codebooks)
        )
        self.heads = BookHeads(
            width, [config.codebook_size + (book == 0) for book in range(config.codebooks)]
        )
        self.condition = (
            nn.Sequential(RMSNorm(config.condition_width), nn.Linear(config.condition_width, width))
            if config.condition_width
            else None
        )
        self.speakers = nn.Embedding(config.num_speakers, width) if config.num_speakers else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.ffn_width, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = RMSNorm(width)
        self.pace = DurationModel(config.text_vocab)
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=0.3)

    @property
    def ctx_len(self) -> int:  # type: ignore[override]
        """Places in time are measured, not counted: no sequence is too long."""
        return sys.maxsize

    @property
    def head(self) -> BookHeads:  # type: ignore[override]
        """A stream a book."""
        return self.heads

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Hold what every step reads (blocks, last norm, heads) in a number format; embeddings and places in
        time stay in float32."""
        for part in (self.blocks, self.norm, self.heads):
            part.to(dtype)
        return self

    def text_ids(self, text: str, tokenizer: Tokenizer | None) -> list[int]:
        """The ids of a text as this Talker reads it: as it is said (lower case, numbers in words, no
        punctuation), after a space, which gives every word the one form that it has within a sentence.

        Raises  DataError(empty) if nothing is left to say; ConfigError if its units need a tokenizer and none
                is given.
        """
        text = spoken(text)
        if not text:
            raise DataError("empty", "talker: the text is empty, there is nothing to say")
        if self.config.text_units == "char":
            return Alphabet().encode(text)
        if tokenizer is None:
            raise ConfigError(
                "talker: this one reads BPE tokens, so it needs the tokenizer that it was trained with"
            )
        return tokenizer.encode(f" {text}")

    def read(
        self,
        text_ids_BT: Tensor,
        keep_BT: Tensor,
        hidden_BTD: Tensor | None = None,
        speaker_B: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, T + 1, D) of the text and the start vector.

        Takes   hidden_BTD the Thinker's states at the same tokens, or None; speaker_B numbers of voices,
                NO_VOICE where none is told.
        Raises  TokenRangeError for an id outside the vocabulary; ShapeError or ConfigError for conditions
                that this Talker doesn't take.
        """
        vocabulary = self.config.text_vocab
        if text_ids_BT.numel() and (int(text_ids_BT.min()) < 0 or int(text_ids_BT.max()) >= vocabulary):
            raise TokenRangeError(
                f"text ids: expected 0 to {vocabulary - 1}, got {int(text_ids_BT.min())} to {int(text_ids_BT.max())}"
            )
        x_BTD: Tensor = self.text_table(text_ids_BT)
        if hidden_BTD is not None:
            if self.condition is None:
                raise ConfigError(
                    "this Talker reads text tokens alone (condition_width 0), yet hidden states were given"
                )
            if (
                hidden_BTD.shape[:2] != text_ids_BT.shape
                or hidden_BTD.shape[2] != self.config.condition_width
            ):
                raise ShapeError(
                    f"hidden states: expected {(*text_ids_BT.shape, self.config.condition_width)}, got {tuple(hidden_BTD.shape)}"
                )
            told_BTD = self.condition(hidden_BTD)
            if self.training:
                heard_B = torch.rand(len(told_BTD), device=told_BTD.device) >= self.config.condition_dropout
                told_BTD = told_BTD * heard_B[:, None, None]
            x_BTD = x_BTD + told_BTD
        start_B1D = self.start.expand(len(x_BTD), 1, -1)
        if speaker_B is not None:
            if self.speakers is None:
                raise ConfigError("this Talker has one voice (num_speakers 0), yet a speaker was given")
            told_B = speaker_B != NO_VOICE
            if self.training and self.config.speaker_dropout:
                told_B &= torch.rand(len(speaker_B), device=speaker_B.device) >= self.config.speaker_dropout
            voice_B1D = (self.speakers(speaker_B.clamp(min=0)) * told_B[:, None])[:, None]
            start_B1D = start_B1D + voice_B1D
            x_BTD = x_BTD + voice_B1D
        return torch.cat((x_BTD, start_B1D), 1)

    def embed(self, grid_BKT: Tensor) -> Tensor:
        """(B,K,T) -> (B,T,D): the sum over books, each from its own table."""
        return torch.stack([table(grid_BKT[:, book]) for book, table in enumerate(self.tables)]).sum(0)

    def forward(
        self,
        text_ids_BT: Tensor,
        keep_BT: Tensor,
        grid_BKS: Tensor,
        *,
        hidden_BTD: Tensor | None = None,
        speaker_B: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, S+1, D) of the start and of S steps of a laid-out grid: state s has read steps <
        s."""
        text, steps = text_ids_BT.shape[1], grid_BKS.shape[-1] + 1
        x_BTD = torch.cat((self.read(text_ids_BT, keep_BT, hidden_BTD, speaker_B), self.embed(grid_BKS)), 1)
        at_BT = self._places(self.pace.positions(text_ids_BT, keep_BT), steps)
        return self._through(self.dropout(x_BTD), at_BT, text, mask=self._mask(keep_BT, steps))

    def hidden(
        self, x_BTD: Tensor, *, keep_BT: Tensor | None = None, cache: SpeechCache | None = None, **how: Any
    ) -> Tensor:
        """States (B,T,D) of frames, or of a text and its start vector (`read`) where a cache of
        `checkpoint_state` begins with it."""
        batch, length = x_BTD.shape[:2]
        if cache is None:
            at_BT = torch.arange(length, device=x_BTD.device).expand(batch, -1)
            return self._through(x_BTD, at_BT, 0, mask=masks.build(length, keep_BT=keep_BT, causal=True))
        cache.take(length, keep_BT)
        if cache.start or cache.text_at_BT is None:
            at_BT = (
                torch.arange(cache.start, cache.length, device=x_BTD.device).expand(batch, -1) - cache.text
            )
        else:
            at_BT = self._places(cache.text_at_BT, length - cache.text)
            text_BT = x_BTD.new_ones(batch, length, dtype=torch.bool) if keep_BT is None else keep_BT
            cache.mask = self._mask(
                text_BT[:, : cache.text], length - cache.text
            )  # the text may look ahead within itself
        return self._through(x_BTD, at_BT, 0, cache=cache)

    def new_cache(self, batch: int, capacity: int) -> SpeechCache:
        """An empty cache in the blocks' dtype and place."""
        config, weight = self.config, self.norm.weight
        return SpeechCache(
            config.layers,
            batch,
            config.heads,
            capacity,
            config.width // config.heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    def beside(self, text_ids_BT: Tensor, keep_BT: Tensor, steps: int) -> SpeechCache:
        """A cache for a text, which is to be read first, and so many steps of its speech."""
        cache = self.new_cache(len(text_ids_BT), text_ids_BT.shape[1] + steps)
        cache.text_at_BT = self.pace.positions(text_ids_BT, keep_BT)
        return cache

    def _places(self, text_at_BT: Tensor, steps: int) -> Tensor:
        """In time, of a text and steps."""
        return torch.cat(
            (text_at_BT, torch.arange(steps, device=text_at_BT.device).expand(len(text_at_BT), -1)), 1
        )

    def _through(
        self,
        x_BTD: Tensor,
        at_BT: Tensor,
        skipped: int,
        *,
        mask: Tensor | None = None,
        cache: SpeechCache | None = None,
    ) -> Tensor:
        """The blocks, and the last norm of all but the first so many positions."""
        turns = rope.angles(at_BT, self.config.width // self.config.heads, self.config.rope_theta)
        x_BTD = x_BTD.to(self.norm.weight.dtype)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rope=turns, mask=mask, cache=None if cache is None else cache.layer(index))
        out: Tensor = self.norm(x_BTD[:, skipped:])
        return out

    def _mask(self, keep_BT: Tensor, steps: int) -> Tensor | None:
        batch, text = keep_BT.shape
        keep = torch.cat((keep_BT, keep_BT.new_ones(batch, steps)), 1)
        return masks.build(
            text + steps,
            keep_BT=keep,
            causal=True,
            prefix_B=torch.full((batch,), text, device=keep_BT.device),
        )

    def guard(self, text_ids_BT: Tensor, keep_BT: Tensor, max_frames: int | None) -> Tensor:
        """Frames (B,) int64 after which a row is cut off."""
        likely_B = (3 * self.pace.frames(text_ids_BT, keep_BT) + 8).ceil().long()
        guard_B = torch.minimum(likely_B, self.config.guard_frames_per_token * keep_BT.sum(1)).clamp(min=1)
        return guard_B if max_frames is None else guard_B.clamp(max=max(1, max_frames))
