import torch

from muomni.nn import rope


def test_scores_depend_on_distance_alone():
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)

    def score(at_q, at_k):
        turned_q = rope.rotate(q, rope.angles(torch.tensor([at_q]), 8))
        return (turned_q * rope.rotate(k, rope.angles(torch.tensor([at_k]), 8))).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(score(3, 1), score(4, 1), rtol=1e-3)


def test_turning_keeps_lengths_and_position_zero_is_the_identity():
    x = torch.randn(2, 3, 5, 8)
    out = rope.rotate(x, rope.angles(torch.arange(5), 8))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(out[:, :, 0], x[:, :, 0])


def test_half_split_as_written_out():
    x, at = torch.randn(1, 1, 1, 4), 3.0
    a, b, c, d = x.flatten()
    slow, fast = torch.tensor(at), torch.tensor(at * 100.0**-0.5)
    expected = torch.stack(
        (
            a * slow.cos() - c * slow.sin(),
            b * fast.cos() - d * fast.sin(),
            c * slow.cos() + a * slow.sin(),
            d * fast.cos() + b * fast.sin(),
        )
    )
    torch.testing.assert_close(
        rope.rotate(x, rope.angles(torch.tensor([at]), 4, theta=100.0)).flatten(), expected
    )


def test_rows_may_have_their_own_positions_also_fractional():
    x, positions = torch.randn(2, 3, 4, 8), torch.rand(2, 4) * 9
    both = rope.rotate(x, rope.angles(positions, 8))
    for row in range(2):
        torch.testing.assert_close(
            both[row], rope.rotate(x[row : row + 1], rope.angles(positions[row], 8))[0]
        )


def test_gradient_is_that_of_the_plain_form():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    tables = tuple(table.double() for table in rope.angles(torch.arange(3), 4))
    assert torch.autograd.gradcheck(lambda each: rope.rotate(each, tables), (x,))
