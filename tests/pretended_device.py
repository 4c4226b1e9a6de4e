"""A second device, imitated on a CPU: tensors that are said to lie on `cuda:0`, and operations that refuse to
mix them with others.

The numbers are reckoned on the CPU. What is imitated is where tensors lie: a storage wears a mark, results
inherit it, `.to`, `.cpu` and
`device=` make new storages with or without it, `.device` tells it, `.numpy()` refuses it. Two kinds in one
operation raise what CUDA raises; its exceptions are exceptions here too (a CPU tensor without dimensions
beside CUDA ones, CPU indices into a CUDA tensor, copies). Inside of a backward nothing is checked: its
forward was. Half precision and speed are not imitated: `pytest -m gpu` is there for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from muomni import runtime
from muomni.evaluate import codec_audit
from muomni.models.codecs import open_codec
from muomni.runtime import Runtime
from muomni.train import checkpoint, flops

DEVICE = torch.device("cuda:0")
MOVES = {"to", "cpu", "cuda", "type_as", "as_tensor"}
# May be handed tensors of both devices, as with CUDA.
MIXES = {
    *MOVES,
    *(
        "copy_",
        "expand_as",
        "view_as",
        "reshape_as",
        "is_same_size",
        "is_set_to",
        "_has_compatible_shallow_copy_type",
    ),
    *("__getitem__", "__setitem__", "ctc_loss", "_use_cudnn_ctc_loss"),
}
NO_SCALARS = {
    "cat",
    "stack",
    "concat",
    "matmul",
    "mm",
    "bmm",
}  # a CPU tensor without dimensions is one too many here


class Mixed(RuntimeError):
    """Tensors of two devices met."""


def pretends(tensor: Tensor) -> bool:
    """Whether a tensor is said to lie on the second device."""
    with torch._C.DisableTorchFunction():
        return _marked(tensor)


def mark(tensor: Tensor) -> None:
    """From here on it does."""
    with torch._C.DisableTorchFunction():
        _mark(tensor)


# Within a call that the mode has caught it is out of the way: nothing has to be switched off.


def _marked(tensor: Tensor) -> bool:
    return hasattr(tensor.untyped_storage(), "pretends")


def _mark(tensor: Tensor) -> None:
    if tensor.device.type == "cpu":
        tensor.untyped_storage().pretends = True  # type: ignore[attr-defined]


def _tensors(things: Any, found: list[Tensor]) -> list[Tensor]:
    """The tensors among arguments or results, in lists and dicts too."""
    for each in things:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            _tensors(each, found)
        elif isinstance(each, dict):
            _tensors(each.values(), found)
    return found


def is_second(device: Any) -> bool:
    """Whether a device, given in any way, is the second one."""
    return (
        torch.device(device).type == "cuda"
        if isinstance(device, str | torch.device)
        else isinstance(device, int)
    )


class Generator(torch.Generator):
    """Of either device; both draw on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """A CPU generator that remembers of which device it is said to be."""
        own = super().__new__(cls, "cpu")
        own.is_second = is_second(device)
        return own

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """As it was asked for."""
        return DEVICE if self.is_second else torch.device("cpu")  # type: ignore[attr-defined]


