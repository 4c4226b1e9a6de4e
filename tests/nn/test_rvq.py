"""The quantiser learns: every codebook moves, gradients reach what comes before it, and its state survives a
checkpoint."""

from __future__ import annotations

import pytest
import torch

from muomni.errors import ShapeError, TokenRangeError
from muomni.nn.rvq import ResidualVQ


def vectors(count: int = 400, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(20, width, generator=generator)
    return centres[torch.randint(20, (count,), generator=generator)] + 0.3 * torch.randn(
        count, width, generator=generator
    )


def started(codebooks: int = 3, entries: int = 16) -> ResidualVQ:
    quantiser = ResidualVQ(codebooks, entries, 6)
    quantiser.start(vectors(), torch.Generator().manual_seed(1))
    return quantiser


def error(quantiser: ResidualVQ, z_MD: torch.Tensor) -> float:
    return float((quantiser.decode(quantiser.encode(z_MD[None]))[0] - z_MD).square().mean())


def test_every_codebook_moves_with_an_update() -> None:
    quantiser = started()
    before = quantiser.codebooks_KND.clone()
    quantiser.train()(vectors(seed=2)[None])
    quantiser.update(torch.Generator().manual_seed(0))
    moved = (quantiser.codebooks_KND - before).abs().sum((1, 2))
    assert (moved > 0).all(), moved


def test_the_gradient_goes_straight_through() -> None:
    z = vectors(10)[None].requires_grad_()
    weights = torch.randn(1, 10, 6)
    (started()(z).vectors_BTD * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def test_commitment_pulls_the_encoder() -> None:
    z = vectors(10)[None].requires_grad_()
    started()(z).commitment.backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_each_book_lowers_the_error() -> None:
    z = vectors()
    errors = [error(started(books), z) for books in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * float(z.var())


def test_moving_averages_lower_the_error() -> None:
    torch.manual_seed(0)
    quantiser, z = ResidualVQ(2, 16, 6, decay=0.8), vectors()
    first = error(quantiser, z)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        quantiser.train()(z[None])
        quantiser.update(generator)
    assert error(quantiser, z) < 0.2 * first


def test_dead_entries_are_born_anew() -> None:
    quantiser = started(1)
    quantiser.codebooks_KND[0, :8] = 1e3
    quantiser.sums_KND[0, :8] = 1e3 * quantiser.mass_KN[0, :8, None]
    generator = torch.Generator().manual_seed(0)
    revived = 0
    for _ in range(150):
        quantiser.train()(vectors()[None])
        revived += quantiser.update(generator)
    assert revived >= 8
    assert float(quantiser.codebooks_KND.abs().max()) < 20
    assert quantiser.usage(quantiser.encode(vectors()[None]))[0].used > 0.9


def test_micro_batches_equal_one_batch() -> None:
    whole, parts = started(), started()
    z = vectors(seed=3)[None]
    whole.train()(z)
    parts.train()(z[:, :150])
    parts(z[:, 150:])
    for quantiser in (whole, parts):
        quantiser.update(torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole.codebooks_KND, parts.codebooks_KND)


def test_padding_counts_for_nothing() -> None:
    alone, padded = started(), started()
    z = vectors(30, seed=4)[None]
    junk = torch.cat((z, torch.full((1, 10, 6), 50.0)), 1)
    keep = torch.arange(40)[None] < 30
    first, second = alone.train()(z), padded.train()(junk, keep)
    torch.testing.assert_close(first.commitment, second.commitment)
    for quantiser in (alone, padded):
        quantiser.update(torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone.codebooks_KND, padded.codebooks_KND)


def test_a_nan_latent_does_not_poison_the_codebooks() -> None:
    quantiser = started()
    z = vectors(30)[None].clone()
    z[0, 3] = torch.nan
    quantiser.train()(z)
    quantiser.update(torch.Generator().manual_seed(0))
    assert quantiser.codebooks_KND.isfinite().all()


def test_eval_mode_learns_nothing_and_repeats_itself() -> None:
    quantiser = started().eval()
    before = {name: buffer.clone() for name, buffer in quantiser.state_dict().items()}
    first, second = quantiser(vectors()[None]), quantiser(vectors()[None])
    assert quantiser.update(torch.Generator()) == 0
    assert torch.equal(first.codes_BKT, second.codes_BKT)
    assert torch.equal(first.codes_BKT, quantiser.encode(vectors()[None]))
    assert all(torch.equal(before[name], buffer) for name, buffer in quantiser.state_dict().items())


def test_a_checkpoint_between_updates_is_complete() -> None:
    through, resumed = started(), ResidualVQ(3, 16, 6)

    def go(quantiser: ResidualVQ, steps: range) -> None:
        for step in steps:
            quantiser.train()(vectors(seed=step)[None])
            quantiser.update(torch.Generator().manual_seed(step))

    go(through, range(3))
    resumed.load_state_dict(through.state_dict())
    go(through, range(3, 6))
    go(resumed, range(3, 6))
    assert torch.equal(through.codebooks_KND, resumed.codebooks_KND)
    assert bool(resumed.started)


def test_encode_and_decode_agree() -> None:
    quantiser = started().eval()
    result = quantiser(vectors()[None])
    torch.testing.assert_close(quantiser.decode(result.codes_BKT), result.vectors_BTD)


@pytest.mark.parametrize("code", [-1, 16])
def test_codes_outside_are_refused(code: int) -> None:
    with pytest.raises(TokenRangeError, match="0 to 15"):
        started().decode(torch.full((1, 3, 2), code))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="width 6"):
        started()(torch.zeros(1, 2, 5))
    with pytest.raises(ShapeError):
        started().decode(torch.zeros(1, 2, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="at least one"):
        started().start(torch.zeros(0, 6), torch.Generator())


def test_fewer_vectors_than_entries_still_start() -> None:
    quantiser = ResidualVQ(2, 16, 6)
    quantiser.start(vectors(5), torch.Generator().manual_seed(0))
    assert error(quantiser, vectors(5)) < 1e-2


def test_usage_and_perplexity() -> None:
    codes = torch.stack((torch.arange(16), torch.zeros(16, dtype=torch.int64), torch.arange(16) % 4))[None]
    usage = started().usage(codes)
    assert [u.used for u in usage] == [1.0, 1 / 16, 4 / 16]
    assert [u.perplexity for u in usage] == pytest.approx([16, 1, 4])
