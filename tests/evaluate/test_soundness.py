"""Soundness: a sound objective passes every check and is left as it was; each fault of a small one is seen by
its fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from muomni.data.batch import SequenceBatch
from muomni.data.loader import Loader
from muomni.data.order import Order
from muomni.errors import DataError
from muomni.evaluate import soundness
from muomni.models import lora, store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.nn import recompute
from muomni.runtime import Runtime
from muomni.tokens.chat import IGNORE
from muomni.train import checkpoint, cost, loop, optim
from muomni.train.objective import Objective, Term
from muomni.train.objectives.language import NextToken
from muomni.train.settings import TrainSettings

CPU = Runtime(torch.device("cpu"), torch.float32)
SETTINGS = TrainSettings(lr=1e-2, max_steps=40, warmup_steps=2, batch_size=4)


@dataclass
class Packed:
    """Two documents a row, rows of several lengths."""

    bad: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return 24

    def name(self, index: int) -> str:
        return str(index)

    def item(self, index: int, rng: np.random.Generator) -> Any:
        if index in self.bad:
            raise DataError("empty", "bad")
        size = 6 + index % 5
        ids = np.random.default_rng(index).integers(20, 40, 2 * size)
        return str(index), ids, np.repeat([0, 1], size)


def collate(items: list[Any]) -> SequenceBatch:
    longest = max(len(ids) for _, ids, _ in items)

    def padded(row: Any, value: int) -> Tensor:
        return torch.from_numpy(np.pad(row, (0, longest - len(row)), constant_values=value))

    ids = torch.stack([padded(ids, 0) for _, ids, _ in items])
    labels = torch.stack([padded(ids, IGNORE) for _, ids, _ in items])
    documents = torch.stack([padded(documents, -1) for _, _, documents in items])
    return SequenceBatch([name for name, _, _ in items], ids, labels, documents_BT=documents)


def loader(**more: Any) -> Loader[Any, Any]:
    data = Packed(**more)
    return Loader(data, Order([len(data)], batch_size=4, seed=0), collate)


def reader() -> NextToken:
    torch.manual_seed(0)
    return NextToken(
        Decoder(
            DecoderConfig(vocab_size=40, width=16, layers=1, heads=2, ffn_width=32, ctx_len=32, dropout=0.2)
        )
    )


def facts_of(objective: Objective, settings: TrainSettings = SETTINGS, **more: Any) -> dict[str, float]:
    optim.select(objective, settings)
    return {
        name: fact.value for name, fact in soundness.examine(objective, loader(**more), settings, CPU).items()
    }


def test_a_sound_objective_passes_and_is_left_as_it_was() -> None:
    objective = reader()
    objective.train()
    before, state = store.digest(objective), torch.get_rng_state()
    facts = facts_of(objective)
    assert facts["padding_error"] < 1e-5
    assert facts["accumulation_error"] < 1e-5
    assert facts["packing_error"] < 1e-5
    assert facts["past_seen"] == 1
    assert facts["overfit_ratio"] < 0.8
    zero = ("future_leak", "lost_terms", "lost_gradients", "still_parameters", "unfrozen", "reload_error")
    assert {name: facts[name] for name in zero} == dict.fromkeys(zero, 0.0)
    assert store.digest(objective) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.training
    assert all(p.grad is None for p in objective.parameters())


def test_bad_samples_are_passed_over_until_none_is_left() -> None:
    assert facts_of(reader(), bad=frozenset(range(0, 24, 2)))["past_seen"] == 1
    with pytest.raises(DataError, match="none of the"):
        facts_of(reader(), bad=frozenset(range(24)))


class Spoilt(NextToken):
    """One fault at a time."""

    fault = ""

    def __init__(self) -> None:
        super().__init__(reader().decoder)
        self.aside = nn.Linear(2, 2)

    def forward(self, batch: SequenceBatch) -> dict[str, Term]:
        terms = super().forward(batch)
        if self.fault == "companions":
            terms["text"] = replace(terms["text"], total=terms["text"].total * len(batch.sample_ids))
        if self.fault == "detached":
            terms["text"] = replace(
                terms["text"], total=terms["text"].total.detach() + 0.0 * self.aside.weight.sum()
            )
        if self.fault == "constant":
            terms["text"] = replace(
                terms["text"], total=terms["text"].total * 0 + 5.0 + 0.0 * self.aside.weight.sum()
            )
        if self.fault != "idle":
            terms["text"] = replace(
                terms["text"],
                total=terms["text"].total
                + 1e-3 * self.aside(torch.ones(2)).square().sum() * terms["text"].count,
            )
        return terms

    def after_step(self, step: int) -> None:
        if self.fault == "drift":
            with torch.no_grad():
                self.decoder.model.norm.weight.add_(1e-3)


@pytest.mark.parametrize(
    ("fault", "fact"),
    [
        ("companions", "padding_error"),
        ("detached", "lost_gradients"),
        ("idle", "still_parameters"),
        ("drift", "unfrozen"),
    ],
)
def test_each_fault_is_seen(fault: str, fact: str) -> None:
    sound, spoilt = Spoilt(), Spoilt()
    spoilt.fault = fault
    spoilt.expected_gradients = lambda: {"text": ("decoder.*",)}  # type: ignore[method-assign]
    sound.expected_gradients = spoilt.expected_gradients  # type: ignore[method-assign]
    settings = SETTINGS.model_copy(update={"train": ["*", "!decoder.model.norm.*"]})
    assert facts_of(sound, settings)[fact] < 1e-4
    assert facts_of(spoilt, settings)[fact] >= (1e-2 if fact == "padding_error" else 1)


class Rare(NextToken):
    """A second term, whose targets one row alone holds, which is none of the six; it teaches `aside`."""

    def __init__(self, row: int = 7, *, is_lost: bool = False, weight: float = 1.0) -> None:
        super().__init__(reader().decoder)
        self.aside, self.row, self.is_lost, self.weight = nn.Linear(2, 2), str(row), is_lost, weight

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        return {**super().counts(batch), "rare": batch.sample_ids.count(self.row)}

    def forward(self, batch: SequenceBatch) -> dict[str, Term]:
        count = batch.sample_ids.count(self.row)
        error = self.aside(torch.ones(2)).square().sum() * count
        total = error.detach() + 0.0 * self.aside.weight.sum() if self.is_lost else error
        return {**super().forward(batch), "rare": Term(total, count, self.weight)}


@pytest.mark.parametrize(
    ("objective", "lost", "note"),
    [
        (Rare(), 0, ""),
        (Rare(is_lost=True), 1, "rare does not reach *"),
        (Rare(row=99), 1, "rare has no targets in 30 rows"),
        (Rare(row=99, weight=0.0), 0, ""),
    ],
)
def test_a_term_without_targets_in_six_rows_is_asked_on_others(objective: Rare, lost: int, note: str) -> None:
    bench = soundness.prepare(objective, loader(), SETTINGS, CPU)
    assert "7" not in bench.batch.sample_ids
    fact = soundness.reach(bench)["lost_gradients"]
    assert (fact.value, fact.note) == (lost, note)
    assert fact.n == (2 if objective.weight else 1)


def test_the_search_for_targets_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "SEARCHED", 8)
    fact = soundness.reach(soundness.prepare(Rare(row=99), loader(bad=frozenset({3})), SETTINGS, CPU))
    assert "rare has no targets in" in fact["lost_gradients"].note
    searched = int(fact["lost_gradients"].note.split()[-2])
    assert searched in (13, 14), "six, and two batches of four, one of which may hold the bad row"


class Adapted(NextToken):
    """A frozen decoder that came whole from elsewhere, in bf16, with an adapter, its activations made again
    in the backward."""

    def __init__(self) -> None:
        decoder = reader().decoder.to(torch.bfloat16)
        decoder.checkpointing = True
        super().__init__(lora.attach(decoder, lora.LoraSettings(r=4, alpha=8)))

    def frozen_parts(self) -> Sequence[str]:
        return ("decoder",)


def test_an_adapter_on_a_given_decoder_is_sound_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    objective = Adapted()
    before, facts = store.digest(objective), facts_of(objective)
    assert store.digest(objective) == before
    zero = ("future_leak", "lost_terms", "lost_gradients", "still_parameters", "unfrozen", "reload_error")
    assert {name: facts[name] for name in zero} == dict.fromkeys(zero, 0.0)
    settings = SETTINGS.model_copy(update={"max_steps": 6, "checkpoint_freq": 3})
    whole, halves = Adapted(), Adapted()
    loop.fit(whole, loader(), None, settings, CPU, tmp_path / "whole", name="lora")
    (tmp_path / "halves").mkdir()
    (tmp_path / "whole" / checkpoint.name(3)).rename(tmp_path / "halves" / checkpoint.name(3))
    loop.fit(halves, loader(), None, settings, CPU, tmp_path / "halves", name="lora")
    assert store.digest(halves) == store.digest(whole) != before
    held = load_file(tmp_path / "halves" / checkpoint.name(6) / "weights.safetensors")
    assert len(held) == 2 * 7
    assert all(".lora_" in name for name in held)


def test_what_is_stored_in_half_precision_is_reckoned_with_in_single() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64).bfloat16(), torch.randn(5, 64)
    with soundness.Single():
        out = layer(x.to(layer.weight.dtype))
        assert layer.weight.dtype == torch.float32  # so nobody rounds to it on the way
    assert out.dtype == torch.float32
    assert torch.equal(out, nn.functional.linear(x, layer.weight.float(), layer.bias.float()))
    assert layer.weight.dtype == torch.bfloat16


class NewRows(NextToken):
    """A frozen decoder in a number format, with new rows of words and of outputs, which are float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        decoder = reader().decoder.to(dtype).requires_grad_(False)
        decoder.grow(16, 30)
        super().__init__(decoder)
        for name, parameter in self.named_parameters():
            if "new_" in name:
                nn.init.normal_(parameter)
                parameter.requires_grad_(True)

    def frozen_parts(self) -> Sequence[str]:
        return ("decoder",)


