"""Whether the text matters is judged by pairs of different texts; speech is judged by the length of what was
to be said."""

from __future__ import annotations

import pytest
import torch

from muomni.evaluate.speech_evaluation import by_length, swap
from muomni.models.talker import Talker, TalkerConfig
from muomni.runtime import Runtime
from muomni.train.objectives.talker import TalkerItem, TalkerObjective, collate

CPU = Runtime(torch.device("cpu"), torch.float32)


def items(texts: list[list[int]]) -> list[TalkerItem]:
    torch.manual_seed(0)
    return [TalkerItem(str(n), ids, torch.randint(0, 8, (2, 4 + n % 3))) for n, ids in enumerate(texts)]


@pytest.fixture
def objective() -> TalkerObjective:
    torch.manual_seed(0)
    return TalkerObjective(
        Talker(
            TalkerConfig(
                text_vocab=12, codebooks=2, codebook_size=8, width=16, layers=1, heads=2, ffn_width=32
            )
        )
    )


def test_only_pairs_of_different_texts_count(objective: TalkerObjective) -> None:
    same = swap(objective, items([[1, 2]] * 6), CPU)
    assert same == {}, "the same words in place of themselves prove nothing"
    one_other = swap(objective, items([[1, 2]] * 5 + [[3, 4]]), CPU)
    assert one_other["text_swap_gap_nats"].n == 6
    assert one_other["text_swap_gap_nats"].ci is not None
    assert one_other["text_swap_gap_nats"].value != 0


def test_nats_are_the_mean_over_a_row_s_codes_and_its_end(objective: TalkerObjective) -> None:
    objective.eval()
    batch = collate(items([[1, 2], [3], [4, 5, 6]]), objective.talker.config)
    assert batch.frames_B is not None
    terms, counts = objective(batch), objective.counts(batch)
    per_row = torch.tensor([2 * frames + 1 for frames in batch.frames_B.tolist()])
    assert torch.allclose(
        (objective.nats(batch) * per_row).sum(), sum(term.total for term in terms.values()), rtol=1e-5
    )
    assert int(per_row.sum()) == sum(counts.values())


def test_errors_by_length() -> None:
    facts = by_length(["one", "two", "a b", "a b c d e"], ["one", "xxx", "a b", "a b c d x"])
    assert {name: (fact.value, fact.n) for name, fact in facts.items()} == {
        "own_cer_1_word": (0.5, 2),
        "own_cer_2_to_4_words": (0.0, 1),
        "own_cer_5_words_on": (1 / 9, 1),
    }
