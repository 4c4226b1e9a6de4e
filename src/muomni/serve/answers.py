"""What the text routes share: how an answer is drawn, its pieces gathered, its tokens counted."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from muomni.infer.prompt import Prompt
from muomni.infer.sampling import SamplingConfig
from muomni.serve import logprobs, sse
from muomni.serve.errors import invalid
from muomni.serve.schemas.chat import (
    CompletionDetails,
    Finish,
    Logprobs,
    PromptDetails,
    TokenLogprob,
    Usage,
)
from muomni.serve.server import Server
from muomni.serve.work import Ask, Piece


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn. Without a temperature the likeliest token is taken, as everywhere in this
    project; without a seed each is drawn anew."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def sampling(self, number: int) -> SamplingConfig:
        """Of the answer with this number."""
        seed = secrets.randbits(62) if self.seed is None else (self.seed + number) % 2**63
        return SamplingConfig(
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=seed if self.temperature else 0,
        )


@dataclass
class Written:
    """An answer as far as it has been written."""

    text: str = ""
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Literal["end", "stop", "length"] | None = None

    @property
    def finish_reason(self) -> Finish:
        """The API's word for how it ended."""
        return "length" if self.finish == "length" else "stop"


def ask(
    server: Server,
    prompt: Prompt,
    drawing: Drawing,
    number: int = 0,
    *,
    stop: Sequence[str] = (),
    most: int | None = None,
    tops: int | None = None,
) -> Ask:
    """What the scheduler is asked; without `most` an answer may fill the model's context."""
    room = server.engine.parts.thinker.config.ctx_len - len(prompt.ids)
    most = room if most is None else min(most, room)
    return Ask(prompt, drawing.sampling(number), tuple(stop), most, tops)


async def pieces(server: Server, asked: Ask, written: Written) -> AsyncIterator[Piece]:
    """The pieces of an answer as they come; `written` grows with them.

    Raises  ApiError where the weights were overwritten meanwhile.
    """
    answer = server.work.answer(asked)
    try:
        async for piece in answer:
            server.weights.require_unchanged()
            written.text += piece.text
            written.tokens += len(piece.token_ids)
            written.finish = piece.finish or written.finish
            yield piece
    finally:
        server.metrics.tokens.labels("completion").inc(written.tokens)
        await sse.close(answer)


def scores(server: Server, piece: Piece) -> Logprobs:
    """The log-probabilities of a piece."""
    tokenizer = server.engine.tokenizer
    return Logprobs(content=[logprobs.of(tokenizer, each) for each in piece.logprobs], refusal=None)


def usage(prompt: Prompt, filled: dict[str, int], written: Sequence[Written], frames: int = 0) -> Usage:
    """Tokens read and written; frames: codes of speech."""
    words = sum(each.tokens for each in written)
    image, audio = filled.get("image", 0), filled.get("audio", 0)
    return Usage(
        prompt_tokens=len(prompt.ids),
        completion_tokens=words + frames,
        total_tokens=len(prompt.ids) + words + frames,
        prompt_tokens_details=PromptDetails(
            audio_tokens=audio,
            cached_tokens=0,
            image_tokens=image,
            text_tokens=len(prompt.ids) - image - audio,
        ),
        completion_tokens_details=CompletionDetails(
            accepted_prediction_tokens=0,
            audio_tokens=frames,
            reasoning_tokens=0,
            rejected_prediction_tokens=0,
            text_tokens=words,
        ),
    )


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """The strings before which an answer ends."""
    each = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(each):
        raise invalid("stop: expected strings that are not empty", param="stop")
    return each