class PretendedDevice(TorchFunctionMode):
    """While it is entered, `cuda:0` is there."""

    backwards = 0  # as many as are under way

    def _backward(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Unchecked, since gradients come from the engine without a mark; but what is made again of a
        checkpoint goes the way it went."""
        true = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

        def run(*more: Any, **others: Any) -> Any:
            with self:
                return true(*more, **others)

        self.backwards += 1
        try:
            with patch.object(torch.autograd, "_engine_run_backward", run):
                result = func(*args, **kwargs)
        finally:
            self.backwards -= 1
        if any(map(_marked, _tensors(args, []))):
            for each in _tensors([result], []):
                _mark(each)
        return result

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("backward", "grad"):
            return self._backward(func, args, kwargs)
        if name in ("__get__", "__set__"):
            return self._attribute(func, name, args)
        tensors = _tensors(kwargs.values(), _tensors(args, [])) if kwargs else _tensors(args, [])
        second = [tensor for tensor in tensors if _marked(tensor)]
        if second:
            if name in ("numpy", "__array__", "__dlpack__"):
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory first."
                )
            if len(second) < len(tensors) and not self.backwards:
                _refuse_others(name, tensors, args)
            if name == "get_device":
                return 0
        target = _target(name, args, kwargs)
        if (generator := kwargs.get("generator")) is not None:
            wanted = target if target is not None else bool(second)
            if getattr(generator, "is_second", False) != wanted:
                raise Mixed(f"{name}: Expected a '{'cuda' if wanted else 'cpu'}' device type for generator")
        if target is not None:
            return self._moved(func, name, args, kwargs, tensors, target)
        result = func(*args, **kwargs)
        if not second or (name in MIXES and name != "__getitem__" and not _marked(args[0])):
            return result  # such a one is where its first argument is
        others = (
            {tensor.untyped_storage()._cdata for tensor in tensors if not _marked(tensor)}
            if len(second) < len(tensors)
            else ()
        )
        for each in _tensors([result], []):
            if each.untyped_storage()._cdata not in others:
                _mark(each)
        return result

    def _moved(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], target: bool
    ) -> Any:
        """The result of a call that says where it is to lie."""
        if name == "cuda":
            return self._placed(args[0], args[0], True)
        if name == "to":
            args = tuple(
                torch.device("cpu") if isinstance(each, torch.device) or _is_device(each) else each
                for each in args
            )
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        source = tensors[0] if tensors else None
        return tree_map_only(Tensor, lambda each: self._placed(each, source, target), func(*args, **kwargs))

    @staticmethod
    def _attribute(func: Any, name: str, args: Any) -> Any:
        """`.device` and its like are as pretended; what is got lies where its owner does; a gradient lies
        beside its parameter."""
        what, is_own = func.__self__.__name__, _marked(args[0])
        if name == "__set__":
            if (
                what == "grad"
                and len(args) > 1
                and isinstance(args[1], Tensor)
                and _marked(args[1]) != is_own
            ):
                raise Mixed("assigned grad has data of a different device")
            return func(*args)
        if is_own and what in ("device", "is_cuda", "is_cpu"):
            return {"device": DEVICE, "is_cuda": True, "is_cpu": False}[what]
        got = func(*args)
        if is_own and isinstance(got, Tensor):
            _mark(got)
        return got

    @staticmethod
    def _placed(tensor: Tensor, source: Tensor | None, target: bool) -> Tensor:
        """A tensor where it was asked for: in a storage of its own, if it lay elsewhere."""
        if tensor.device.type != "cpu" or _marked(tensor) == target:
            return tensor
        shares = source is not None and tensor.untyped_storage()._cdata == source.untyped_storage()._cdata
        tensor = tensor.clone() if shares or _marked(tensor) else tensor
        if target:
            _mark(tensor)
        return tensor


def _is_device(thing: Any) -> bool:
    """Whether it is a word that names a device."""
    return isinstance(thing, str) and thing.partition(":")[0] in ("cpu", "cuda", "meta")


def _target(name: str, args: Any, kwargs: dict[str, Any]) -> bool | None:
    """Whether a call says that its result is to lie on the second device; None where it says nothing, or
    meta."""
    if name in ("cpu", "cuda"):
        return name == "cuda"
    given = kwargs.get("device")
    if name == "to":
        for each in [*args[1:], kwargs.get("other")]:
            if isinstance(each, Tensor):
                return _marked(each)
            if isinstance(each, torch.device) or _is_device(each):
                given = each
    if name == "type_as":
        return _marked(args[1])
    return None if given is None or torch.device(given).type == "meta" else is_second(given)


def _refuse_others(name: str, tensors: list[Tensor], args: Any) -> None:
    """Raise where tensors of both devices meet and may not."""
    if name in ("__getitem__", "__setitem__"):
        own, *others = tensors
        has_dims = [each for each in others if each.dim()]
        if not _marked(own) and any(_marked(each) for each in has_dims):
            raise Mixed(
                f"{name}: indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        value = args[2] if name == "__setitem__" else None
        if (
            isinstance(value, Tensor)
            and value.dim()
            and _marked(value) != _marked(own)
            and any(each is not value for each in has_dims)
        ):
            raise Mixed(f"{name}: values put by indices must lie beside what they are put into")
        return
    if name in MIXES:
        return
    first = [tensor for tensor in tensors if tensor.device.type == "cpu" and not _marked(tensor)]
    wrong = [
        tuple(tensor.shape) for tensor in first if tensor.dim() or name in NO_SCALARS
    ]  # a number is welcome beside the others
    if wrong:
        raise Mixed(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name}, {wrong})"
        )


def _without_device(tensor: Tensor) -> dict[str, Any]:
    return {"shape": tensor.shape, "dtype": tensor.dtype}


def _here(codec: Any, clips: Any, folder: Any) -> tuple[list[Tensor], list[str]]:
    """What a second process finds of a codec, found in this one: another would look for a true device."""
    there = open_codec(folder, codec.codebooks, clips[0].device)
    codes = codec_audit.encode_by_length(there, clips, most=1)
    return codes, [codec_audit.digest_of_all({"": there.decode(each[None])[0]}) for each in codes]


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Runs that are started in it run on the second device, in float32."""
    true_start, true_load = runtime.start, checkpoint.load_file

    def start(**wanted: Any) -> Runtime:
        began = true_start(**{**wanted, "device": "cpu"})
        return Runtime(DEVICE, began.dtype, began.rank, began.world)

    def load_file(path: Any, device: str = "cpu") -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in true_load(path).items()}

    with ExitStack() as stack:
        stack.enter_context(patch.object(runtime, "start", start))
        stack.enter_context(patch.object(checkpoint, "load_file", load_file))
        stack.enter_context(patch.object(torch, "Generator", Generator))
        stack.enter_context(
            patch.object(runtime, "format_gain", lambda dtype, device: 1.0)
        )  # speed is not imitated
        stack.enter_context(
            patch.object(torch.cuda, "reset_peak_memory_stats", lambda device=None: None)
        )  # nor is memory
        stack.enter_context(patch.object(flops, "_product_s", lambda device, dtype, size: 1e-6))
        stack.enter_context(patch.object(codec_audit, "_elsewhere", _here))
        # A checkpoint notes devices within a call, where there is no mark, and compares them outside of it.
        stack.enter_context(
            patch.dict(
                torch.utils.checkpoint._allowed_determinism_checks_to_fns, {"default": _without_device}
            )
        )
        stack.enter_context(PretendedDevice())
        yield DEVICE
