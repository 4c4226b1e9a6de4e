"""An answer as it grows: ids -> pieces of text that may be shown at once and never be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muomni.tokens.bpe import Tokenizer

HALF_CHARACTER = (
    "\N{REPLACEMENT CHARACTER}"  # what decoding shows for bytes that are no character, or not yet
)


@dataclass(frozen=True)
class Answer:
    """What the model said.

    token_ids  generated ids, without the end of the turn
    finish     end: the model closed its turn; stop: a stop string came (it is not in `text`); length: max_new
               or ctx_len was reached
    audio      the same spoken, (wave (S,) float32, rate in Hz), where asked for
    """

    text: str
    token_ids: list[int]
    finish: Literal["end", "stop", "length"]
    audio: tuple[NDArray[np.float32], int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Text and ids, as the command line prints them."""
        return {"text": self.text, "token_ids": self.token_ids}


class Writer:
    """One answer being written. `push` gives the text that has become certain; `text` is all that was given
    so far."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = [each for each in stop if each]
        self.ids: list[int] = []
        self.text = ""
        self.finish: Literal["end", "stop", "length"] | None = None

    def push(self, token: int) -> str:
        """Take the next id, give what it makes certain: half characters and begun stop strings wait."""
        if token == self.tokenizer.special_tokens.end:
            return self.close("end")
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids).rstrip(HALF_CHARACTER)
        if (at := self._stop_at(text)) is not None:
            self.finish = "stop"
            return self._show(text[:at])
        begun = max(
            (n for each in self.stop for n in range(1, len(each)) if text.endswith(each[:n])), default=0
        )
        return self._show(text[: len(text) - begun])

    def close(self, finish: Literal["end", "length"]) -> str:
        """No more ids will come: give what still waited."""
        if self.finish is not None:
            return ""
        self.finish = finish
        return self._show(self.tokenizer.decode(self.ids))

    def answer(self) -> Answer:
        """The whole; only after the end."""
        assert self.finish is not None
        return Answer(self.text, self.ids, self.finish)

    def _stop_at(self, text: str) -> int | None:
        return min((at for each in self.stop if (at := text.find(each)) >= 0), default=None)

    def _show(self, text: str) -> str:
        piece, self.text = text[len(self.text) :], max(self.text, text, key=len)
        return piece
