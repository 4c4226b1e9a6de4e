"""Higgs Audio v2 behind our protocol: the library's own logits and loss, a strict opening, adapters that fit
plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import shared
import tiny_higgs
from muomni.data.batch import SequenceBatch
from muomni.data.sample import AudioPart, Sample, parse
from muomni.data.voice_rows import VoiceTokens, render
from muomni.errors import CheckpointError, ConfigError
from muomni.models import lora
from muomni.models.higgs import GROUPS, Higgs
from muomni.models.lora import LoraSettings
from muomni.nn.head import IGNORE
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.voice import VoiceObjective, collate, columns

transformers = tiny_higgs.transformers
peft = pytest.importorskip("peft")
as_the_library_takes = shared.benchmark("voice").as_the_library_takes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("higgs") / "base"
    tiny_higgs.saved(folder)
    return folder


def library(base: Path) -> Any:
    made = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(base, use_text_head=True)
    return made.eval()


def sample(name: str, *frames: int) -> Sample:
    """A reference turn for each number of frames but the last, which is the target."""
    messages: list[Any] = [{"role": "system", "content": "read"}]
    for number, length in enumerate(frames):
        messages.append({"role": "user", "content": f"text {number} of {name}"})
        messages.append(
            {"role": "assistant", "content": [{"type": "audio", "path": f"{name}{number}:{length}"}]}
        )
    return parse({"id": name, "messages": messages, "start_index": len(messages) - 1})


def codes_of(part: AudioPart) -> torch.Tensor:
    name, _, frames = part.path.partition(":")
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randint(0, 32, (tiny_higgs.BOOKS, int(frames)), generator=generator)


def batch_of(base: Path) -> SequenceBatch:
    """Rows of unequal length: two references, one, none."""
    tokenizer = Tokenizer.load(base)
    tokens = VoiceTokens.of(tokenizer, 32, 33, tiny_higgs.BOOKS)
    rows = [
        render(each, tokenizer, tokens, codes_of)
        for each in (sample("a", 5, 3, 7), sample("b", 4, 12), sample("c", 6))
    ]
    return collate(rows, tokens.pad)


def test_logits_are_those_of_the_library(base: Path) -> None:
    model, batch = Higgs.open(base), batch_of(base)
    theirs = library(base)
    given = as_the_library_takes(batch, model)
    with torch.no_grad():
        out = theirs(**{key: value for key, value in given.items() if "labels" not in key})
        states = model.hidden(model.embed(columns(batch)), is_audio_BT=model.is_audio(batch.ids_BT))
        text = theirs.text_lm_head(theirs.model(**{k: v for k, v in given.items() if "labels" not in k})[0])
    keep_BT = batch.keep_BT
    assert keep_BT is not None
    torch.testing.assert_close(model.head.logits(states)[keep_BT], text[keep_BT])
    for book in range(model.books):
        wanted = out.logits[..., book * 34 : (book + 1) * 34]
        torch.testing.assert_close(model.head.logits(states, book + 1)[keep_BT], wanted[keep_BT])


def test_the_loss_is_the_librarys_with_our_labels_and_one_written_plainly(base: Path) -> None:
    model, batch = Higgs.open(base), batch_of(base)
    objective = VoiceObjective(model, text_weight=1.0, audio_weight=model.books)
    with torch.no_grad():
        terms = objective(batch)
        theirs = library(base)(**as_the_library_takes(batch, model)).loss
    ours = sum(term.weight * term.total / term.count for term in terms.values())
    torch.testing.assert_close(ours, theirs)
    assert {name: term.count for name, term in terms.items()} == objective.counts(batch)

    with torch.no_grad():  # plainly: one row after another, one position after another
        total, count = torch.zeros(()), 0
        assert batch.codes_BKS is not None
        assert batch.code_labels_BKS is not None
        for row in range(len(batch.ids_BT)):
            one = columns(batch)[row : row + 1]
            states = model.hidden(model.embed(one), is_audio_BT=model.is_audio(one[:, 0]))[0]
            for t in range(1, one.shape[2]):
                label = int(batch.code_labels_BKS[row, 3, t])
                if label != IGNORE:
                    total += F.cross_entropy(model.head.logits(states[t - 1], 4), torch.tensor(label))
                    count += 1
    assert count == terms["book3"].count == (7 + 1) + (12 + 1) + (6 + 1)
    torch.testing.assert_close(terms["book3"].total, total)


def test_step_by_step_is_the_whole_at_once(base: Path) -> None:
    model, batch = Higgs.open(base), batch_of(base)
    whole = columns(batch)[1:2, :, : int(batch.keep_BT[1].sum()) - 2]  # type: ignore[index]
    ends = whole.shape[2] - 6  # the last places are codes
    with torch.no_grad():
        states = model.hidden(model.embed(whole), is_audio_BT=model.is_audio(whole[:, 0]))
        cache = model.beside(whole[..., :ends])
        parts = [model.hidden(model.embed(whole[..., :ends]), cache=cache)]
        parts += [
            model.hidden(model.embed(whole[..., t : t + 1]), cache=cache) for t in range(ends, ends + 6)
        ]
    assert cache.length == whole.shape[2]
    torch.testing.assert_close(torch.cat(parts, 1), states, rtol=1e-4, atol=1e-4)


def test_left_padding_changes_nothing(base: Path) -> None:
    model, batch = Higgs.open(base), batch_of(base)
    length = int(batch.keep_BT[2].sum())  # type: ignore[index]
    alone = columns(batch)[2:3, :, :length]
    padded = F.pad(alone, (3, 0), value=0)
    keep_BT = torch.arange(length + 3)[None] >= 3
    with torch.no_grad():
        wanted = model.hidden(model.embed(alone), cache=model.beside(alone))
        got = model.hidden(model.embed(padded), keep_BT=keep_BT, cache=model.beside(padded))
    torch.testing.assert_close(got[:, 3:], wanted, rtol=1e-4, atol=1e-4)


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    tiny_higgs.saved(tmp_path / "headless", use_text_head=False)
    with pytest.raises(CheckpointError, match=r"missing text_lm_head\.weight"):
        Higgs.open(tmp_path / "headless")
    tiny_higgs.saved(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "audio_extra.conv1.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no place for audio_extra\.conv1\.weight"):
        Higgs.open(tmp_path / "whole")
    tensors.pop("model.layers.1.audio_mlp.up_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.1\.audio_mlp\.up_proj\.weight"):
        Higgs.open(tmp_path / "whole")


def test_books_without_rows_for_the_ends_of_a_stream_are_refused(tmp_path: Path) -> None:
    tiny_higgs.saved(tmp_path, codebook_size=32)
    with pytest.raises(CheckpointError, match="have no rows of their own in books of 32"):
        Higgs.open(tmp_path)


def test_the_real_size_has_280_places_for_adapters_and_39_452_672_parameters() -> None:
    with torch.device("meta"):
        config = transformers.HiggsAudioV2Config(codebook_size=1026)
        model = Higgs(transformers.HiggsAudioV2ForConditionalGeneration(config, use_text_head=True))
    assert {group: len(layers) for group, layers in model.groups().items()} == {
        "attn": 28 * 4,
        "text_ffn": 28 * 3,
        "audio_ffn": 28 * 3,
    }
    targets = model.targets(list(GROUPS))
    assert len(targets) == 280
    with torch.device("meta"):
        lora.attach(model, LoraSettings(r=16, alpha=32, targets=targets))
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in learning.values()) == 39_452_672
    assert len(learning) == 2 * 280
    assert not any("lm_head" in name for name in learning)


def test_groups_are_chosen_and_an_empty_one_is_refused(base: Path) -> None:
    model = Higgs.open(base)
    lora.attach(model, LoraSettings(r=2, targets=model.targets(["audio_ffn"])))
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == 2 * 2 * 3
    assert all(".audio_mlp." in name for name in learning)
    other = Higgs.open(base)
    for layer in other.network.model.layers:
        layer.audio_mlp = torch.nn.Identity()
    with pytest.raises(ConfigError, match="lora group 'audio_ffn' has no layers"):
        other.targets(["attn", "audio_ffn"])


def test_the_adapter_opens_by_plain_peft_and_merges(base: Path, tmp_path: Path) -> None:
    model, batch = Higgs.open(base), batch_of(base)
    given = as_the_library_takes(batch, model)
    lora.attach(model, LoraSettings(r=4, alpha=8, targets=model.targets(list(GROUPS))))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
        objective = VoiceObjective(model, audio_weight=model.books)
        ours = sum(t.weight * t.total / t.count for t in objective.eval()(batch).values())
    lora.save(model, tmp_path / "adapter", str(base))
    plain = peft.PeftModel.from_pretrained(library(base), tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = plain(**given)
        untuned = library(base)(**given)
        assert abs(float(theirs.loss - untuned.loss)) > 1e-2
        torch.testing.assert_close(ours, theirs.loss)
        for name, tensor in peft.get_peft_model_state_dict(plain).items():
            assert torch.equal(tensor, load_file(tmp_path / "adapter" / "adapter_model.safetensors")[name])

        again = lora.load(Higgs.open(base), tmp_path / "adapter").eval()
        states = [
            each.hidden(each.embed(columns(batch)), is_audio_BT=model.is_audio(batch.ids_BT))
            for each in (model.eval(), again)
        ]
        assert torch.equal(*states)
        merged = library(base)
        merged.load_state_dict(lora.merged_tensors(model))
        torch.testing.assert_close(merged(**given).logits, theirs.logits, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)
