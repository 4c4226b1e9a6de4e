"""Speakers of a text as the tags of the prompt: the forms that the source's own prompts have, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_higgs
from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import AudioPart, Sample, parse
from muomni.data.source import Source
from muomni.data.speaker_tags import tagged
from muomni.data.utterances import voice_of
from muomni.data.voice_rows import VoiceRows, VoiceTokens, prompt, render
from muomni.errors import ConfigError, DataError
from muomni.evaluate import voice_evaluation
from muomni.infer.voice import Reference, dialogue
from muomni.tokens.bpe import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "voice_speakers.json").read_text())
WORDS = {"belinda": "Twas the night before my birthday.", "chadwick": "I would imagine so."}
INSTRUCTION = "Generate audio following instruction."


def sound(name: str, speaker: str | int | None = None) -> dict[str, Any]:
    return {"type": "audio", "audio_url": f"{name}.wav", **({} if speaker is None else {"speaker": speaker})}


def turns(first: Any, second: Any, text: str) -> dict[str, Any]:
    """The row of two references as earlier turns, whose speakers are called so, and of a target."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": INSTRUCTION}]
    for name, speaker in (("belinda", first), ("chadwick", second)):
        messages.append({"role": "user", "content": WORDS[name]})
        messages.append({"role": "assistant", "content": [sound(name, speaker)]})
    messages += [{"role": "user", "content": text}, {"role": "assistant", "content": [sound("target")]}]
    return {"id": "t", "messages": messages, "start_index": 6, "speakers": [first, second]}


def scene(first: Any, second: Any, text: str) -> dict[str, Any]:
    """The same with the references in the system's turn."""
    system = [
        {"type": "text", "text": f"{INSTRUCTION}\n\n<|scene_desc_start|>\n"},
        sound("belinda", first),
        {"type": "text", "text": "\n"},
        sound("chadwick", second),
        {"type": "text", "text": "\n<|scene_desc_end|>"},
    ]
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": text},
        {"role": "assistant", "content": [sound("target")]},
    ]
    return {"id": "s", "messages": messages, "start_index": 2, "speakers": [first, second]}


def shown(sample: Sample) -> list[list[str]]:
    """Roles and words, sounds by their names."""
    return [
        [
            message.role,
            "".join(f"<{part.path}>" if part.type == "audio" else part.text for part in message.parts),  # type: ignore[union-attr]
        ]
        for message in sample.messages
    ]


