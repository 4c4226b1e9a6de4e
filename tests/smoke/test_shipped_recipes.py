"""Every shipped recipe runs through all of its stages, on tiny files of exactly the layout that its head
describes.

The recipes are the files themselves, with their paths, sources and options; overrides cut sizes and steps
alone. What so few steps can't teach is waived, with the reason; all that is structure must be green at its
own bounds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import own_data
import pytest

import qwen
import tiny_codecs
from muomni.data.sample import parse
from muomni.evaluate import certificate, thresholds
from muomni.execution import recipe as recipes
from muomni.execution import runner
from muomni.infer.engine import Engine
from muomni.infer.voice import open_cloner
from muomni.selftest import voices
from shared import once

pytestmark = pytest.mark.slow

SHIPPED = sorted(path.stem for path in recipes.SHIPPED.glob("*.yaml"))
TRIAL = str(Path(__file__).parents[2] / "benchmarks" / "tokens_cpu.yaml")  # a recipe to be
DATA: dict[
    str, tuple[str, Callable[[Path], Path]]
] = {  # recipe -> the variable by which it names its data, and what writes them
    "muomni_12gb": ("DATA", own_data.of_12gb),
    "real_cpu": ("MUOMNI_DATA", own_data.of_pack),
    "vlm_cpu": ("MUOMNI_DATA", own_data.of_pack),
    "voice_tiny": ("MUOMNI_DATA", own_data.of_voices),
    "vlm_qwen3_0.6b": ("DATA", own_data.of_llava),
    "vlm_qwen3_8b": ("DATA", own_data.of_llava),
    "tokens_qwen3_0.6b": ("DATA", own_data.of_tokens),
    "tokens_qwen3_8b": ("DATA", own_data.of_tokens),
    "voice_higgs_3b": ("DATA", own_data.of_voice),
}
LUCK = {"overfits", "eligible"}  # of so few steps


@pytest.fixture(scope="module", params=[*SHIPPED, TRIAL])
def finished(
    request: pytest.FixtureRequest, tiny_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A recipe's name and its run."""
    name, out = request.param, tmp_path_factory.mktemp("shipped") / Path(request.param).stem
    known = {"MUOMNI_PLAIN": "1"}
    if name in DATA:
        variable, make = DATA[name]
        known[variable] = str(once(tmp_path_factory, make.__name__, make))
    if name.startswith("voice_"):
        pytest.importorskip("peft")
        pytest.importorskip("transformers.models.higgs_audio_v2")
    if name == "voice_tiny":
        known["ROWS"] = str(Path(known["MUOMNI_DATA"]) / "rows")
    if "_qwen3_" in name:
        pytest.importorskip("transformers")
        pytest.importorskip("peft")
        known |= {"LLM": str(once(tmp_path_factory, "qwen3", lambda folder: qwen.llm(folder, words=1200)))}
    if name.startswith("tokens_qwen3"):
        for variable, kind, how in (
            ("IMAGE_CODEC", "janus_vq", {}),
            ("AUDIO_CODEC", "encodec", {"sampling_rate": 24_000}),
        ):
            folder = once(
                tmp_path_factory, kind, lambda to, kind=kind, how=how: tiny_codecs.saved(kind, to, **how)
            )
            known[variable] = str(folder)
    if name.startswith("vlm_qwen3"):
        known |= {"EYES": str(once(tmp_path_factory, "siglip2", lambda folder: qwen.eyes(folder, "siglip2")))}
    if name.startswith("voice_higgs"):
        if lacking := voices.lacking():
            pytest.skip(lacking)
        base = once(tmp_path_factory, "higgs", own_data.of_base)
        known |= {"BASE": str(base), "CODEC": str(base / "codec")}
    with patch.dict(os.environ, known):
        overrides = own_data.cut(name, out)
        if recipes.read(name, out=out).header.world is not None:
            shutil.copytree(tiny_world, out / "data" / "world")
            overrides.append("world={seed: 1, size: tiny}")
        plan = recipes.read(name, overrides, out=out)
        for stage, entry in plan.stages.items():
            every = entry.gates
            waived = [
                gate.name for gate in every if gate.name not in thresholds.STRUCTURE or gate.name in LUCK
            ]
            runner.run(
                name,
                stages=[stage],
                out=out,
                overrides=overrides,
                waive=waived,
                reason="three steps teach nothing",
                alone=True,
            )
    return name, out


def test_every_stage_ends_with_what_its_structure_proves(finished: tuple[str, Path]) -> None:
    name, out = finished
    stages = [stage for stage, entry in recipes.read(name, out=out).stages.items() if not entry.may_be_red]
    assert stages
    for stage in stages:
        found: Any = certificate.read(out / stage)
        verdicts = {row["name"]: row["verdict"] for row in found["gates"]}
        assert "red" not in verdicts.values(), (stage, verdicts)
        structure = {gate for gate in verdicts if gate in thresholds.STRUCTURE - LUCK}
        assert {verdicts[gate] for gate in structure} == {"green"}
        if stage != "sweep":
            assert found["facts"]["steps"]["value"] == own_data.STEPS
            assert (out / stage / "final").is_dir()
            assert not (out / stage / "quarantine.jsonl").exists(), (
                out / stage / "quarantine.jsonl"
            ).read_text()


def test_what_it_made_answers(finished: tuple[str, Path], tiny_world: Path) -> None:
    name, out = finished
    if "voice" in recipes.read(name, out=out).stages:
        cloner = open_cloner(out / "voice", "cpu")
        asked = parse({"id": "asked", "messages": [{"role": "user", "content": "one"}]})
        said = cloner.say(cloner.row(asked), max_frames=3)
        assert said.codes_KF.shape[0] == cloner.tokens.books
        assert said.codes_KF.shape[1] <= 3
        return
    engine = Engine.load(out, "cpu")
    if "mmpt" in recipes.read(name, out=out).stages:
        (drawn,) = engine.draw(["a red chair"])
        assert drawn is not None
        return
    picture = next((tiny_world / "images").iterdir())
    assert isinstance(engine.answer("what is it?", images=[picture], max_new=3).text, str)
    if "talker" in recipes.read(name, out=out).stages:
        wave, _ = engine.speak(["it is red"])[0]
        assert len(wave)
