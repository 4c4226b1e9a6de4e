"""Our decoder with experts and transformers' Qwen3-MoE open each other's folders and agree on every logit and
on the balance of experts."""

import os

import pytest
import torch
from test_qwen3_parity import assert_agree, stirred

from muomni.data.batch import SequenceBatch
from muomni.errors import CheckpointError
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig, ExpertsConfig
from muomni.train.objectives.language import NextToken

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

# experts, of which a token uses, normalised, every, dense layers, tied
KINDS = [
    (4, 2, True, 1, (), False),
    (5, 1, False, 1, (0,), True),
    (6, 3, True, 2, (), False),
    (3, 3, False, 1, (2,), True),
]


def ours(number, per_token, normalise, every, dense, tied, **more):
    experts = ExpertsConfig(
        num_experts=number,
        experts_per_token=per_token,
        ffn_width=24,
        normalise_weights=normalise,
        every_n_layers=every,
        dense_layers=dense,
        balance_weight=0.01,
    )
    sizes = {
        "vocab_size": 50,
        "width": 32,
        "layers": 4,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn_width": 64,
        "ctx_len": 64,
        "dropout": 0.0,
    }
    return Decoder(DecoderConfig(**{**sizes, **more}, tied=tied, rope_theta=5e4, eps=1e-5, experts=experts))


def theirs(number, per_token, normalise, every, dense, tied):
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=tied,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
            num_experts=number,
            num_experts_per_tok=per_token,
            moe_intermediate_size=24,
            norm_topk_prob=normalise,
            decoder_sparse_step=every,
            mlp_only_layers=list(dense),
            router_aux_loss_coef=0.02,
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_ours(kind, tmp_path):
    decoder = stirred(ours(*kind))
    store.save(decoder, tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(opened) is transformers.Qwen3MoeForCausalLM
    assert_agree(decoder, opened.eval())
    assert sum(p.numel() for p in opened.parameters()) == sum(p.numel() for p in decoder.parameters())
    again = Decoder.open(tmp_path)
    assert again.config == decoder.config
    assert store.digest(again) == store.digest(decoder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_we_open_theirs(kind, shard, tmp_path):
    model = stirred(theirs(*kind))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    opened = Decoder.open(tmp_path)
    assert opened.config.experts == ExpertsConfig(
        num_experts=kind[0],
        experts_per_token=kind[1],
        ffn_width=24,
        normalise_weights=kind[2],
        every_n_layers=kind[3],
        dense_layers=kind[4],
        balance_weight=0.02,
    )
    assert_agree(opened, model)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_balance_is_theirs(kind, tmp_path):
    decoder = stirred(ours(*kind))
    store.save(decoder, tmp_path)
    model = transformers.Qwen3MoeForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(15, 50, (3, 17), generator=torch.Generator().manual_seed(2))
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[0, 11:] = False
    objective = NextToken(decoder)
    for batch in (SequenceBatch(["a", "b", "c"], ids, ids), SequenceBatch(["a", "b", "c"], ids, ids, keep)):
        objective.zero_grad()
        model.zero_grad()
        term = objective(batch)["balance"]
        mask = None if batch.keep_BT is None else batch.keep_BT.long()
        expected = model(ids, attention_mask=mask, output_router_logits=True).aux_loss
        assert term.count == int(batch.is_real_BT.sum())
        torch.testing.assert_close(term.total / term.count, expected, rtol=1e-5, atol=1e-6)
        (term.total / term.count).backward()
        expected.backward()
        layers = [layer for layer in range(4) if decoder.config.experts.are_in(layer)]
        for layer in layers:
            mine, other = (
                decoder.model.layers[layer].mlp.gate.weight.grad,
                model.model.layers[layer].mlp.gate.weight.grad,
            )
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)
            assert kind[0] == kind[1] or bool(mine.any())


def test_a_file_that_lacks_what_experts_need_is_refused(tmp_path):
    from muomni import files

    store.save(ours(*KINDS[0]), tmp_path)
    content = store.read_config(tmp_path)
    files.write_json(
        tmp_path / "config.json", {k: v for k, v in content.items() if k != "moe_intermediate_size"}
    )
    with pytest.raises(CheckpointError, match="moe_intermediate_size"):
        Decoder.open(tmp_path)
