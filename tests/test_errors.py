"""Errors: who must act, in the exit code; what to do, in the message."""

from __future__ import annotations

import pickle

import pytest

from muomni import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UserError, 2),
        (errors.ConfigError, 2),
        (errors.ShapeError, 2),
        (errors.TokenRangeError, 2),
        (errors.CheckpointError, 2),
        (errors.ContextError, 2),
        (errors.GateRed, 1),
        (errors.InternalError, 3),
    ],
)
def test_exit_codes(kind: type[errors.MuomniError], code: int) -> None:
    error = kind("wrong", hint="do right")
    assert error.exit_code == code
    assert str(error) == "wrong (do right)"
    assert str(kind("wrong")) == "wrong"
    assert isinstance(error, errors.MuomniError)


def test_a_data_error_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(errors.DataError("silent", "a.wav: nothing to hear", hint="speak")))
    assert (error.reason, error.message, error.exit_code) == ("silent", "a.wav: nothing to hear", 2)
