"""Writing under a grammar: whatever a network says, what it writes can be decoded; and how often it obeys
unasked."""

from __future__ import annotations

import pytest
import torch

from muomni.errors import ConfigError, ContextError
from muomni.infer import spans
from muomni.infer.sampling import MediaSampling, SamplingConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.rows import TokenModel
from muomni.tokens import grammar, sequences
from spaces import small


def _model(layout: str = "interleaved", seed: int = 0) -> TokenModel:
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(vocab_size=310, width=32, layers=2, heads=2, ctx_len=64, dropout=0.0, tied=False)
    )
    model = TokenModel(decoder, small(layout)).eval()
    model.start(torch.Generator().manual_seed(seed), spread=3.0)
    return model


def _rules(model, kind):
    return (
        grammar.of_text(model.space, 5)
        if kind == "text"
        else grammar.of_medium(model.space, kind, least=2, most=6)
    )


@pytest.mark.parametrize("layout", ["interleaved", "delay", "parallel"])
@pytest.mark.parametrize("kind", ["text", "image", "audio"])
@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_whatever_is_written_is_legal_and_decodes(layout, kind, temperature):
    for seed in range(3):
        model = _model(layout, seed)
        rules = _rules(model, kind)
        prompts = [sequences.prompt(model.space, kind, [5, 6, 7][: 1 + row]) for row in range(3)]
        written = spans.write(
            model, prompts, rules, sampling=SamplingConfig(temperature=temperature, seed=seed)
        )
        for row in written:
            assert rules.first_illegal(row) is None
            inside = spans.content(row, rules)
            if kind == "text":
                assert bool((model.space.from_global("text", inside) >= 0).all())
            else:
                frames = model.space.codes_of(kind, inside).shape[1]
                assert rules.least <= frames <= rules.most


@pytest.mark.parametrize("layout", ["interleaved", "delay"])
@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_a_batch_writes_what_each_row_writes_alone(layout, kind):
    model = _model(layout)
    rules = _rules(model, kind)
    prompts = [sequences.prompt(model.space, kind, list(range(3, 4 + 2 * row))) for row in range(4)]
    together = spans.write(model, prompts, rules)
    for prompt, row in zip(prompts, together):
        (alone,) = spans.write(model, [prompt], rules)
        assert torch.equal(row, alone)


def _slowly(model, rules, prompts, mix):
    """A span (K, T), greedily: no cache, all scores after each prompt, mixed, and a mask over the whole vocabulary."""
    space, end, columns = model.space, None, []
    grids = [each if each.ndim == 2 else each[None] for each in prompts]
    while end is None or len(columns) < rules.length(end):
        read = [grid[None] if space.streams > 1 else grid for grid in grids]
        with torch.no_grad():
            scores = mix(*(model.logits(model.hidden(model.embed(ids)))[0, -1] for ids in read))
        column = torch.full((space.streams, 1), space.pad)
        for stream in range(rules.streams):
            legal = [token for ids in rules.legal(len(columns), stream, end) for token in ids]
            column[stream, 0] = max(legal, key=lambda token: float(scores[token]))
            if stream == 0 and int(column[0, 0]) == rules.end and end is None:
                end = rules.end_of(len(columns))
        columns.append(column[: rules.streams])
        grids = [torch.cat((grid, column), 1) for grid in grids]
    return torch.cat(columns, 1)


@pytest.mark.parametrize("layout", ["interleaved", "delay", "parallel"])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_it_writes_the_likeliest_legal_id_of_each_step(layout, kind):
    model = _model(layout)
    rules, prompt = _rules(model, kind), sequences.prompt(model.space, kind, [9, 4])
    (row,) = spans.write(model, [prompt], rules)
    assert row.tolist() == _slowly(model, rules, [prompt], lambda scores: scores).reshape(row.shape).tolist()


@pytest.mark.parametrize("layout", ["interleaved", "delay"])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_guidance_pushes_scores_from_those_without_words(layout, kind):
    model = _model(layout)
    rules, space = _rules(model, kind), model.space
    prompts = [sequences.prompt(space, kind, words) for words in ([9, 4], [7, 8, 2, 5])]
    blank, how = sequences.prompt(space, kind, []), MediaSampling(guidance=3.0)
    rows = spans.write(model, prompts, rules, sampling=how, blank=blank)
    plain = spans.write(model, prompts, rules, blank=blank)
    assert not all(torch.equal(one, other) for one, other in zip(rows, plain)), "guidance changes nothing"
    unguided = spans.write(model, prompts, rules, sampling=MediaSampling(), blank=blank)
    assert all(torch.equal(one, other) for one, other in zip(plain, unguided))
    for prompt, row in zip(prompts, rows):
        slow = _slowly(
            model, rules, [prompt, blank], lambda asked, without: without + 3.0 * (asked - without)
        )
        assert row.tolist() == slow.reshape(row.shape).tolist()


