"""What the routes ask of the one who does the work: answers that grow, and everything else in one call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from muomni.errors import MuomniError
from muomni.infer.engine import Engine
from muomni.infer.generate import GREEDY
from muomni.infer.prompt import Prompt
from muomni.infer.sampling import SamplingConfig

T = TypeVar("T")


class QueueFull(MuomniError):
    """Too many requests wait; another must come later."""


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted.

    prompt    of `Engine.prepare`
    max_new   most tokens; fewer where ctx_len ends first
    logprobs  how many of the likeliest ids are told at each token; None: no log-probabilities
    """

    prompt: Prompt
    sampling: SamplingConfig = GREEDY
    stop: tuple[str, ...] = ()
    max_new: int = 128
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen id with its natural log-probability, and the likeliest ids with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """What an answer grew by: text that is certain (may be empty), and ids that are new. The last piece has
    `finish`."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Literal["end", "stop", "length"] | None = None


class Work(Protocol):
    """The one scheduler of a server. Closing an iterator (`aclose`), or cancelling who reads it, ends its
    work within a step."""

    def answer(self, ask: Ask) -> AsyncIterator[Piece]:
        """The pieces of one answer as they come.

        Raises  QueueFull, at the first piece, where too many wait.
        """

    async def call(self, function: Callable[[Engine], T]) -> T:
        """The result of a function of the engine, run where the model is free."""

    def stream(self, function: Callable[[Engine], Iterator[T]]) -> AsyncIterator[T]:
        """The items of an iterator over the engine, each as it comes."""
