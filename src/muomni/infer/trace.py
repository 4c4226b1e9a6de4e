"""One request followed through the networks: what each hop gives, taken from the forward pass itself by
hooks."""

from __future__ import annotations

import torch
from torch import Tensor

from muomni.infer import generate, hops, prompt
from muomni.infer.engine import Engine
from muomni.infer.hops import Hop, Watch
from muomni.infer.prompt import Picture, Request, Sound
from muomni.media.text import spoken
from muomni.models.audio_encoder import AudioEncoder

GREETING = "hello"  # what is traced where nothing is asked
SAID_TOKENS = 24  # of an answer that is spoken in a trace
GROWN_TOKENS = 64  # of an answer that is written in a trace, at most
SHOWN = 3  # first steps of a growing sequence that are told; then the last one


@torch.no_grad()
def trace(
    engine: Engine,
    *,
    text: str | None = None,
    image: Picture | None = None,
    audio: Sound | None = None,
    speak: bool = False,
) -> list[Hop]:
    """The hops of one request: words, a picture, a sound, or all; a lone encoder is walked through where
    there is no Thinker.

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
        hops += _trace_image(engine, image) if image is not None else []
        hops += _trace_audio(engine, audio) if audio is not None else []
    if speak:
        answer_text = (
            engine.answer(text, images=images, audios=audios, max_new=SAID_TOKENS).text
            if images or audios
            else text
        )
        hops += _speak(engine, answer_text if answer_text and spoken(answer_text) else GREETING)
    return hops


def _answer(engine: Engine, request: Request) -> list[Hop]:
    """Everything that stands before the Thinker, the Thinker itself up to the next token, and the answer as
    it grows."""
    ready = engine.prepare(request)
    omni, thinker = engine.parts.omni, engine.parts.thinker
    ids_BT = torch.tensor([ready.ids], device=engine.device)
    with hops.watching() as watch:
        watch.add("ids", ids_BT.shape, "the conversation as token ids, with pads where media go")
        watch.out_of(thinker.table, "embeddings", "one vector a token")
        counts: dict[str, int] = {}
        if omni is not None and request.images and omni.vision is not None:
            hops.watch_vision_tower(watch, omni.vision, omni.projectors)
            counts["of the picture"] = omni.projectors.config.image_tokens
        if omni is not None and request.audios and omni.audio is not None:
            spec = engine.parts.media[0]
            assert spec is not None
            _watch_sound(watch, omni.audio, prompt.heard(request.audios[0], spec), spec.pad_s)
            hops.watch_audio_encoder(watch, omni.audio, omni.projectors)
            counts["of the sound"] = spec.audio_tokens(len(ready.media["audio"][0]))
        if counts:
            counts["of words and marks"] = len(ready.ids) - sum(counts.values())
            watch.into(
                thinker.body, "fused", " + ".join(f"{count} {owner}" for owner, count in counts.items())
            )
        hops.watch_thinker(watch, thinker)
        x_BTD, _ = engine.read([ready])
        x_BTD = thinker.embed(x_BTD) if x_BTD.dim() == 2 else x_BTD
        logits_BTV = thinker.logits(thinker.hidden(x_BTD))
        likeliest = engine.tokenizer.token(int(logits_BTV[0, -1, : engine.tokenizer.vocab_size].argmax()))
        watch.add(
            "logits",
            logits_BTV.shape,
            f"a score for every token of the vocabulary; the answer would begin with {likeliest!r}",
        )
    _grow(watch, engine, x_BTD)
    return watch.hops


def _grow(watch: Watch, engine: Engine, x_BTD: Tensor) -> None:
    """The answer token by token: what stood before is read from the cache, one position is computed."""
    thinker, tokenizer, length = engine.parts.thinker, engine.tokenizer, x_BTD.shape[1]
    room = min(GROWN_TOKENS, thinker.config.ctx_len - length)
    cache = thinker.new_cache(1, length + room)
    ids: list[int] = []
    steps = []
    how = {"stop_ids": tokenizer.special_tokens.stops, "legal": (range(tokenizer.vocab_size),)}
    for token in generate.stream(thinker, x_BTD, max_new=room, cache=cache, **how):  # type: ignore[arg-type]
        ids.append(token)
        steps.append((cache.length, tokenizer.token(token)))
    keys = cache.keys[:, :, :, :length]
    watch.add(
        "cache",
        keys.shape,
        "keys of every block and position, and as many values: what stood before is not computed again",
    )
    for number, (held, piece) in enumerate(steps, start=1):
        if number <= SHOWN or number == len(steps):
            watch.add(
                f"sequence, token {number}",
                (1, held + 1),
                f"{piece!r} joins: {held} lie in the cache, 1 is computed next",
            )
    ended = "its own end" if len(ids) < room else f"at most {room} tokens are traced"
    watch.add("answer", (len(ids),), f"decoded: {tokenizer.decode(ids)!r} ({ended})")


def _trace_image(engine: Engine, image: Picture) -> list[Hop]:
    eyes = engine.parts.vision[0]
    with hops.watching() as watch:
        hops.watch_vision_tower(watch, eyes, None)
        embedding = engine.embed(images=[image])
        watch.add("picture embedding", embedding.shape, "a unit vector, to be compared with those of texts")
    return watch.hops


def _trace_audio(engine: Engine, audio: Sound) -> list[Hop]:
    ears = engine.parts.hearing
    with hops.watching() as watch:
        _watch_sound(
            watch, ears, prompt.read_sound(audio, ears.config.mel.rate_hz), engine.parts.hearing_pad_s
        )
        hops.watch_audio_encoder(watch, ears, None)
        watch.out_of(ears.head, "symbols", "a score for every character and the blank, at every state")
        text = engine.transcribe([audio])[0]
        watch.add("text", (len(text),), f"what was heard: {text!r}")
    return watch.hops


def _speak(engine: Engine, text: str) -> list[Hop]:
    voice = engine.parts.voice
    talker, spec = voice.talker, voice.codec.config.mel
    with hops.watching() as watch:
        watch.into(talker.text_table, "text ids", f"what is said: {text!r}")
        if talker.condition is not None:
            watch.into(
                talker.condition,
                "Thinker's states",
                "how the Thinker's middle layer understands these tokens",
            )
        watch.out_of(
            talker.text_table,
            "text embeddings",
            "one vector a token; the states are added to them" if talker.condition else "one vector a token",
        )
        watch.into(
            talker.blocks[0],
            "text and start",
            "the whole text in view, then the vector from which speech begins",
        )
        watch.out_of(
            talker.norm, "state", f"after {talker.config.layers} blocks; its last place says the next frame"
        )
        for book, head in enumerate(talker.heads):
            watch.out_of(
                head,
                f"head {book + 1}",
                f"a score for each of {talker.config.codebook_size} codes{' and the end' * (book == 0)}",
            )
        previous = "the frame just said, from a table of its own for every book: all that is computed of each further step"
        watch.into(
            talker.tables[0],
            "previous codes",
            previous,
            lambda x: x.new_empty(1, 1, talker.config.codebooks, device="meta"),
        )
        speeches = voice.speak([text])[0]
    codes = speeches.codes_KF
    for number in (n for n in range(1, codes.shape[1] + 1) if n <= SHOWN or n == codes.shape[1]):
        watch.add(
            f"frame {number}", (1, len(codes)), f"codes {', '.join(map(str, codes[:, number - 1].tolist()))}"
        )
    frames = codes.shape[1] * voice.codec.config.stride_frames
    ended = "its own end symbol" if speeches.is_ended else "the guard"
    watch.add(
        "codes",
        (1, *codes.shape),
        f"codebooks x frames, {voice.codec.rate_hz:g} a second; the length was decided by {ended}",
    )
    watch.add(
        "log-mel",
        (1, frames, spec.num_mels),
        f"by the codec's decoder: {spec.frame_rate_hz:g} frames a second",
    )
    watch.add(
        "samples",
        (1, len(speeches.wave_S)),
        f"by Griffin-Lim: {len(speeches.wave_S) / spec.rate_hz:.2f} s at {spec.rate_hz} Hz",
    )
    return watch.hops


def _watch_sound(watch: Watch, audio: AudioEncoder, wave_S: prompt.Wave, pad_s: float) -> None:
    """A sound before it is a spectrum, and the silence that is put around it."""
    spec, first = audio.config.mel, audio.convs[0]
    watch.fixed(
        first, "sound", (1, len(wave_S)), f"samples at {spec.rate_hz} Hz, {len(wave_S) / spec.rate_hz:.2f} s"
    )
    if pad_s:
        whole = len(wave_S) + 2 * round(pad_s * spec.rate_hz)
        rate_hz = spec.frame_rate_hz / audio.config.downsample
        states = audio.length(spec.frames(whole))
        note = f"{pad_s:g} s of silence on either side (pad_s), as in training: {whole / spec.rate_hz:.2f} s at {rate_hz:g} states a second"
        watch.fixed(first, "with silence", (1, whole), f"{note} give {states}")
