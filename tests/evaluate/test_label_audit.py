"""The audit of labels: ours are green, and those of other trainers show what they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny_higgs
from muomni import cli
from muomni.data.sample import AudioPart, parse
from muomni.data.voice_rows import VoiceTokens, render
from muomni.errors import ConfigError, DataError
from muomni.evaluate import label_audit
from muomni.evaluate.label_audit import Marks
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE

BOOKS = tiny_higgs.BOOKS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_higgs.tokenizer(folder)
    return Tokenizer.load(folder)


def codes_of(part: AudioPart) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(part.path))
    return torch.randint(0, 32, (BOOKS, int(part.path)), generator=generator)


def dump(tokenizer: Tokenizer) -> tuple[dict[str, torch.Tensor], Marks]:
    """Two rows of ours in the library's shape: a reference turn that is only heard, and a target."""
    tokens = VoiceTokens.of(tokenizer, 32, 33, BOOKS)
    rows = []
    for heard, said in ((3, 9), (5, 4)):
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": [{"type": "audio", "path": str(heard)}]},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": [{"type": "audio", "path": str(said)}]},
        ]
        sample = parse({"id": str(said), "messages": turns, "start_index": 3})
        rows.append(render(sample, tokenizer, tokens, codes_of))
    longest = max(len(row.ids) for row in rows)
    steps = [torch.tensor([each in (tokens.code, tokens.last) for each in row.ids]) for row in rows]
    most = max(int(each.sum()) for each in steps)
    tensors = {
        "input_ids": torch.full((2, longest), tokens.pad),
        "labels": torch.full((2, longest), IGNORE),
        "attention_mask": torch.zeros(2, longest, dtype=torch.bool),
        "audio_input_ids": torch.full((2, most, BOOKS), 33),
        "audio_labels": torch.full((2, most, BOOKS), IGNORE),
        "audio_input_ids_mask": torch.zeros(2, most, dtype=torch.bool),
    }
    for number, (row, is_step) in enumerate(zip(rows, steps, strict=True)):
        length, count = len(row.ids), int(is_step.sum())
        tensors["input_ids"][number, :length] = torch.tensor(row.ids)
        tensors["labels"][number, :length] = torch.tensor(row.labels)
        tensors["attention_mask"][number, :length] = True
        tensors["audio_input_ids"][number, :count] = row.codes_KT[:, is_step].T
        tensors["audio_labels"][number, :count] = row.code_labels_KT[:, is_step].T
        tensors["audio_input_ids_mask"][number, :count] = True
    header = tokenizer.special_tokens.headers["assistant"]
    marks = Marks((tokens.end,), 33, header, is_last=True, placeholders=(tokens.code, tokens.last))
    return tensors, marks


def as_the_librarys_processor(
    tensors: dict[str, torch.Tensor], tokenizer: Tokenizer
) -> dict[str, torch.Tensor]:
    """What `output_labels=True` makes of the same batch. Source: HiggsAudioV2Processor.__call__."""
    tokens = VoiceTokens.of(tokenizer, 32, 33, BOOKS)
    labels, audio = tensors["input_ids"].clone(), tensors["audio_input_ids"].clone()
    for token in (tokens.code, tokens.pad, tokens.said):
        labels[labels == token] = IGNORE
    audio[(audio == 32) | (audio == 33)] = IGNORE
    return {**tensors, "labels": labels, "audio_labels": audio}


def verdicts(tensors: dict[str, torch.Tensor], loss: Any, marks: Marks) -> dict[str, str]:
    return {row.name: row.verdict for row in label_audit.audit(tensors, loss, marks)[1]}


def test_our_labels_are_green_in_all_that_is_looked_at(tokenizer: Tokenizer) -> None:
    tensors, marks = dump(tokenizer)
    assert verdicts(tensors, "shifts", marks) == dict.fromkeys(
        ("label_coverage", "next_symbol", "text_ends", "audio_ends", "text_prompts", "audio_prompts"), "green"
    )


def test_the_librarys_labels_teach_no_end_and_supervise_prompts_and_references(tokenizer: Tokenizer) -> None:
    tensors, marks = dump(tokenizer)
    theirs = as_the_librarys_processor(tensors, tokenizer)
    facts, _ = label_audit.audit(theirs, "shifts", marks)
    assert facts["audio_ends_taught"].value == 0
    assert facts["audio_ends_taught"].n == 2 * BOOKS
    assert facts["text_prompt_taught"].value > 0.5
    # By hand: of 12 and 9 frames of each book, 3 and 5 are the references'.
    assert facts["audio_prompt_taught"].value > 0.2
    found = verdicts(theirs, "shifts", marks)
    assert {name for name, verdict in found.items() if verdict == "red"} == {
        "audio_ends",
        "text_prompts",
        "audio_prompts",
    }


