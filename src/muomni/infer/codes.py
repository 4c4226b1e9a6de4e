"""A Talker's codes by the decode loop: K streams, delayed, until the end symbol of the first one or the
guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.infer.decode import decode
from muomni.models.talker import Talker

Choose = Callable[[Tensor, Tensor], Tensor]
"""(scores (B, classes), earlier codes of this book (B, F)) -> chosen codes (B,)."""


@dataclass(frozen=True)
class SpokenCodes:
    """What the Talker said."""

    codes_BKF: Tensor  # int64; zeros after a row's end
    frames_B: Tensor  # int64
    ended_B: Tensor  # bool; False = cut off by the guard


@dataclass(frozen=True)
class Frame:
    """One frame of the speech of a batch."""

    codes_BK: Tensor  # int64; zeros where a row is over
    speaks_B: Tensor  # bool, True = the row still speaks in this frame
    ended_B: Tensor  # bool, True = the row has said its end; one tensor for all frames, final after the last


def greedy(scores_BV: Tensor, _: Tensor) -> Tensor:
    """The likeliest code."""
    return scores_BV.argmax(-1)


class Codes:
    """Codes as a grid of K streams (see `decode.Layout`): book k says frame f in step f + k, or f where not
    delayed.

    Takes   guard_B int64, frames after which a row is cut off.
    """

    def __init__(self, talker: Talker, guard_B: Tensor, choose: Choose) -> None:
        self.books, self.end, self.pad = talker.config.codebooks, talker.config.end, talker.config.pad
        self.lags = talker.config.lags
        self.steps = int(guard_B.max()) + self.lags[-1]
        self.choose = choose
        self.legal = [None] * self.books
        self.said_BKS = guard_B.new_full((len(guard_B), self.books, self.steps), self.pad)
        self.end_B = guard_B.clone()  # frames of each row, as far as is known
        self.ended_B = torch.zeros_like(guard_B, dtype=torch.bool)
        self.step = -1

    def name(self, step: int) -> str:
        """See Layout."""
        return f"codes in frame {step}"

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """What each book says in a step: a code, `end`, or `pad` before its beginning and after its end."""
        self.step = step
        for book, lag in enumerate(self.lags):
            if step < lag:
                continue
            scores_BV, before_BF = scores[book], self.said_BKS[:, book, lag:step]
            if book == 0:
                if step == 0:
                    scores_BV = scores_BV.clone()
                    scores_BV[:, self.end] = -torch.inf  # silence is no answer
                code_B = self.choose(scores_BV, before_BF)
                ends_B = (code_B == self.end) & (self.end_B > step)
                self.end_B = torch.where(ends_B, step, self.end_B)
                self.ended_B |= ends_B
                code_B = torch.where(
                    self.end_B == step, self.end, torch.where(self.end_B < step, self.pad, code_B)
                )
            else:
                code_B = torch.where(step - lag < self.end_B, self.choose(scores_BV, before_BF), self.pad)
            self.said_BKS[:, book, step] = code_B
        return self.said_BKS[:, :, step : step + 1]

    @property
    def is_over(self) -> bool:
        """Whether the frame that this step completes is behind the end of all rows."""
        frame = self.step - self.lags[-1]
        return frame >= 0 and not bool((frame < self.end_B).any())

    def frame(self) -> Frame | None:
        """The frame that the newest step completes, None where there is none yet."""
        frame = self.step - self.lags[-1]
        if frame < 0:
            return None
        codes_BK = torch.stack([self.said_BKS[:, book, frame + lag] for book, lag in enumerate(self.lags)], 1)
        speaks_B = frame < self.end_B
        return Frame(codes_BK * speaks_B[:, None], speaks_B, self.ended_B)


def frames(
    talker: Talker,
    text_ids_BT: Tensor,
    keep_BT: Tensor,
    *,
    hidden_BTD: Tensor | None = None,
    speaker_B: Tensor | None = None,
    choose: Choose = greedy,
    max_frames: int | None = None,
) -> Iterator[Frame]:
    """The speech of each text one frame at a time; takes what `Talker.read` takes, and `max_frames`, a guard.

    Raises  CheckpointError where the scores of codes are no numbers; as `Talker.read`.
    """
    with torch.inference_mode():
        x_BTD = talker.read(text_ids_BT, keep_BT, hidden_BTD, speaker_B)
        codes = Codes(talker, talker.guard(text_ids_BT, keep_BT, max_frames), choose)
        cache = talker.beside(text_ids_BT, keep_BT, codes.steps)
        keep_BT = torch.cat((keep_BT, keep_BT.new_ones(len(keep_BT), 1)), 1)  # the start vector's place
    for _ in decode(talker, x_BTD, codes, keep_BT=keep_BT, cache=cache):
        with torch.inference_mode():
            frame = None if codes.is_over else codes.frame()
        if frame is not None:
            yield frame


def gathered(said: Iterable[Frame]) -> SpokenCodes:
    """The whole of what `frames` gives. The learned end symbol decides the length."""
    every = list(said)
    frames_B = torch.stack([frame.speaks_B for frame in every]).sum(0)
    return SpokenCodes(torch.stack([frame.codes_BK for frame in every], -1), frames_B, every[-1].ended_B)
