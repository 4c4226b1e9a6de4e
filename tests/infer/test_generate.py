import pytest
import torch

from muomni.errors import ContextError, ShapeError, TokenRangeError
from muomni.infer.generate import generate, stream
from muomni.infer.sampling import SamplingConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.stepper import Stepper


def tiny(**changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 40,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "ffn_width": 64,
        "ctx_len": 64,
    } | changes
    model = Decoder(DecoderConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).add_(torch.randn_like(parameter) * 0.2)
    return model


def ids_of(*shape, seed=1):
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(seed))


def slowly(model, ids, max_new):
    """Greedy, without a cache, a whole forward for each id."""
    ids = ids.clone()
    with torch.no_grad():
        for _ in range(max_new):
            ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), 1)
    return ids[:, -max_new:].tolist()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"qk_norm": False}, {"head_dim": 16}])
def test_equals_decoding_without_a_cache(kv_heads, changes):
    model, ids = tiny(kv_heads=kv_heads, **changes), ids_of(3, 7)
    assert generate(model, ids, max_new=12) == slowly(model, ids, 12)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_stepper_equals_the_model_at_every_step(kv_heads, padding):
    model, ids, more = tiny(kv_heads=kv_heads), ids_of(2, 6), ids_of(2, 5, seed=2)
    keep = torch.ones(2, 6, dtype=torch.bool)
    if padding == "left":
        keep[0, :3] = False
    elif padding == "right":
        keep[0, 3:] = False
    with torch.no_grad():
        cache, stepper = model.new_cache(2, 11), Stepper(model)
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        model.hidden(model.embed(ids), keep_BT=keep, cache=cache)
        stepped = torch.stack(
            [stepper.read(model.embed(more[:, step : step + 1]), cache)[0] for step in range(5)], 1
        )
        whole = model(
            torch.cat((ids, more), 1), keep_BT=torch.cat((keep, torch.ones(2, 5, dtype=torch.bool)), 1)
        )[:, 6:]
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_alone(side):
    model, rows = tiny(), [ids_of(1, length, seed=length) for length in (3, 8, 5)]
    padded, keep = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(8 - row.shape[1], 8) if side == "left" else slice(0, row.shape[1])
        padded[index, place], keep[index, place] = row[0], True
    together = generate(model, padded, keep_BT=keep, max_new=10)
    assert together == [generate(model, row, max_new=10)[0] for row in rows]


def test_embeddings_do_as_well_as_ids():
    model, ids = tiny(), ids_of(2, 7)
    assert generate(model, model.embed(ids).detach(), max_new=9) == generate(model, ids, max_new=9)


def test_rows_stop_each_at_its_own_stop_id():
    model, ids = tiny(), ids_of(3, 7)
    free = generate(model, ids, max_new=12)
    stop = free[0][4]
    assert generate(model, ids, max_new=12, stop_ids=[stop]) == [
        row[: row.index(stop)] if stop in row else row for row in free
    ]
    assert generate(model, ids, max_new=12, stop_ids=range(40)) == [[], [], []]


def test_on_token_and_stream_tell_every_id_in_order():
    model, ids = tiny(), ids_of(2, 7)
    told = [[], []]
    rows = generate(model, ids, max_new=6, on_token=lambda row, each: told[row].append(each))
    assert told == rows
    coming = stream(model, ids[:1], max_new=6)
    assert next(coming) == rows[0][0]
    assert list(coming) == rows[0][1:]


def test_a_given_cache_goes_on_after_what_it_holds():
    model, ids = tiny(), ids_of(2, 9)
    cache = model.new_cache(2, 30)
    with torch.no_grad():
        model.hidden(model.embed(ids[:, :5]), cache=cache)
    assert generate(model, ids[:, 5:], max_new=6, cache=cache) == generate(model, ids, max_new=6)


