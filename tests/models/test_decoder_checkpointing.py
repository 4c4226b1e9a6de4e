"""Activations made again in the backward: the same losses and gradients to the last bit, and far fewer
activations kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from muomni.models import lora
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.lora import LoraSettings
from muomni.train.cost import LiveTensors

SIZES = {
    "vocab_size": 40,
    "width": 32,
    "layers": 6,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 96,
    "ctx_len": 64,
}
IDS = torch.randint(0, 40, (4, 48), generator=torch.Generator().manual_seed(1))


def decoder(kind: str, dropout: float) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**SIZES, dropout=dropout))
    if kind == "frozen":
        return model.requires_grad_(False).eval()
    if kind == "lora":
        pytest.importorskip("peft")
        lora.attach(model, LoraSettings(r=4, alpha=8, dropout=dropout))
    return model.train()


def taught(
    model: Decoder, checkpointing: bool, *, is_mixed: bool = False
) -> tuple[float, dict[str, Tensor], int]:
    """The loss, all gradients (that of the embeddings too), and the most bytes that lived at a time."""
    model.checkpointing = checkpointing
    x_BTD = model.embed(IDS).detach().requires_grad_()
    keep_BT = torch.ones_like(IDS, dtype=torch.bool)
    keep_BT[0, :5] = False
    torch.manual_seed(9)
    with (
        LiveTensors([*model.parameters(), x_BTD]) as live,
        torch.autocast("cpu", torch.bfloat16, enabled=is_mixed),
    ):
        loss = model.hidden(x_BTD, keep_BT=keep_BT).float().square().mean()
        loss.backward()
    after = torch.rand(1)  # the generator stands where it would
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), {**grads, "x": x_BTD.grad, "generator": after}, live.peak  # type: ignore[dict-item]


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["whole", "frozen", "lora"])
def test_the_same_to_the_last_bit_with_less_kept(kind: str, dropout: float, is_mixed: bool) -> None:
    model = decoder(kind, dropout)
    loss, grads, peak = taught(model, False, is_mixed=is_mixed)
    again, found, less = taught(model, True, is_mixed=is_mixed)
    assert loss == again
    assert grads.keys() == found.keys()
    assert (
        len(grads)
        == {"whole": 2 + len(list(model.model.layers.parameters())) + 1, "frozen": 2, "lora": 2 + 6 * 7 * 2}[
            kind
        ]
    )
    assert all(torch.equal(grads[name], found[name]) for name in grads)
    assert less < 0.5 * peak


def test_it_stands_aside_where_nothing_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("made again for nothing")

    monkeypatch.setattr("muomni.models.decoder.checkpoint", never)
    model = decoder("whole", 0.0)
    model.checkpointing = True
    with torch.no_grad():
        model(IDS)
        model(IDS, cache=model.new_cache(4, 60))
    model(IDS, cache=model.new_cache(4, 60))
    frozen = decoder("frozen", 0.0)
    frozen.checkpointing = True
    frozen(IDS)
    with pytest.raises(AssertionError):
        model(IDS)
    with pytest.raises(AssertionError):
        model(IDS, layer=2)


def test_several_backwards_through_one_forward() -> None:
    """As soundness asks which parameters each term reaches."""
    model = decoder("whole", 0.2)
    model.checkpointing = True
    loss, weights = model(IDS).square().mean(), list(model.parameters())
    first, second = (torch.autograd.grad(loss, weights, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
