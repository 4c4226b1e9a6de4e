"""The next symbol by regions of ids: terms that add up to the whole, legal ids that share the probability, no
label lost."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muomni.data.batch import SequenceBatch
from muomni.errors import TokenRangeError
from muomni.evaluate.counting import by_hand
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.nn.head import IGNORE
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import Symbols, targets

WORDS, CODES, END = range(30), range(30, 40), range(28, 29)  # words hold the id that ends a picture


def batch(seed: int = 0) -> SequenceBatch:
    """Rows of 7 words and 5 codes in turn; the first two ids are not learned."""
    draw = torch.Generator().manual_seed(seed)
    words_BT = torch.randint(0, 28, (3, 7), generator=draw)
    codes_BT = torch.randint(30, 40, (3, 4), generator=draw)
    ids_BT = torch.cat((words_BT[:, :4], codes_BT, torch.full((3, 1), END.start), words_BT[:, 4:]), 1)
    labels_BT = ids_BT.clone()
    labels_BT[:, :2] = IGNORE
    return SequenceBatch(["a", "b", "c"], ids_BT, labels_BT)


def objective(**terms: Symbols) -> NextToken:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "dropout": 0.0}
    return NextToken(Decoder(DecoderConfig(**sizes)), terms=terms or None)


def test_regions_add_up_to_the_whole_with_its_gradients() -> None:
    whole, parts = (
        objective(),
        objective(words=Symbols(ids=(WORDS,)), codes=Symbols(ids=(CODES,), weight=0.5)),
    )
    one, several = whole(batch()), parts(batch())
    assert parts.counts(batch()) == {"words": 18, "codes": 12, "misses": 30}
    assert {name: term.count for name, term in several.items()} == parts.counts(batch())
    assert [term.weight for term in several.values()] == [1.0, 0.5, 0.0]
    total = several["words"].total + several["codes"].total
    torch.testing.assert_close(total, one["text"].total)
    assert several["misses"].total == one["misses"].total
    one["text"].total.backward()
    total.backward()
    for made, expected in zip(parts.parameters(), whole.parameters()):
        torch.testing.assert_close(made.grad, expected.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.nats(batch()), whole.nats(batch()))


def test_legal_ids_are_those_of_the_region_and_what_may_end_it() -> None:
    legal = (END, CODES)
    parts = objective(words=Symbols(ids=(WORDS,)), codes=Symbols(ids=(CODES,), legal=legal))
    some = batch()
    terms = parts(some)
    labels_BT = targets(some)
    is_code_BT = labels_BT >= CODES.start
    scores_NV = parts.trunk(some.ids_BT)[:, :-1][is_code_BT]
    scores_NV[:, [each for each in range(40) if all(each not in ids for ids in legal)]] = -torch.inf
    expected = F.cross_entropy(scores_NV, labels_BT[is_code_BT], reduction="sum")
    torch.testing.assert_close(terms["codes"].total, expected)
    assert (
        terms["codes"].total
        < objective(words=Symbols(ids=(WORDS,)), codes=Symbols(ids=(CODES,)))(some)["codes"].total
    )


@pytest.mark.parametrize("regions", [[range(20), CODES], [WORDS, range(25, 40)]], ids=["a gap", "an overlap"])
def test_each_label_lies_in_one_region(regions: list[range]) -> None:
    parts = objective(**{str(number): Symbols(ids=(ids,)) for number, ids in enumerate(regions)})
    with pytest.raises(TokenRangeError, match="30 labels, of which the terms ask for"):
        parts.counts(batch())


def test_the_count_by_hand_knows_regions() -> None:
    parts = objective(words=Symbols(ids=(WORDS,)), codes=Symbols(ids=(CODES,)))
    told = by_hand(parts, batch())
    assert told is not None
    assert told[0] == parts.counts(batch())


def test_a_region_without_a_label_is_zero_and_reaches_the_parameters() -> None:
    parts = objective(words=Symbols(ids=(WORDS,)), codes=Symbols(ids=(CODES,)))
    some = batch()
    some.labels_BT[some.labels_BT >= CODES.start] = IGNORE
    terms = parts(some)
    assert (float(terms["codes"].total), terms["codes"].count) == (0.0, 0)
    terms["codes"].total.backward()
    assert all(parameter.grad is not None for parameter in parts.parameters())


def test_terms_have_a_perplexity_of_their_own() -> None:
    parts = objective(words=Symbols(ids=(WORDS,)), codes=Symbols(ids=(CODES,)))
    told = parts.describe({"words": 0.0, "codes@<8": 1.0, "misses": 0.25})
    assert told == {
        "words": 0.0,
        "words_perplexity": 1.0,
        "codes@<8": 1.0,
        "codes_perplexity@<8": pytest.approx(2.71828),
        "accuracy": 0.75,
    }


def test_rows_that_teach_codes_alone_are_labelled() -> None:
    nothing = torch.full((2, 3), IGNORE)
    codes_BKS = torch.zeros(2, 2, 4, dtype=torch.int64)
    labels_BKS = torch.full_like(codes_BKS, IGNORE)
    labels_BKS[1, 1, 3] = 0
    some = SequenceBatch(
        ["a", "b"], torch.ones_like(nothing), nothing, codes_BKS=codes_BKS, code_labels_BKS=labels_BKS
    )
    assert some.labelled_rows == 1
    assert SequenceBatch(["a", "b"], torch.ones_like(nothing), nothing).labelled_rows == 0
