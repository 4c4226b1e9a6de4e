"""Floating point operations: counted on a few updates, reckoned for the others, and the most that the machine
does in a second.

They are the model's: what checkpointed blocks make again, or gradient caching embeds twice, is left out
(hardware FLOPs would hold it). Matrix products and convolutions count, a multiply-add as two; attention over
its whole square, masked places too; padding counts as well, since it is computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from muomni import runtime
from muomni.nn import recompute
from muomni.runtime import Runtime
from muomni.train.eager import untraced

AGREES = 0.01  # a reckoned number that is so near to the counted one is right
KEPT = 32  # counts behind a fit
RECHECKED = 1024  # updates; before that, each power of 4
UNSETTLED = 12  # counts in a row, at every other update, while reckoning is not right yet

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of square products
REPEATS = 5
RISES = 1.03  # a rate that is not so much above the best has stopped rising
SLOW = 0.2  # of another format's rate at the same size, from SHOWS on: an emulated one, of which no larger size is tried
SHOWS = 128
BUDGET_S = 1.0  # for all formats

# Fused attention by the operations of aten; torch's own table lacks the CPU's, and adds the scores that
# kernels make again backward.
_FORWARD = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


@untraced
class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the floating point operations of what runs in it, and changes no bit of it.

    torch's FlopCounterMode takes operations apart where it can: silu_backward then rounds otherwise. Here
    each runs as it is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = _TABLE.get(func._overloadpacket)
        if count is not None and not recompute.is_recomputing():
            self.total += int(count(*args, **kwargs, out_val=out))
        return out


def _attention(query_BHTd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor, *_: Any, **__: Any) -> int:
    """Scores, and the values that they weigh."""
    batch, heads, length, dim = query_BHTd.shape
    return 2 * batch * heads * length * key_BHSd.shape[2] * (dim + value_BHSd.shape[3])


def _attention_backward(
    _: Tensor, query_BHTd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor, *__: Any, **___: Any
) -> int:
    """Two products for each of the forward's."""
    return 2 * _attention(query_BHTd, key_BHSd, value_BHSd)


def _table() -> dict[Any, Callable[..., int]]:
    table: dict[Any, Callable[..., int]] = dict(flop_registry)
    for name in _FORWARD:
        for operator_name, count in ((name, _attention), (f"{name}_backward", _attention_backward)):
            if hasattr(torch.ops.aten, operator_name):
                table[getattr(torch.ops.aten, operator_name)] = count
    return table


_TABLE = _table()


class UpdateFlops:
    """Operations of updates by the sizes of their batches: counted on some of them, a linear function of the
    sizes for the others.

    Sizes are an objective's (`Objective.sizes`, summed over micro-batches): arithmetic is linear in them, up
    to the rounding of strides. A fit is checked against a new count at the updates 1, 4, 16, ..., 1024, 2048,
    ...; while it is wrong by more than 1 %, every other update is counted, at most 12 in a row.

    error   of the last check, relative; None before the second count
    """

    def __init__(self) -> None:
        self.error: float | None = None
        self._counts: deque[tuple[tuple[float, ...], float]] = deque(maxlen=KEPT)
        self._updates = 0
        self._agreed = 0  # checks in a row
        self._in_a_row = 0  # counts without an agreement
        self._is_last_counted = False

    def wants(self) -> bool:
        """Whether the coming update, of which this is asked once, is to be counted."""
        self._updates += 1
        number = self._updates
        is_due = number % RECHECKED == 0 or (number.bit_count() == 1 and number.bit_length() % 2 == 1)
        is_unsettled = self._agreed < 2 and self._in_a_row < UNSETTLED
        # Never two in a row, so that there is a speed from the second update on.
        self._is_last_counted = (is_due or is_unsettled) and not self._is_last_counted
        return self._is_last_counted

    def add(self, sizes: Sequence[float], count: float) -> None:
        """What was counted on an update of these sizes."""
        sizes = tuple(sizes)
        if self._counts:
            self.error = abs(self.of(sizes) - count) / max(count, 1.0)
            is_right = self.error <= AGREES
            if (
                not is_right and self._agreed >= 2
            ):  # the arithmetic itself is another one now (a quantiser has started)
                self._counts.clear()
                self._in_a_row = 0
            self._agreed = self._agreed + 1 if is_right else 0
            self._in_a_row = 0 if self._agreed >= 2 else self._in_a_row + 1
        self._counts.append((sizes, count))

    def of(self, sizes: Sequence[float]) -> float:
        """The operations of an update of these sizes; 0 before any was counted."""
        if not self._counts:
            return 0.0
        known_sizes = np.array([each for each, _ in self._counts], dtype=np.float64)
        counts = np.array([count for _, count in self._counts], dtype=np.float64)
        scale = known_sizes.max(0)
        scale[scale == 0] = 1.0
        # Fewer counts than sizes leave many fits: the smallest one gives each size a like share.
        slopes = np.linalg.lstsq(known_sizes / scale, counts, rcond=1e-9)[0]
        return max(0.0, float(np.asarray(sizes) / scale @ slopes))


