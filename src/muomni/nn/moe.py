"""A feed-forward network of many experts of which each token uses a few, in the layout and with the maths of
Qwen3-MoE."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.nn.swiglu import SwiGLU


@dataclass
class Routing:
    """What the routers of one forward said of each token, a tensor (B, T, experts) of logits a layer, for
    whoever wants to know."""

    _by_router: dict[int, Tensor] = field(default_factory=dict)

    def add(self, router: nn.Module, logits_BTE: Tensor) -> None:
        """Another layer's; what a checkpointed block says once more in the backward changes nothing."""
        self._by_router.setdefault(id(router), logits_BTE)

    @property
    def logits(self) -> list[Tensor]:
        """Layer by layer, of those that have experts."""
        return list(self._by_router.values())


class MoE(nn.Module):
    """sum over a token's likeliest experts of weight x SwiGLU(x); weights are the router's softmax, brought
    to sum 1 if `normalise`.

    Every expert runs, on no token at all if it must: so each parameter has a gradient, and ranks exchange the
    same ones.
    Source  Qwen3-MoE, names as its checkpoints on the hub have them (transformers 5 stacks them when it opens
            these).
    """

    def __init__(self, width: int, hidden: int, experts: int, per_token: int, *, normalise: bool) -> None:
        super().__init__()
        self.per_token, self.normalise = per_token, normalise
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(width, hidden) for _ in range(experts))

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        """(..., D) -> (..., D); the router's logits go into `routing`."""
        logits = self.gate(x)
        if routing is not None:
            routing.add(self, logits)
        x_ND = x.reshape(-1, x.shape[-1])
        weights_NK, chosen_NK = likeliest(logits.reshape(-1, logits.shape[-1]), self.per_token)
        if self.normalise:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        # Tokens in the order of their experts, each expert's side by side.
        order = chosen_NK.flatten().argsort(stable=True)
        tokens = order // self.per_token
        sizes = torch.bincount(chosen_NK.flatten(), minlength=len(self.experts)).tolist()
        parts = torch.split(x_ND[tokens], sizes)
        outputs = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        outputs = outputs * weights_NK.flatten()[order, None].to(outputs.dtype)
        out_ND = torch.zeros_like(x_ND).index_add(0, tokens, outputs.to(x_ND.dtype))
        return out_ND.view(x.shape)


def likeliest(logits: Tensor, per_token: int) -> tuple[Tensor, Tensor]:
    """Probabilities in float32 and numbers of the `per_token` likeliest experts, (..., per_token) each, of
    logits (..., experts)."""
    top = F.softmax(logits, dim=-1, dtype=torch.float32).topk(per_token, dim=-1)
    return top.values, top.indices


def use(routing: Routing, keep_BT: Tensor, per_token: int) -> Tensor:
    """How often each expert of each layer was used by the real tokens, (layers, experts) float32; keep_BT
    True = a real one."""
    counts = [
        torch.bincount(likeliest(logits[keep_BT], per_token)[1].flatten(), minlength=logits.shape[-1]).float()
        for logits in routing.logits
    ]
    return torch.stack(counts)


def probabilities(routing: Routing, keep_BT: Tensor) -> Tensor:
    """The routers' probabilities of each expert, summed over real tokens and layers: (experts,) float32, with
    gradient."""
    return torch.stack(
        [F.softmax(logits[keep_BT], dim=-1, dtype=torch.float32).sum(0) for logits in routing.logits]
    ).sum(0)
