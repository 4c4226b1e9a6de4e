"""From logits to one id a row."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class SamplingConfig(BaseModel):
    """How the next id is drawn; the start is greedy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(0.0, ge=0, description="0: the most probable id")
    top_k: int = Field(0, ge=0, description="draw among the k most probable ids; 0: among all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw among the fewest ids that hold this share of the probability"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, description="above 1: ids that stood before become less probable"
    )
    seed: int = Field(0, ge=0)


class MediaSampling(SamplingConfig):
    """How a token model draws the codes of an image or a sound.

    Source  guidance: Ho & Salimans 2022, Gafni et al. 2022 (for token models); candidates: Ramesh et al. 2021,
            who let another model choose.
    """

    repetition_penalty: float = Field(1.0, ge=1, le=1, description="codes repeat by nature")
    guidance: float = Field(
        1.0,
        ge=1,
        description="scores are s + guidance * (asked - s), s those that it gives without the words; 1: asked",
    )
    candidates: int = Field(
        1,
        ge=1,
        description="how many are written of each; kept is the one from which it reads the words most surely",
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.candidates > 1 and not self.temperature:
            raise ValueError("candidates are all alike without a temperature")
        return self


def pick(
    logits_BV: Tensor,
    config: SamplingConfig,
    *,
    generator: torch.Generator | None = None,
    seen_BV: Tensor | None = None,
) -> Tensor:
    """One id for each row.

    Takes   logits_BV; generator on the logits' device, needed unless greedy; seen_BV bool, True = stood
            before (for the penalty).
    Gives   int64 (B,).
    Source  order of steps (penalty, temperature, top-k, top-p) and the penalty as transformers has them;
            penalty: Keskar et al. 2019, nucleus: Holtzman et al. 2020.
    """
    if config.repetition_penalty != 1 and seen_BV is not None:
        penalty = config.repetition_penalty
        logits_BV = torch.where(
            seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV
        )
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / config.temperature
    if 0 < config.top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(config.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits_BV.sort(dim=-1, descending=True)
        shares = ordered.softmax(-1)
        # An id stays if what stands before it does not yet hold the share; so the first always stays.
        beyond = shares.cumsum(-1) - shares >= config.top_p
        logits_BV = torch.empty_like(logits_BV).scatter_(1, order, ordered.masked_fill(beyond, -torch.inf))
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)