def test_sampling_repeats_with_its_seed_only():
    model, ids = tiny(), ids_of(2, 7)
    drawn = [
        generate(model, ids, max_new=10, sampling=SamplingConfig(temperature=2.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_strong_penalty_forbids_repeating_prompt_and_answer():
    model, ids = tiny(), ids_of(1, 7)
    row = generate(model, ids, max_new=20, sampling=SamplingConfig(repetition_penalty=1e6))[0]
    assert len(set(row)) == 20
    assert not set(row) & set(ids[0].tolist())


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(), SamplingConfig(temperature=5.0, seed=3), SamplingConfig(repetition_penalty=2.0)],
)
def test_rows_without_an_id_are_never_said(sampling):
    model, ids = tiny(tied=False), ids_of(2, 7).clamp(max=29)
    assert max(max(row) for row in generate(model, ids, max_new=20, sampling=sampling)) >= 30
    rows = generate(model, ids, max_new=20, sampling=sampling, legal=(range(30),))
    assert max(max(row) for row in rows) < 30
    assert (
        list(stream(model, ids[:1], max_new=20, legal=(range(30),)))
        == generate(model, ids[:1], max_new=20, legal=(range(30),))[0]
    )


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(), SamplingConfig(temperature=5.0, seed=3), SamplingConfig(repetition_penalty=2.0)],
)
def test_legal_ids_may_lie_in_several_ranges(sampling):
    model, ids = tiny(tied=False), ids_of(2, 7)
    legal = (range(3, 5), range(20, 31))
    free, bound = (
        generate(model, ids, max_new=9, sampling=sampling),
        generate(model, ids, max_new=9, sampling=sampling, legal=legal),
    )
    assert not {each for row in free for each in row} <= {*legal[0], *legal[1]}
    assert {each for row in bound for each in row} <= {*legal[0], *legal[1]}


def test_each_row_keeps_to_what_its_grammar_allows():
    model, ids = tiny(tied=False), ids_of(2, 7)

    def allowed(said):
        """Row 0: an even id, then odd ones; row 1: what it said before plus 1."""
        mask_BV = torch.zeros(2, 40, dtype=torch.bool)
        mask_BV[0, len(said[0]) % 2 :: 2] = True
        mask_BV[1, (said[1][-1] + 1) % 40 if said[1] else slice(10, 20)] = True
        return mask_BV

    first, second = generate(model, ids, max_new=8, allowed=allowed)
    assert [each % 2 for each in first] == [0, 1] * 4
    assert second == list(range(second[0], second[0] + 8))
    assert 10 <= second[0] < 20
    whole = model(ids)[0, -1, ::2]
    assert first[0] == 2 * int(whole.argmax())  # the best of those that are allowed
    narrow = generate(model, ids, max_new=1, allowed=allowed, legal=(range(12, 14), range(30, 40)))
    assert narrow[0][0] in range(12, 40, 2)
    assert narrow[1][0] in (12, 13)
    with pytest.raises(TokenRangeError, match="the next token: no id is allowed in row 1"):
        generate(model, ids, max_new=1, allowed=allowed, legal=(range(30, 40),))


def test_the_model_keeps_its_mode_and_its_gradients():
    model = tiny().train()
    generate(model, ids_of(1, 4), max_new=3)
    assert model.training
    model(ids_of(1, 4)).sum().backward()
    stopped = stream(model, ids_of(1, 4), max_new=3)
    next(stopped)
    stopped.close()
    assert model.training


def test_what_cannot_fit_is_refused_before_anything_is_computed():
    model = tiny(ctx_len=16)
    with pytest.raises(ContextError, match=r"10 \+ 7 new positions do not fit ctx_len 16"):
        generate(model, ids_of(1, 10), max_new=7)
    assert len(generate(model, ids_of(1, 10), max_new=6)[0]) == 6
    for wrong in (ids_of(1, 0), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ShapeError):
            generate(model, wrong, max_new=2)
    with pytest.raises(ShapeError, match="at least one real position"):
        generate(model, ids_of(2, 3), keep_BT=torch.tensor([[True] * 3, [False] * 3]), max_new=2)
    with pytest.raises(ShapeError, match="one row"):
        next(stream(model, ids_of(2, 3), max_new=2))
