import pytest
import torch

from muomni.nn.norm import RMSNorm


def plainly(x, weight, eps):
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_divides_by_the_root_mean_square(scale):
    norm = RMSNorm(16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 16) * scale
    torch.testing.assert_close(norm(x).double(), plainly(x, norm.weight, 1e-6), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_plain_form():
    norm = RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    x, side = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    (norm(x) * side).sum().backward()
    got_x, got_weight = x.grad.clone(), norm.weight.grad.clone()
    x.grad = norm.weight.grad = None
    (plainly(x, norm.weight, 1e-6) * side).sum().backward()
    torch.testing.assert_close(got_x, x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_weight, norm.weight.grad, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_its_dtype_and_takes_statistics_in_float32():
    norm, x = RMSNorm(4096), torch.full((1, 4096), 300.0)
    out = norm(x.to(torch.float16))  # 300^2 overflows float16
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), torch.ones(1, 4096), rtol=1e-2, atol=1e-2)


def test_zeros_give_zeros():
    assert RMSNorm(4)(torch.zeros(2, 4)).eq(0).all()
