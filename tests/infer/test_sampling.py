import pytest
import torch
from pydantic import ValidationError

from muomni.infer.sampling import SamplingConfig, pick


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shares(logits, config, draws=4000, seen=None):
    ids = pick(
        logits.expand(draws, -1),
        config,
        generator=generator(),
        seen_BV=None if seen is None else seen.expand(draws, -1),
    )
    return torch.bincount(ids, minlength=logits.shape[-1]) / draws


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


def test_greedy_takes_the_most_probable_of_each_row():
    assert pick(torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 1.0]]), SamplingConfig()).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_tempered_distribution(temperature):
    drawn = shares(LOGITS, SamplingConfig(temperature=temperature))
    torch.testing.assert_close(drawn, (LOGITS[0] / temperature).softmax(0), rtol=0, atol=0.03)


def test_top_k_keeps_the_k_most_probable():
    drawn = shares(LOGITS, SamplingConfig(temperature=1, top_k=2))
    assert drawn[2:].sum() == 0
    torch.testing.assert_close(drawn[:2], LOGITS[0, :2].softmax(0), rtol=0, atol=0.03)
    assert shares(LOGITS, SamplingConfig(temperature=1, top_k=99)).gt(0).all()


def test_top_p_keeps_the_fewest_that_hold_the_share():
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    drawn = shares(probabilities.log(), SamplingConfig(temperature=1, top_p=0.6))
    torch.testing.assert_close(drawn, torch.tensor([0, 2 / 3, 0, 1 / 3]), rtol=0, atol=0.03)
    only = shares(probabilities.log(), SamplingConfig(temperature=1, top_p=0.01))
    assert only.tolist() == [0, 1, 0, 0]


def test_penalty_makes_seen_ids_less_probable_whatever_the_sign():
    seen = torch.tensor([[True, False, False, True]])
    drawn = shares(LOGITS, SamplingConfig(temperature=1, repetition_penalty=2.0), seen=seen)
    torch.testing.assert_close(drawn, torch.tensor([1.0, 1.0, 0.0, -2.0]).softmax(0), rtol=0, atol=0.03)
    assert pick(
        torch.tensor([[2.0, 1.5]]),
        SamplingConfig(repetition_penalty=2.0),
        seen_BV=torch.tensor([[True, False]]),
    ).tolist() == [1]


def test_a_seed_repeats_the_draw():
    config, flat = SamplingConfig(temperature=1), torch.zeros(8, 100)
    assert pick(flat, config, generator=generator(3)).equal(pick(flat, config, generator=generator(3)))
    assert not pick(flat, config, generator=generator(3)).equal(pick(flat, config, generator=generator(4)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"topk": 3},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        SamplingConfig(**wrong)
