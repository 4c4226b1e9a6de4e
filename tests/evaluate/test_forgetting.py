"""The meter of forgetting takes fewer long rows at a time, and moves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muomni.data.sample import Sample
from muomni.evaluate import forgetting
from muomni.evaluate.forgetting import Forgetting, rows_at_once
from muomni.infer.engine import Engine
from muomni.runtime import Runtime
from muomni.train.objectives.language import NextToken

CPU = Runtime(torch.device("cpu"), torch.float32)


def test_the_mask_of_a_batch_is_bounded() -> None:
    assert [rows_at_once(row_len) for row_len in (24, 1024, 2048, 10240)] == [16, 16, 4, 1]
    assert all(rows_at_once(row_len) * row_len**2 <= 1 << 24 for row_len in range(16, 4096, 40))


def test_batches_of_other_sizes_measure_the_same(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [
        Sample(id=str(n), group=str(n), task="text", text="the red circle is left of the blue square " * (1 + n % 3)) for n in range(12)
    ]
    found = []
    for pairs in (1 << 24, 2000):
        monkeypatch.setattr(forgetting, "PAIRS_AT_ONCE", pairs)
        meter = Forgetting(NextToken(engine.parts.thinker), samples, engine.tokenizer, tmp_path, CPU)
        found.append(meter.start)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
