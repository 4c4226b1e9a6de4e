import math

import pytest
import torch
from pydantic import ValidationError

from muomni.errors import CheckpointError, ConfigError, ContextError
from muomni.models.decoder import Decoder, DecoderConfig


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 40,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "ffn_width": 64,
        "ctx_len": 32,
        "dropout": 0.1,
    } | changes
    model = Decoder(DecoderConfig(**settings)).eval()
    with torch.no_grad():  # away from the start, where gains are alike and blocks speak softly
        for parameter in model.parameters():
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def ids_of(*shape, seed=1):
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(seed))


def test_the_future_changes_nothing_earlier():
    model, ids = tiny(), ids_of(2, 10)
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 40
    assert model(ids)[:, :6].equal(model(changed)[:, :6])
    assert not model(ids)[:, 6].equal(model(changed)[:, 6])


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_moves_no_logits(side):
    model, ids = tiny(), ids_of(2, 6)
    left, right = {"left": (3, 0), "right": (0, 3), "both": (1, 2)}[side]
    padded = torch.cat((ids_of(2, left, seed=5), ids, ids_of(2, right, seed=6)), 1)
    keep = torch.zeros_like(padded, dtype=torch.bool)
    keep[:, left : left + 6] = True
    torch.testing.assert_close(
        model(padded, keep_BT=keep)[:, left : left + 6], model(ids), rtol=1e-4, atol=1e-4
    )


def test_packed_documents_equal_separate_ones():
    model, first, second = tiny(), ids_of(1, 5), ids_of(1, 7, seed=2)
    documents = torch.tensor([[3] * 5 + [4] * 7])
    packed = model(torch.cat((first, second), 1), documents_BT=documents)
    torch.testing.assert_close(packed, torch.cat((model(first), model(second)), 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (5, 1, 1, 4, 1), (8, 1, 1, 1, 1)])
def test_cached_equals_uncached_at_every_position(kv_heads, padding, pieces):
    model, ids = tiny(kv_heads=kv_heads), ids_of(3, 12)
    keep = torch.ones(3, 12, dtype=torch.bool)
    if padding == "left":
        keep[0, :4], keep[1, :1] = False, False
    elif padding == "right":
        keep[0, 4:8], keep[2, 7:8] = False, False  # a prompt of 8, padded right; then 4 more
    elif padding == "holes":
        keep = torch.rand(3, 12, generator=torch.Generator().manual_seed(3)) > 0.3
    whole = model(ids, keep_BT=keep)
    cache = model.new_cache(3, 16)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    start, parts = 0, []
    for length in pieces:
        part = slice(start, start + length)
        given = None if padding == "none" else keep[:, part]
        parts.append(model(ids[:, part], keep_BT=given, cache=cache))
        start += length
    torch.testing.assert_close(torch.cat(parts, 1)[keep], whole[keep], rtol=1e-4, atol=1e-4)


def test_dropout_and_autocast_leave_it_trainable():
    model = tiny().train()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        model(ids_of(2, 8)).float().logsumexp(-1).sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_first_loss_is_near_ln_of_the_vocabulary(tied):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=1000, layers=2, tied=tied)).eval()
    ids = torch.randint(0, 1000, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(float(loss) - math.log(1000)) < 0.5


def test_embeddings_and_what_blocks_add_are_audible_beside_each_other():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=1000)).eval()
    x = model.embed(torch.randint(0, 1000, (2, 64)))
    added = model.hidden(x, layer=4) - x
    # At 0.1 (embeddings of std 0.02) words were not heard, at 2 (quiet values and outputs) nothing learned to
    # look anything up.
    assert 0.15 < x.std() / added.std() < 1.0
    assert abs(model.embedding_rms - float(x.square().mean().sqrt())) < 0.05 * model.embedding_rms


def test_layer_gives_states_midway():
    model = tiny()
    x = model.embed(ids_of(2, 5))
    assert model.hidden(x, layer=0).equal(x)
    assert model.model.norm(model.hidden(x, layer=2)).equal(model.hidden(x))
    assert not model.hidden(x, layer=1).equal(model.hidden(x, layer=2))
    with pytest.raises(ConfigError, match=r"within 0\.\.2"):
        model.hidden(x, layer=3)


def test_positions_may_be_given():
    model, ids = tiny(), ids_of(1, 5)
    x = model.embed(ids)
    torch.testing.assert_close(model.hidden(x, positions_BT=torch.arange(5)[None]), model.hidden(x))
    torch.testing.assert_close(
        model.hidden(x, positions_BT=torch.arange(5)[None] + 9.0), model.hidden(x), rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(
        model.hidden(x, positions_BT=torch.arange(5)[None] * 2.5), model.hidden(x), atol=1e-3
    )


def test_too_long_is_refused_with_and_without_a_cache():
    model = tiny(ctx_len=8)
    with pytest.raises(ContextError, match="9 positions do not fit ctx_len 8"):
        model(ids_of(1, 9))
    cache = model.new_cache(1, 20)
    model(ids_of(1, 8), cache=cache)
    with pytest.raises(ContextError, match="9 positions"):
        model(ids_of(1, 1), cache=cache)
    assert cache.length == 8


def test_config_refuses_what_does_not_fit():
    with pytest.raises(ValidationError, match="multiple of kv_heads 3"):
        DecoderConfig(vocab_size=10, heads=4, kv_heads=3)
    with pytest.raises(ValidationError, match="n_layers"):
        DecoderConfig(vocab_size=10, n_layers=3)


def test_config_file_goes_both_ways_and_refuses_foreign_maths():
    config = DecoderConfig(
        vocab_size=10, kv_heads=2, rope_theta=5e5, ctx_len=99, tied=False, dropout=0.2, head_dim=48, eps=1e-5
    )
    assert DecoderConfig.from_file(config.to_file()) == config
    with pytest.raises(CheckpointError, match="rope type"):
        DecoderConfig.from_file(
            config.to_file() | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}
        )
    with pytest.raises(CheckpointError, match="hidden_size"):
        DecoderConfig.from_file(
            {name: value for name, value in config.to_file().items() if name != "hidden_size"}
        )
    older = config.to_file() | {"rope_theta": 5e5}
    del older["rope_parameters"]
    assert DecoderConfig.from_file(older) == config