class MeanOfMeans(NewRows):
    """Its terms are means, so batches of unlike size count alike."""

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        return dict.fromkeys(super().counts(batch), 1)

    def forward(self, batch: SequenceBatch) -> dict[str, Term]:
        terms: dict[str, Term] = super().forward(batch)
        return {name: replace(term, total=term.total / term.count, count=1) for name, term in terms.items()}


def test_two_micro_batches_are_one_batch_on_a_base_in_half_precision() -> None:
    """In bf16 the gradients of rows lay 3e-3 apart here, for nothing but rounding: the proof is in
    float32, and so the planted fault is as large as in a float32 network."""
    for dtype in (torch.float32, torch.bfloat16):
        sound, wrong = (
            soundness.prepare(kind(dtype), loader(), SETTINGS, CPU) for kind in (NewRows, MeanOfMeans)
        )
        assert soundness.accumulation(sound)["accumulation_error"].value < 1e-6
        assert soundness.accumulation(wrong)["accumulation_error"].value > 1e-2
    bench = soundness.prepare(NewRows(torch.bfloat16), loader(), SETTINGS, CPU)
    single = soundness.gradient(bench, [bench.batch])
    bench.objective.to(torch.float32)
    assert torch.allclose(single, soundness.gradient(bench, [bench.batch]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_in_single_holds_no_copies_of_the_weights(checkpointing: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8))).bfloat16()
    layers.requires_grad_(False)
    bench = soundness.prepare(NewRows(torch.bfloat16), loader(), SETTINGS, CPU)
    x = torch.randn(2, 256, requires_grad=True)
    with cost.LiveTensors(list(layers.parameters())) as live, bench.in_single():
        out, how = x, {"use_reentrant": False, "context_fn": recompute.contexts}
        for layer in layers:
            out = checkpointed(layer, out, **how) if checkpointing else layer(out)
        out.sum().backward()
    one = 256 * 256 * 4
    assert one <= live.peak < 4 * one, live.peak / one  # all eight would be eight
    inside = x.grad
    x.grad = None
    layers.float()(x).sum().backward()
    assert inside is not None
    assert x.grad is not None
    assert torch.allclose(inside, x.grad, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "looked_at"), [(torch.float32, False), (torch.bfloat16, True)])
def test_operations_are_looked_at_only_where_something_is_stored_in_half_precision(
    dtype: torch.dtype, looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[bool] = []
    enter = soundness.Single.__enter__
    monkeypatch.setattr(soundness.Single, "__enter__", lambda self: (entered.append(True), enter(self))[1])
    objective = reader()
    objective.register_buffer("stored", torch.zeros(3, dtype=dtype))
    bench = soundness.prepare(objective, loader(), SETTINGS, CPU)
    assert torch.isfinite(torch.tensor(list(bench.terms(bench.batch).values()))).all()
    assert bool(entered) == looked_at