TEXTS = {
    "by name": ("anna", "bo", "[anna] {0}\n[bo] {1}"),
    "by number": (3, 12, "[3] {0}\n[12] {1}"),
    "as in a play": ("anna", "bo", "anna: {0}\nbo: {1}"),
    "by the tags themselves": ("anna", "bo", "[SPEAKER0] {0}\n[SPEAKER1] {1}"),
    "names that begin alike": ("an", "anna", "[an] {0}\n[anna] {1}"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("form", ["references as turns", "references in the scene"])
def test_names_and_numbers_become_the_sources_tags(form: str, name: str) -> None:
    first, second, text = TEXTS[name]
    asked = text.format("I can't believe you did that.", "Give me a break [laugh].")
    row = (turns if form == "references as turns" else scene)(first, second, asked)
    sample = tagged(parse(row))
    assert shown(sample) == GOLDEN[form]
    assert shown(tagged(sample)) == GOLDEN[form], "twice changes nothing"


def test_words_and_tags_are_one_text() -> None:
    """Apart, the blank behind a tag would be a token of its own, which the source's prompts never have."""
    row = scene("anna", "bo", "hello")
    first = tagged(parse(row)).messages[0].parts
    assert [part.type for part in first] == ["text", "audio", "text", "audio", "text"]
    row = turns("anna", "bo", "hello")
    for message in row["messages"]:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    assert [len(message.parts) for message in tagged(parse(row)).messages] == [1] * 7


def test_other_rows_stay_as_they_are() -> None:
    row = turns("anna", "bo", "[anna] hello")
    del row["speakers"]
    sample = parse(row)
    assert tagged(sample) is sample
    alone = tagged(parse({**turns("anna", "bo", "[anna] hello [bo]"), "speakers": ["anna"]}))
    assert [text for role, text in shown(alone) if role == "user"] == [
        *WORDS.values(),
        "[SPEAKER0] hello [bo]",
    ]


REFUSED: dict[str, tuple[Any, str, str]] = {
    "a number of nobody": (["a", "b"], "[SPEAKER2] hm", r"\[SPEAKER2\] has no speaker: the row names 2"),
    "no list": ("a, b", "hm", "expected a list of names, got 'a, b'"),
    "no names": ([1.5, True], "hm", "expected a list of names"),
    "one twice": (["a", "a"], "hm", "expected different names"),
    "a sound of another": (["a", "b"], "hm", "a sound is of speaker 'c', the row's speakers are a, b"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_tagged_is_named(name: str) -> None:
    speakers, text, message = REFUSED[name]
    row = turns("a", "c" if name == "a sound of another" else "b", text)
    with pytest.raises(DataError, match=message) as caught:
        tagged(parse({**row, "speakers": speakers}))
    assert caught.value.reason == "bad_row"


@pytest.fixture
def words(tmp_path: Path) -> tuple[Tokenizer, VoiceTokens]:
    tiny_higgs.tokenizer(tmp_path / "words")
    tokenizer = Tokenizer.load(tmp_path / "words")
    return tokenizer, VoiceTokens.of(tokenizer, 32, 33, tiny_higgs.BOOKS)


def codes_of(part: AudioPart) -> torch.Tensor:
    return torch.full((tiny_higgs.BOOKS, 4), len(Path(part.path).stem))


def test_a_manifest_of_several_speakers_is_read_and_rendered(
    tmp_path: Path, words: tuple[Tokenizer, VoiceTokens]
) -> None:
    for name in ("belinda", "chadwick", "target"):
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    row = turns("anna", "bo", "[anna] hello\n[bo] there")
    row["messages"][-1]["content"].insert(0, {"type": "text", "text": "[anna] hello\n[bo] there"})
    (tmp_path / "m.json").write_text(json.dumps([row]))
    quarantine = Quarantine()
    (sample,) = readers.read(Source(path=str(tmp_path / "m.json")), Path(), quarantine)
    assert (sample.group, voice_of(sample), quarantine.total) == ("anna + bo", "anna", 0)
    tokenizer, tokens = words
    rows = VoiceRows([sample], tokenizer, tokens, codes_of, 999)
    text = tokenizer.decode([token for token in rows.row(sample).ids if token < tokens.heard])
    assert "[SPEAKER0] hello\n[SPEAKER1] there" in text
    assert "anna" not in text
    assert voice_evaluation.labels(rows)["taught_right"].value == 1


@pytest.mark.parametrize("is_told", [True, False])
def test_a_dialogue_is_asked_for_as_it_is_taught(words: tuple[Tokenizer, VoiceTokens], is_told: bool) -> None:
    tokenizer, tokens = words
    said = "[anna] hello\n[bo] there"
    heard = [
        Reference(f"{name}.wav", WORDS[name] if is_told else None, speaker)
        for name, speaker in (("belinda", "anna"), ("chadwick", "bo"))
    ]
    asked = prompt(dialogue(said, heard), tokenizer, tokens, codes_of)
    if is_told:
        row = turns("anna", "bo", said)
        row["messages"], row["start_index"] = row["messages"][1:], 5
    else:
        before = [sound("belinda", "anna"), "\n", sound("chadwick", "bo"), "\n"]
        user = {"role": "user", "content": [*before, said]}
        target = {"role": "assistant", "content": [sound("target")]}
        row = {"id": "u", "messages": [user, target], "start_index": 1, "speakers": ["anna", "bo"]}
    taught = render(parse(row), tokenizer, tokens, codes_of)
    assert taught.ids[: len(asked.ids)] == asked.ids
    assert torch.equal(taught.codes_KT[:, : len(asked.ids)], asked.codes_KT)


def test_a_dialogue_names_all_its_speakers() -> None:
    with pytest.raises(ConfigError, match="a name of its own for each of 2 references, got anna"):
        dialogue("hm", [Reference("a.wav", None, "anna"), Reference("b.wav")])
    with pytest.raises(ConfigError, match="got a, a"):
        dialogue("hm", [Reference("a.wav", None, "a"), Reference("b.wav", None, "a")])
    with pytest.raises(ConfigError, match="a transcript for each of 2 references, got 1"):
        dialogue("hm", [Reference("a.wav", "one", "a"), Reference("b.wav", None, "b")])
