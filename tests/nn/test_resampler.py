import pytest
import torch
from torch import nn

from muomni.errors import ConfigError
from muomni.nn.resampler import QueryAttention, Resampler


def small(**changes):
    torch.manual_seed(0)
    return Resampler(12, **{"tokens": 5, "width": 16, "heads": 4, "depth": 2} | changes)


def test_the_sources_sizes():
    with torch.device("meta"):
        model = Resampler(1152)
    assert sum(each.numel() for each in model.parameters()) == 6_927_872
    assert model(torch.empty(2, 729, 1152, device="meta")).shape == (2, 64, 512)


def test_attention_is_torchs():
    torch.manual_seed(0)
    layer, reference = QueryAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([each.weight for each in projections]))
        reference.in_proj_bias.copy_(torch.cat([each.bias for each in projections]))
        reference.out_proj.load_state_dict(layer.o_proj.state_dict())
    assert sum(each.numel() for each in reference.parameters()) == sum(
        each.numel() for part in (*projections, layer.o_proj) for each in part.parameters()
    )
    latents, patches, keep = torch.randn(3, 5, 16), torch.randn(3, 7, 16), torch.rand(3, 7) < 0.6
    keep[:, 0] = True
    for mask in (None, keep):
        heard, _ = reference(
            layer.attn_norm(latents), patches, patches, key_padding_mask=None if mask is None else ~mask
        )
        added = latents + heard
        expected = added + layer.mlp.down_proj(nn.functional.gelu(layer.mlp.up_proj(layer.mlp_norm(added))))
        found = layer(latents, patches, None if mask is None else mask[:, None, None])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_patches_means_nothing_and_their_content_does():
    model, states = small(), torch.randn(2, 9, 12)
    torch.testing.assert_close(model(states[:, torch.randperm(9)]), model(states), atol=1e-6, rtol=1e-5)
    other = states.clone()
    other[0, 3] += 1.0
    assert not torch.allclose(model(other)[0], model(states)[0], atol=1e-4)
    assert torch.equal(model(other)[1], model(states)[1])


def test_padding_is_never_read():
    model, states = small(), torch.randn(2, 9, 12)
    keep = torch.arange(9) < torch.tensor([[6], [9]])
    poisoned = states.masked_fill(~keep[..., None], 1e4)
    out = model(poisoned, keep)
    torch.testing.assert_close(out[0], model(states[:1, :6])[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out[1], model(states[1:])[0], atol=1e-6, rtol=1e-5)


def test_tokens_differ_and_the_picture_is_louder_than_the_questions():
    """Questions of std 1 drown the mean over hundreds of patches: what changes between pictures must not be a
    whisper."""
    torch.manual_seed(0)
    model = Resampler(96, tokens=16, width=64, heads=8)
    out = model(torch.randn(8, 1, 96) + torch.randn(8, 200, 96))
    between_pictures, between_tokens = out.std(0).mean(), out.std(1).mean()
    assert between_pictures > 0.5 * between_tokens
    assert between_tokens > 1e-3


def test_every_parameter_learns():
    model = small()
    model(torch.randn(2, 9, 12)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith(
            "k_proj.bias"
        ):  # adds the same to all scores of a query, which a softmax does not see
            assert parameter.grad.abs().max() > 0, name


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="multiple of heads 3"):
        small(heads=3)
