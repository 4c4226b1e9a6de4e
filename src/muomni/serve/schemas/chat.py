"""/v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from muomni.serve.schemas.base import (
    Body,
    Labelled,
    NoBias,
    NoTools,
    OnlyZero,
    Reply,
    Unsupported,
)
from muomni.serve.settings import MOST_CHOICES


class TextPart(Body):
    """Words."""

    type: Literal["text"]
    text: str


class ImageURL(Body):
    """A picture as a `data:` URL; pictures have one size here, so there is no detail to choose."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(Body):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(Body):
    """A recording in base64; its content decides what it is."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus"]


class AudioPart(Body):
    """A sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class AnswerId(Body):
    """An earlier spoken answer of this server, by the id that it had."""

    id: str


UserPart = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class SystemMessage(Body):
    """A turn that sets the rules."""

    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Unsupported = None


class UserMessage(Body):
    """A turn of the human."""

    role: Literal["user"]
    content: str | Annotated[list[UserPart], Field(min_length=1)]
    name: Unsupported = None


class AssistantMessage(Body):
    """A turn of the model: its words, or the id of what it said aloud."""

    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    audio: AnswerId | None = None
    refusal: Unsupported = None
    tool_calls: NoTools | None = None
    function_call: Unsupported = None
    annotations: NoTools | None = None
    name: Unsupported = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class AudioOut(Body):
    """How an answer is spoken."""

    format: Literal["wav", "mp3", "flac", "opus", "pcm16"]
    voice: str | AnswerId


class StreamOptions(Body):
    """What a stream holds beside its pieces."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(Body):
    """The one form of answers: plain text."""

    type: Literal["text"]


class ChatBody(Labelled):
    """A conversation to be answered."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    audio: AudioOut | None = None
    frequency_penalty: OnlyZero | None = None
    logit_bias: NoBias | None = None
    logprobs: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=2)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    presence_penalty: OnlyZero | None = None
    response_format: TextFormat | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # An extension: what other servers of open models take too.
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    # Known of the official API, and not honoured here.
    tools: NoTools | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: NoTools | None = None
    function_call: Literal["none", "auto"] | None = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: Unsupported = None


class TopLogprob(Reply):
    """A likely token."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """A chosen token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class Logprobs(Reply):
    """Of each token of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class Audio(Reply):
    """A spoken answer; `expires_at`: until then a later turn may name its id."""

    id: str
    data: str
    expires_at: int
    transcript: str


class AnswerMessage(Reply):
    """What the model says: in text, or spoken, with its words as a transcript."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    audio: Audio | None = None
    annotations: list[Any] = []


Finish = Literal["stop", "length"]


class Choice(Reply):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Finish


class PromptDetails(Reply):
    """What a prompt's tokens are."""

    audio_tokens: int
    cached_tokens: int
    image_tokens: int
    text_tokens: int


class CompletionDetails(Reply):
    """What an answer's tokens are. Speech is made of codes, which are counted apart from the words."""

    accepted_prediction_tokens: int = 0
    audio_tokens: int
    reasoning_tokens: int
    rejected_prediction_tokens: int = 0
    text_tokens: int


class Usage(Reply):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Completion(Reply):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    service_tier: Literal["default"]
