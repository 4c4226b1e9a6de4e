from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muomni.errors import TokenRangeError
from muomni.nn.grown import GrownEmbedding, GrownHead
from muomni.nn.head import IGNORE, BookHeads, Head, OwnHead, TiedHead, linear_cross_entropy
from muomni.tokens import chat


def inputs(n=37, width=8, vocab=50, ignored=0.4):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, width, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocab, (n,), generator=generator)
    labels[torch.rand(n, generator=generator) < ignored] = -100
    return h, weight, labels


@pytest.mark.parametrize("chunk", [1, 10, 512])
@pytest.mark.parametrize("cuts", [[50], [45, 5], [10, 30, 10]])
@pytest.mark.parametrize("is_half", [False, True])
def test_loss_and_gradients_equal_the_plain_form(chunk, cuts, is_half):
    h, weight, labels = inputs()
    autocast = torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext()
    with autocast:
        total, count, correct = linear_cross_entropy(h, weight.split(cuts), labels, chunk=chunk)
    (total / 7).backward()
    got = h.grad, weight.grad
    h.grad = weight.grad = None
    with autocast:
        logits = F.linear(h, weight)
    expected = F.cross_entropy(logits.float(), labels, reduction="sum")
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
    total, *_ = linear_cross_entropy(h, [weight], labels)
    torch.testing.assert_close(total, F.linear_cross_entropy(h, weight, labels, reduction="sum"))


def test_no_label_at_all_is_zero_and_still_reaches_the_parameters():
    h, weight, labels = inputs(ignored=1.1)
    total, count, correct = linear_cross_entropy(h, [weight], labels)
    total.backward()
    assert (total.item(), count, int(correct)) == (0.0, 0, 0)
    assert h.grad.eq(0).all()
    assert weight.grad.eq(0).all()


def test_rows_without_a_label_are_not_even_looked_at():
    h, weight, labels = inputs()
    with torch.no_grad():
        h[labels == -100] = torch.nan
    total, *_ = linear_cross_entropy(h, [weight], labels)
    total.backward()
    assert total.isfinite()
    assert h.grad[labels == -100].eq(0).all()
    assert weight.grad.isfinite().all()


def test_a_frozen_table_gets_no_gradient_and_evaluation_none_at_all():
    h, weight, labels = inputs()
    total, *_ = linear_cross_entropy(h, [weight.detach()], labels)
    total.backward()
    assert h.grad.abs().sum() > 0
    with torch.no_grad():
        assert not linear_cross_entropy(h, [weight], labels)[0].requires_grad


def test_ties_are_no_hits():
    total, _, correct = linear_cross_entropy(torch.zeros(4, 3), [torch.zeros(5, 3)], torch.arange(4))
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
        linear_cross_entropy(h, [weight], labels, chunk=32)[0].backward()
    assert 0 < largest.elements <= 32 * 1000
    with Largest() as plain:
        F.cross_entropy(F.linear(h, weight), labels).backward()
    assert plain.elements >= 256 * 1000


def test_what_is_ignored_here_is_what_the_chat_template_leaves_out() -> None:
    assert IGNORE == chat.IGNORE == torch.nn.CrossEntropyLoss().ignore_index


