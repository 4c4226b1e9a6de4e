"""A process that is killed right after its n-th system call, for every n: what a power cut may find, as far
as a process shows it.

The kernel counts (ptrace), so that calls from C and Rust are seen too. What a disk loses that was not synced
is not simulated here: the order of sync and rename is a test of its own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

TRACE_ME, TO_NEXT_CALL, SET_OPTIONS, MARK_CALLS = 0, 24, 0x4200, 1


def _ptrace(request: int, pid: int, data: int = 0) -> int:
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    call.restype = ctypes.c_long
    return int(call(request, pid, None, data))


def killed_after(work: Callable[[], object], calls: int) -> bool:
    """Run `work` in a process of its own, dead after so many system calls; False where it ended before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if _ptrace(TRACE_ME, 0) != 0:
                os._exit(77)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        pytest.skip("this system does not let a process be traced (ptrace)")
    _ptrace(SET_OPTIONS, pid, MARK_CALLS)
    seen, pending = 0, 0
    while seen < 2 * calls:  # each call stops twice: where it begins and where it ends
        _ptrace(TO_NEXT_CALL, pid, pending)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work itself failed"
            return False
        assert os.WIFSTOPPED(status)
        is_call = os.WSTOPSIG(status) == signal.SIGTRAP | 0x80
        seen, pending = seen + is_call, 0 if is_call else os.WSTOPSIG(status)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def every_moment(
    prepare: Callable[[], object], work: Callable[[], object], *, stride: int = 1
) -> Iterator[int]:
    """Prepare, then kill `work` after 1, 2, 3 ... system calls (every `stride`-th); the caller looks at what
    is there each time."""
    if sys.platform != "linux":
        pytest.skip("ptrace is Linux's")
    calls = 1
    while True:
        prepare()
        if not killed_after(work, calls):
            return
        yield calls
        calls += stride
