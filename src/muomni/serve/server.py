"""What the routes share: the engine, who does its work, and what this run can do."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from muomni.infer.engine import Engine
from muomni.serve.abilities import Abilities
from muomni.serve.errors import ApiError
from muomni.serve.metrics import Metrics
from muomni.serve.settings import Limits
from muomni.serve.weights import Weights
from muomni.serve.work import Work

T = TypeVar("T")
REMEMBERED_S = 3600
MOST_REMEMBERED = 1000


class SpokenAnswers:
    """The words of what was said aloud, by id, so that a later turn can name them; the oldest are forgotten."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def keep(self, name: str, text: str) -> int:
        """Remember an answer; gives when it is forgotten, in seconds since 1970."""
        expires = time.time() + REMEMBERED_S
        self._texts[name] = (expires, text)
        while len(self._texts) > MOST_REMEMBERED:
            self._texts.popitem(last=False)
        return int(expires)

    def text(self, name: str) -> str | None:
        """Its words; None where there is none of that id, or not any more."""
        expires, text = self._texts.get(name, (0.0, ""))
        return text if expires > time.time() else None


@dataclass
class Server:
    """One run that is served."""

    engine: Engine
    work: Work
    abilities: Abilities
    name: str
    limits: Limits
    weights: Weights
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))
    spoken: SpokenAnswers = field(default_factory=SpokenAnswers)
    is_draining: bool = False

    def __post_init__(self) -> None:
        self._decoders = asyncio.Semaphore(self.limits.decoders)
        self.fingerprint = f"muomni-{uuid.uuid5(uuid.NAMESPACE_URL, f'{self.name}/{self.created}').hex[:12]}"

    def admit(self, name: str | None) -> None:
        """Let a request in.

        Raises  ApiError where it names another model than the one that is here, or its weights were overwritten.
        """
        self.weights.require_unchanged()
        if name is not None and name != self.name:
            message = f"the model {name!r} does not exist: this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def decode(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that decodes media, or encodes them, beside the loop; few at a time."""
        async with self._decoders:
            return await asyncio.to_thread(function, *args)


def new_id(kind: str) -> str:
    """An id that no other answer has."""
    return f"{kind}-{uuid.uuid4().hex}"
