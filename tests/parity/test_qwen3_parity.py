"""Our decoder and transformers' Qwen3 open each other's folders and agree on every logit."""

import os

import pytest
import torch

from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

SIZES = [
    (tied, kv_heads, head_dim) for tied in (True, False) for kv_heads in (1, 2, 4) for head_dim in (8, 16)
]


def stirred(model):
    """Away from the start, so that every gain and table counts."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def assert_agree(ours, theirs):
    ids = torch.randint(0, 50, (2, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, rtol=1e-4, atol=1e-4)
        assert expected.std() > 0.1
        keep = torch.ones_like(ids, dtype=torch.bool)
        keep[0, :6] = False
        masked = theirs(
            ids, attention_mask=keep.long(), position_ids=(keep.long().cumsum(1) - 1).clamp(min=0)
        ).logits
        torch.testing.assert_close(ours(ids, keep_BT=keep)[keep], masked[keep], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tied", "kv_heads", "head_dim"), SIZES)
def test_transformers_opens_ours(tied, kv_heads, head_dim, tmp_path):
    config = DecoderConfig(
        vocab_size=50,
        width=32,
        layers=2,
        heads=4,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_width=64,
        tied=tied,
        rope_theta=5e4,
        eps=1e-5,
    )
    ours = stirred(Decoder(config))
    store.save(ours, tmp_path)
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)).__name__ == "Qwen3Config"
    assert_agree(ours, theirs.eval())


@pytest.mark.parametrize(("tied", "kv_heads", "head_dim"), SIZES)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_we_open_theirs(tied, kv_heads, head_dim, shard, tmp_path):
    config = transformers.Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    theirs = stirred(transformers.Qwen3ForCausalLM(config))
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / store.INDEX).exists() == (shard == "20KB")
    assert_agree(Decoder.open(tmp_path), theirs)
