"""What a model of media tokens says is judged by the tasks that are named, and by nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from muomni import config
from muomni.data.sample import Sample
from muomni.errors import ConfigError
from muomni.evaluate import token_samples
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate, judge
from muomni.evaluate.samples import StageSamples
from muomni.stages import mmpt

TOKENS: Any = SimpleNamespace(codecs={"audio": SimpleNamespace(sample_rate_hz=16_000)})
SAID = ["seven", "The 2 stars!", "eight", "nine"]  # as prompts have them
TASKS = ["digit", "speak", "digit", "digit"]


def understood(
    heard: Sequence[str], tasks: Sequence[str], folder: Path | None = None
) -> tuple[dict[str, Fact], StageSamples]:
    waves = [None if words == "nothing" else np.ones(800, np.float32) for words in heard]
    samples = [
        Sample(id=f"s{number}", task=task, text=text) for number, (task, text) in enumerate(zip(TASKS, SAID))
    ]

    def hear(given: Sequence[np.ndarray]) -> list[str]:
        assert [len(wave) for wave in given] == [1600 if wave is None else 800 for wave in waves]
        return list(heard)

    shown = StageSamples()
    return token_samples._spoken(waves, SAID, samples, tasks, TOKENS, hear, shown), shown


def test_words_are_compared_as_they_are_said() -> None:
    facts, shown = understood(["seven", "the two stars", "eight", "nine"], [])
    assert (facts["spoken_right"].value, facts["spoken_right"].n) == (1.0, 4)
    assert facts["spoken_cer"].value == 0.0
    assert [row["heard"] for row in shown.rows] == ["seven", "the two stars", "eight", "nine"]


def test_only_named_tasks_count() -> None:
    heard = ["seven", "something else", "eight", "nothing"]
    assert understood(heard, ["digit"])[0]["spoken_right"].value == pytest.approx(2 / 3)
    assert understood(heard, [])[0]["spoken_right"].value == pytest.approx(2 / 4)
    assert "spoken_right" not in understood(heard, ["read"])[0], "nothing of it was held out: red, not green"
    assert understood(heard, ["read"])[0]["spoken_cer"].n == 4


@pytest.fixture
def gate() -> Gate:
    (found,) = [gate for gate in mmpt.STAGE.gates if gate.name == "spoken_right"]
    return found


def settings(**values: Any) -> mmpt.MmptSettings:
    return config.build(mmpt.MmptSettings, {"judge": "hearing", **values}, "mmpt")


def test_the_gate_stands_where_a_judge_listens_to_named_tasks(gate: Gate) -> None:
    assert gate.applies(settings(spoken_tasks=["digit"]), {"audio"})
    assert not gate.applies(settings(), {"audio"})
    with pytest.raises(ConfigError, match="spoken_tasks has no effect: nobody listens"):
        settings(spoken_tasks=["digit"], judge=None)
    with pytest.raises(ConfigError, match="no task speaks"):
        settings(spoken_tasks=["digit"], tasks={"t2i": 1.0})


@pytest.mark.parametrize(("right", "verdict"), [(0.8, "green"), (0.79, "red"), (1.0, "green"), (None, "red")])
def test_four_of_five_sounds_must_be_understood(gate: Gate, right: float | None, verdict: str) -> None:
    facts = {} if right is None else {"spoken_right": Fact(right, 100)}
    (judged,) = judge([gate], facts)
    assert judged.verdict == verdict
