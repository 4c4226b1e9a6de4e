import pytest
import torch

from muomni.errors import ConfigError
from muomni.nn import rope
from muomni.nn.attention import Attention, attend, attend_plainly


def slowly(q, k, v, mask):
    """One row, head and query at a time, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    groups = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                scores = k[b, h // groups].double() @ q[b, h, t].double() / q.shape[-1] ** 0.5
                scores[~mask[min(b, len(mask) - 1), 0, t]] = -torch.inf
                out[b, h, t] = scores.softmax(0) @ v[b, h // groups].double()
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("form", [attend, attend_plainly])
@pytest.mark.parametrize("causal", [True, False])
def test_fast_forms_equal_the_slow_one(kv_heads, form, causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, kv_heads, 5, 8), torch.randn(2, kv_heads, 5, 8)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril() if causal else torch.rand(2, 1, 5, 5) > 0.5
    mask = mask | torch.eye(5, dtype=torch.bool)
    got = form(q, k, v, None if causal else mask, causal=causal)
    torch.testing.assert_close(got.double(), slowly(q, k, v, mask), rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_close_and_keeps_its_dtype():
    q, k, v = torch.randn(3, 2, 4, 6, 16).bfloat16()
    got = attend(q, k, v, causal=True)
    assert got.dtype == torch.bfloat16
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(got.double(), slowly(q, k, v, mask), rtol=0.05, atol=0.03)


@pytest.mark.parametrize("causal", [True, False])
def test_hidden_positions_are_poison_that_nobody_tastes(causal):
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, 2], changed_v[:, :, 2] = 1e4, -1e4
    for form in (attend, attend_plainly):
        how = {"causal": True} if causal else {"mask": mask}
        assert form(q, k, v, **how)[:, :, :2].equal(form(q, changed_k, changed_v, **how)[:, :, :2])


def test_dropout_falls_only_in_training():
    attention = Attention(16, 2, dropout=0.5)
    x = torch.randn(1, 4, 16)
    assert not attention(x).equal(attention(x))
    attention.eval()
    assert attention(x).equal(attention(x))


def test_grouped_heads_equal_repeated_ones():
    torch.manual_seed(0)
    grouped, full = Attention(16, 4, kv_heads=2), Attention(16, 4)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].view(2, 1, 4, 16).expand(2, 2, 4, 16).reshape(16, 16)
    full.load_state_dict(state)
    x, tables = torch.randn(2, 5, 16), rope.angles(torch.arange(5), 4)
    torch.testing.assert_close(grouped(x, rope=tables, causal=True), full(x, rope=tables, causal=True))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="multiple of kv_heads 3"):
        Attention(16, 4, kv_heads=3)
    with pytest.raises(ConfigError, match="multiple of heads 3"):
        Attention(16, 3)
