"""A decoder with experts: cached as uncached, by itself as in a batch, counted, adapted, spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from muomni.data.batch import SequenceBatch
from muomni.infer.generate import generate
from muomni.inspection import inspect
from muomni.models import lora, store
from muomni.models.decoder import Decoder, DecoderConfig, ExpertsConfig
from muomni.models.stepper import Stepper
from muomni.runtime import Runtime
from muomni.train import step
from muomni.train.flops import Counted
from muomni.train.objectives.language import NextToken
from muomni.train.settings import TrainSettings
from pretended_device import DEVICE, pretended_device

SIZES = {
    "vocab_size": 40,
    "width": 32,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "ffn_width": 64,
    "ctx_len": 64,
    "dropout": 0.0,
}


def made(*, number: int = 5, per_token: int = 2, **more: Any) -> Decoder:
    torch.manual_seed(0)
    experts = ExpertsConfig(
        num_experts=number,
        experts_per_token=per_token,
        ffn_width=16,
        **{"dense_layers": (1,), "balance_weight": 0.5, **more},
    )
    decoder = Decoder(DecoderConfig(**{**SIZES, "experts": experts})).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.2)
    return decoder


def ids_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(15, 40, shape, generator=torch.Generator().manual_seed(seed))


def test_cached_decoding_is_the_whole_forward_of_every_step() -> None:
    decoder, ids = made(), ids_of(3, 7)
    slow = ids
    with torch.no_grad():
        for _ in range(12):
            slow = torch.cat((slow, decoder(slow)[:, -1:].argmax(-1)), 1)
    assert generate(decoder, ids, max_new=12) == slow[:, -12:].tolist()
    stepper, cache = Stepper(decoder), decoder.new_cache(3, 19)
    with torch.no_grad():
        decoder.hidden(decoder.embed(slow[:, :7]), cache=cache)
        for place in range(7, 19):
            logits = stepper.read(decoder.embed(slow[:, place : place + 1]), cache)[0]
            torch.testing.assert_close(logits, decoder(slow)[:, place], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_row_is_the_same_alone_padded_and_packed() -> None:
    decoder, ids = made(), ids_of(2, 9)
    alone = decoder(ids[:1])
    torch.testing.assert_close(decoder(ids)[:1], alone, rtol=1e-4, atol=1e-5)
    keep = torch.tensor([[False] * 4 + [True] * 9])
    padded = decoder(torch.cat((torch.full((1, 4), 3), ids[:1]), 1), keep_BT=keep)[:, 4:]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)
    documents = torch.tensor([[0] * 9 + [1] * 9])
    packed = decoder(ids.view(1, 18), documents_BT=documents)
    torch.testing.assert_close(packed[:, :9], alone, rtol=1e-4, atol=1e-5)


def test_active_parameters_are_counted_as_a_hand_counts_them(tmp_path: Path) -> None:
    decoder = made()
    whole = sum(p.numel() for p in decoder.parameters())
    expert = 3 * 32 * 16
    assert decoder.num_active == whole - 2 * 3 * expert  # two layers, three experts that a token leaves out
    store.save(decoder, tmp_path)
    found = inspect(tmp_path)
    assert (found["parameters"], found["active_parameters"], found["model_type"]) == (
        whole,
        decoder.num_active,
        "qwen3_moe",
    )
    store.save(Decoder(DecoderConfig(**SIZES)), tmp_path / "dense")
    assert "active_parameters" not in inspect(tmp_path / "dense")


@torch.no_grad()
def test_operations_are_those_of_the_experts_that_are_used() -> None:
    def of(decoder: Decoder, tokens: int = 11) -> int:
        with Counted() as counter:
            decoder(ids_of(1, tokens))
        return counter.total

    one, two = of(made(per_token=1)), of(made(per_token=2))
    assert two - one == 2 * 11 * 2 * 3 * 32 * 16  # a multiply-add is two, layers with experts are two
    assert (
        of(made(number=20)) - two == 2 * 11 * 2 * 15 * 32
    )  # other experts cost their place in the router alone


def batches() -> list[SequenceBatch]:
    parts = []
    for number, (rows, length) in enumerate([(2, 9), (1, 5), (3, 7)]):
        ids, keep = ids_of(rows, length, seed=number), torch.ones(rows, length, dtype=torch.bool)
        keep[-1, length - 2 :] = False
        parts.append(
            SequenceBatch([f"{number}-{row}" for row in range(rows)], ids, ids.masked_fill(~keep, -100), keep)
        )
    return parts


def together(parts: list[SequenceBatch]) -> SequenceBatch:
    longest = max(part.length for part in parts)
    pad = torch.nn.functional.pad
    ids, labels, keep = (
        torch.cat([pad(getattr(part, name), (0, longest - part.length), value=value) for part in parts])
        for name, value in (("ids_BT", 0), ("labels_BT", -100), ("keep_BT", False))
    )
    return SequenceBatch([name for part in parts for name in part.sample_ids], ids, labels, keep)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_give_the_gradient_of_the_one_batch(checkpointing: bool) -> None:
    """Balance is a product of two means over all tokens: the mean over micro-batches of such products would
    be another."""
    run = Runtime(torch.device("cpu"), torch.float32)
    settings = TrainSettings(max_grad_norm=1e9, explosion_norm=1e9)
    grads = []
    for micro in (batches(), [together(batches())]):
        objective = NextToken(made(balance_weight=30.0))
        objective.trunk.checkpointing = checkpointing
        objective.train()
        seen: dict[str, torch.Tensor] = {}
        still = torch.optim.SGD(objective.parameters(), lr=0.0)
        named = dict(objective.named_parameters())
        still.register_step_pre_hook(
            lambda *_, named=named, seen=seen: seen.update({n: p.grad.clone() for n, p in named.items()})
        )  # type: ignore[misc]
        result = step.update(
            objective, objective, still, torch.amp.GradScaler("cpu", enabled=False), micro, settings, run
        )
        grads.append((result, seen))
    (one, mine), (other, whole) = grads
    assert one.losses["balance"] == pytest.approx(other.losses["balance"], rel=1e-5)
    assert one.counts["balance"] == other.counts["balance"] == 7 + 9 + 3 + 7 + 7 + 5
    for name, grad in whole.items():
        torch.testing.assert_close(
            mine[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max() + 1), msg=name
        )
    routers = [name for name in whole if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2


def test_balance_evens_out_what_is_used() -> None:
    """Asked for nothing else, routers that all prefer one expert learn to use the others too."""
    decoder = made(balance_weight=1.0)
    with torch.no_grad():
        for layer in (0, 2):
            decoder.model.layers[layer].mlp.gate.weight[0].copy_(
                decoder.model.layers[layer].mlp.gate.weight[0] * 4
            )
    objective = NextToken(decoder)
    batch = SequenceBatch(["a"] * 8, ids_of(8, 20), ids_of(8, 20))
    routers = [p for name, p in decoder.named_parameters() if name.endswith("mlp.gate.weight")]
    optimizer = torch.optim.Adam(routers, lr=0.02)
    spreads = []
    for _ in range(60):
        spreads.append(float(objective.expert_use(batch).sum(0).std()))
        term = objective(batch)["balance"]
        (term.total / term.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert spreads[-1] < 0.6 * spreads[0]


def test_routers_that_rest_are_not_asked() -> None:
    objective = NextToken(made())
    assert (
        objective(batches()[0]).keys()
        == {"text", "misses", "balance"}
        == objective.counts(batches()[0]).keys()
    )
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(not name.endswith("mlp.gate.weight"))
    assert objective(batches()[0]).keys() == {"text", "misses"} == objective.counts(batches()[0]).keys()
    assert NextToken(made(balance_weight=0.0)).counts(batches()[0]).keys() == {"text", "misses"}


def test_lora_stands_beside_experts_too(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    decoder, plain = made(), made()
    lora.attach(decoder, lora.LoraSettings(r=2, alpha=4))
    for _, parameter in decoder.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    ids = ids_of(2, 9)
    with torch.no_grad():
        said = decoder.eval()(ids)
        assert (said - plain(ids)).abs().max() > 0.1
        torch.testing.assert_close(lora.merged(decoder)(ids), said, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lora.base_of(decoder)(ids), plain(ids))
        assert generate(decoder, ids, max_new=5) == generate(lora.merged(decoder), ids, max_new=5)
    lora.save(decoder, tmp_path, "base")
    with torch.no_grad():
        torch.testing.assert_close(lora.load(made(), tmp_path).eval()(ids), said)


@pytest.mark.parametrize(
    ("experts", "told"),
    [
        ({"num_experts": 2, "experts_per_token": 3}, "experts_per_token 3 must be at most"),
        ({"num_experts": 4, "every_n_layers": 9}, "no layer of 3 has any"),
        ({"num_experts": 4, "dense_layers": [0, 1, 2]}, "no layer of 3 has any"),
        ({"num_experts": 0}, "greater than 0"),
        ({"num_experts": 4, "top_k": 2}, "Extra inputs"),
    ],
)
def test_experts_that_do_not_fit_are_refused(experts: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DecoderConfig.model_validate({**SIZES, "experts": experts})


def test_experts_lie_where_their_decoder_lies() -> None:
    """On a second device, imitated: nothing of the routing is made on the CPU."""
    with pretended_device():
        objective = NextToken(made().to(DEVICE))
        batch = batches()[0].to(DEVICE)
        objective.begin([batch, batch], 1)
        terms = objective(batch)
        (terms["text"].total + terms["balance"].total).backward()
        assert float(objective.expert_use(batch).sum()) == 2 * 2 * 16
        assert len(generate(objective.trunk, ids_of(2, 5).to(DEVICE), max_new=3)[0]) == 3
