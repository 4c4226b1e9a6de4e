"""The next token: shifted once, padding and prompts never learned, media in the places of their pads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.batch import SequenceBatch
from muomni.data.conversation import Item
from muomni.errors import ShapeError
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.causal import CausalLM
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.omni import Omni, Projectors, ProjectorsConfig, gather, padded, pixels
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.nn.head import OwnHead
from muomni.tokens.chat import IGNORE
from muomni.tokens.special_tokens import SPECIAL
from muomni.train.objectives.language import NextToken, collate
from muomni.train.objectives.symbols import targets

VOCAB = 40
SMALL = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 32}


def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=VOCAB, ctx_len=64, dropout=0.0, tied=False, **SMALL))
    for parameter in model.parameters():
        parameter.data *= 3  # far from uniform, so that a wrong target shows
    return model.eval()


def nats(model: Decoder, ids: list[int], labels: list[int]) -> float:
    """The slow way: one position after another."""
    logits = model.logits(model.hidden(model.embed(torch.tensor([ids]))))[0]
    return sum(
        float(F.cross_entropy(logits[t - 1], torch.tensor(labels[t])).detach())
        for t in range(1, len(ids))
        if labels[t] >= 0
    )


def item(ids: list[int], labels: list[int]) -> Item:
    return Item("x", "text", ids, labels)


def test_the_shift_is_by_one_exactly() -> None:
    """A body that always says 'one more' has no loss on a counting sequence, and only with a shift of one."""

    class Counting(CausalLM):
        def __init__(self) -> None:
            super().__init__()
            self.head = OwnHead(VOCAB, VOCAB)
            self.head.weight.data = 50.0 * torch.eye(VOCAB)

        def embed(self, ids_BT: Tensor) -> Tensor:
            return F.one_hot(ids_BT + 1, VOCAB + 1)[..., :VOCAB].float()

        def hidden(self, x_BTD: Tensor, **_: Any) -> Tensor:
            return x_BTD

    objective = NextToken(Counting())
    for step, is_right in ((1, True), (0, False), (2, False)):
        ids = torch.arange(15, 15 + 8 * max(step, 1), max(step, 1))[None] if step else torch.full((1, 8), 20)
        terms = objective(SequenceBatch(["a"], ids, ids.clone()))
        assert terms["text"].count == 7
        assert (float(terms["text"].total) < 1e-6) == is_right
        assert (float(terms["misses"].total) == 0) == is_right


def test_the_loss_is_that_of_each_position() -> None:
    model = decoder()
    ids, labels = [1, 5, 20, 21, 22, 7], [-100, -100, 20, -100, 22, 7]
    term = NextToken(model)(collate([item(ids, labels)]))["text"]
    assert term.count == 3
    assert float(term.total.detach()) == pytest.approx(nats(model, ids, labels), abs=1e-4)


def test_padding_changes_nothing() -> None:
    model = decoder()
    short, long = item([1, 20, 21, 22], [-100, 20, 21, 22]), item(list(range(15, 35)), list(range(15, 35)))
    objective = NextToken(model)
    alone = [objective(collate([one]))["text"] for one in (short, long)]
    both = objective(collate([short, long]))["text"]
    assert both.count == sum(term.count for term in alone) == 3 + 19
    assert float(both.total.detach()) == pytest.approx(
        sum(float(term.total.detach()) for term in alone), abs=1e-4
    )
    batch = collate([short, long])
    batch.ids_BT[0, 4:] = 33  # what stands in the padding is never looked at
    assert float(objective(batch)["text"].total.detach()) == pytest.approx(
        float(both.total.detach()), abs=1e-5
    )


def test_packed_documents_cost_what_they_cost_apart() -> None:
    model = decoder()
    parts = [[20, 21, 22, 2], [30, 31, 2], [25, 26, 27, 28, 2]]
    ids = torch.tensor([[i for part in parts for i in part]])
    documents = torch.tensor([[n for n, part in enumerate(parts) for _ in part]])
    packed = NextToken(model)(SequenceBatch(["a"], ids, ids.clone(), documents_BT=documents))["text"]
    assert packed.count == sum(len(part) - 1 for part in parts)
    assert float(packed.total.detach()) == pytest.approx(
        sum(nats(model, part, part) for part in parts), abs=1e-4
    )
    merged = NextToken(model)(SequenceBatch(["a"], ids, ids.clone()))["text"]
    assert (
        merged.count == packed.count + 2
    )  # without the document mask, ends are asked to foretell beginnings


def test_prompts_are_never_learned() -> None:
    """No gradient reaches the output row of a token that stands in prompts only, as a target."""
    model = decoder()
    batch = collate([item([1, 5, 30, 31, 6, 20, 7], [-100] * 5 + [20, 7])])
    assert set(targets(batch)[targets(batch) >= 0].tolist()) == {20, 7}
    term = NextToken(model)(batch)["text"]
    assert term.count == 2
    changed = collate([item([1, 5, 30, 31, 6, 20, 7], [-100] * 5 + [20, 7])])
    changed.labels_BT[0, 0] = 33  # the first position is no target of any
    assert float(NextToken(model)(changed)["text"].total.detach()) == float(term.total.detach())


def test_the_future_does_not_reach_an_earlier_loss() -> None:
    model = decoder()
    ids = list(range(15, 30))
    labels = [-100] * 15
    labels[6] = ids[6]
    first = float(NextToken(model)(collate([item(ids, labels)]))["text"].total)
    for t in range(6, 15):
        other = [*ids]
        other[t] = 38
        assert float(NextToken(model)(collate([item(other, labels)]))["text"].total) == pytest.approx(
            first, abs=1e-6
        )
    other = [*ids]
    other[5] = 38
    assert abs(float(NextToken(model)(collate([item(other, labels)]))["text"].total) - first) > 1e-3


def test_counts_are_known_before_the_forward() -> None:
    model = decoder()
    for batch in (
        collate([item([1, 20], [-100, -100])]),
        collate([item([1, 20, 21], [1, 20, -100]), item([9], [9])]),
    ):
        objective = NextToken(model)
        terms = objective(batch)
        assert objective.counts(batch) == {name: term.count for name, term in terms.items()}
        assert bool(terms["text"].total.isfinite())


def test_a_batch_without_labels_reaches_all_weights_with_zero() -> None:
    model = decoder()
    term = NextToken(model)(collate([item([1, 20, 21], [-100] * 3)]))["text"]
    term.total.backward()
    assert term.count == 0
    assert all(p.grad is not None and not bool(p.grad.any()) for p in model.parameters())


def test_misses_are_counted_without_weight() -> None:
    model = decoder()
    ids = list(range(15, 27))
    terms = NextToken(model)(collate([item(ids, ids)]))
    guesses = model.logits(model.hidden(model.embed(torch.tensor([ids]))))[0, :-1].argmax(-1)
    assert float(terms["misses"].total) == int((guesses != torch.tensor(ids[1:])).sum())
    assert terms["misses"].weight == 0.0


def audio_tokens(model: Omni, frames: int) -> int:
    """Positions that a sound of so many mel frames fills."""
    assert model.audio is not None
    return -(-model.audio.length(frames) // model.projectors.config.audio_pool)


def omni(*, eyes: bool = True, ears: bool = True) -> Omni:
    body = decoder()
    vision = (
        VisionEncoder(VisionEncoderConfig(image_size=16, patch_size=8, embed_dim=8, **SMALL)).eval()
        if eyes
        else None
    )
    audio = AudioEncoder(AudioEncoderConfig(channels=2, **SMALL)).eval() if ears else None
    shape = ProjectorsConfig(width=16, vision_width=16, audio_width=16, pool_grid=1, audio_pool=2)
    return Omni(body, vision, audio, Projectors(shape).init_output_scale(body.embedding_rms)).eval()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def sound(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 128)).astype(np.float32)


def test_media_stand_at_their_pads_in_order() -> None:
    model = omni()
    pictures, mels = [picture(0), picture(1)], [sound(17, 2), sound(40, 3)]
    counts = [audio_tokens(model, 17), audio_tokens(model, 40)]
    assert model.projectors.config.image_tokens == 2
    image, audio = SPECIAL.image_pad, SPECIAL.audio_pad
    rows = [[20, image, image, 21, *[audio] * counts[0], 22], [*[audio] * counts[1], 23, image, image]]
    batch = collate(
        [
            Item(name, "", rows[n], rows[n], {"image": [pictures[n]], "audio": [mels[n]]})
            for n, name in enumerate("ab")
        ]
    )
    with torch.no_grad():
        x = model.embed(batch.ids_BT, batch.media)
        for row, ids in enumerate(rows):
            seen = model.embed_image(pixels([pictures[row]]).values_N)[0]
            alone = padded([mels[row]])
            heard = model.embed_audio(alone.values_N, alone.lengths_N)[0][0, : counts[row]]  # type: ignore[arg-type]
            places = torch.tensor(ids)
            torch.testing.assert_close(x[row, : len(ids)][places == image], seen, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(x[row, : len(ids)][places == audio], heard, atol=1e-5, rtol=1e-5)
            words = (places != image) & (places != audio)
            torch.testing.assert_close(x[row, : len(ids)][words], model.decoder.embed(places[words]))


def test_media_are_as_loud_as_words() -> None:
    model = omni()
    seen = model.embed_image(pixels([picture(0)]).values_N)
    ratio = float(seen.square().mean().sqrt()) / model.decoder.embedding_rms
    assert 0.4 < ratio < 2.5


@pytest.mark.parametrize("pads", [0, 1, 3])
def test_pads_and_media_that_do_not_fit_are_refused(pads: int) -> None:
    model = omni()
    row = [20, *[SPECIAL.image_pad] * pads, 21]
    with pytest.raises(ShapeError, match="image"):
        model.embed(torch.tensor([row]), gather([{"image": [picture(0)]}]))
    row = [20, *[SPECIAL.audio_pad] * pads, 21]
    with pytest.raises(ShapeError, match="audio"):
        model.embed(torch.tensor([row]), gather([{"audio": [sound(40, 0)]}]))


@pytest.mark.parametrize("pad", [SPECIAL.image_pad, SPECIAL.audio_pad])
def test_pads_without_any_media_are_refused(pad: int) -> None:
    """Else a row that lost its picture would be read as if it had one."""
    with pytest.raises(ShapeError):
        omni().embed(torch.tensor([[20, pad, pad, 21]]), {})


def test_a_missing_sense_is_named() -> None:
    with pytest.raises(ShapeError, match="no vision tower"):
        omni(eyes=False).embed_image(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="no audio encoder"):
        omni(ears=False).embed_audio(torch.zeros(1, 8, 128), torch.tensor([8]))


def test_the_towers_get_no_gradient_and_the_projectors_do() -> None:
    model = omni()
    count = audio_tokens(model, 20)
    row = [20, *[SPECIAL.image_pad] * 2, *[SPECIAL.audio_pad] * count, 21, 22]
    batch = collate(
        [Item("a", "", row, [-100] * (len(row) - 1) + [22], {"image": [picture(0)], "audio": [sound(20, 1)]})]
    )
    NextToken(model.decoder, model)(batch)["text"].total.backward()
    assert all(p.grad is None for part in (model.vision, model.audio) for p in part.parameters())  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.projectors.parameters())


def test_questions_apart_cost_what_they_cost_alone() -> None:
    """Two questions about one picture in a row, padded beside a longer one, against each with the picture to
    itself."""
    model = omni()
    pads, first, second = [20, SPECIAL.image_pad, SPECIAL.image_pad, 21], [22, 23, 24, 2], [25, 26, 2]
    ignored = [IGNORE] * 6
    shared = Item(
        "a", "", pads + first + second, [*ignored, 24, 2, IGNORE, 26, 2], {"image": [picture(0)]}, 4, [4, 8]
    )
    other = Item("b", "", pads + list(range(22, 34)), ignored + list(range(24, 34)), {"image": [picture(1)]})
    alone = [
        Item("c", "", pads + first, [*ignored, 24, 2], {"image": [picture(0)]}),
        Item("d", "", pads + second, [*ignored[:5], 26, 2], {"image": [picture(0)]}),
    ]

    def cost(*items: Item) -> float:
        return float(NextToken(model.decoder, model)(collate(items))["text"].total)

    with torch.no_grad():
        assert cost(shared, other) == pytest.approx(cost(other) + sum(map(cost, alone)), abs=1e-4)
        shared.starts, shared.shared = [], 0
        assert abs(cost(shared, other) - cost(other) - sum(map(cost, alone))) > 1e-2, (
            "as a dialogue it would not"
        )


def test_nats_of_rows_are_those_of_each_alone() -> None:
    model = decoder()
    rows = [
        item([20, 21, 22, 23, 2], [IGNORE, IGNORE, 22, 23, 2]),
        item([30, 31, 2], [IGNORE, 31, 2]),
        item([25, 26], [IGNORE, IGNORE]),
    ]
    found = NextToken(model).nats(collate(rows))
    slow = [nats(model, row.ids, row.labels) / count for row, count in zip(rows, (3, 2, 1), strict=True)]
    torch.testing.assert_close(found, torch.tensor(slow), atol=1e-4, rtol=1e-4)


def test_a_sound_in_a_longer_batch_is_heard_the_same() -> None:
    model = omni()
    with torch.no_grad():
        alone = padded([sound(18, 1)])
        both = padded([sound(18, 1), sound(90, 2)])
        one, count = model.embed_audio(alone.values_N, alone.lengths_N)  # type: ignore[arg-type]
        two, counts = model.embed_audio(both.values_N, both.lengths_N)  # type: ignore[arg-type]
    assert counts[0] == count[0] == audio_tokens(model, 18)
    torch.testing.assert_close(two[0, : count[0]], one[0, : count[0]], atol=1e-4, rtol=1e-4)


def test_uniform_guesses_cost_the_logarithm_of_the_vocabulary() -> None:
    model = decoder()
    model.lm_head.weight.data.zero_()  # type: ignore[union-attr]
    term = NextToken(model)(collate([item(list(range(15, 35)), list(range(15, 35)))]))["text"]
    assert float(term.total.detach()) / term.count == pytest.approx(math.log(VOCAB), abs=1e-5)


def test_nats_are_told_with_their_perplexity_and_misses_as_accuracy() -> None:
    told = NextToken(decoder()).describe(
        {"text": math.log(50), "misses": 0.25, "loss": 1.0, "text@<=64": 1e6, "misses@<=64": 1.0}
    )
    assert list(told) == [
        "text",
        "perplexity",
        "loss",
        "text@<=64",
        "perplexity@<=64",
        "accuracy",
        "accuracy@<=64",
    ]
    assert told["perplexity"] == pytest.approx(50)
    assert math.isfinite(told["perplexity@<=64"]), "JSON has no infinity"
    assert (told["accuracy"], told["accuracy@<=64"]) == (0.75, 0.0)
