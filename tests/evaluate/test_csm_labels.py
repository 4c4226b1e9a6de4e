"""CSM of transformers, a tiny one: what its loss is given and tells, audited; and our count of the same lanes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from muomni.evaluate import label_audit
from muomni.evaluate.label_audit import Marks
from muomni.tokens.chat import IGNORE

transformers = pytest.importorskip("transformers")
BOOKS, CODES, END = 4, 20, 9
AUDIO, AUDIO_EOS, OPEN = 40, 41, 42


class Codec(torch.nn.Module):
    """In place of Mimi: codes are the samples themselves, so many a frame as there are books."""

    def encode(self, wave_BCS: torch.Tensor) -> Any:
        codes_BKF = wave_BCS.reshape(1, -1, BOOKS).long().transpose(1, 2)
        return type("Codes", (), {"audio_codes": codes_BKF})

    def get_audio_codes_mask(self, is_sample_NS: torch.Tensor) -> torch.Tensor:
        frames_N = is_sample_NS.sum(1) // BOOKS
        return torch.arange(int(frames_N.max())) < frames_N[:, None]


@pytest.fixture(scope="module")
def csm() -> Any:
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
    depth = {**small, "backbone_hidden_size": 16, "num_codebooks": BOOKS, "vocab_size": CODES}
    config = transformers.CsmConfig(
        **small, num_codebooks=BOOKS, vocab_size=CODES, text_vocab_size=50, audio_token_id=AUDIO,
        audio_eos_token_id=AUDIO_EOS, codebook_eos_token_id=0, pad_token_id=0, codebook_pad_token_id=0, bos_token_id=1,
        eos_token_id=2, depth_decoder_config=depth,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.CsmForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" not in name:
                weight.normal_(0, 0.3)
    made.codec_model = Codec()
    return made


def batch() -> dict[str, torch.Tensor]:
    """One row of two turns, the first with 3 frames, the second with 4; the first is masked."""
    ids = torch.tensor([[3, OPEN, *[AUDIO] * 3, AUDIO_EOS, 4, OPEN, *[AUDIO] * 4, AUDIO_EOS]])
    labels = torch.full_like(ids, IGNORE)
    labels[:, 8:] = ids[:, 8:]
    codes = torch.randint(1, CODES, (7 * BOOKS,), generator=torch.Generator().manual_seed(1)).float()
    cutoffs = torch.tensor([[3 * BOOKS, 7 * BOOKS]])
    return {
        "input_ids": ids,
        "labels": labels,
        "input_values": codes[None, None],
        "input_values_cutoffs": cutoffs,
    }


def told(csm: Any, **more: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """A dump of what its loss is given, and its output."""
    given = batch()
    merged = csm._merge_input_ids_with_input_values(**given)
    with torch.no_grad():
        out = csm(**given, **more)
    labels_BTK = merged["labels"]
    is_frame_BT = ~(labels_BTK[..., 1:] == IGNORE).all(-1)
    shifted = torch.full_like(labels_BTK[..., 0], IGNORE)
    shifted[:, :-1] = labels_BTK[:, 1:, 0]
    ids_BTK = given["input_ids"][..., None].repeat(1, 1, BOOKS)
    return {
        "input_ids": ids_BTK,
        "labels": torch.where(labels_BTK == IGNORE, IGNORE, ids_BTK),
        "loss": out.backbone_loss,
        "logits": out.logits,
        "loss_labels": shifted,
        "depth_loss": out.depth_decoder_loss,
        "depth_logits": out.depth_decoder_logits,
        "depth_labels": labels_BTK[is_frame_BT][:, 1:],
    }, out


MARKS = Marks((AUDIO_EOS,), None, (OPEN,), is_last=True)


def test_a_masked_first_turn_is_taught_all_the_same(csm: Any) -> None:
    dump, _ = told(csm)
    facts, judged = label_audit.audit(dump, "shifts", MARKS)
    # 3 frames and an end of the first turn, 4 and an end of the second.
    assert facts["text_prompt_taught"].value == pytest.approx(4 / 9)
    assert "red" in {each.verdict for each in judged if each.name == "text_prompts"}
    handed = {**dump, "labels": batch()["labels"][..., None].repeat(1, 1, BOOKS)}
    assert label_audit.audit(handed, "shifts", MARKS)[0]["text_prompt_taught"].value == 0


def test_a_depth_loss_that_is_multiplied_is_red_and_the_plain_one_is_green(csm: Any) -> None:
    dump, _ = told(csm)
    facts, _ = label_audit.audit(dump, "shifts", MARKS)
    assert facts["loss_scale_error"].value < 1e-5
    frames = int((dump["loss_labels"] != IGNORE).sum())
    dump, _ = told(csm, num_items_in_batch=frames)
    facts, judged = label_audit.audit(dump, "shifts", MARKS)
    assert facts["loss_scale_error"].value == pytest.approx(BOOKS - 1 - 1, rel=1e-4)
    (row,) = [each for each in judged if each.name == "loss_scale"]
    assert row.verdict == "red"
    assert f"depth_loss is {BOOKS - 1} times the mean over its labels" in row.why


def test_a_lane_for_each_book_sums_to_its_loss_where_nothing_is_masked(csm: Any) -> None:
    """Sums and counts by book, of which the whole is made: their mean over the depth books is CSM's own."""
    dump, out = told(csm)
    scores_NKV, labels_NK = dump["depth_logits"], dump["depth_labels"]
    sums = [cross_entropy(scores_NKV[:, k], labels_NK[:, k], reduction="sum") for k in range(BOOKS - 1)]
    torch.testing.assert_close(sum(sums) / labels_NK.numel(), out.depth_decoder_loss)


def test_a_loss_without_its_scores_is_refused(csm: Any) -> None:
    dump, _ = told(csm)
    del dump["depth_logits"]
    with pytest.raises(label_audit.ConfigError, match="needs depth_logits"):
        label_audit.audit(dump, "shifts", MARKS)
