"""The walk-through tells the shapes that SPEC M-I names, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from muomni import files
from muomni.data.conversation import MediaSpec
from muomni.infer.answer import Answer
from muomni.infer.engine import Engine
from muomni.infer.trace import Hop, trace
from muomni.media.mel import MelSpec
from muomni.models import store
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.codec import Codec, CodecConfig
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.omni import Projectors, ProjectorsConfig
from muomni.models.talker import Talker, TalkerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.tokens.bpe import Tokenizer

PICTURE = np.zeros((300, 200, 3), np.uint8)
SECOND = np.sin(np.arange(16000) / 9).astype(np.float32)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """All networks at the sizes of SPEC section 1, untrained."""
    run = tmp_path_factory.mktemp("full")
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the red circle"] * 4, 280)
    omni, talker = run / "omni" / "final", run / "talker" / "final"
    for folder in (omni / "thinker", talker / "thinker"):
        store.save(Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size)), folder)
        tokenizer.save(folder)
    store.save(AudioEncoder(AudioEncoderConfig(mel=MelSpec())), omni / "hearing")
    store.save(VisionEncoder(VisionEncoderConfig()), omni / "vision")
    store.save(Projectors(ProjectorsConfig()), omni / "projectors")
    speaker = Talker(TalkerConfig(text_vocab=tokenizer.vocab_size, condition_width=256))
    speaker.pace.durations_V.fill_(0.1)  # untrained, it never ends by itself: let its guard come soon
    store.save(speaker, talker, extra={"layer": 2})
    tokenizer.save(talker)
    store.save(Codec(CodecConfig()), talker / "codec")
    media = {**vars(MediaSpec(mel=MelSpec(), pad_s=0.0)), "mel": MelSpec().model_dump()}
    files.write_json(omni / "omni.json", {"media": media, "prompts": {}})
    return Engine.load(run)


def shapes(hops: list[Hop]) -> dict[str, tuple[int, ...]]:
    return {hop.name: hop.shape for hop in hops}


def test_text(full: Engine) -> None:
    text = full.tokenizer.decode(full.tokenizer.encode("the red")[:2])
    assert len(full.tokenizer.encode(text)) == 2  # with start, user, end and assistant: six ids
    hops = trace(full, text=text)
    found = shapes(hops)
    grown = {name: shape for name, shape in found.items() if name.startswith("sequence, token ")}
    answer = found["answer"][0]
    assert list(found.items()) == [
        ("ids", (1, 6)),
        ("embeddings", (1, 6, 256)),
        ("heads", (1, 4, 6, 64)),
        ("attention", (1, 4, 6, 6)),
        *((f"block {number}", (1, 6, 256)) for number in (1, 2, 3, 4)),
        ("hidden", (1, 6, 256)),
        ("logits", (1, 6, full.tokenizer.vocab_size)),
        ("cache", (4, 1, 4, 6, 64)),
        *grown.items(),
        ("answer", (answer,)),
    ]
    assert grown == {
        f"sequence, token {n}": (1, 6 + n) for n in (1, 2, 3, answer) if n <= answer
    }  # 6 -> 7 -> ... -> at most 70
    said = full.answer(text, max_new=64)
    assert answer == len(said.token_ids)
    assert hops[-1].meaning.startswith(f"decoded: {full.tokenizer.decode(said.token_ids)!r}")


def test_a_picture(full: Engine) -> None:
    found = [(hop.name, hop.shape) for hop in trace(full, image=PICTURE)]
    start = found.index(("pixels", (1, 3, 224, 224)))
    assert found[start : start + 6] == [
        ("pixels", (1, 3, 224, 224)),
        ("patches", (1, 128, 14, 14)),
        ("summary and patches", (1, 197, 128)),
        ("seen", (1, 197, 128)),
        ("summary", (1, 1, 128)),
        ("picture tokens", (1, 1, 256)),
    ]


def test_a_sound(full: Engine) -> None:
    found = [(hop.name, hop.shape) for hop in trace(full, audio=SECOND)]
    start = found.index(("sound", (1, 16000)))
    assert found[start : start + 7] == [
        ("sound", (1, 16000)),
        ("log-mel", (1, 100, 128)),
        ("convolution 1", (1, 64, 50, 64)),
        ("convolution 2", (1, 64, 25, 32)),
        ("states", (1, 25, 192)),
        ("heard", (1, 25, 192)),
        ("sound tokens", (1, 25, 256)),
    ]


def test_all_together(full: Engine) -> None:
    hops = trace(full, text="the red", image=PICTURE, audio=SECOND)
    words = len(full.tokenizer.encode("the red")) + 4 + 2 + 2  # and the marks of turns, picture and sound
    fused = next(hop for hop in hops if hop.name == "fused")
    assert fused.shape == (1, 1 + 25 + words, 256)
    assert fused.meaning == f"1 of the picture + 25 of the sound + {words} of words and marks"
    names = [hop.name for hop in hops]
    assert (
        names.index("picture tokens")
        < names.index("sound tokens")
        < names.index("fused")
        < names.index("block 1")
    )


def test_speech(full: Engine) -> None:
    hops = trace(full, text="the", speak=True)
    found = shapes(hops)
    books, frames = found["codes"][1:]
    assert books == 2
    assert found["log-mel"] == (1, 8 * frames, 80)
    assert found["samples"] == (1, 8 * frames * 160)
    assert found["Thinker's states"] == (*found["text ids"], 256)
    names = [hop.name for hop in hops]
    assert names[-3:] == ["codes", "log-mel", "samples"]
    assert found["text and start"] == (1, found["text ids"][1] + 1, 192)
    assert found["previous codes"] == (1, 1, 2)
    assert (found["head 1"], found["head 2"]) == ((1, 129), (1, 128))
    assert found["frame 1"] == (1, 2)
    assert sorted(name for name in names if name.startswith("frame ")) == [
        f"frame {n}" for n in (1, 2, 3, frames) if n <= frames
    ]


def test_the_silence_around_a_sound_is_told(run: Path) -> None:
    hops = trace(Engine.load(run / "hearing"), audio=SECOND)
    found = shapes(hops)
    assert (found["sound"], found["with silence"], found["log-mel"], found["states"]) == (
        (1, 16000),
        (1, 19200),
        (1, 120, 128),
        (1, 30, 32),
    )
    told = next(hop.meaning for hop in hops if hop.name == "with silence")
    assert "0.1 s of silence on either side (pad_s)" in told
    assert told.endswith("give 30")


def test_an_answer_without_words_is_traced_as_a_greeting(
    full: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "answer", lambda *_, **__: Answer("... !", [], "end"))
    said = [
        hop.meaning for hop in trace(full, text="the", image=PICTURE, speak=True) if hop.name == "text ids"
    ]
    assert said == ["what is said: 'hello'"]


def test_no_hook_is_left_behind(full: Engine) -> None:
    before = full.answer("the red", images=[PICTURE], max_new=4)
    trace(full, text="the red", image=PICTURE, audio=SECOND, speak=True)
    parts: list[nn.Module] = [full.parts.omni, full.parts.voice.talker]  # type: ignore[list-item]
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules()
    )
    assert full.answer("the red", images=[PICTURE], max_new=4) == before


def test_lone_encoders_have_a_walk_of_their_own(run: Path) -> None:
    assert shapes(trace(Engine.load(run / "hearing"), audio=SECOND))["symbols"] == (1, 30, 99)
    assert shapes(trace(Engine.load(run / "vision"), image=PICTURE))["picture embedding"] == (1, 8)
