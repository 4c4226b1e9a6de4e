"""The examiner: who looks wins over swapped pictures, who guesses does not, and what can't be read is left
out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muomni.data.batch import SequenceBatch
from muomni.data.conversation import Conversations
from muomni.data.sample import Sample, parse
from muomni.evaluate.vqa_evaluation import VqaEvaluation, _partner
from muomni.infer.engine import Engine
from muomni.runtime import Runtime


def asked(media: Path, task: str, number: int, colour: str, *, picture: str | None = None) -> Sample:
    content = [
        {"type": "image", "path": str(media / f"{picture or colour}.png")},
        {"type": "text", "text": "what colour"},
    ]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": colour}]
    return parse({"id": f"{task}-{number}", "group": f"{task}-{number}", "task": task, "messages": messages})


@pytest.fixture
def samples(media: Path) -> list[Sample]:
    """Eight of a task that is looked at, sixteen of one that is guessed, by turns red and blue."""
    return [
        asked(media, task, n, ("red", "blue")[n % 2])
        for task, count in (("looks", 8), ("guesses", 16))
        for n in range(count)
    ]


@pytest.fixture
def examiner(engine: Engine) -> VqaEvaluation:
    return VqaEvaluation(engine, 64, Runtime(torch.device("cpu"), torch.float32))


def held_out(engine: Engine, samples: list[Sample]) -> Conversations:
    spec = engine.parts.media[0]
    assert spec is not None
    return Conversations(samples, engine.tokenizer, spec, 96)


def test_tasks_of_proof_judge_and_all_are_told(
    examiner: VqaEvaluation, engine: Engine, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = {sample.id: sample.answer for sample in samples}

    def nats(batch: SequenceBatch) -> torch.Tensor:
        """Cheap for the right picture in one task, the same for any in the other."""
        brightness_N3 = batch.media["image"].values_N.float().mean((2, 3))
        is_red = brightness_N3[:, 0] > brightness_N3[:, 2]
        right = torch.tensor(
            [
                (colours[name] == "red") == bool(red)
                for name, red in zip(batch.sample_ids, is_red, strict=True)
            ]
        )
        looks = torch.tensor([name.startswith("looks") for name in batch.sample_ids])
        return torch.where(looks & ~right, 2.0, 1.0)

    monkeypatch.setattr(examiner._objective, "nats", nats)
    every = examiner.ablations(held_out(engine, samples))
    assert every["image_swap_win_rate"].value == pytest.approx(8 / 24)
    assert every["image_swap_win_rate_looks"].value == 1.0
    assert every["image_swap_win_rate_guesses"].value == 0.0
    proven = examiner.ablations(held_out(engine, samples), ["looks"])
    assert (proven["image_swap_win_rate"].value, proven["image_swap_win_rate"].n) == (1.0, 8)
    assert proven["image_swap_gap_nats"].value == 1.0
    assert proven["image_swap_win_rate_guesses"] == every["image_swap_win_rate_guesses"]
    nobody = examiner.ablations(held_out(engine, samples), ["lokks"])
    assert "image_swap_win_rate" not in nobody, "a gate without its fact is red"


def test_anothers_picture_is_held_against_a_blank_one_and_noise(
    examiner: VqaEvaluation, engine: Engine, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = iter(
        ([1.0, 2.0] * 12, [4.0, 6.0] * 12, [3.0] * 24, [5.0] * 24)
    )  # right, another's, blank, noise, as they are asked for
    monkeypatch.setattr(examiner, "nats", lambda _: next(arms))
    facts = examiner.ablations(held_out(engine, samples))
    over = {name: facts[f"image_swap_over_{name}_nats"] for name in ("zero", "noise")}
    assert {name: fact.value for name, fact in over.items()} == {"zero": 2.0, "noise": 0.0}
    assert all(fact.n == 24 for fact in over.values())
    low, high = over["zero"].ci or (0.0, 0.0)
    assert 1.0 < low < 2.0 < high < 3.0


def test_a_swap_takes_another_answer_of_the_same_task(samples: list[Sample]) -> None:
    for index, sample in enumerate(samples):
        other = samples[_partner(samples, index)]
        assert (other.task, other.answer == sample.answer) == (sample.task, False)
    alone = [samples[0], *[sample for sample in samples if sample.task == "guesses"]]
    assert alone[_partner(alone, 0)].answer == "blue", "of another task where its own has no other answer"
    assert _partner(samples[:1], 0) == 0


def test_what_cannot_be_read_is_left_out(
    examiner: VqaEvaluation, engine: Engine, samples: list[Sample], media: Path
) -> None:
    broken = asked(media, "looks", 99, "red", picture="broken")
    facts = examiner.answers([broken, *samples])
    assert facts["looks_exact"].n == 8
    assert facts["guesses_exact"].n == facts["guesses_exact_swapped_image"].n == 16
    assert examiner.ablations(held_out(engine, [broken, *samples]))["image_swap_win_rate"].n == 24
    assert not examiner.answers([broken])
