"""Every stage whole on a real CUDA device, by the recipe that the imitated one runs in CI
(test_second_device.py): `pytest -m gpu`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import device_recipe
from muomni.evaluate import certificate
from muomni.execution import runner
from muomni.infer.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe and its data."""
    os.environ["MUOMNI_PLAIN"] = "1"
    folder = tmp_path_factory.mktemp("gpu")
    return device_recipe.write(folder / "recipe.yaml", device_recipe.recipe(folder))


def train(written: Path, stage: str, out: Path, *overrides: str) -> dict[str, Any]:
    """A stage by the recipe, after what it needs; its certificate."""
    for name in (*device_recipe.NEEDS[stage], stage):
        if name == stage or not (out / name / "certificate.json").exists():
            waived = device_recipe.learned(name)
            runner.run(
                str(written),
                stages=[name],
                out=out,
                overrides=[*overrides],
                waive=waived,
                reason="so few steps teach nothing",
            )
    found = certificate.read(out / stage)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", device_recipe.ORDER)
def test_a_stage_runs_whole_on_a_gpu(written: Path, stage: str) -> None:
    out = written.parent / "run"
    found = train(written, stage, out)
    again: Any = runner.gate(out / stage)
    assert found["facts"]["misplaced"]["value"] == 0
    for report in (found, again):
        assert [row["name"] for row in report["gates"] if row["verdict"] == "red"] == []
    assert again["facts"]["held_out_loss"]["value"] == pytest.approx(
        found["facts"]["held_out_loss"]["value"], rel=1e-3
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_measures(written: Path, precision: str, tmp_path: Path) -> None:
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    told = [
        f"{stage}.{key}"
        for stage in ("thinker", "codec")
        for key in ("use_amp=true", f"precision={precision}")
    ]
    for stage in ("thinker", "codec"):
        facts = train(written, stage, tmp_path / "run", *told)["facts"]
        assert facts["finite"]["value"] == 1
        assert (
            facts["skipped_share"]["value"] <= 0.5
        )  # of 4 steps: a first one may be skipped while fp16's scale is found


def test_it_answers_speaks_and_hears_on_a_gpu(written: Path) -> None:
    out = written.parent / "run"
    for stage in ("omni", "instruct"):
        train(written, stage, out)
    engine = Engine.load(out, "cuda")
    picture = next((written.parent / "world" / "images").iterdir())
    assert isinstance(engine.answer("what colour is it?", images=[picture], max_new=4).text, str)
    spoken = engine.speak(["it is red"])[0]
    assert len(engine.transcribe([spoken])) == 1
    assert isinstance(
        Engine.load(out / "instruct", "cuda").answer("what colour?", images=[picture], max_new=4).text, str
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_thinker_in_half_precision_says_what_it_says_in_single(written: Path, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    from muomni.models import pretrained

    train(written, "thinker", written.parent / "run")
    folder = written.parent / "run" / "thinker" / "final"
    ids_BT = torch.arange(300, 324, device="cuda")[None] % 300
    logits = [
        pretrained.open_decoder(folder, device="cuda", dtype=each)(ids_BT).float()
        for each in (torch.float32, dtype)
    ]
    assert (logits[0] - logits[1]).abs().max() < 0.05 * logits[0].abs().max()
