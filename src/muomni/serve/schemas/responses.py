"""/v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from muomni.serve.schemas.base import Body, Labelled, NoTools, Reply, Unsupported
from muomni.serve.schemas.chat import TextFormat


class InputText(Body):
    """Words."""

    type: Literal["input_text"]
    text: str


class InputImage(Body):
    """A picture as a `data:` URL."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto"] | None = None
    file_id: Unsupported = None


class OutputText(Body):
    """Words of an earlier answer."""

    type: Literal["output_text"]
    text: str
    annotations: NoTools | None = None
    logprobs: list[Any] | None = None


InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]


class InputMessage(Body):
    """A turn of the human, or one that sets the rules."""

    role: Literal["user", "system", "developer"]
    content: str | Annotated[list[InputPart], Field(min_length=1)]
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class OutputMessage(Body):
    """A turn of the model, as an answer had it."""

    role: Literal["assistant"]
    content: str | Annotated[list[OutputText], Field(min_length=1)]
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["final_answer"] | None = None


InputItem = Annotated[InputMessage | OutputMessage, Field(discriminator="role")]


class TextConfig(Body):
    """How the answer's text is: plain."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Body):
    """What a stream holds beside its events."""

    include_obfuscation: Literal[False] | None = None


class ResponsesBody(Labelled):
    """A conversation to be answered; nothing of it is kept for a later one."""

    model: str
    input: Annotated[str, Field(min_length=1)] | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=1)] | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: NoTools | None = None
    access_programs: Unsupported = None
    background_options: Unsupported = None
    context_management: Unsupported = None
    conversation: Unsupported = None
    image: Unsupported = None
    max_tool_calls: Unsupported = None
    moderation: Unsupported = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    reasoning: Unsupported = None


class Text(Reply):
    """The words of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[dict[str, Any]]


Status = Literal["in_progress", "completed", "incomplete"]


class Message(Reply):
    """The turn that answers."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[Text]


class InputDetails(Reply):
    """None are kept between requests."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Reply):
    """None are hidden."""

    reasoning_tokens: int


class ResponseUsage(Reply):
    """Tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Reply):
    """Why an answer did not end by itself."""

    reason: Literal["max_output_tokens"]


class Response(Reply):
    """An answer, as far as it is."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    model: str
    output: list[Message]
    usage: ResponseUsage | None
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    background: Literal[False]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    truncation: Literal["disabled"]
    user: str | None
