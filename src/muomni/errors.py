"""What can go wrong, by who must act: the user (exit 2), a red gate (exit 1), or us (exit 3)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class MuomniError(Exception):
    """Base of every error we raise on purpose; the command line prints `message` and leaves with
    `exit_code`."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(MuomniError):
    """The user must change something; the message says what, where, expected, got and what to do."""

    exit_code = 2


class GateRed(MuomniError):
    """A gate is red: the stage did not prove that it learned. `folder` is that of the run, once it is
    known."""

    exit_code = 1
    folder: Path | None = None


class InternalError(MuomniError):
    """Our fault: an invariant of the program does not hold."""


class ConfigError(UserError):
    """A key, value or file of a recipe is wrong."""


class DataError(UserError):
    """A sample or media file can't be used; `reason` is the short slug that the quarantine counts."""

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str], dict[str, str]]:
        return type(self), (self.reason, self.message), {"hint": self.hint}


class DataNote(DataError):
    """Something about a row or a file that is told, while what it is about is read all the same: it stands in
    no row's place."""


class ShapeError(UserError):
    """An array has not the shape that its taker needs."""


class TokenRangeError(UserError):
    """An id lies outside of its vocabulary or codebook."""


class TokenSpaceError(UserError):
    """Two token spaces that must be one differ, or a stored one is not what it says."""


class ContextError(UserError):
    """A sequence does not fit the model's context."""


class CheckpointError(UserError):
    """A checkpoint is torn, of another shape, or made by another configuration."""


def nearest(key: object, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that is most like a mistyped key; cutoff: the least similarity, from 0 to 1."""
    return next(iter(difflib.get_close_matches(str(key), list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(key: object, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """A way out of a key that is none: the `nearest` name, or another hint where none is near."""
    near = nearest(key, known, cutoff=cutoff)
    return otherwise if near is None else f"did you mean {near}?"
