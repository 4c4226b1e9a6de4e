"""Operations: counted as a hand counts them, reckoned for batches that were not counted, against a peak that
no run is above."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.batch import SequenceBatch
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.nn.attention import attend_plainly
from muomni.nn.block import Block
from muomni.runtime import Runtime
from muomni.train import flops
from muomni.train.flops import Counted, UpdateFlops
from muomni.train.objectives.language import NextToken

CPU = Runtime(torch.device("cpu"), torch.float32)
CONFIG = DecoderConfig(vocab_size=50, width=16, layers=2, heads=2, ffn_width=32, ctx_len=64, dropout=0.0)


def batch(rows: int, length: int, labelled: int) -> SequenceBatch:
    ids_BT = torch.randint(
        15, 50, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length)
    )
    labels_BT = ids_BT.clone()
    labels_BT[:, : length - labelled] = -100
    return SequenceBatch([str(row) for row in range(rows)], ids_BT, labels_BT)


def counted(objective: NextToken, *batches: SequenceBatch) -> int:
    with Counted() as counter:
        for each in batches:
            objective(each)["text"].total.backward()
    return counter.total


def test_a_product_counts_two_a_multiply_add() -> None:
    with Counted() as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
        F.conv1d(torch.ones(1, 2, 10), torch.ones(3, 2, 4))
    assert counter.total == 2 * 3 * 4 * 5 + 2 * 3 * 7 * 2 * 4


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_fused_attention_counts_what_plain_attention_does(kv_heads: int) -> None:
    """torch's own table has no row for a CPU's kernel: attention was free there."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 6, 8, generator=draw, requires_grad=True) for heads in (4, kv_heads, kv_heads)
    )
    found = []
    for attend in (
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != 4),
        lambda: attend_plainly(q, k, v, causal=True),
    ):
        with Counted() as forward:
            out = attend()
        with Counted() as backward:
            out.sum().backward()
        found.append((forward.total, backward.total))
    by_hand = 2 * (2 * 2 * 4 * 6 * 6 * 8)  # scores, and the values by them
    assert found == [(by_hand, 2 * by_hand)] * 2


def test_a_decoder_counts_as_by_hand() -> None:
    """Forward: 2 FLOP a weight and position, attention 4 d T a position and layer; the backward twice that;
    the loss on labels alone."""
    config, rows, length, labelled = CONFIG, 3, 12, 5
    body = config.layers * (4 * 16 * 16 + 3 * 16 * 32)
    square = config.layers * 2 * 16 * length
    table = 50 * 16
    by_hand = 6 * rows * length * (body + square) + 6 * rows * labelled * table
    assert counted(NextToken(Decoder(config)), batch(rows, length, labelled)) == by_hand


def test_what_is_made_again_is_not_of_the_model() -> None:
    plain, saving = NextToken(Decoder(CONFIG)), NextToken(Decoder(CONFIG))
    saving.trunk.checkpointing = True
    rows = batch(2, 9, 4)
    assert counted(saving, rows) == counted(plain, rows)


def test_counting_changes_no_bit() -> None:
    """Updates of each process are counted: if that changed a bit, no resume would be exact."""
    torch.manual_seed(0)
    block = Block(16, 2, 64)
    x_BTD = torch.randn(4, 20, 16)

    def gradients() -> list[Tensor]:
        block.zero_grad()
        block(x_BTD, causal=True).square().sum().backward()
        return [p.grad.clone() for p in block.parameters() if p.grad is not None]

    plainly = gradients()
    with Counted():
        under_count = gradients()
    assert all(torch.equal(one, other) for one, other in zip(plainly, under_count, strict=True))


def sizes_of(objective: NextToken, *batches: SequenceBatch) -> tuple[float, ...]:
    return tuple(map(sum, zip(*(objective.sizes(each) for each in batches), strict=True)))


def test_updates_that_were_not_counted_are_reckoned_exactly() -> None:
    objective, reckoner = NextToken(Decoder(CONFIG)), UpdateFlops()
    for shape in ((2, 8, 3), (3, 20, 4), (4, 11, 9), (1, 30, 2), (2, 17, 17)):
        rows = batch(*shape)
        reckoner.add(sizes_of(objective, rows), counted(objective, rows))
    for shapes in (((3, 13, 5),), ((5, 40, 1), (2, 7, 6))):
        micro = [batch(*shape) for shape in shapes]
        assert reckoner.of(sizes_of(objective, *micro)) == pytest.approx(counted(objective, *micro), rel=1e-6)