def test_labels_that_are_the_inputs_teach_a_copy_where_nobody_shifts() -> None:
    """Moshi's `labels` are compared with scores of their own place."""
    ids = torch.randint(0, 50, (3, 20, 4), generator=torch.Generator().manual_seed(0))
    facts, judged = label_audit.audit({"input_ids": ids, "labels": ids.clone()}, "plain", Marks())
    assert facts["misplaced"].value > 0.9
    (row,) = [each for each in judged if each.name == "next_symbol"]
    assert row.verdict == "red"
    assert "a copy task" in row.why
    assert verdicts({"input_ids": ids, "labels": ids.clone()}, "shifts", Marks())["next_symbol"] == "green"
    shifted = torch.full_like(ids, IGNORE)
    shifted[:, :-1] = ids[:, 1:]
    assert verdicts({"input_ids": ids, "labels": shifted}, "plain", Marks())["next_symbol"] == "green"


def test_labels_that_are_shifted_already_are_shifted_twice() -> None:
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORE)
    labels[:, :-1] = ids[:, 1:]
    facts, _ = label_audit.audit({"input_ids": ids, "labels": labels}, "shifts", Marks())
    assert "shifts again" in facts["misplaced"].note


def test_a_first_turn_that_is_taught_though_it_was_masked_is_seen() -> None:
    """CSM puts codes over the -100 of a masked first turn: what its loss is given is dumped, not what it was
    handed."""
    answer, end = (7, 8), 9
    text = [1, 2, 7, 8, 20, 20, 9, 3, 7, 8, 20, 20, 20, 9]
    ids = torch.tensor([text])[..., None].repeat(1, 1, 3)
    handed = torch.full_like(ids, IGNORE)
    handed[:, 10:] = ids[:, 10:]
    given = handed.clone()
    given[:, 4:6] = ids[:, 4:6]
    marks = Marks((end,), None, answer, is_last=True)
    assert verdicts({"input_ids": ids, "labels": handed}, "shifts", marks)["text_prompts"] == "green"
    facts, _ = label_audit.audit({"input_ids": ids, "labels": given}, "shifts", marks)
    assert facts["text_prompt_taught"].value == pytest.approx(2 / 6)


def test_rows_without_a_label_and_ends_that_are_not_there_are_red() -> None:
    ids = torch.arange(12).reshape(2, 6)
    labels = ids.clone()
    labels[1] = IGNORE
    facts, judged = label_audit.audit({"input_ids": ids, "labels": labels}, "shifts", Marks(ends=(99,)))
    assert facts["label_coverage"].value == 0.5
    assert {row.name: row.verdict for row in judged} == {
        "label_coverage": "red",
        "next_symbol": "green",
        "text_ends": "red",
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: {}, DataError, "expected input_ids and labels, got nothing"),
        (lambda t: {**t, "labels": t["labels"][:, :-1].contiguous()}, DataError, "of one shape"),
    ],
)
def test_what_is_no_dump_says_so(
    tokenizer: Tokenizer, tmp_path: Path, change: Any, error: Any, message: str
) -> None:
    save_file(change(dump(tokenizer)[0]), tmp_path / "dump.safetensors")
    with pytest.raises(error, match=message):
        label_audit.read(tmp_path / "dump.safetensors")


def test_marks_that_the_dump_can_not_answer_are_refused(tokenizer: Tokenizer) -> None:
    tensors, marks = dump(tokenizer)
    with pytest.raises(ConfigError, match="--placeholder"):
        label_audit.audit(tensors, "shifts", Marks(marks.ends, 33, marks.answer))
    with pytest.raises(ConfigError, match="needs --end"):
        label_audit.audit(tensors, "shifts", Marks(answer=marks.answer))
    with pytest.raises(ConfigError, match="placeholders for"):
        label_audit.audit(tensors, "shifts", Marks(marks.ends, 33, marks.answer, placeholders=(1,)))


def test_the_command_judges_and_says_what_it_does_not_look_at(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, marks = dump(tokenizer)
    save_file(tensors, tmp_path / "ours.safetensors")
    save_file(as_the_librarys_processor(tensors, tokenizer), tmp_path / "theirs.safetensors")
    flags = [
        "--end",
        str(marks.ends[0]),
        "--audio-end",
        "33",
        "--answer",
        " ".join(map(str, marks.answer)),
        "--last",
    ]
    for place in marks.placeholders:
        flags += ["--placeholder", str(place)]
    assert cli._exit_code(["audit", str(tmp_path / "ours.safetensors"), *flags, "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["verdict"] == "green"
    assert "note:" not in out.err
    assert cli._exit_code(["audit", str(tmp_path / "theirs.safetensors"), *flags, "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["verdict"] == "red"
    assert made["facts"]["audio_ends_taught"]["value"] == 0
    assert cli._exit_code(["audit", str(tmp_path / "ours.safetensors")]) == 0
    err = capsys.readouterr().err
    assert all(option in err for option in ("--end", "--audio-end", "--answer"))
    assert cli._exit_code(["audit", str(tmp_path / "ours.safetensors"), "--loss", "both"]) == 2
