"""A causal language model of transformers behind the face of CausalLM: trained by our objective, decoded by
our loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from muomni.data.batch import SequenceBatch
from muomni.errors import ConfigError, ContextError
from muomni.infer.generate import generate, stream
from muomni.models.causal import CausalLM
from muomni.nn.head import TiedHead
from muomni.runtime import Runtime
from muomni.train import step
from muomni.train.objectives.language import NextToken
from muomni.train.settings import TrainSettings

transformers = pytest.importorskip("transformers")

VOCAB = 50


class Past:
    """Keys and values as transformers keeps them, and which of them are real."""

    def __init__(self, batch: int) -> None:
        self.layers = transformers.DynamicCache()
        self.keep_BS = torch.ones(batch, 0, dtype=torch.bool)

    @property
    def length(self) -> int:
        return self.keep_BS.shape[1]


class Foreign(CausalLM):
    """Any causal network of transformers that counts positions by `position_ids`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.ctx_len = network.config.max_position_embeddings
        self.head = TiedHead(network.get_output_embeddings())

    def embed(self, ids_BT: Tensor) -> Tensor:
        out: Tensor = self.network.get_input_embeddings()(ids_BT)
        return out

    def hidden(
        self, x_BTD: Tensor, *, keep_BT: Tensor | None = None, cache: Past | None = None, **how: Any
    ) -> Tensor:
        if any(value is not None for value in how.values()):
            raise ConfigError(f"this model takes no {', '.join(how)}")
        new = x_BTD.shape[1]
        keep_BS = torch.ones(x_BTD.shape[:2], dtype=torch.bool) if keep_BT is None else keep_BT
        if cache is not None:
            keep_BS = cache.keep_BS = torch.cat((cache.keep_BS, keep_BS), 1)
        out: Tensor = self.network.base_model(
            inputs_embeds=x_BTD,
            attention_mask=keep_BS.long(),
            position_ids=(keep_BS.long().cumsum(1) - 1).clamp(min=0)[:, -new:],
            past_key_values=None if cache is None else cache.layers,
            use_cache=cache is not None,
        ).last_hidden_state
        return out

    def new_cache(self, batch: int, capacity: int) -> Past:
        return Past(batch)


def foreign(kind: str) -> Foreign:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = {"llama": transformers.LlamaConfig, "neox": transformers.GPTNeoXConfig}[kind](
        **sizes, max_position_embeddings=64
    )
    return Foreign(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def rows(seed: int) -> SequenceBatch:
    """Each row counts on by a step of its own; the last one is shorter."""
    draw = torch.Generator().manual_seed(seed)
    starts, strides = (
        torch.randint(0, VOCAB, (6, 1), generator=draw),
        torch.randint(1, 4, (6, 1), generator=draw),
    )
    ids_BT = (starts + strides * torch.arange(16)) % VOCAB
    keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    keep_BT[-1, 11:] = False
    return SequenceBatch([str(row) for row in range(6)], ids_BT, ids_BT.masked_fill(~keep_BT, -100), keep_BT)


def trained(model: Foreign, updates: int) -> list[float]:
    objective, run, settings = NextToken(model), Runtime(torch.device("cpu"), torch.float32), TrainSettings()
    objective.train()
    optimizer, scaler = (
        torch.optim.AdamW(model.parameters(), lr=5e-3),
        torch.amp.GradScaler("cpu", enabled=False),
    )
    return [
        step.update(
            objective, objective, optimizer, scaler, [rows(2 * number), rows(2 * number + 1)], settings, run
        ).losses["text"]
        for number in range(updates)
    ]


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_it_trains_with_our_objective_and_says_what_transformers_says(kind: str) -> None:
    model = foreign(kind)
    batch = rows(0)
    ours = NextToken(model.eval())(batch)["text"]
    with torch.no_grad():
        theirs = model.network(
            input_ids=batch.ids_BT, attention_mask=batch.keep_BT.long(), labels=batch.labels_BT
        ).loss
    assert float(ours.total.detach()) / ours.count == pytest.approx(float(theirs), rel=1e-5)
    losses = trained(model, 60)
    assert losses[-1] < 0.5 * losses[0], "it learns to count"
    model.eval()
    prompt_BT = batch.ids_BT[:, :6]
    how: dict[str, Any] = {
        "max_new_tokens": 10,
        "min_new_tokens": 10,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    # Left to itself, transformers would take the id 0 of a prompt for padding.
    expected = model.network.generate(prompt_BT, attention_mask=torch.ones_like(prompt_BT), **how)[
        :, 6:
    ].tolist()
    assert generate(model, prompt_BT, max_new=10) == expected
    assert list(stream(model, prompt_BT[:1], max_new=10)) == expected[0]
    padded_BT, keep_BT = prompt_BT.clone(), torch.ones_like(prompt_BT, dtype=torch.bool)
    padded_BT[0, :3], keep_BT[0, :3] = 0, False
    expected = model.network.generate(padded_BT, attention_mask=keep_BT.long(), **how)[:, 6:].tolist()
    assert generate(model, padded_BT, keep_BT=keep_BT, max_new=10) == expected
    stop = expected[1][4]
    assert (
        generate(model, prompt_BT[1:2], max_new=10, stop_ids=[stop])[0]
        == expected[1][: expected[1].index(stop)]
    )
    with pytest.raises(ContextError, match="ctx_len 64"):
        generate(model, prompt_BT, max_new=60)
    with pytest.raises(ConfigError, match="documents_BT"):
        model.hidden(model.embed(prompt_BT), documents_BT=torch.zeros_like(prompt_BT))
