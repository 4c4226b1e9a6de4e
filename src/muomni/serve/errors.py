"""Errors as the API has them: `{"error": {"message", "type", "param", "code"}}` with a status, never a
traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muomni.errors import CheckpointError, ContextError, DataError, MuomniError, UserError

INVALID, AUTHENTICATION, LIMITED, OURS = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)
TOO_LARGE = ("too_large", "too_long")  # reasons of a DataError that speak of a limit


class ApiError(Exception):
    """An answer that is an error: its HTTP status and the members of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object; characters that are none are replaced, so that it can always be sent."""
        values = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {
            "error": {
                name: value if value is None else value.encode("utf-8", "replace").decode()
                for name, value in values.items()
            }
        }


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that its sender must change."""
    return ApiError(400, message, param=param, code=code)


def of(error: MuomniError, *, param: str | None = None) -> ApiError:
    """What a client is told of an error of ours: faults of its request with their words, others without.

    A checkpoint's errors name places on the server's disk, so they stay in its log.
    """
    if isinstance(error, DataError):
        return ApiError(400, str(error), param=param, code=error.reason)
    if isinstance(error, ContextError):
        return ApiError(400, str(error), param=param or "messages", code="context_length_exceeded")
    if isinstance(error, UserError) and not isinstance(error, CheckpointError):
        return ApiError(400, str(error), param=param)
    return ApiError(500, "the model can't be used: the server's log says why", kind=OURS, code="model_error")


def of_validation(faults: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """What a client is told of a body that does not fit its schema: the deepest fault, and where it is.

    Takes   faults of pydantic, with `loc` within the body.
    """
    fault = max(faults, key=lambda each: len(each["loc"]))
    param = place(fault["loc"], body, is_missing=fault["type"] == "missing") or None
    at = f"{param}: " if param else ""
    if fault["type"] == "extra_forbidden":
        return invalid(f"{at}unknown parameter", param=param, code="unknown_parameter")
    if fault["type"] == "none_required":
        return invalid(f"{at}not supported by this server", param=param, code="unsupported_parameter")
    if fault["type"] == "json_invalid":
        return invalid("the body is not JSON", code="invalid_json")
    code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_value"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return invalid(f"{at}{message[:1].lower()}{message[1:]}", param=param, code=code)


def place(loc: Sequence[str | int], body: Any, *, is_missing: bool = False) -> str:
    """`messages.0.content` of pydantic's place of a fault, without the names of the kinds that it tried."""
    parts: list[str] = []
    for number, step in enumerate(loc):
        is_last = number == len(loc) - 1
        if isinstance(body, Mapping) and isinstance(step, str) and (step in body or (is_missing and is_last)):
            body = body.get(step)
        elif isinstance(body, list) and isinstance(step, int) and step < len(body):
            body = body[step]
        else:
            continue
        parts.append(str(step))
    return ".".join(parts)
