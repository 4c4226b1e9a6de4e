"""What stage talker learns from is encoded once, in batches of equal lengths, and a second start encodes
nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.data.sample import Sample
from muomni.errors import DataError
from muomni.execution import recipe
from muomni.infer.speech import listen_to
from muomni.models import store
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.runtime import Runtime
from muomni.stages import coded, talker
from muomni.stages import stage as stages
from muomni.stages.talker import TalkerTraining
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.talker import TalkerItem

CPU = torch.device("cpu")


class Calls:
    """How often codec and Thinker were asked, and with how many rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded: list[int] = []
        self.thought: list[int] = []
        encode, hidden = Codec.encode, Decoder.hidden

        def counted_encode(codec: Codec, mel_BFM: Any, frames_B: Any) -> Any:
            self.encoded.append(len(mel_BFM))
            assert len(set(codec.code_frames(frames_B).tolist())) == 1, "equal lengths"
            return encode(codec, mel_BFM, frames_B)

        def counted_hidden(decoder: Decoder, x_BTD: Any, **how: Any) -> Any:
            self.thought.append(len(x_BTD))
            return hidden(decoder, x_BTD, **how)

        monkeypatch.setattr(Codec, "encode", counted_encode)
        monkeypatch.setattr(Decoder, "hidden", counted_hidden)

    def since(self) -> tuple[int, int]:
        """Rows since it was asked last."""
        told = sum(self.encoded), sum(self.thought)
        self.encoded.clear(), self.thought.clear()
        return told


def build(finished: Path, recipe_file: Path, own: Path) -> TalkerTraining:
    """Stage talker, built on the finished stages."""
    settings: Any = recipe.read(str(recipe_file)).stages["talker"].settings
    needed = {name: finished / name / "final" for name in recipe.stage("talker").needs}
    built = stages.build(
        recipe.stage("talker"), settings, own, needed, recipe_file.parent, Runtime(CPU, torch.float32)
    )
    assert isinstance(built, TalkerTraining)
    return built


def test_a_second_start_encodes_nothing(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    first = build(finished, recipe_file, tmp_path / "talker")
    rows = len(first.corpus.train) + len(first.corpus.valid)
    assert calls.since() == (rows, rows)
    second = build(finished, recipe_file, tmp_path / "talker")
    assert calls.since() == (0, 0)
    for one, two in zip(pairs(first), pairs(second), strict=True):
        assert same(one, two)


def test_a_shared_cache_serves_another_run_and_outlives_a_fresh_start(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))
    calls = Calls(monkeypatch)
    build(finished, recipe_file, tmp_path / "one" / "talker")
    assert calls.since()[0] > 0
    assert not (tmp_path / "one" / "talker" / "coded").exists()
    shutil.rmtree(tmp_path / "one", ignore_errors=True)
    build(finished, recipe_file, tmp_path / "two" / "talker")
    assert calls.since() == (0, 0)
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    codec = store.load(other / "codec" / "final")
    codec.mel_mean.add_(0.5)
    store.save(codec, other / "codec" / "final")
    build(other, recipe_file, tmp_path / "three" / "talker")
    assert calls.since()[0] > 0, "another codec's codes are others"
    monkeypatch.setenv("MUOMNI_CACHE_GB", "1e-9")
    build(finished, recipe_file, tmp_path / "two" / "talker")
    kept = {path.parent for path in (tmp_path / "cache" / "coded").glob(f"*/{coded.META}")}
    assert len(kept) == 2, "of this start alone"


def pairs(plan: TalkerTraining) -> list[TalkerItem]:
    return [*plan.train.dataset.items.values(), *plan.valid.dataset.items.values()]  # type: ignore[union-attr, attr-defined]


def same(one: TalkerItem, two: TalkerItem) -> bool:
    assert one.hidden_TD is not None
    assert two.hidden_TD is not None
    alike = torch.equal(one.codes_KF, two.codes_KF) and torch.equal(one.hidden_TD, two.hidden_TD)
    return one.sample_id == two.sample_id and one.text_ids == two.text_ids and alike


def made(finished: Path, samples: Sequence[Sample]) -> list[tuple[int, TalkerItem | DataError]]:
    """What the stage encodes of these."""
    final = finished / "talker" / "final"
    codec, thinker, speaker = (
        store.load(finished / "codec" / "final"),
        Decoder.open(finished / "thinker" / "final"),
        store.load(final),
    )
    settings = talker.TalkerSettings()
    return list(
        talker.code(samples, speaker, Tokenizer.load(final), codec, listen_to(thinker, 1), settings, CPU)
    )


def test_batches_give_what_each_gives_alone(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = build(finished, recipe_file, tmp_path / "talker").corpus.train[:40]
    samples = [*samples, samples[0].model_copy(update={"id": "torn", "messages": []}), *samples[:3]]
    calls = Calls(monkeypatch)
    together = made(finished, samples)
    assert max(calls.encoded) > 2
    assert max(calls.thought) > 2
    assert [index for index, _ in together] == list(range(len(samples)))
    assert isinstance(together[40][1], DataError)
    monkeypatch.setattr(talker, "WINDOW", 1)
    alone = made(finished, samples)
    for (index, one), (_, two) in zip(together, alone, strict=True):
        if isinstance(one, DataError) or isinstance(two, DataError):
            assert str(one) == str(two), index
            continue
        assert torch.equal(one.codes_KF, two.codes_KF), index
        assert one.hidden_TD is not None
        assert two.hidden_TD is not None
        torch.testing.assert_close(one.hidden_TD, two.hidden_TD, rtol=1e-5, atol=1e-6)
