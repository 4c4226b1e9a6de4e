"""What requests and answers have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Unsupported = Annotated[None, Field(description="not supported: leave it out, or null")]
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
OnlyZero = Annotated[float, Field(ge=0, le=0)]
OnlyOne = Annotated[float, Field(ge=1, le=1)]
NoTools = Annotated[list[Any], Field(max_length=0)]
NoBias = Annotated[dict[str, int], Field(max_length=0)]


class Body(BaseModel):
    """A request: what it has no field for is refused, and no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Labelled(Body):
    """A request with what senders note about it: that changes nothing here, and is not kept."""

    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: bool | None = Field(None, description="nothing is stored, whatever it says")


class Reply(BaseModel):
    """An answer; only what was set is sent."""

    model_config = ConfigDict(extra="forbid")

    def sent(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json", exclude_unset=True)


class ErrorObject(Reply):
    """What went wrong; `param` is the member of the request that must change."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every answer that is an error."""

    error: ErrorObject
