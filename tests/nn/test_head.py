from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muomni.nn.head import IGNORE, linear_cross_entropy
from muomni.tokens import chat


def inputs(n=37, width=8, vocab=50, ignored=0.4):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocab, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < ignored] = -100
    return h, weight, labels


@pytest.mark.parametrize("chunk", [1, 10, 512])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("is_half", [False, True])
def test_loss_and_gradients_equal_the_plain_form(chunk, weighted, is_half):
    h, weight, labels = inputs()
    factors = torch.rand(len(labels)) if weighted else None
    autocast = torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext()
    with autocast:
        total, count, correct = linear_cross_entropy(h, weight, labels, chunk=chunk, weights_N=factors)
    (total / 7).backward()
    got = h.grad, weight.grad
    h.grad = weight.grad = None
    with autocast:
        logits = F.linear(h, weight)
    nats = F.cross_entropy(logits.float(), labels, reduction="none")
    expected = (nats if factors is None else nats * factors).sum()
    (expected / 7).backward()
    tolerance = {"rtol": 0.02, "atol": 0.02} if is_half else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(total, expected, **tolerance)
    torch.testing.assert_close(got[0], h.grad, **tolerance)
    torch.testing.assert_close(got[1], weight.grad, **tolerance)
    assert count == (labels != -100).sum()
    if not is_half:
        assert correct == ((logits.argmax(-1) == labels) & (labels != -100)).sum()


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.13")
def test_equals_torchs_own():
    h, weight, labels = inputs(ignored=0.2)
    total, *_ = linear_cross_entropy(h, weight, labels)
    torch.testing.assert_close(total, F.linear_cross_entropy(h, weight, labels, reduction="sum"))


def test_no_label_at_all_is_zero_and_still_reaches_the_parameters():
    h, weight, labels = inputs(ignored=1.1)
    total, count, correct = linear_cross_entropy(h, weight, labels)
    total.backward()
    assert (total.item(), count, int(correct)) == (0.0, 0, 0)
    assert h.grad.eq(0).all()
    assert weight.grad.eq(0).all()


def test_rows_without_a_label_are_not_even_looked_at():
    h, weight, labels = inputs()
    with torch.no_grad():
        h[labels == -100] = torch.nan
    total, *_ = linear_cross_entropy(h, weight, labels)
    total.backward()
    assert total.isfinite()
    assert h.grad[labels == -100].eq(0).all()
    assert weight.grad.isfinite().all()


def test_a_frozen_table_gets_no_gradient_and_evaluation_none_at_all():
    h, weight, labels = inputs()
    total, *_ = linear_cross_entropy(h, weight.detach(), labels)
    total.backward()
    assert h.grad.abs().sum() > 0
    with torch.no_grad():
        assert not linear_cross_entropy(h, weight, labels)[0].requires_grad


def test_ties_are_no_hits():
    total, _, correct = linear_cross_entropy(torch.zeros(4, 3), torch.zeros(5, 3), torch.arange(4))
    assert int(correct) == 0
    torch.testing.assert_close(total, 4 * torch.tensor(5.0).log())


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return out


def test_the_whole_logits_never_exist():
    h, weight, labels = inputs(n=256, vocab=1000, ignored=0.0)
    with Largest() as largest:
        linear_cross_entropy(h, weight, labels, chunk=32)[0].backward()
    assert 0 < largest.elements <= 32 * 1000
    with Largest() as plain:
        F.cross_entropy(F.linear(h, weight), labels).backward()
    assert plain.elements >= 256 * 1000


def test_what_is_ignored_here_is_what_the_chat_template_leaves_out() -> None:
    assert IGNORE == chat.IGNORE == torch.nn.CrossEntropyLoss().ignore_index
