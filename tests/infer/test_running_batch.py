"""Rows that join and leave a running batch say what each says alone, to the bit of every score."""

from __future__ import annotations

import random

import pytest
import torch

from muomni.errors import CheckpointError, ContextError
from muomni.infer import batch as batches
from muomni.infer.batch import Batch
from muomni.infer.generate import GREEDY, generate, stream
from muomni.infer.sampling import SamplingConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.nn.row_cache import RowCache

WARM = SamplingConfig(temperature=1.5, top_k=20, top_p=0.9, seed=5)
PENALISED = SamplingConfig(repetition_penalty=1.7)
SIZES = [
    {"width": 32, "heads": 2, "ffn_width": 64},
    {"width": 48, "heads": 6, "kv_heads": 2, "head_dim": 16, "ffn_width": 96, "tied": False},
    {"width": 256, "heads": 4, "ffn_width": 512, "layers": 2},
]


def tiny(**changes) -> Decoder:
    """Untrained: its scores are so flat that a wrong last bit soon decides an id."""
    torch.manual_seed(3)
    return Decoder(
        DecoderConfig(**{"vocab_size": 61, "layers": 2, "ctx_len": 160, "dropout": 0.0, **changes})
    ).eval()


def asked(number: int, seed: int = 0) -> list[tuple[torch.Tensor, int, SamplingConfig]]:
    """Prompts of many lengths with their most ids and samplings."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    wanted = []
    for at in range(number):
        prompt = torch.randint(0, 61, (1, draw.randint(1, 60)), generator=generator)
        how = draw.choice([GREEDY, GREEDY, WARM.model_copy(update={"seed": at}), PENALISED])
        wanted.append((prompt, draw.randint(1, 50), how))
    return wanted


def together(batch: Batch, wanted, draw: random.Random, at_once: int = 9) -> list[list[int]]:
    """What each row says where they join at random times."""
    said: dict[int, list[int]] = {at: [] for at in range(len(wanted))}
    waiting, number_of = list(range(len(wanted))), {}
    while waiting or len(batch):
        while waiting and len(batch) < at_once and draw.random() < 0.4:
            at = waiting.pop(0)
            prompt, most, how = wanted[at]
            number_of[batch.join(prompt, most, how)] = at
        for news in batch.step():
            assert news.error is None
            said[number_of[news.row]].append(news.id)
    return list(said.values())


@pytest.mark.parametrize("size", SIZES)
def test_each_row_says_what_it_says_alone(size):
    model, wanted = tiny(**size), asked(30)
    said = together(Batch(model), wanted, random.Random(1))
    assert said == [list(stream(model, prompt, max_new=most, sampling=how)) for prompt, most, how in wanted]
    assert len({tuple(each[:4]) for each in said}) > 15


@pytest.mark.skipif(torch.backends.mkl.is_available() is False, reason="products of another library")
@pytest.mark.parametrize("size", SIZES)
def test_scores_have_the_bits_of_a_row_alone(size):
    """Where this fails, rows are computed one by one: right, but slow; on x86 with MKL they share steps."""
    assert batches.together(tiny(**size))


@pytest.mark.parametrize("size", [{"width": 32, "heads": 2, "ffn_width": 64}])
def test_rows_that_may_not_share_a_step_take_it_one_by_one(size, monkeypatch):
    model, wanted = tiny(**size), asked(10)
    monkeypatch.setattr(batches, "_probe", lambda *_: False)
    batch = Batch(model)
    said = together(batch, wanted, random.Random(1))
    assert not batch.cache.keys.numel()
    assert said == [list(stream(model, prompt, max_new=most, sampling=how)) for prompt, most, how in wanted]


def test_experts_take_their_steps_one_by_one_where_bits_differ():
    model = tiny(width=32, heads=2, ffn_width=64, experts={"num_experts": 4, "ffn_width": 32})
    wanted = asked(8)
    said = together(Batch(model), wanted, random.Random(2))
    assert said == [list(stream(model, prompt, max_new=most, sampling=how)) for prompt, most, how in wanted]


def test_legal_and_stop_ids_are_those_of_a_row_alone():
    model, wanted = tiny(**SIZES[0]), asked(12)
    legal, stop_ids = (range(5, 30),), {7, 9, 11}
    batch = Batch(model, legal, stop_ids)
    said = together(batch, wanted, random.Random(3))
    for ids, (prompt, most, how) in zip(said, wanted, strict=True):
        alone = list(stream(model, prompt, max_new=most, sampling=how, legal=legal, stop_ids=stop_ids))
        assert [each for each in ids if each not in stop_ids] == alone
        assert set(ids) <= set(range(5, 30))
    assert any(ids[-1] in stop_ids for ids in said)


def test_a_long_prompt_lets_others_take_their_steps():
    model = tiny(width=32, heads=2, ffn_width=64, ctx_len=2000)
    model.part = 64
    batch = Batch(model)
    short = batch.join(torch.tensor([[1, 2, 3]]), 40)
    batch.step()
    long = batch.join(torch.arange(1500)[None] % 61, 5)
    rows = [{news.row for news in batch.step()} for _ in range(20)]
    assert all(short in each for each in rows)
    assert not any(long in each for each in rows), "it has 24 parts"
    late = batch.join(torch.tensor([[4, 5]]), 40)
    assert any(late in {news.row for news in batch.step()} for _ in range(2)), "it waits for a long one"
    ids: list[int] = []
    while len(batch):
        ids += [news.id for news in batch.step() if news.row is long]
    assert ids == generate(model, torch.arange(1500)[None] % 61, max_new=5)[0]


def test_who_leaves_leaves_nothing():
    model, draw = tiny(**SIZES[0]), random.Random(4)
    batch, rows = Batch(model), []
    for prompt, _, how in asked(100):
        rows.append(batch.join(prompt, 60, how))
        batch.step()
        if len(rows) > 5:
            gone = rows.pop(draw.randrange(len(rows)))
            batch.leave(gone)
            batch.leave(gone)  # once more is nothing
            assert gone.cache is None
    assert len(batch.cache.lengths) <= len(batch.rows)
    for row in rows:
        batch.leave(row)
    assert len(batch) == 0
    assert not batch.cache.keys.numel()
    assert batch.step() == []


def test_a_row_that_fails_fails_alone(monkeypatch):
    model, wanted = tiny(**SIZES[0]), asked(6, seed=2)
    batch = Batch(model)
    rows = [batch.join(prompt, 20, how) for prompt, _, how in wanted]
    said: dict = {row: [] for row in rows}
    errors = {}
    bad = next(row for row in rows if not row.text.is_plain)
    real = bad.text.column

    def column(step, scores):
        if step == 4:
            raise ValueError("planted")
        return real(step, scores)

    monkeypatch.setattr(bad.text, "column", column)
    while len(batch):
        for news in batch.step():
            if news.error is not None:
                errors[news.row] = news.error
            else:
                said[news.row].append(news.id)
    assert list(errors) == [bad]
    for row, (prompt, _, how) in zip(rows, wanted, strict=True):
        alone = generate(model, prompt, max_new=20, sampling=how)[0]
        assert said[row] == (alone[:4] if row is bad else alone)


def test_scores_that_are_no_numbers_fail_their_row_alone():
    model = tiny(**SIZES[0])
    batch = Batch(model)
    good = batch.join(torch.tensor([[1, 2, 3]]), 20)
    bad = batch.join(torch.tensor([[4, 5, 6]]), 20)
    batch.step()
    with torch.inference_mode():
        batch.cache.values[:, batch.rows.index(bad), :, 0] = torch.nan
    said, errors = [good.id], []
    while len(batch):
        for news in batch.step():
            (errors if news.error else said).append(news.error or news.id)
    assert [type(each) for each in errors] == [CheckpointError]
    assert said == generate(model, torch.tensor([[1, 2, 3]]), max_new=20)[0]


def test_what_does_not_fit_is_refused_at_once():
    batch = Batch(tiny(**SIZES[0]))
    with pytest.raises(ContextError):
        batch.join(torch.zeros(1, 150, dtype=torch.long), 20)
    assert len(batch) == 0


def test_rows_of_a_cache_keep_to_themselves_as_it_grows():
    model = tiny(width=32, heads=2, ffn_width=64, ctx_len=400)
    cache = RowCache()
    with torch.inference_mode():
        made = []
        for length in (3, 200, 130):
            lone = model.new_cache(1, 300)
            model.reading()(torch.randn(1, length, 32), lone, None)
            cache.join(lone)
            made.append(lone.keys[:, 0, :, :length].clone())
        cache.leave(0)
    assert cache.lengths == [130, 200]
    assert torch.equal(cache.keys[:, 0, :, :130], made[2])
    assert torch.equal(cache.keys[:, 1, :, :200], made[1])
