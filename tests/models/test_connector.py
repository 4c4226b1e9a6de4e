import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from muomni.models.connector import Perceiver, PerceiverConfig

SMALL = PerceiverConfig(tokens=5, width=16, heads=4)


def small(**changes):
    torch.manual_seed(0)
    return Perceiver(SMALL.model_copy(update=changes), 12, 24)


def count(module):
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize("vision_ln", ["off", "frozen", "trained"])
def test_the_sources_sizes(vision_ln):
    with torch.device("meta"):
        model = Perceiver(PerceiverConfig(vision_ln=vision_ln), 1152, 4096)
    assert count(model.resampler) == 6_927_872
    assert count(model.projector) == 75_517_952
    assert count(model) == 82_445_824 + (2_304 if vision_ln != "off" else 0)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert trained == 82_445_824 + (2_304 if vision_ln == "trained" else 0)
    assert model(torch.empty(1, 729, 1152, device="meta")).shape == (1, 64, 4096)


@pytest.mark.parametrize("vision_ln", ["off", "frozen", "trained"])
def test_each_token_is_as_loud_as_it_was_told_to_be(vision_ln):
    model = small(vision_ln=vision_ln).init_output_scale(0.037)
    for scale in (1e-2, 1.0, 1e3):
        rms = model(torch.randn(2, 9, 12) * scale).square().mean(-1).sqrt()
        torch.testing.assert_close(rms, torch.full((2, 5), 0.037), rtol=1e-3, atol=0)
    assert dict(model.named_buffers()).keys() == {"loudness"}
    assert "loudness" in model.state_dict()


def test_it_is_norm_resampler_projector_norm():
    model, states = small(vision_ln="trained").init_output_scale(2.0), torch.randn(2, 9, 12)
    with torch.no_grad():
        model.vision_ln.weight.uniform_(0.5, 2.0)
        x = model.resampler(F.layer_norm(states, (12,), model.vision_ln.weight, model.vision_ln.bias))
        x = F.linear(F.gelu(F.linear(x, *_of(model.projector.up_proj))), *_of(model.projector.down_proj))
        expected = 2.0 * x / x.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(model(states), expected, rtol=1e-4, atol=1e-5)


def _of(linear: nn.Linear):
    return linear.weight, linear.bias


def test_the_order_of_patches_means_nothing():
    model, states = small(vision_ln="frozen"), torch.randn(2, 9, 12)
    torch.testing.assert_close(model(states[:, torch.randperm(9)]), model(states), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("vision_ln", ["off", "frozen", "trained"])
def test_gradients_reach_all_that_trains_and_nothing_else(vision_ln):
    model = small(vision_ln=vision_ln)
    (model(torch.randn(2, 9, 12)) * torch.randn(2, 5, 24)).sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif not name.endswith("k_proj.bias"):  # a softmax does not see it
            assert parameter.grad.abs().max() > 0, name


def test_half_precision_states_and_weights():
    model, states = small(vision_ln="trained").init_output_scale(0.5), torch.randn(2, 9, 12)
    exact = model(states)
    assert model(states.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(model(states.bfloat16()), exact, atol=3e-2, rtol=3e-2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(states.bfloat16()).float(), exact, atol=3e-2, rtol=3e-2)
    half = model.bfloat16()(states)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"tokens": 0}, {"mlp_ratio": 0}, {"vision_ln": "on"}, {"tokns": 3}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValidationError):
        PerceiverConfig(**wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_picture_is_no_token_and_still_has_a_gradient(dtype):
    model = small(vision_ln="trained").to(dtype)
    out = model(torch.empty(0, 9, 12, dtype=dtype))
    assert out.shape == (0, 5, 24)
    out.sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for parameter in model.parameters()
        if parameter.requires_grad
    )
