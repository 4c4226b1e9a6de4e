"""The stratified draw: equal shares, shortages carried on, blind to order, steady under growth, and never
redrawn in silence."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data.sample import Sample, parse
from muomni.data.stratify import buckets, draw, keep, label_lengths, names
from muomni.errors import ConfigError
from muomni.tokens.bpe import Tokenizer


def make(count: int, start: int = 0) -> list[Sample]:
    content = [{"type": "image", "path": "a.png"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    return [parse({"id": f"s{i}", "messages": turns}) for i in range(start, start + count)]


def chosen_of(samples: list[Sample], lengths: list[int], size: int, **more: int) -> list[str]:
    return [samples[index].id for index in draw(samples, lengths, size, **more)]  # type: ignore[arg-type]


def test_lengths_are_those_of_the_assistants_words() -> None:
    tokenizer = Tokenizer.train(["a red circle and a blue square"] * 3, 280)
    said = ["a red circle", "and a blue square"]
    turns = [
        turn
        for words in said
        for turn in ({"role": "user", "content": "what do you see?"}, {"role": "assistant", "content": words})
    ]
    chat, document = parse({"messages": turns}), parse({"text": "a red circle"})
    wanted = sum(len(tokenizer.encode(words)) for words in said)
    assert label_lengths([chat, document, chat], tokenizer) == [wanted, 0, wanted]


def test_edges_belong_to_the_bucket_below() -> None:
    assert buckets([0, 1, 10, 11, 20, 21, 9999]) == [0, 0, 0, 1, 1, 2, 2]
    assert names() == ["short", "medium", "long"]
    assert names((0, 10, 20, 40)) == ["1-10", "11-20", "21-40", "41-"]
    assert buckets([40, 41], (0, 10, 20, 40)) == [2, 3]


@pytest.mark.parametrize(
    ("size", "shares"), [(64, (21, 21, 22)), (200, (66, 66, 68)), (1, (0, 0, 1)), (0, (0, 0, 0))]
)
def test_equal_shares_and_the_rest_to_the_last(size: int, shares: tuple[int, ...]) -> None:
    lengths = [5, 15, 25] * 100
    counts = Counter(lengths[index] for index in draw(make(300), lengths, size))
    assert tuple(counts[length] for length in (5, 15, 25)) == shares


@pytest.mark.parametrize(
    ("held", "size", "shares"),
    [
        ((5, 100, 100), 30, (5, 15, 10)),
        ((100, 100, 2), 30, (None, None, 2)),
        ((0, 0, 50), 30, (0, 0, 30)),
        ((4, 3, 2), 30, (4, 3, 2)),
    ],
)
def test_a_shortage_is_carried_to_the_others(
    held: tuple[int, ...], size: int, shares: tuple[int | None, ...]
) -> None:
    lengths = [length for length, count in zip((5, 15, 25), held, strict=True) for _ in range(count)]
    chosen = draw(make(len(lengths)), lengths, size)
    assert len(chosen) == min(size, len(lengths)) == len(set(chosen))
    counts = Counter(lengths[index] for index in chosen)
    assert all(share in (None, counts[length]) for length, share in zip((5, 15, 25), shares, strict=True))


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.integers(0, 40),
    st.integers(0, 5),
    st.sampled_from([5, 15, 25]),
)
@settings(max_examples=100)
def test_the_order_decides_nothing_and_one_more_moves_one(
    lengths: list[int], size: int, seed: int, more: int
) -> None:
    samples = make(len(lengths))
    drawn = chosen_of(samples, lengths, size, seed=seed)
    both = list(zip(samples, lengths, strict=True))
    random.Random(seed).shuffle(both)
    assert chosen_of([sample for sample, _ in both], [length for _, length in both], size, seed=seed) == drawn
    grown = chosen_of([*samples, *make(1, start=1000)], [*lengths, more], size, seed=seed)
    assert len(set(drawn) - set(grown)) <= 1


def test_another_seed_draws_others() -> None:
    samples, lengths = make(300), [5, 15, 25] * 100
    assert chosen_of(samples, lengths, 30, seed=1) != chosen_of(samples, lengths, 30, seed=2)


def test_a_choice_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "splits" / "eval.json"
    samples, lengths = make(90), [5, 15, 25] * 30
    first = keep(path, samples, lengths, 10, seed=3)
    told = json.loads(path.read_text())
    assert list(told) == ["seed", "size", "edges", "digest", "eval", "bucket_counts"]
    assert told["bucket_counts"] == {"short": 3, "medium": 3, "long": 4}
    assert told["eval"][0] == {
        "id": samples[first[0]].id,
        "bucket": names()[buckets(lengths)[first[0]]],
        "label_len": lengths[first[0]],
        "image": "a.png",
    }
    grown = [*make(200, start=1000), *samples]
    again = keep(path, grown, [15] * 200 + lengths, 10, seed=3)
    assert [grown[index].id for index in again] == [samples[index].id for index in first]


def test_a_choice_is_never_drawn_anew_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    samples, lengths = make(90), [5, 15, 25] * 30
    first = keep(path, samples, lengths, 10)
    before = path.read_bytes()
    lost = samples[first[2]].id
    left = [sample for sample in samples if sample.id != lost]
    with pytest.raises(ConfigError, match=rf"1 of 10 samples are gone: {lost}"):
        keep(path, left, lengths[:89], 10)
    with pytest.raises(ConfigError, match="'size': 10"):
        keep(path, samples, lengths, 11)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b'"label_len": 5', b'"label_len": 6', 1))
    with pytest.raises(ConfigError, match="it was changed"):
        keep(path, samples, lengths, 10)
    for torn in ("{", "[]", '{"eval": [3]}', "{}"):
        path.write_text(torn)
        with pytest.raises(ConfigError, match="expected a choice"):
            keep(path, samples, lengths, 10)