def test_a_run_of_many_shapes_counts_few_updates_and_tells_its_error() -> None:
    """450 updates of 100 shapes: the first reckonings may be off, and say so; from then on they are right."""
    objective, reckoner = NextToken(Decoder(CONFIG)), UpdateFlops()
    draw = torch.Generator().manual_seed(3)
    number_counted, done, reckoned = 0, 0.0, 0.0
    known: dict[tuple[int, int, int], int] = {}
    for number in range(450):
        rows, length = (int(torch.randint(low, high, (), generator=draw)) for low, high in ((2, 6), (6, 30)))
        shape = (rows, length, min(length, 4))
        if shape not in known:
            known[shape] = counted(objective, batch(*shape))
        sizes = sizes_of(objective, batch(*shape))
        if reckoner.wants():
            number_counted += 1
            reckoner.add(sizes, known[shape])
        elif number >= 20:
            done += known[shape]
            reckoned += reckoner.of(sizes)
    assert len(known) > 60
    assert number_counted <= 20
    assert reckoner.error is not None
    assert reckoner.error < flops.AGREES
    assert reckoned == pytest.approx(done, rel=1e-3)


def test_equal_updates_are_counted_on_a_few_only() -> None:
    reckoner = UpdateFlops()
    wanted = []
    for number in range(1, 1100):
        if reckoner.wants():
            wanted.append(number)
            reckoner.add((8.0, 2.0), 1000.0)
    assert wanted == [1, 3, 5, 16, 64, 256, 1024]


def test_arithmetic_that_becomes_another_is_noticed() -> None:
    """A codec's quantiser starts after some updates: what was counted before says nothing of those after."""
    reckoner = UpdateFlops()
    for number in range(1, 300):
        each = 1000.0 if number <= 60 else 1500.0
        if reckoner.wants():
            reckoner.add((8.0,), each)
    assert reckoner.of((8.0,)) == pytest.approx(1500.0)
    assert reckoner.error == pytest.approx(0.0)


def test_two_updates_in_a_row_are_never_counted() -> None:
    """Else a run of a few updates would have no speed at all."""
    reckoner, before = UpdateFlops(), False
    for number in range(200):
        now = reckoner.wants()
        assert not (now and before)
        if now:
            reckoner.add((float(number),), float(number**3))  # never right
        before = now


def machine(units_flops: dict[torch.dtype, float], launch_s: float, clock: list[float]) -> Any:
    """A device that takes so long to start a product, and has units of such a speed; emulated formats are
    slow ones."""

    def product_s(dtype: torch.dtype, size: int) -> float:
        took_s = launch_s + 2 * size**3 / units_flops[dtype]
        clock[0] += took_s * (flops.REPEATS + 1)
        return took_s

    return product_s


def peak_of(units_flops: dict[torch.dtype, float], launch_s: float) -> tuple[float, float]:
    clock = [0.0]
    found = flops.measured_peak(
        list(units_flops), machine(units_flops, launch_s, clock), clock=lambda: clock[0]
    )
    return found, clock[0]


def test_the_peak_of_a_gpu_is_not_that_of_its_launches() -> None:
    """1024 x 1024 on such a device: 2 GFLOP in 22 us, a tenth of its peak; and by the fastest format,
    whatever the run takes."""
    found, took_s = peak_of({torch.float32: 5e13, torch.float16: 9e14, torch.bfloat16: 9e14}, 2e-5)
    assert 0.95 * 9e14 < found <= 9e14
    assert took_s < flops.BUDGET_S


def test_the_peak_of_a_slow_chip_is_found_in_its_time() -> None:
    """Half precision is emulated there, at a hundredth of the speed: it is not the peak, and not waited
    for."""
    found, took_s = peak_of({torch.float32: 5e10, torch.bfloat16: 3e8, torch.float16: 1e9}, 2e-6)
    assert 0.95 * 5e10 < found <= 5e10
    assert took_s < flops.BUDGET_S


def test_the_peak_of_a_chip_with_bf16_units_is_theirs() -> None:
    found, _ = peak_of({torch.float32: 2e11, torch.bfloat16: 8e11, torch.float16: 2e9}, 2e-6)
    assert 0.9 * 8e11 < found <= 8e11


def test_the_peak_is_measured_once_and_without_touching_the_generators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flops, "_PEAKS", {})
    monkeypatch.setattr(flops, "SIZES", (64, 128))
    before = torch.get_rng_state()
    found = flops.peak(CPU)
    assert math.isfinite(found)
    assert found > 1e6
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(flops, "measured_peak", lambda *_, **__: 2 * found)
    assert flops.peak(CPU) == found
    assert flops.peak(CPU, again=True) == 2 * found
    monkeypatch.setattr(flops, "measured_peak", lambda *_, **__: 0.5 * found)
    assert flops.peak(CPU, again=True) == 2 * found, "the larger stays"
