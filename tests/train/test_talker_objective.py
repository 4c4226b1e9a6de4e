"""Stage talker's objective: it shifts once, leaks nothing, counts what it sums, and needs the text."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from muomni.data.batch import SequenceBatch
from muomni.errors import ConfigError
from muomni.infer.codes import frames, gathered
from muomni.models.talker import Talker, TalkerConfig
from muomni.train.objectives.talker import TalkerItem, TalkerObjective, collate


def small(**changes: object) -> TalkerObjective:
    torch.manual_seed(0)
    sizes = {
        "text_vocab": 12,
        "codebook_size": 16,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "ffn_width": 64,
        "dropout": 0.0,
        "code_noise": 0.0,
    }
    return TalkerObjective(Talker(TalkerConfig.model_validate(sizes | changes)))


def item(seed: int, text: list[int], frames: int) -> TalkerItem:
    return TalkerItem(
        str(seed), text, torch.randint(16, (2, frames), generator=torch.Generator().manual_seed(seed))
    )


def batch_of(items: list[TalkerItem], layout: str = "delay") -> SequenceBatch:
    return collate(items, small(layout=layout).talker.config)


def mean(objective: TalkerObjective, batch: SequenceBatch) -> torch.Tensor:
    terms = objective(batch)
    return sum((term.total / term.count for term in terms.values()), torch.zeros(()))


def fit(objective: TalkerObjective, batches: list[SequenceBatch], steps: int, lr: float = 5e-3) -> None:
    optimizer = torch.optim.AdamW(objective.parameters(), lr=lr)
    objective.train()
    for step in range(steps):
        mean(objective, batches[step % len(batches)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    objective.eval()


def test_counts_are_what_is_summed() -> None:
    batch = batch_of([item(0, [1, 2, 3], 5), item(1, [4], 2)])
    objective = small()
    assert objective.counts(batch) == {"book0": 9, "book1": 7}
    assert {name: term.count for name, term in objective(batch).items()} == objective.counts(batch)


def test_a_batch_is_the_sum_of_its_rows() -> None:
    items = [item(0, [1, 2, 3], 5), item(1, [4], 2), item(2, [5, 5], 9)]
    objective = small().eval()
    whole = objective(batch_of(items))
    rows = [objective(batch_of([one])) for one in items]
    for name in whole:
        torch.testing.assert_close(whole[name].total, sum(row[name].total for row in rows))


@pytest.mark.parametrize("layout", ["delay", "parallel"])
def test_random_codes_stay_above_their_entropy(layout: str) -> None:
    objective = small(layout=layout)
    batches = [
        batch_of([item(16 * number + row, [1, 2], 12) for row in range(16)], layout) for number in range(40)
    ]
    fit(objective, batches, 40)
    fresh = batch_of([item(5000 + row, [1, 2], 12) for row in range(64)], layout)
    terms = objective(fresh)
    assert float(terms["book1"].total.detach()) / terms["book1"].count > 0.97 * math.log(16)
    assert float(terms["book0"].total.detach()) / terms["book0"].count > 0.97 * math.log(16) * 12 / 13


def test_a_counting_sequence_goes_on_by_one() -> None:
    objective = small(layout="parallel")
    counting = torch.arange(40) % 16

    def count(start: int, text: list[int]) -> TalkerItem:
        return TalkerItem(
            "c", text, torch.stack((counting[start : start + 10], counting[start : start + 10]))
        )

    fit(objective, [batch_of([count(start, [1 + start % 8]) for start in range(8)], "parallel")], 120)
    spoken = gathered(frames(objective.talker, torch.tensor([[4]]), torch.tensor([[True]])))
    assert spoken.codes_BKF[0, 0].tolist() == counting[3:13].tolist()
    assert bool(spoken.ended_B)


def test_one_batch_is_learned_by_text_with_its_end_and_the_swap_is_worse() -> None:
    items = [item(row, [1 + row, 8, 9], 4 + row) for row in range(4)]
    objective = small()
    batch = batch_of(items)
    fit(objective, [batch], 120)
    assert mean(objective, batch).item() < 0.1
    assert (
        mean(
            objective, replace(batch, ids_BT=batch.ids_BT.roll(1, 0), keep_BT=batch.keep_BT.roll(1, 0))
        ).item()
        > 1.0
    )
    spoken = gathered(frames(objective.talker, batch.ids_BT, batch.keep_BT))
    assert spoken.frames_B.tolist() == [4, 5, 6, 7]
    for row, one in enumerate(items):
        assert torch.equal(spoken.codes_BKF[row, :, : 4 + row], one.codes_KF)


def test_every_parameter_gets_a_gradient() -> None:
    objective = small(condition_width=6, num_speakers=2, condition_dropout=0.0, code_noise=0.1)
    items = [
        TalkerItem(str(row), [1, 2, 3], item(row, [1], 6).codes_KF, torch.randn(3, 6), row % 2)
        for row in range(4)
    ]
    mean(objective.train(), batch_of(items)).backward()
    silent = [
        name
        for name, parameter in objective.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_noise_changes_a_share_of_codes_and_no_symbols() -> None:
    objective = small(code_noise=0.5)
    grid = objective.talker.config.lay_out(
        torch.zeros(2, 2, 500, dtype=torch.int64), torch.tensor([500, 300])
    )
    torch.manual_seed(0)
    noisy = objective.noisy(grid)
    assert torch.equal(noisy >= 16, grid >= 16)
    assert 0.4 < float((noisy != grid)[0, 0, :500].float().mean()) < 0.55


def test_weights_reach_the_terms() -> None:
    objective = TalkerObjective(small().talker, weights=[1.0, 0.5])
    assert [term.weight for term in objective(batch_of([item(0, [1], 3)])).values()] == [1.0, 0.5]
    with pytest.raises(ConfigError, match="2 codebook weights"):
        TalkerObjective(small().talker, weights=[1.0])


def test_conditions_are_for_all_rows_or_none() -> None:
    with pytest.raises(ConfigError, match="hidden states for 1 of 2"):
        batch_of([item(0, [1], 3), TalkerItem("x", [1], item(1, [1], 3).codes_KF, torch.zeros(1, 6))])
