"""The stepper is made once a model, is never stale, and ends with what it was made of."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from muomni.data.batch import SequenceBatch
from muomni.infer.generate import generate
from muomni.models import lora, stepper
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.lora import LoraSettings
from muomni.train.average import Average
from muomni.train.objectives.language import NextToken

IDS = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(1))


def decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(
        DecoderConfig(**{"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "ffn_width": 64} | changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def answer(model: Decoder) -> list[list[int]]:
    return generate(model, IDS, max_new=12)


def fresh(model: Decoder) -> list[list[int]]:
    """By a stepper that nobody has kept."""
    stepper.release(model.body)
    return answer(model)


def train(model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """A step whose forward comes first, so that the stepper that is made between it and the update must be
    seen to be stale."""
    NextToken(model)(SequenceBatch(["a", "b"], IDS, IDS))["text"].total.backward()
    answer(model)
    optimizer.step()


def adamw(model: Decoder, **how: bool) -> None:
    train(model, torch.optim.AdamW(model.parameters(), lr=0.05, **how))


def average(model: Decoder) -> None:
    average = Average(model, 0.5)
    for state in average.state.values():
        state.mul_(-1)
    average.put()


def there_and_back(model: Decoder) -> None:
    """The second move may well give weights the places that they had before the first."""
    model.to(torch.float16).to(torch.float32)
    with torch.no_grad():
        model.head.weight.copy_(-model.head.weight)


CHANGES: dict[str, Callable[[Decoder], object]] = {
    "fused AdamW": lambda model: adamw(model, fused=True),
    "foreach AdamW": lambda model: adamw(model, foreach=True),
    "plain AdamW": lambda model: adamw(model, foreach=False),
    "fused SGD": lambda model: train(model, torch.optim.SGD(model.parameters(), lr=0.05, fused=True)),
    "data": lambda model: model.head.weight.data.neg_(),
    "one row": lambda model: torch.no_grad()(model.head.weight[7].neg_)(),
    "inference mode": lambda model: torch.inference_mode()(model.blocks[1].mlp.down_proj.weight.mul_)(-1),
    "load": lambda model: model.load_state_dict({k: -v for k, v in model.state_dict().items()}),
    "assign": lambda model: model.load_state_dict(
        {k: -v for k, v in model.state_dict().items()}, assign=True
    ),
    "average": average,
    "moved": there_and_back,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_made_again_when_weights_have_changed(change: str, tied: bool) -> None:
    model = decoder(tied=tied)
    before, first = answer(model), stepper.kept(model)
    assert answer(model) == before
    assert stepper.kept(model) is first
    CHANGES[change](model)
    model.eval()
    assert answer(model) == fresh(model)
    assert stepper.kept(model) is not first


def test_it_follows_an_adapter() -> None:
    model = decoder()
    before = answer(model)
    lora.attach(model, LoraSettings(r=4, alpha=64, targets=["q_proj", "down_proj"]))
    assert answer(model) == before  # B is zero
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    adapted = answer(model)
    assert adapted == fresh(model) != before
    for part in model.modules():
        if hasattr(part, "base_layer"):
            part.enable_adapters(False)
    assert answer(model) == before


def test_its_memory_ends_with_the_model() -> None:
    model = decoder()
    answer(model)
    kept = weakref.ref(stepper.kept(model))
    assert kept() is not None
    gc.disable()  # at once, not when the collector comes by
    try:
        del model
        assert kept() is None
    finally:
        gc.enable()


def test_training_gives_its_memory_back_and_a_copy_has_none() -> None:
    model = decoder().train()
    answer(model)
    kept = weakref.ref(stepper.kept(model))
    assert copy.deepcopy(model).body not in stepper._KEPT
    with torch.no_grad():
        NextToken(model)(SequenceBatch(["a", "b"], IDS, IDS))
    assert kept() is not None
    NextToken(model)(SequenceBatch(["a", "b"], IDS, IDS))
    assert kept() is None


def test_weights_without_versions_are_copied_for_each_call() -> None:
    with torch.inference_mode():
        model = decoder()
    first = stepper.kept(model)
    assert stepper.kept(model) is not first


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("before", [0, 4])
def test_it_reads_prompts_as_the_model_does(padding: str, before: int) -> None:
    model, keep_BT = decoder(kv_heads=2), None
    if padding != "none":
        keep_BT = torch.ones_like(IDS, dtype=torch.bool)
        keep_BT[0, slice(0, 3) if padding == "left" else slice(4, None)] = False
    with torch.inference_mode():
        caches = [model.new_cache(2, 20), model.new_cache(2, 20)]
        reads = [stepper.kept(model).read, super(Decoder, model).reading()]
        for cache, read in zip(caches, reads):
            if before:
                read(model.embed(IDS[:, :before]), cache, None)
        fast, slow = (read(model.embed(IDS), cache, keep_BT)[0] for cache, read in zip(caches, reads))
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
        fast, slow = (read(model.embed(IDS[:, :1]), cache, None)[0] for cache, read in zip(caches, reads))
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_change_no_bit_of_the_old_scores(tied: bool) -> None:
    model = decoder(tied=tied)
    grown = copy.deepcopy(model)
    grown.grow(3)
    assert grown.grown_head is not None
    assert grown.grown_embed is not None
    with torch.inference_mode():
        both = [stepper.kept(each).read(each.embed(IDS), each.new_cache(2, 9))[0] for each in (model, grown)]
        assert both[1].shape == (2, 43)
        assert both[1][:, :40].equal(both[0])
        assert grown(IDS)[..., :40].equal(model(IDS))
        h_BD = grown.hidden(grown.embed(IDS))[:, -1]
    with torch.no_grad():
        grown.grown_head.new_head[1] = 100 * h_BD[0]
        grown.grown_embed.new_embed.normal_()
    assert answer(grown)[0][0] == 41
    with torch.inference_mode():
        caches = [grown.new_cache(2, 20), grown.new_cache(2, 20)]
        ids_BT = torch.tensor([[41, 3, 42], [5, 40, 1]])
        reads = [stepper.kept(grown).read, super(Decoder, grown).reading()]
        fast, slow = (read(grown.embed(ids_BT), cache, None)[0] for cache, read in zip(caches, reads))
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
