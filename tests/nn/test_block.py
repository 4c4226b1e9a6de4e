import pytest
import torch

from muomni.nn import masks, rope
from muomni.nn.block import Block, GeluMLP
from muomni.nn.swiglu import SwiGLU


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_the_future_changes_nothing_earlier(mlp):
    torch.manual_seed(0)
    block, x = Block(16, 4, 32, kv_heads=2, mlp=mlp), torch.randn(2, 6, 16)
    changed = x.clone()
    changed[:, 4:] += 1
    tables = rope.angles(torch.arange(6), 4)
    before, after = block(x, rope=tables, causal=True), block(changed, rope=tables, causal=True)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_padding_changes_nothing():
    block, x = Block(16, 2, 32), torch.randn(2, 5, 16)
    keep = torch.tensor([[True] * 5, [True, True, True, False, False]])
    changed = x.clone()
    changed[1, 3:] = 50.0
    mask = masks.build(5, keep_BT=keep)
    torch.testing.assert_close(block(x, mask=mask)[keep], block(changed, mask=mask)[keep])


def test_feed_forward_by_its_formula():
    x = torch.randn(3, 8)
    for mlp in (SwiGLU(8, 16), GeluMLP(8, 16)):
        if isinstance(mlp, SwiGLU):
            gate = mlp.gate_proj(x)
            expected = mlp.down_proj(gate * gate.sigmoid() * mlp.up_proj(x))
        else:
            expected = mlp.down_proj(torch.nn.functional.gelu(mlp.up_proj(x)))
        torch.testing.assert_close(mlp(x), expected)


def test_tensor_names_are_qwen3s():
    names = set(Block(16, 2, 32).state_dict())
    assert names == {
        f"{name}.weight"
        for name in (
            *("input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
            *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
        )
    }


def test_every_parameter_gets_a_gradient_also_under_autocast():
    block = Block(16, 4, 32, kv_heads=2, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(2, 5, 16), rope=rope.angles(torch.arange(5), 4), causal=True).sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in block.parameters()
    )