@pytest.mark.parametrize("layout", ["interleaved", "delay"])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_of_several_candidates_the_one_is_kept_whose_words_are_read_most_surely(layout, kind):
    model = _model(layout)
    rules, space = _rules(model, kind), model.space
    words = [[9, 4], [7, 8, 2, 5], [3]]
    prompts = [sequences.prompt(space, kind, each) for each in words]
    how = MediaSampling(temperature=1.5, seed=3, candidates=5)
    kept = spans.write(model, prompts, rules, sampling=how)
    asked = [prompt for prompt in prompts for _ in range(5)]
    written = spans.write(model, asked, rules, sampling=how.model_copy(update={"candidates": 1}))
    task = {"image": "i2t", "audio": "a2t"}[kind]
    chosen = []
    for at, said in enumerate(words):
        costs = []
        for ids in written[5 * at : 5 * at + 5]:
            row = sequences.build(space, task, said, spans.content(ids, rules))
            with torch.no_grad():
                scores = model.logits(model.hidden(model.embed(row.ids[None])))[0].log_softmax(-1)
            first = row.target.shape[-1]
            said_T = row.target if row.target.ndim == 1 else row.target[0]
            costs.append(-float(scores[-first - 1 : -1].gather(1, said_T[:, None]).mean()))
        chosen.append(min(range(5), key=costs.__getitem__))
        assert torch.equal(kept[at], written[5 * at + chosen[-1]]), (said, costs)
    assert set(chosen) != {0}, "the first is not simply kept"


def test_what_is_not_legal_is_never_chosen():
    model = _model()
    rules, prompt = _rules(model, "image"), sequences.prompt(model.space, "image", [9])
    (legal,) = spans.write(model, [prompt], rules)
    torn = legal[:-2]
    nats = spans.words_nats(model, [prompt] * 3, [torn, legal, legal], rules)
    assert nats.isinf().tolist() == [True, False, False]
    assert nats[1] == nats[2]


def test_guidance_without_a_blank_prompt_is_refused():
    model = _model()
    rules, prompt = _rules(model, "image"), sequences.prompt(model.space, "image", [9])
    with pytest.raises(ConfigError, match="expected the prompt without words"):
        spans.write(model, [prompt], rules, sampling=MediaSampling(guidance=2.0))


def _obedient(model: TokenModel, row: torch.Tensor, prompt: torch.Tensor) -> TokenModel:
    """The model with head rows by which each step's likeliest id is the one of a legal span (one stream,
    distinct ids)."""
    ids = torch.cat((prompt, row))
    with torch.no_grad():
        h = model.hidden(model.embed(ids[None]))[0, len(prompt) - 1 : -1]
        model.new_head.zero_()
        model.decoder.lm_head.weight.zero_()
        inverse = torch.linalg.pinv(h)  # (D, steps): row @ h = one at its own step, zero at the others
        for step, token in enumerate(row.tolist()):
            model.new_head[token - model.space.text_size] += inverse[:, step]
    return model


def test_raw_compliance_counts_what_a_free_model_gets_right():
    model = _model()
    rules, prompt = grammar.of_medium(model.space, "image"), sequences.prompt(model.space, "image", [9, 4])
    assert spans.raw_compliance(model, [prompt] * 3, rules) == spans.Compliance(0, 3), "a random network"
    first = model.space.region("image").start
    row = torch.tensor(
        [model.space.special("img_start"), *range(first, first + 6), model.space.special("img_end")]
    )
    taught = _obedient(model, row, prompt)
    assert torch.equal(spans.write(taught, [prompt], rules, is_free=True)[0], row)
    assert spans.raw_compliance(taught, [prompt] * 2, rules).share == 1.0
    short = torch.cat((row[:-3], row[-1:]))
    assert spans.raw_compliance(_obedient(_model(), short, prompt), [prompt], rules).share == 0.0, (
        "an end too early"
    )


def test_a_free_row_ends_where_it_says_so_even_within_a_frame():
    model = _model()
    rules, prompt = (
        grammar.of_medium(model.space, "audio", most=6),
        sequences.prompt(model.space, "audio", [9, 4]),
    )
    books = [book.start for book in model.space.books("audio")]
    row = torch.tensor(
        [model.space.special("aud_start"), *books, books[0] + 1, model.space.special("aud_end")]
    )
    (found,) = spans.write(_obedient(model, row, prompt), [prompt], rules, is_free=True)
    assert torch.equal(found, row)
    assert rules.first_illegal(found) == 5


def test_a_span_that_does_not_fit_is_refused():
    model = _model()
    prompt = sequences.prompt(model.space, "audio", [1] * 10)
    with pytest.raises(ContextError, match=r"13 \+ 62 new positions do not fit ctx_len 64"):
        spans.write(model, [prompt], grammar.of_medium(model.space, "audio", most=20))
