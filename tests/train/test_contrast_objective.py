"""Vision's objective: one large batch and many small ones teach the same; duplicates and false captions count
right."""

import math
import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp

from muomni.data.batch import right_padded
from muomni.errors import ShapeError
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.train.objectives.contrast import Contrast, VisionBatch


def contrast(word_weight: float = 0.0) -> Contrast:
    torch.manual_seed(0)
    vision = VisionEncoder(
        VisionEncoderConfig(
            image_size=16, patch_size=8, width=16, layers=1, heads=2, ffn_width=32, embed_dim=8
        )
    )
    text = TextTower(TextTowerConfig(vocab_size=30, width=16, layers=1, heads=2, ffn_width=32, embed_dim=8))
    return Contrast(vision, text, word_weight=word_weight)


def batch(rows: int, *, negatives: int = 2, seed: int = 0) -> VisionBatch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 30, (rows, 5), generator=generator)
    ids[-1] = ids[0]  # a duplicate caption
    false_keep = torch.rand(rows, negatives, 1, generator=generator).expand(-1, -1, 5) < 0.8
    return VisionBatch(
        sample_ids=[f"s{row}" for row in range(rows)],
        pixels_BHW3=torch.randint(0, 256, (rows, 16, 16, 3), dtype=torch.uint8, generator=generator),
        caption_ids_BT=ids,
        caption_keep_BT=torch.ones(rows, 5, dtype=torch.bool),
        keys_B=ids.sum(1),
        negatives_BNT=torch.randint(1, 30, (rows, negatives, 5), generator=generator),
        negatives_keep_BNT=false_keep.clone(),
    )


def part(whole: VisionBatch, rows: slice) -> VisionBatch:
    tensors = {name: value[rows] for name, value in vars(whole).items()}
    return replace(whole, **tensors)


