"""Networks lie where the run computes: what was never placed is found wherever it hides, and nothing else
moves a network."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import muomni
from muomni.errors import InternalError
from muomni.infer.speech import listen_to
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.stages.placement import Placement
from muomni.train.optim import freeze

CPU = torch.device("cpu")
SOURCE = Path(muomni.__file__).parent


class Holder:
    """Holds a network as an attribute, and gives it out in several ways."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def run(self) -> nn.Module:
        """It."""
        return self.network

    @cached_property
    def later(self) -> nn.Module:
        """It."""
        return self.network


@dataclass(frozen=True)
class Row:
    network: nn.Module


class Slotted:
    __slots__ = ("network",)

    def __init__(self, network: nn.Module) -> None:
        self.network = network


def closing_over(network: nn.Module) -> Callable[[], nn.Module]:
    """A function in a function, which names another."""

    def inner() -> nn.Module:
        return network

    def outer() -> nn.Module:
        return inner()

    return outer


def wrapped(network: nn.Module) -> Callable[[Any], Any]:
    """As torch's decorators leave it."""

    @torch.no_grad()
    def run(x: Any) -> Any:
        return network(x)

    return run


def aside(network: nn.Module) -> nn.Module:
    """A module that holds it where neither `parameters` nor `to` look."""
    outer = nn.Identity()
    outer.beside = [network]  # type: ignore[assignment]
    return outer


HIDES: dict[str, Callable[[nn.Module], object]] = {
    "itself": lambda network: network,
    "dict": lambda network: {"a": [(network,)]},
    "closure": closing_over,
    "decorated": wrapped,
    "bound": lambda network: Holder(network).run,
    "partial": lambda network: partial(print, network, end=network),
    "default": lambda network: lambda given=network: given,
    "attribute": Holder,
    "dataclass": Row,
    "slot": Slotted,
    "list of a module": aside,
    "part of a module": lambda network: nn.Sequential(nn.Identity(), network),
}


@pytest.mark.parametrize("hide", HIDES.values(), ids=HIDES)
def test_what_was_never_placed_is_found_wherever_it_hides(hide: Callable[[nn.Module], object]) -> None:
    network, place = nn.Linear(2, 2), Placement(CPU)
    hidden = hide(network)
    (line,) = place.misplaced(measure=hidden)
    assert line.startswith("measure")
    assert line.endswith("(Linear) was never placed")
    place(network)
    assert place.misplaced(measure=hidden) == []


def test_a_thinker_that_only_a_talker_hears_is_found() -> None:
    thinker = Decoder(DecoderConfig(vocab_size=16, width=8, layers=1, heads=1, ffn_width=8))
    found = Placement(CPU).misplaced(measure=listen_to(thinker, 1))
    assert any("model.embed_tokens (Embedding) was never placed" in line for line in found)


def test_what_was_left_behind_is_told_with_its_device() -> None:
    """A device of its own kind stands for a second one."""
    place = Placement(torch.device("meta"))
    left = nn.Linear(2, 2)
    place(nn.Linear(2, 2))
    assert place.misplaced(codec=left) == ["codec (Linear) lies on cpu, not on meta"]
    moved = place(nn.Linear(2, 2))
    moved.bias = nn.Parameter(torch.zeros(2))  # put back by somebody
    assert place.misplaced(codec=moved) == ["codec (Linear) lies on cpu, not on meta"]


def test_what_is_added_later_is_placed_again() -> None:
    place = Placement(CPU)
    network = place(nn.Sequential(nn.Linear(2, 2)))
    network.append(nn.Linear(2, 2))
    assert place.misplaced(network=network) == ["network.1 (Linear) was never placed"]
    assert place.misplaced(network=place(network)) == []


def test_nothing_is_placed_where_it_could_never_train() -> None:
    with torch.inference_mode(), pytest.raises(InternalError, match="Linear is placed under inference_mode"):
        Placement(CPU)(nn.Linear(2, 2))
    with torch.inference_mode():
        network = nn.Linear(2, 2)
    assert Placement(CPU).misplaced(a=Placement(CPU)(network)) == ["a (Linear) was made under inference_mode"]


