"""The one loop that continues sequences: a column of symbols after another, read from a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from muomni.models import finite
from muomni.models.causal import CausalLM
from muomni.nn.head import Ranges


class Layout(Protocol):
    """What may stand where in a grid of K streams, and where rows end: text has one stream, speech K delayed
    ones."""

    @property
    def steps(self) -> int:
        """Columns at most."""

    @property
    def legal(self) -> Sequence[Ranges | None]:
        """The ids of each stream that may be chosen at any step, None = all."""

    def name(self, step: int) -> str:
        """What is chosen at a step, for errors."""

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """The symbols of a step, chosen by the scores (B,V) of each stream's legal ids, as `embed` takes
        them: (B,1) or (B,K,1)."""

    @property
    def is_over(self) -> bool:
        """Whether all rows have ended."""


def decode(
    model: CausalLM, x_BTD: Tensor, layout: Layout, *, keep_BT: Tensor | None = None, cache: Any = None
) -> Iterator[Tensor]:
    """The columns that follow embeddings (B,T,D), each as soon as it is chosen.

    Takes   keep_BT bool, True = a real position; cache: what stood before x_BTD.
    Raises  CheckpointError where scores are no numbers.
    """
    if was_training := model.training:  # each of its modules is asked to change
        model.eval()
    try:
        # inference_mode must not stay open between yields, where the caller's code runs.
        with torch.inference_mode():
            cache = model.new_cache(x_BTD.shape[0], x_BTD.shape[1] + layout.steps) if cache is None else cache
            read = model.reading(layout.legal)
            *before, final = parts(model, x_BTD, keep_BT)
            for part in before:
                read(part, cache, None)
            scores = read(final, cache, keep_BT)
            for each in scores:
                finite.demand(
                    each, model, f"scores of {layout.name(0)}", lambda: model.hidden(x_BTD, keep_BT=keep_BT)
                )
        for step in range(layout.steps):
            with torch.inference_mode():
                column = layout.column(step, scores)
            yield column
            if layout.is_over or step == layout.steps - 1:
                return
            with torch.inference_mode():
                x_BTD = model.embed(column)
                scores = read(x_BTD, cache, None)
                for each in scores:
                    finite.demand(each, model, f"scores of {layout.name(step + 1)}")
    finally:
        if was_training:
            model.train()


def parts(model: CausalLM, x_BTD: Tensor, keep_BT: Tensor | None = None) -> Sequence[Tensor]:
    """What is read of a prompt at a time, in order.

    A lone prompt is cut where it is cut when others are answered beside it (`infer.batch`), so that its
    answer has the same bits.
    """
    if model.part is None or len(x_BTD) > 1 or keep_BT is not None:
        return [x_BTD]
    return torch.split(x_BTD, model.part, 1)
