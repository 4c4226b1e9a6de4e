"""One object for everything that a trained folder can do: answer, stream, transcribe, speak, draw, embed,
logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni import runtime
from muomni.data.batch import right_padded
from muomni.data.sample import Sample
from muomni.errors import ConfigError, TokenRangeError
from muomni.infer import generate, prompt, transcribe
from muomni.infer.answer import Answer, Writer
from muomni.infer.generate import GREEDY
from muomni.infer.parts import Parts
from muomni.infer.prompt import Messages, Picture, Prompt, Request, Sound
from muomni.infer.sampling import SamplingConfig
from muomni.media.text import spoken
from muomni.models import finite
from muomni.models.omni import gather, pixels
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.special_tokens import PAD

MAX_NEW = 128
BATCH = 32
PICTURES_AT_ONCE = 64
LONGEST_S = 4 * 3600.0  # a transcript's memory grows with the sound: 4 h take about 2 GB


class Engine:
    """The parts of a folder at work; each is opened when first needed."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.device = parts, parts.device

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", precision: str = "auto") -> Self:
        """Open a recipe's run folder, a stage's, or a `final/`.

        Takes   precision: auto (the fastest number format that is sound on the device, as training takes it),
                fp32, bf16, fp16.
        Raises  CheckpointError where nothing finished is there, and later, when a network is first needed,
                where its weights are no numbers; ConfigError for a format that is unknown, or that the device
                does not have.
        """
        name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(Parts(folder, torch.device(name), precision))

    @property
    def tokenizer(self) -> Tokenizer:
        """Text <-> ids, as the Thinker reads and writes them."""
        return self.parts.tokenizer

    # --- answers --------------------------------------------------------------------------------------------------------------------------

    def answer(
        self,
        ask: str | Sample | Messages | None = None,
        *,
        images: Sequence[Picture] = (),
        audios: Sequence[Sound] = (),
        sampling: SamplingConfig = GREEDY,
        seed: int | None = None,
        stop: Sequence[str] = (),
        max_new: int = MAX_NEW,
        speak: bool = False,
    ) -> Answer:
        """The answer to words, pictures, sounds, or a conversation that ends with the user's turn (media go
        before that turn's words).

        Takes   seed: in place of sampling.seed; max_new: most tokens of the answer, fewer where ctx_len ends
                first; speak: also say it aloud.
        Raises  DataError for media or turns that can't be used; ContextError for a prompt beyond ctx_len;
                CheckpointError for an ability that no stage here has.
        """
        request = Request(ask, images, audios)
        if speak:
            _ = self.parts.voice  # a missing Talker is told before the work, not after
        writer, pieces = self._write(request, sampling, seed, stop, max_new)
        for _ in pieces:
            pass
        return self._aloud([writer.answer()], speak)[0]

    def stream(
        self,
        ask: str | Sample | Messages | None = None,
        *,
        images: Sequence[Picture] = (),
        audios: Sequence[Sound] = (),
        sampling: SamplingConfig = GREEDY,
        seed: int | None = None,
        stop: Sequence[str] = (),
        max_new: int = MAX_NEW,
    ) -> Iterator[str]:
        """The text of `answer` in pieces as they come, characters whole; takes and raises as `answer`, before
        the first piece."""
        return self._write(Request(ask, images, audios), sampling, seed, stop, max_new)[1]

    def answer_many(
        self,
        requests: Sequence[Prompt | Request | Sample | Messages | str],
        *,
        sampling: SamplingConfig = GREEDY,
        seed: int | None = None,
        stop: Sequence[str] = (),
        max_new: int = MAX_NEW,
        speak: bool = False,
    ) -> list[Answer]:
        """Answers in the order of the requests, in batches of like lengths; greedy ones equal those of
        `answer`. Raises as `answer`."""
        if speak:
            _ = self.parts.voice
        sampling = _seeded(sampling, seed)
        prompts = [each if isinstance(each, Prompt) else self.prepare(each) for each in requests]
        answers_by_index: dict[int, Answer] = {}
        for rows in self._batches(prompts, max_new):
            chosen = [prompts[row] for row in rows]
            writers = [Writer(self.tokenizer, stop) for _ in rows]
            x, keep_BT = self.read(chosen)
            room = self._room(max(len(each.ids) for each in chosen), max_new)
            ids = generate.generate(
                self.parts.thinker, x, keep_BT=keep_BT, max_new=room, sampling=sampling, **self._vocabulary
            )
            for row, writer, new in zip(rows, writers, ids):
                answers_by_index[row] = _written(writer, new, room)
        return self._aloud([answers_by_index[row] for row in range(len(prompts))], speak)

    def prepare(self, request: Request | Sample | Messages | str, *, cut: bool = True) -> Prompt:
        """A request with its media read and its turns rendered, as `answer_many` takes it too; raises as
        `answer`.

        Takes   cut: a sound too long for a chat loses its end, in a line; False: it is a DataError.
        """
        spec, questions = self.parts.media
        request = request if isinstance(request, Request) else Request(request)
        return prompt.build(
            request, self.tokenizer, self.parts.thinker.config.ctx_len, spec, questions, cut=cut
        )

    @torch.no_grad()
    def logits(self, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Next-token logits (B,T,V), float32, of the Thinker at every position of ids (B,T) or (T,).

        Raises  TokenRangeError for an id outside of the vocabulary; ContextError beyond ctx_len.
        """
        ids_BT = torch.as_tensor(ids, dtype=torch.int64, device=self.device)
        ids_BT = ids_BT[None] if ids_BT.dim() == 1 else ids_BT
        size = self.parts.thinker.config.vocab_size
        if ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < size:
            raise TokenRangeError(
                f"logits: expected ids in 0..{size - 1}, got {int(ids_BT.min())}..{int(ids_BT.max())}"
            )
        scores: Tensor = self.parts.thinker(ids_BT)
        finite.demand(scores, self.parts.thinker, "scores of tokens", lambda: self.parts.thinker(ids_BT))
        return scores.float()

    def _computing(self, width: int) -> AbstractContextManager[Any]:
        """The number format in which a network of this width computes."""
        return runtime.computing_in(self.parts.number_format(width), self.device)

    @property
    def _vocabulary(self) -> dict[str, Any]:
        """What is said: the tokenizer's ids alone, up to one that ends."""
        return {"stop_ids": self.tokenizer.special_tokens.stops, "legal": (range(self.tokenizer.vocab_size),)}

    def _room(self, length: int, max_new: int) -> int:
        if max_new < 1:
            raise ConfigError(f"max_new: expected at least 1, got {max_new}")
        return min(max_new, self.parts.thinker.config.ctx_len - length)

    def _write(
        self, request: Request, sampling: SamplingConfig, seed: int | None, stop: Sequence[str], max_new: int
    ) -> tuple[Writer, Iterator[str]]:
        """One answer's writer, and the pieces whose reading drives it; the prompt is built, and refused, at
        once."""
        ready = self.prepare(request)
        room = self._room(len(ready.ids), max_new)
        writer = Writer(self.tokenizer, stop)
        x, _ = self.read([ready])
        ids = generate.stream(
            self.parts.thinker, x, max_new=room, sampling=_seeded(sampling, seed), **self._vocabulary
        )

        def pieces() -> Iterator[str]:
            count = 0
            for token in ids:
                count += 1
                if piece := writer.push(token):
                    yield piece
                if writer.finish:
                    return
            if piece := writer.close("length" if count == room else "end"):
                yield piece

        return writer, pieces()

    def _batches(self, prompts: Sequence[Prompt], max_new: int) -> Iterator[list[int]]:
        """Rows that go together: media with media (ids alone can be penalised), like lengths, and none that
        another's padding would cut."""
        ctx_len = self.parts.thinker.config.ctx_len
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
        for has_media in (False, True):
            alike = [row for row in order if bool(prompts[row].media) == has_media]
            roomy = [row for row in alike if len(prompts[row].ids) + max_new <= ctx_len]
            yield from (roomy[first : first + BATCH] for first in range(0, len(roomy), BATCH))
            yield from ([row] for row in alike[len(roomy) :])

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None]:
        """ids (B,T), or embeddings (B,T,D) where there are media, padded on the left; and keep_BT, None for a
        lone row."""
        size = max(len(each.ids) for each in prompts)
        ids_BT = torch.tensor(
            [[PAD] * (size - len(each.ids)) + each.ids for each in prompts], device=self.device
        )
        keep_BT = torch.tensor(
            [[False] * (size - len(each.ids)) + [True] * len(each.ids) for each in prompts],
            device=self.device,
        )
        media = gather([each.media for each in prompts], self.device)
        x = ids_BT
        if media:
            omni = self.parts.omni
            assert omni is not None
            with self._computing(omni.decoder.config.width):
                x = omni.embed(ids_BT, media)
                finite.demand(x, omni, "values of pictures and sounds", lambda: omni.embed(ids_BT, media))
        return x, keep_BT if len(prompts) > 1 else None

    def _aloud(self, answers: list[Answer], speak: bool) -> list[Answer]:
        if not speak:
            return answers
        indices = [index for index, each in enumerate(answers) if spoken(each.text)]
        waves = dict(zip(indices, self.speak([answers[index].text for index in indices])))
        return [replace(each, audio=waves.get(index)) for index, each in enumerate(answers)]

    # --- sound and sight ------------------------------------------------------------------------------------------------------------------

    def transcribe(self, sounds: Sequence[Sound], *, beam: bool = True) -> list[str]:
        """The text of each sound, of any length up to hours.

        Takes   beam: search with the character model, where stage hearing left one; else the likeliest
                symbols.
        Raises  DataError for a file that can't be used; CheckpointError where stage hearing is missing.
        """
        encoder = self.parts.hearing
        waves = [prompt.read_sound(sound, encoder.config.mel.rate_hz, max_s=LONGEST_S) for sound in sounds]
        char_lm, dtype = self.parts.char_lm if beam else None, self.parts.number_format(encoder.config.width)
        return transcribe.transcribe(
            encoder, waves, pad_s=self.parts.hearing_pad_s, char_lm=char_lm, dtype=dtype
        )

    def speak(
        self,
        texts: Sequence[str],
        *,
        voice: str | None = None,
        sampling: SamplingConfig | None = None,
        seed: int | None = None,
    ) -> list[tuple[NDArray[np.float32], int]]:
        """Speech of each text, (wave (S,) float32, rate in Hz): by a Talker, or where there is none by a
        token model.

        Takes   voice: the name of one of a Talker of several; None: the voice of nobody, a mean of all;
                sampling: None: a token model's own, else greedily.
        Raises  DataError for a text without words; CheckpointError without a Talker; ConfigError for a voice
                that it does not have.
        """
        sampling = _seeded(self.speaking() if sampling is None else sampling, seed)
        if self._speaks_by_tokens:
            if voice is not None:
                raise ConfigError(f"voice {voice}: a token model has no voices by name", hint="leave it out")
            return self.parts.writer.speak(texts, sampling)
        mouth = self.parts.voice
        speakers = None if voice is None else [mouth.number(voice)] * len(texts)
        return [
            (speech.wave_S, mouth.rate_hz)
            for speech in mouth.speak(texts, sampling=sampling, speakers=speakers)
        ]

    def speaking(self) -> SamplingConfig:
        """How `speak` draws codes where it is not told: as a token model was trained to, else greedily."""
        return self.parts.writer.own("audio") if self._speaks_by_tokens else GREEDY

    @property
    def _speaks_by_tokens(self) -> bool:
        return "talker" not in self.parts.stages and "rows" in self.parts.stages

    def draw(
        self, texts: Sequence[str], *, sampling: SamplingConfig | None = None, seed: int | None = None
    ) -> list[NDArray[np.uint8]]:
        """A picture (H, W, 3) uint8 of each text, written by a token model under its grammar.

        Takes   sampling: None: the model's own.
        Raises  DataError for a text without words; ContextError for one too long; CheckpointError without a
                token model; TokenSpaceError for one without image tokens.
        """
        own = self.parts.writer.own("image") if sampling is None else sampling
        return self.parts.writer.draw(texts, _seeded(own, seed))

    @torch.no_grad()
    def embed(self, *, images: Sequence[Picture] | None = None, texts: Sequence[str] | None = None) -> Tensor:
        """Unit vectors (N, E) of pictures or of texts, in one space: their products say how well they fit.

        Raises  ConfigError unless exactly one of both is given; DataError for a picture that can't be read or
                an empty text.
        """
        if (images is None) == (texts is None):
            raise ConfigError("embed: expected images or texts, one of both")
        eyes, tower, _ = self.parts.vision
        with self._computing(eyes.config.width):
            embeddings = self._images(images) if images is not None else self._texts(texts or ())
        finite.demand(embeddings, eyes if images is not None else tower, "values of embeddings")
        return embeddings

    def _images(self, images: Sequence[Picture]) -> Tensor:
        """Unit vectors of pictures."""
        eyes = self.parts.vision[0]
        pictures = [prompt.read_picture(each, eyes.config.image_size) for each in images]
        batches = [
            pictures[first : first + PICTURES_AT_ONCE] for first in range(0, len(pictures), PICTURES_AT_ONCE)
        ]
        return torch.cat([eyes.embed(pixels(batch).to(self.device).values_N) for batch in batches])

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts."""
        _, tower, tokenizer = self.parts.vision
        padded = right_padded([tokenizer.encode(text) for text in texts], PAD)
        ids_BT, keep_BT = (tensor.to(self.device) for tensor in padded)
        if tower.config.kind != "thinker":
            return tower.embed(ids_BT, keep_BT)
        reader = self.parts.reader
        return tower.embed(reader.hidden(reader.embed(ids_BT), keep_BT=keep_BT).float(), keep_BT)


def _seeded(sampling: SamplingConfig, seed: int | None) -> SamplingConfig:
    return sampling if seed is None else sampling.model_copy(update={"seed": seed})


def _written(writer: Writer, ids: Sequence[int], room: int) -> Answer:
    """The answer that these ids, all that were generated, make."""
    for token in ids:
        writer.push(token)
        if writer.finish:
            return writer.answer()
    writer.close("length" if len(ids) == room else "end")
    return writer.answer()