def gradients(objective: Contrast) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def run(objective: Contrast, micro_batches: list[VisionBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    objective.zero_grad()
    objective.begin(micro_batches, 1)
    total = 0.0
    for micro in micro_batches:
        terms = objective(micro).values()
        torch.stack([term.total * term.weight for term in terms]).sum().backward()
        total += sum(float(term.total.detach()) for term in terms)
    objective.after_step(1)
    return total, gradients(objective)


@pytest.mark.parametrize("cuts", [[6, 12], [1, 5, 12], [2, 4, 6, 8, 10, 12]])
@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("word_weight", [0.0, 0.5])
def test_micro_batches_teach_what_the_one_batch_teaches(
    cuts: list[int], negatives: int, word_weight: float
) -> None:
    objective, whole = contrast(word_weight), batch(12, negatives=negatives)
    loss, wanted = run(objective, [whole])
    pieces = [part(whole, slice(start, end)) for start, end in zip([0, *cuts], cuts)]
    split_loss, got = run(objective, pieces)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        rounding = 1e-5 * max(1.0, float(gradient.abs().max()))  # sums of nats: some gradients are large
        torch.testing.assert_close(
            got[name], gradient, atol=rounding, rtol=1e-4, msg=lambda told, name=name: f"{name}: {told}"
        )


def test_micro_batches_of_the_same_samples_keep_their_own_rows() -> None:
    """A source that is gone through twice in one update: pictures may be augmented otherwise, ids are the
    same."""
    objective, whole = contrast(), batch(12)
    loss, wanted = run(objective, [whole])
    pieces = [part(whole, slice(0, 6)), replace(part(whole, slice(6, 12)), sample_ids=whole.sample_ids[:6])]
    split_loss, got = run(objective, pieces)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5)


def test_without_the_cache_small_batches_teach_less() -> None:
    """The test above can fail: micro-batches that do not know of each other have an easier task."""
    objective, whole = contrast(), batch(12)
    loss, _ = run(objective, [whole])
    apart = sum(float(objective(part(whole, slice(at, at + 6)))["contrast"].total.detach()) for at in (0, 6))
    assert apart < 0.9 * loss


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    whole, objective = batch(11), contrast()
    mine = [
        [part(whole, slice(0, 3)), part(whole, slice(3, 7))],
        [part(whole, slice(7, 9)), part(whole, slice(9, 11))],
    ][rank]
    objective.begin(mine, 2)
    total = 0.0
    for micro in mine:
        term = objective(micro)["contrast"]
        term.total.backward()
        total += float(term.total.detach())
    torch.save((total, gradients(objective)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_uneven_rows_teach_what_one_teaches(tmp_path: object) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    parts = [torch.load(f"{tmp_path}/{rank}.pt") for rank in range(2)]
    loss, wanted = run(contrast(), [batch(11)])
    assert sum(total for total, _ in parts) == pytest.approx(loss, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_random_start_costs_log_of_the_rows() -> None:
    objective, whole = contrast(), batch(8, negatives=0)
    with torch.no_grad():
        objective.log_scale.fill_(-20.0)  # no similarity counts: pure guessing
    whole.keys_B = torch.arange(8)
    assert float(objective(whole)["contrast"].total.detach()) / 8 == pytest.approx(math.log(8), rel=1e-4)
    whole.keys_B = torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    wanted = (6 * math.log(8) + 2 * math.log(7)) / 8  # a duplicate is no negative
    assert float(objective(whole)["contrast"].total.detach()) / 8 == pytest.approx(wanted, rel=1e-4)


def test_false_captions_cost_the_picture_only() -> None:
    objective = contrast()
    with torch.no_grad():
        objective.log_scale.fill_(-20.0)
    whole = batch(8, negatives=3)
    whole.keys_B = torch.arange(8)
    assert whole.negatives_keep_BNT is not None
    whole.negatives_keep_BNT.fill_(True)
    whole.negatives_keep_BNT[0] = False
    wanted = (8 * math.log(8) + 7 * math.log(11) + math.log(8)) / 2
    assert float(objective(whole)["contrast"].total.detach()) == pytest.approx(wanted, rel=1e-4)


def test_absent_false_captions_leave_gradients_finite() -> None:
    _, got = run(contrast(), [batch(9)])
    assert all(gradient.isfinite().all() for gradient in got.values())
    assert "log_scale" in got


def test_the_temperature_is_clamped() -> None:
    objective = contrast()
    assert float(objective.scale.detach()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        objective.log_scale.fill_(9.0)
    assert float(objective.scale.detach()) == 100.0


def test_counts_are_known_before_the_forward() -> None:
    for objective in (contrast(), contrast(0.5)):
        whole = batch(5)
        assert objective.counts(whole) == {name: term.count for name, term in objective(whole).items()}


def test_a_frozen_reader_lends_its_hidden_states() -> None:
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(30, 24)

        def embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
            return self.table(ids_BT)

        def hidden(self, x_BTD: torch.Tensor, *, keep_BT: torch.Tensor) -> torch.Tensor:
            return x_BTD.cumsum(1)

    vision = contrast().vision
    tower = TextTower(TextTowerConfig(kind="thinker", source_width=24, embed_dim=8))
    _, got = run(Contrast(vision, tower, reader=Tiny()), [batch(5)])
    assert "text.proj.weight" in got
    assert not any(name.startswith("reader") for name in got)
    with pytest.raises(ShapeError):
        Contrast(vision, tower)
    with pytest.raises(ShapeError, match="embed"):
        Contrast(vision, TextTower(TextTowerConfig(kind="bow", embed_dim=9)))


def test_pad_marks_what_is_real() -> None:
    ids, keep = right_padded([[5, 6], [], [7]])
    assert ids.tolist() == [[5, 6], [0, 0], [7, 0]]
    assert keep.tolist() == [[True, True], [False, False], [True, False]]


def test_a_batch_without_false_captions_moves() -> None:
    bare = replace(batch(3), negatives_BNT=None, negatives_keep_BNT=None)
    assert bare.to("meta").pixels_BHW3.device.type == "meta"
    assert bare.to("meta").negatives_BNT is None


def test_words_are_counted_in_the_different_tokens_of_the_captions() -> None:
    """Counted by row, the term had the scale of the captions' lengths, and one weight meant another thing for
    each data set."""
    some, objective = batch(8, negatives=0), contrast(1.0)
    assert (
        objective(some)["words"].count
        == objective.counts(some)["words"]
        == sum(len(set(row.tolist())) for row in some.caption_ids_BT)
    )