def test_a_frozen_network_is_found_once_and_data_are_not_looked_into() -> None:
    network, place = freeze(nn.Linear(2, 2)), Placement(CPU)
    many = [str(n) for n in range(1000)]
    assert len(place.misplaced(a=network, b=[network, many, torch.zeros(2)], c={"network": network})) == 1


# --- nothing else moves a network: by reading the code ----------------------------------------------------------------------------------

# Who may call `.to`, `.cuda` or `.cpu` with a device: the one place, and those that open a folder on a device
# that they are told.
OWNERS = {"stages/placement.py:__call__", "models/from_transformers.py:open_network"}
TENSORS = {
    "whole",
    "batch",
    "tensor",
    "tensors",
    "pixels",
    "ids",
    "keep",
    "part",
    "rows",
    "value",
    "wave_S",
    "shares",
    "values",
    "t",
    "x",
    "media",
}
MAKERS = {
    "collate",
    "gather",
    "of",
    "from_numpy",
    "tensor",
    "encode",
    "decode",
    "encode_image",
    "view",
    "unsqueeze",
    "permute",
    "detach",
}
MAKERS |= {
    "pixels",
    "padded",
    "float",
    "randn",
    "randint",
    "randperm",
    "unit",
    "cat",
    "think",
    "texts",
    "symbols",
    "reshape",
    "invert",
    "rand",
    "contiguous",
    "getattr",
    "stack",
}


def calls_of_moves(path: Path) -> Iterator[tuple[str, int, ast.expr]]:
    """(function, line, receiver) of each `.to(device)`, `.cuda()` and `.cpu()`."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, int, ast.expr]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
                told = " ".join(
                    ast.unparse(each) for each in [*child.args, *(word.value for word in child.keywords)]
                )
                names_device = any(word in told for word in ("device", "cpu", "cuda"))
                if child.func.attr in ("cuda", "cpu") or (child.func.attr == "to" and names_device):
                    yield inside, child.lineno, child.func.value
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text()), "")


def is_of_tensors(receiver: ast.expr) -> bool:
    """Whether what is moved is a batch or tensor by its name (ids_BT) or by what makes it (collate(...))."""
    if isinstance(receiver, ast.Subscript):
        return is_of_tensors(receiver.value)
    if isinstance(receiver, ast.Call):
        name = (
            receiver.func.attr
            if isinstance(receiver.func, ast.Attribute)
            else getattr(receiver.func, "id", "")
        )
        return name in MAKERS
    name = receiver.attr if isinstance(receiver, ast.Attribute) else getattr(receiver, "id", "")
    return name in TENSORS or bool(name.rpartition("_")[2].isupper() or name.rpartition("_")[2][:1].isupper())


def test_networks_are_moved_in_one_place() -> None:
    others = [
        f"{path.relative_to(SOURCE)}:{line}: {ast.unparse(receiver)} in {function}"
        for path in sorted(SOURCE.rglob("*.py"))
        for function, line, receiver in calls_of_moves(path)
        if not is_of_tensors(receiver) and f"{path.relative_to(SOURCE).as_posix()}:{function}" not in OWNERS
    ]
    assert others == [], (
        "pass a network through inputs.place; a batch or tensor is known by its name (ids_BT) or its maker"
    )


def test_the_reading_finds_what_it_is_for(tmp_path: Path) -> None:
    """As `Forgetting.measure` once did it."""
    path = tmp_path / "meter.py"
    path.write_text(
        "@inference_mode()\ndef measure(self):\n    self.objective.to(self.run.device).eval()\n    codec.cpu()\n    ids_BT.cpu()"
    )
    assert [(name, line, is_of_tensors(receiver)) for name, line, receiver in calls_of_moves(path)] == [
        ("measure", 3, False),
        ("measure", 4, False),
        ("measure", 5, True),
    ]


def test_openers_give_networks_that_can_train_wherever_they_are_called(run: Path) -> None:
    from muomni.models import store

    with torch.inference_mode():
        network = store.load(run / "thinker" / "final", dtype=torch.float64)
    assert not any(tensor.is_inference() for tensor in network.state_dict().values())
