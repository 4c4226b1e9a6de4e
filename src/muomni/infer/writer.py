"""Images and sounds written by a token model: text -> prompt -> legal span -> codes -> pixels or a wave."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from muomni.errors import ConfigError, ContextError, DataError
from muomni.infer import spans
from muomni.infer.sampling import MediaSampling, SamplingConfig
from muomni.models.rows import TokenModel
from muomni.tokens import grammar, sequences
from muomni.tokens.grammar import Grammar
from muomni.tokens.unified import UnifiedTokenizer

BATCH = 16


class MediaWriter:
    """A token model with its tokenizer and codecs: what it writes is held to the grammar, so that it can be
    decoded.

    Takes   longest: frames of the longest sound that it was trained to write ("audio"); without it, what
            fits; writing: how it draws the codes of a medium where the caller does not say ("image", "audio";
            else greedily); drop_prompts: the share of what it learned without the words that ask for it; reads:
            media whose words it learned to write.
    """

    def __init__(
        self,
        model: TokenModel,
        tokenizer: UnifiedTokenizer,
        longest: Mapping[str, int] | None = None,
        writing: Mapping[str, MediaSampling] | None = None,
        drop_prompts: float = 0.0,
        reads: Collection[str] = (),
    ) -> None:
        self.model, self.tokenizer, self.longest = model, tokenizer, dict(longest or {})
        self.writing, self.drop_prompts, self.reads = dict(writing or {}), drop_prompts, set(reads)

    def own(self, kind: str) -> MediaSampling:
        """How it draws the codes of a medium where the caller does not say."""
        return self.writing.get(kind, MediaSampling())

    def draw(self, texts: Sequence[str], sampling: SamplingConfig | None = None) -> list[NDArray[np.uint8]]:
        """A picture (H, W, 3) uint8 of each text.

        Takes   sampling: None: its own.
        Raises  DataError for a text without words; ContextError for one that leaves no room; TokenSpaceError
                without image tokens; ConfigError for guidance where it learned nothing without words, and for
                several candidates where it did not learn to read.
        """
        return self._written("image", texts, sampling, self._pixels)

    def speak(
        self, texts: Sequence[str], sampling: SamplingConfig | None = None
    ) -> list[tuple[NDArray[np.float32], int]]:
        """A sound of each text, (wave (S,) float32, rate in Hz); raises as `draw`."""
        return self._written("audio", texts, sampling, self._wave)

    def rules(self, kind: str, prompts: Sequence[Tensor]) -> Grammar:
        """The grammar of what may follow prompts.

        Raises  ContextError where not even the shortest span fits.
        """
        space = self.model.space
        entry = space.codec(kind)
        if entry.grid is not None:
            return grammar.of_medium(space, kind)
        prompt = max(each.shape[-1] for each in prompts)
        shortest = grammar.of_medium(space, kind, most=1)
        frame = shortest.length(2) - shortest.length(1)
        room = 1 + (self.model.ctx_len - prompt - shortest.steps) // frame
        if room < 1:
            raise ContextError(
                f"a prompt of {prompt} tokens leaves no room in {self.model.ctx_len}", hint="shorten the text"
            )
        return grammar.of_medium(space, kind, most=min(room, self.longest.get(kind, room)))

    def _written(
        self,
        kind: str,
        texts: Sequence[str],
        sampling: SamplingConfig | None,
        decode: Callable[[Tensor], Any],
    ) -> list[Any]:
        sampling = self.own(kind) if sampling is None else sampling
        if isinstance(sampling, MediaSampling) and sampling.guidance > 1 and not self.drop_prompts:
            raise ConfigError(
                "guidance: the model never learned to write without words",
                hint="train it with drop_prompts, e.g. 0.1",
            )
        if isinstance(sampling, MediaSampling) and sampling.candidates > 1 and kind not in self.reads:
            raise ConfigError(
                f"candidates: the model never learned to read what it writes ({kind}), so it can't choose",
                hint="train it with task i2t or a2t",
            )
        blank = sequences.prompt(self.model.space, kind, [])
        made: list[Any] = []
        for prompts in self._batches(kind, texts):
            rules = self.rules(kind, prompts)
            rows = spans.write(self.model, prompts, rules, sampling=sampling, blank=blank)
            made += [decode(spans.content(row, rules)) for row in rows]
        return made

    def _batches(self, kind: str, texts: Sequence[str]) -> list[list[Tensor]]:
        self.model.space.codec(kind)  # refuses what the space does not have, before any work
        for text in texts:
            if not text.strip():
                raise DataError("empty_text", f"expected words, got {text!r}")
        prompts = [
            sequences.prompt(self.model.space, kind, self.tokenizer.encode_text(text)) for text in texts
        ]
        return [prompts[first : first + BATCH] for first in range(0, len(prompts), BATCH)]

    def _pixels(self, ids: Tensor) -> NDArray[np.uint8]:
        meta = self.tokenizer.meta_of("image", self.model.space.codes_of("image", ids))
        picture_3HW = self.tokenizer.decode_image(ids, meta)
        bytes_HW3 = (picture_3HW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return np.ascontiguousarray(bytes_HW3)

    def _wave(self, ids: Tensor) -> tuple[NDArray[np.float32], int]:
        meta = self.tokenizer.meta_of("audio", self.model.space.codes_of("audio", ids))
        wave_S, rate_hz = self.tokenizer.decode_audio(ids, meta)
        return wave_S.float().cpu().numpy(), rate_hz