_PEAKS: dict[tuple[str, int], float] = {}


def peak(run: Runtime, *, again: bool = False) -> float:
    """The best measured rate of matrix products of this machine, in FLOP/s: the 100 % of MFU.

    Of all number formats that the device has, so that a run can't be above it by the format that it chose;
    with the threads of now. Measured once a process; `again` measures anew (the machine may have been busy)
    and gives the larger.
    """
    key = (str(run.device), torch.get_num_threads())
    if again or key not in _PEAKS:
        _PEAKS[key] = max(
            _PEAKS.get(key, 0.0),
            measured_peak(formats(run.device), lambda dtype, size: _product_s(run.device, dtype, size)),
        )
    return _PEAKS[key]


def formats(device: torch.device) -> list[torch.dtype]:
    """Number formats to try. TF32 is not among them: what has it has bfloat16 or float16 units of twice its
    rate."""
    if device.type == "cuda":
        return [torch.float32, torch.float16, *([torch.bfloat16] if runtime.has_bf16(device) else [])]
    return [torch.float32, torch.bfloat16, torch.float16]


def measured_peak(
    dtypes: Sequence[torch.dtype],
    product_s: Callable[[torch.dtype, int], float],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The best rate over sizes and formats, in FLOP/s; sizes grow until the rate stops rising, or the time is
    up.

    Takes   product_s: seconds of one square product of a format and size.
    """
    best = 0.0
    rates: dict[int, float] = {}  # the fastest format's, by size
    for dtype in dtypes:
        begin, top, level = clock(), 0.0, 0
        for size in SIZES:
            took_s = product_s(dtype, size)
            rate = 2 * size**3 / took_s
            level = level + 1 if rate < RISES * top else 0
            top = max(top, rate)
            if size >= SHOWS and rate < SLOW * rates.get(size, 0.0):
                break
            rates[size] = max(rates.get(size, 0.0), rate)
            next_s = 8 * took_s * (REPEATS + 1)
            if level == 2 or clock() - begin + next_s > BUDGET_S / len(dtypes):
                break
        best = max(best, top)
    return best


def _product_s(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Seconds of a square matrix product, the best of some after one to warm up."""
    own = torch.Generator(device).manual_seed(0)  # the run's own generators stay where a checkpoint put them
    a = torch.randn(size, size, device=device, generator=own).to(dtype)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    times: list[float] = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            marks[0].record()
            torch.mm(a, a, out=out)
            marks[1].record()
            torch.cuda.synchronize(device)
            times.append(marks[0].elapsed_time(marks[1]) / 1e3)
        else:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            times.append(time.perf_counter() - start)
    return max(min(times), 1e-9)