def heads(grown: bool = False) -> list[Head]:
    """One of each kind, with scores for 9 symbols."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(9, 4)
    books = BookHeads(4, [9, 5])
    if not grown:
        return [OwnHead(4, 9), TiedHead(table), books]
    head = GrownHead(TiedHead(torch.nn.Embedding(6, 4)), 3)
    torch.nn.init.normal_(head.new_head)
    return [head]


LEGAL = (range(1, 3), range(5, 8))  # the second one lies in both parts of the grown head's table


@pytest.mark.parametrize("head", [*heads(), *heads(grown=True)], ids=lambda head: type(head).__name__)
def test_legal_ids_share_the_probability_alone(head: Head) -> None:
    ids = [1, 2, 5, 6, 7]
    h_ND = torch.randn(6, 4, requires_grad=True)
    labels_N = torch.tensor([5, 1, IGNORE, 7, 2, 6])
    whole_NV = head.logits(h_ND)
    torch.testing.assert_close(head.logits(h_ND, legal=LEGAL), whole_NV[:, ids], rtol=1e-6, atol=1e-6)
    masked_NV = whole_NV.masked_fill(~torch.isin(torch.arange(9), torch.tensor(ids)), -torch.inf)
    expected = F.cross_entropy(masked_NV, labels_N, reduction="sum")
    got = head.nats(h_ND, labels_N, legal=LEGAL)
    torch.testing.assert_close(got.total, expected)
    assert (got.num_labels, int(got.correct)) == (5, int((masked_NV.argmax(-1) == labels_N).sum()))
    inputs = [h_ND, *head.parameters()]
    wanted = torch.autograd.grad(expected, inputs, allow_unused=True)
    for made, each in zip(torch.autograd.grad(got.total, inputs, allow_unused=True), wanted):
        torch.testing.assert_close(made, each)
    assert got.total < head.nats(h_ND, labels_N).total  # of all ids, others have a share too


@pytest.mark.parametrize("head", [*heads(), *heads(grown=True)], ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("label", [0, 4, 8])
def test_a_label_that_is_not_legal_is_refused(head: Head, label: int) -> None:
    with pytest.raises(TokenRangeError, match=f"label {label} is not legal"):
        head.nats(torch.randn(2, 4), torch.tensor([5, label]), legal=LEGAL)


@pytest.mark.parametrize("head", [*heads(), *heads(grown=True)], ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("legal", [None, LEGAL])
def test_heads_score_labelled_places_alone(head: Head, legal: tuple[range, ...] | None) -> None:
    h_ND, labels_N = torch.full((5, 4), torch.nan), torch.full((5,), IGNORE)
    h_ND[3], labels_N[3] = 1.0, 6
    assert head.nats(h_ND, labels_N, legal=legal).total.isfinite()


def test_new_rows_change_no_bit_of_the_old_scores_and_learn_alone() -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(70, 16).requires_grad_(False)
    head, embedding = GrownHead(TiedHead(table), 5), GrownEmbedding(table, 5)
    for new in (head.new_head, embedding.new_embed):
        torch.nn.init.normal_(new)
    assert [name for part in (head, embedding) for name, _ in part.named_parameters()] == [
        "new_head",
        "new_embed",
    ]
    h_ND, old_N, new_N = torch.randn(12, 16), torch.arange(0, 70, 7), torch.tensor([70, 74])
    scores_NV = head.logits(h_ND)
    assert head.size == scores_NV.shape[1] == 75
    assert scores_NV[:, :70].equal(TiedHead(table).logits(h_ND))
    assert scores_NV[:, 70:].equal(F.linear(h_ND, head.new_head))
    assert embedding(old_N).equal(table(old_N))
    assert embedding(torch.cat((new_N, old_N)))[:2].equal(embedding.new_embed[[0, 4]])
    total = head.nats(embedding(torch.cat((old_N, new_N))), torch.arange(63, 75)).total
    total.backward()
    assert table.weight.grad is None
    assert head.new_head.grad is not None
    assert head.new_head.grad.abs().sum(1).gt(0).all()
    assert embedding.new_embed.grad is not None
    assert embedding.new_embed.grad.abs().sum(1).gt(0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("wrong", [-1, 75])
def test_ids_beyond_the_new_rows_are_refused(wrong: int) -> None:
    with pytest.raises(IndexError):
        GrownEmbedding(torch.nn.Embedding(70, 4), 5)(torch.tensor([3, wrong]))


def test_new_rows_in_float32_stand_behind_a_table_in_bf16() -> None:
    table = torch.nn.Embedding(20, 8, dtype=torch.bfloat16).requires_grad_(False)
    head, embedding = GrownHead(TiedHead(table), 2), GrownEmbedding(table, 2)
    h_ND = embedding(torch.tensor([3, 20, 21]))
    assert h_ND.dtype == head.logits(h_ND).dtype == torch.bfloat16
    head.nats(h_ND, torch.tensor([20, 3, 21])).total.backward()
    assert head.new_head.grad is not None
    assert head.new_head.grad.dtype == torch.float32
