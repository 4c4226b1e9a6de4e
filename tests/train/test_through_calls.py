"""Whatever shards or compiles a module sees a training step through its call: embedding, body and head."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from muomni.data.batch import SequenceBatch
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.train.objectives.language import NextToken


@pytest.mark.parametrize("tied", [True, False])
def test_a_training_step_reaches_every_part_of_a_decoder_through_its_call(tied: bool) -> None:
    decoder = Decoder(DecoderConfig(vocab_size=40, width=16, layers=3, heads=2, ffn_width=32, tied=tied))
    parts = {"embed": decoder.table, "hidden": decoder.body, "head": decoder.head}
    parts |= {f"block {number}": block for number, block in enumerate(decoder.blocks)}
    calls: Counter[str] = Counter()

    def count(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: calls.update([f"before {name}"]))
        module.register_forward_hook(lambda *_: calls.update([f"after {name}"]))
        module.register_full_backward_pre_hook(lambda *_: calls.update([f"backward {name}"]))

    for name, module in parts.items():
        count(name, module)
    ids = torch.randint(0, 40, (2, 9))
    NextToken(decoder)(SequenceBatch(["a", "b"], ids, ids))["text"].total.backward()
    assert calls == {f"{moment} {name}": 1 for name in parts for moment in ("before", "after", "backward")}


def test_weights_are_read_nowhere_else() -> None:
    """With a table that is there only during the call of the module it belongs to, as sharding leaves it, a
    step works."""
    decoder = Decoder(DecoderConfig(vocab_size=40, width=16, layers=1, heads=2, ffn_width=32, tied=False))
    head = decoder.head
    whole, none = head.weight, nn.Parameter(torch.empty(0, 16))
    head.weight = none
    head.register_forward_pre_hook(lambda *_: setattr(head, "weight", whole))
    head.register_forward_hook(lambda *_: setattr(head, "weight", none))
    ids = torch.randint(0, 40, (2, 9))
    NextToken(decoder)(SequenceBatch(["a", "b"], ids, ids))["text"].total.backward()
    assert whole.grad is not None
    assert bool(whole.grad.any())
