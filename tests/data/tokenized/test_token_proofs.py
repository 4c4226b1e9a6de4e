"""The proofs of tasks over tokens find what is planted: a source that is ignored, a prompt that is taught,
swapped books, a leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tokenized_corpus import ALL, corpus_of, sets

from muomni.data.token_rows import TokenRows
from muomni.data.tokenized import make
from muomni.data.tokenized.index import ShardSet
from muomni.evaluate import token_ablations, token_labels
from muomni.evaluate.facts import Fact
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.rows import TokenModel
from muomni.runtime import Runtime
from muomni.tokens.chat import IGNORE
from muomni.tokens.sequences import TokenRow
from muomni.train.objectives.tokens import TokenTasks

CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """A corpus, its tokenizer, and its shards."""
    folder = tmp_path_factory.mktemp("made")
    corpus = corpus_of(folder / "data", 60)
    return (corpus, *sets(corpus, folder / "set"))


def rows_of(made: tuple[Any, Any, Path], side: Any = "train") -> TokenRows:
    _, opened, folder = made
    return TokenRows(ShardSet(folder, side), opened.space, ALL, 1000)


def proven(made: tuple[Any, Any, Path]) -> dict[str, Fact]:
    corpus, opened, _ = made
    return token_labels.facts(rows_of(made), corpus.train, opened)


# --- what is taught -------------------------------------------------------------------------------------------------------------


def test_rows_as_they_are_are_right(made: tuple[Any, Any, Path]) -> None:
    found = proven(made)
    assert {name: found[name].value for name in found} == {
        "taught_right": 1.0,
        "ends_taught": 1.0,
        "stale_codes": 0.0,
    }
    assert found["stale_codes"].n == 2 * token_labels.CODED_AGAIN


def spoilt(change: Any) -> Any:
    """Rows that a fault has gone through."""
    true = TokenRows.row
    return patch.object(TokenRows, "row", lambda self, index: change(true(self, index)))


def with_labels(row: TokenRow, change: Any) -> TokenRow:
    labels = row.labels.clone()
    change(labels)
    return replace(row, labels=labels)


def test_a_prompt_that_is_taught_is_found(made: tuple[Any, Any, Path]) -> None:
    with spoilt(lambda row: replace(row, labels=row.ids.clone())):
        assert proven(made)["taught_right"].value == 0.0


def test_an_end_that_is_not_taught_is_found(made: tuple[Any, Any, Path]) -> None:
    def without_end(labels: torch.Tensor) -> None:
        labels[-1] = IGNORE

    with spoilt(lambda row: with_labels(row, without_end)):
        found = proven(made)
    assert found["ends_taught"].value == 0.0
    assert found["taught_right"].value == 0.0


def test_words_of_another_sample_are_found(made: tuple[Any, Any, Path]) -> None:
    corpus, opened, _ = made
    others = [*corpus.train[1:], corpus.train[0]]
    assert token_labels.facts(rows_of(made), others, opened)["taught_right"].value < 0.5


def test_books_in_another_order_are_found(made: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """The shards are of a codec that gives book 1 before book 0, though its digest is the same."""
    corpus, opened, _ = made
    swapped, folder = sets(corpus, tmp_path / "set", swapped=True)
    assert swapped.space.hash == opened.space.hash
    found = proven((corpus, opened, folder))
    assert found["stale_codes"].value > 0.05
    assert found["taught_right"].value == 1.0, "every id is legal: only the codec can tell"


def test_ids_of_another_region_are_found(made: tuple[Any, Any, Path]) -> None:
    space = made[1].space
    true = TokenRows.parts

    def turned(self: TokenRows, index: int) -> Any:
        words, medium = true(self, index)
        return words, medium.flip(0) if int(medium[0]) in space.region("audio_0").ids else medium

    with patch.object(TokenRows, "parts", turned):
        assert proven(made)["taught_right"].value < 0.6


def test_a_group_on_both_sides_of_the_shards_is_found(made: tuple[Any, Any, Path], tmp_path: Path) -> None:
    corpus, opened, folder = made
    train, valid = (ShardSet(folder, side) for side in ("train", "valid"))
    assert token_labels.leaks(train, valid, corpus.train, corpus.valid).value == 0.0
    mixed = replace(corpus, valid=[*corpus.valid, corpus.train[3]])
    leaked = tmp_path / "leaked"
    make.shard_corpus(mixed, leaked, lambda: opened, make.ShardSettings())
    found = token_labels.leaks(
        ShardSet(leaked, "train"), ShardSet(leaked, "valid"), corpus.train, corpus.valid
    )
    assert found.value == 1.0
    assert corpus.train[3].id in found.note


# --- whether sources are used ---------------------------------------------------------------------------------------------------


def trained(made: tuple[Any, Any, Path], steps: int = 120) -> TokenTasks:
    """A small model that has learned the rows by heart."""
    space = made[1].space
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=space.text_size, width=32, layers=1, heads=2, ffn_width=64, ctx_len=256, dropout=0.0
    )
    model = TokenModel(Decoder(config), space)
    model.start(torch.Generator().manual_seed(0), spread=1.0)
    objective = TokenTasks(model, dict.fromkeys(ALL, 1.0))
    rows = rows_of(made)
    from muomni.train.objectives.tokens import collate

    items = [rows.item(place, None) for place in range(len(rows))]  # type: ignore[arg-type]
    batch = collate(items, space.pad)
    optimizer = torch.optim.AdamW(objective.parameters(), 1e-2)
    for _ in range(steps):
        terms = objective(batch)
        optimizer.zero_grad()
        sum(
            (term.total * term.weight / max(1, term.count) for term in terms.values()), torch.zeros(())
        ).backward()
        optimizer.step()
    return objective.eval()


def test_a_model_that_ignores_its_source_loses_and_one_that_reads_it_wins(
    made: tuple[Any, Any, Path],
) -> None:
    objective, rows = trained(made), rows_of(made)
    found = token_ablations.facts(objective, rows, CPU, 16)
    for task in ALL:
        assert found[f"{task}_swap_win_rate"].value > 0.8, task
        assert found[f"{task}_swap_gap_nats"].value > 0.1, task
        second = "noise" if task.endswith("2t") else "empty"
        assert found[f"{task}_{second}_win_rate"].value > 0.8, task
    embed = TokenModel.embed

    def blind(self: TokenModel, ids_BT: torch.Tensor) -> torch.Tensor:
        """All that stands before the target is one token."""
        asks = torch.tensor([self.space.special(name) for name in ("gen_text", "gen_img", "gen_aud")])
        is_before_BT = torch.isin(ids_BT, asks).flip(1).cumsum(1).flip(1) > 0
        return embed(self, ids_BT.masked_fill(is_before_BT, self.space.pad))

    with patch.object(TokenModel, "embed", blind):
        ignored = token_ablations.facts(objective, rows, CPU, 16)
    assert ignored["i2t_swap_win_rate"].value == 0.0, "images are of one length: nothing is left"
    assert ignored["i2t_swap_gap_nats"].value == 0.0
    for task in ALL:  # how long a source is shows in the positions of its target
        assert ignored[f"{task}_swap_win_rate"].value < 0.7, task


def test_a_swap_is_with_other_words(made: tuple[Any, Any, Path]) -> None:
    """Six phrases for many media: a neighbour with the same words would prove nothing."""
    rows = rows_of(made)
    space = rows.space
    places, parts = token_ablations.readable(rows, "i2t", 16)
    for place in range(len(parts)):
        swapped = token_ablations._swapped(space, "i2t", parts, place, 1000)
        own = rows.row(places[place])
        assert torch.equal(swapped.labels, own.labels), "the target stays"
        other = next(
            n
            for step in range(1, len(parts))
            if parts[n := (place + step) % len(parts)][0] != parts[place][0]
        )
        medium = swapped.ids[own.spans[0].start : own.spans[0].start + own.spans[0].length]
        assert torch.equal(medium, parts[other][1])
