"""One request followed through the networks: what each hop gives, taken from the forward pass itself by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from muomni.infer import prompt
from muomni.infer.engine import Engine
from muomni.infer.prompt import Picture, Request, Sound
from muomni.media.text import spoken
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.connector import Perceiver
from muomni.models.decoder import Decoder
from muomni.models.eyes import Eyes
from muomni.models.omni import Projectors, gather
from muomni.models.siglip import SiglipTower
from muomni.models.vision_encoder import VisionEncoder

GREETING = "hello"  # what is traced where nothing is asked
SAID_TOKENS = 24  # of an answer that is spoken in a trace


@dataclass(frozen=True)
class Hop:
    """One station: its name, the shape of what leaves it, and what that means."""

    name: str
    shape: tuple[int, ...]
    meaning: str


@dataclass
class _Watch:
    """Hops in the order in which the forward pass reaches them."""

    hops: list[Hop] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def add(self, name: str, shape: tuple[int, ...] | torch.Size, meaning: str) -> None:
        self.hops.append(Hop(name, tuple(shape), meaning))

    def into(self, module: nn.Module, name: str, meaning: str, view: Callable[[Any], Tensor] = lambda x: x) -> None:
        """Tell what `module` takes."""
        self.handles.append(module.register_forward_pre_hook(lambda _, given: self.add(name, view(given[0]).shape, meaning)))

    def out_of(self, module: nn.Module, name: str, meaning: str, view: Callable[[Any], Tensor] = lambda x: x) -> None:
        """Tell what `module` gives."""
        self.handles.append(module.register_forward_hook(lambda _, __, made: self.add(name, view(made).shape, meaning)))

    def fixed(self, module: nn.Module, name: str, shape: tuple[int, ...], meaning: str) -> None:
        """Tell what was known before, when `module` is reached."""
        self.handles.append(module.register_forward_pre_hook(lambda *_: self.add(name, shape, meaning)))


@contextmanager
def _watching() -> Iterator[_Watch]:
    watch = _Watch()
    try:
        yield watch
    finally:
        for handle in watch.handles:
            handle.remove()


@torch.no_grad()
def trace(
    engine: Engine, *, text: str | None = None, image: Picture | None = None, audio: Sound | None = None, speak: bool = False
) -> list[Hop]:
    """The hops of one request: words, a picture, a sound, or all; a lone encoder is walked through where there is no Thinker.

    Takes   speak: also say the words (the answer's, where a picture or sound is asked about) aloud.
    Raises  what `Engine.answer` and `Engine.speak` raise.
    """
    if text is None and image is None and audio is None:
        text = GREETING
    images, audios = [] if image is None else [image], [] if audio is None else [audio]
    hops: list[Hop] = []
    reads = bool({"omni", "thinker"} & engine.parts.stages.keys())
    if "omni" in engine.parts.stages or (reads and not images and not audios):
        hops += _answer(engine, Request(text, images, audios))
    else:
        hops += _see(engine, image) if image is not None else []
        hops += _hear(engine, audio) if audio is not None else []
    if speak:
        said = engine.answer(text, images=images, audios=audios, max_new=SAID_TOKENS).text if images or audios else text
        hops += _speak(engine, said if said and spoken(said) else GREETING)
    return hops


def _answer(engine: Engine, request: Request) -> list[Hop]:
    """Everything that stands before the Thinker, and the Thinker itself up to the next token."""
    ready = engine.prepare(request)
    omni, thinker = engine.parts.omni, engine.parts.thinker
    ids_BT = torch.tensor([ready.ids], device=engine.device)
    with _watching() as watch:
        watch.add("ids", ids_BT.shape, "the conversation as token ids, with pads where media go")
        watch.out_of(thinker.model.embed_tokens, "embeddings", "one vector a token")
        counts: dict[str, int] = {}
        if omni is not None and request.images and omni.vision is not None:
            _watch_eyes(watch, omni.vision, omni.projectors)
            counts["of the picture"] = omni.image_tokens
        if omni is not None and request.audios and omni.audio is not None:
            _watch_sound(watch, engine, omni.audio, request.audios[0])
            _watch_ears(watch, omni.audio, omni.projectors)
            counts["of the sound"] = omni.audio_tokens(len(ready.mels[0]))
        if counts:
            counts["of words and marks"] = len(ready.ids) - sum(counts.values())
            watch.into(thinker.model.layers[0], "fused", " + ".join(f"{count} {owner}" for owner, count in counts.items()))
        _watch_thinker(watch, thinker)
        media = gather(ready.pictures, ready.mels).to(engine.device)
        x_BTD = thinker.embed(ids_BT) if omni is None else omni.embed(ids_BT, media)
        logits_BTV = thinker.logits(thinker.hidden(x_BTD))
        likeliest = engine.tokenizer.token(int(logits_BTV[0, -1].argmax()))
        watch.add("logits", logits_BTV.shape, f"a score for every token of the vocabulary; the answer would begin with {likeliest!r}")
    return watch.hops


def _see(engine: Engine, image: Picture) -> list[Hop]:
    eyes = engine.parts.vision[0]
    with _watching() as watch:
        _watch_eyes(watch, eyes, None)
        embedding = engine.embed(images=[image])
        watch.add("picture embedding", embedding.shape, "a unit vector, to be compared with those of texts")
    return watch.hops


def _hear(engine: Engine, audio: Sound) -> list[Hop]:
    ears = engine.parts.hearing
    with _watching() as watch:
        _watch_sound(watch, engine, ears, audio)
        _watch_ears(watch, ears, None)
        watch.out_of(ears.head, "symbols", "a score for every character and the blank, at every state")
        text = engine.transcribe([audio])[0]
        watch.add("text", (len(text),), f"what was heard: {text!r}")
    return watch.hops


def _speak(engine: Engine, text: str) -> list[Hop]:
    voice = engine.parts.voice
    talker, spec = voice.talker, voice.codec.config.mel
    with _watching() as watch:
        watch.into(talker.text_table, "text ids", f"what is said: {text!r}")
        if talker.condition is not None:
            watch.into(talker.condition, "Thinker's states", "how the Thinker's middle layer understands these tokens")
        watch.out_of(
            talker.text_table,
            "text embeddings",
            "one vector a token; the states are added to them" if talker.condition else "one vector a token",
        )
        said = voice.speak([text])[0]
    codes = said.codes_KF
    frames = codes.shape[1] * voice.codec.config.stride_frames
    ended = "its own end symbol" if said.is_ended else "the guard"
    watch.add("codes", (1, *codes.shape), f"codebooks x frames, {voice.codec.rate_hz:g} a second; the length was decided by {ended}")
    watch.add("log-mel", (1, frames, spec.num_mels), f"by the codec's decoder: {spec.frame_rate_hz:g} frames a second")
    watch.add("samples", (1, len(said.wave_S)), f"by Griffin-Lim: {len(said.wave_S) / spec.rate_hz:.2f} s at {spec.rate_hz} Hz")
    return watch.hops


def _watch_eyes(watch: _Watch, eyes: Eyes, projectors: Projectors | None) -> None:
    size, patch = eyes.image_size, eyes.image_size // eyes.side
    if isinstance(eyes, VisionEncoder):
        watch.into(eyes.stem, "pixels", "a picture, red, green and blue")
        watch.out_of(eyes.stem, "patches", f"one vector for each {patch} x {patch} pixels")
        watch.into(eyes.blocks[0], "summary and patches", "the learned summary (CLS) before them, positions added")
        watch.out_of(eyes.norm, "seen", f"after {eyes.depth} blocks")
    elif isinstance(eyes, SiglipTower):
        watch.fixed(eyes.network, "pixels", (1, 3, size, size), "a picture, red, green and blue")
        meaning = f"one state for each {patch} x {patch} pixels, after {eyes.depth} blocks"
        watch.out_of(eyes.network, "seen", meaning, lambda made: made.last_hidden_state)
    if projectors is None:
        return
    if isinstance(projectors.vision, Perceiver):
        watch.out_of(projectors.vision.resampler, "resampled", f"{projectors.vision.config.tokens} learned questions to all patches")
    else:
        watch.into(projectors.vision, "summary", "CLS" if projectors.config.grid == 0 else "CLS and pooled patches")
    watch.out_of(projectors.vision, "picture tokens", "in the Thinker's width")


def _watch_sound(watch: _Watch, engine: Engine, ears: AudioEncoder, audio: Sound) -> None:
    spec = ears.config.mel
    wave = prompt.read_sound(audio, spec.rate_hz)
    watch.fixed(ears.convs[0], "sound", (1, len(wave)), f"samples at {spec.rate_hz} Hz, {len(wave) / spec.rate_hz:.2f} s")


def _watch_ears(watch: _Watch, ears: AudioEncoder, projectors: Projectors | None) -> None:
    spec = ears.config.mel
    watch.into(ears.convs[0], "log-mel", f"{spec.frame_rate_hz:g} frames a second, {spec.num_mels} bands", lambda x: x[:, 0])
    for number, conv in enumerate(ears.convs, start=1):
        watch.out_of(conv, f"convolution {number}", "half the frames, half the bands")
    watch.out_of(ears.proj, "states", f"{spec.frame_rate_hz / ears.config.downsample:g} a second")
    watch.out_of(ears.norm, "heard", f"after {len(ears.blocks)} blocks")
    if projectors is not None and projectors.audio is not None:
        watch.out_of(projectors.audio, "sound tokens", "in the Thinker's width")


def _watch_thinker(watch: _Watch, thinker: Decoder) -> None:
    heads = thinker.config.heads
    for number, block in enumerate(thinker.model.layers, start=1):
        if number == 1:
            watch.out_of(block.self_attn.q_norm, "heads", f"queries of {heads} heads", lambda x: x.transpose(1, 2))  # type: ignore[union-attr, arg-type]
        watch.out_of(block, f"block {number}", "attention, then feed-forward, both added")
    watch.out_of(thinker.model.norm, "hidden", "what logits are read from")
