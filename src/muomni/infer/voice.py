"""Speech in a voice: a conversation with a reference sound -> codes -> a wave, by the one decode loop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from muomni import files
from muomni.data.sample import AudioPart, Sample, parse
from muomni.data.speaker_tags import SPEAKERS
from muomni.data.tokenized.encode import read
from muomni.data.voice_rows import VoiceRow, VoiceTokens, prompt
from muomni.errors import CheckpointError, ConfigError, ContextError
from muomni.infer.decode import decode
from muomni.infer.export import ORIGIN, TOKENIZER
from muomni.infer.sampling import SamplingConfig, pick
from muomni.models import higgs_layout, integrity, lora, reference, store
from muomni.models.codecs import open_codec
from muomni.models.higgs import Higgs
from muomni.nn.head import Ranges
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec

NOTE = "voice.json"  # in the `final/` of stages voice and voice_base: by which codec it speaks, and on what it stands
SPEAKING = ("voice", "voice_base")  # stages, the more finished first
GREEDY = SamplingConfig()
LONGEST_S = 30.0  # of speech that nobody limits


class DelayedBooks:
    """Delayed books behind a prompt as columns of a placeholder and K symbols (see `decode.Layout`).

    Book k says `start` up to step k. Once any book has said `end` in step s, book k must say it from step
    s + k + 1 on, one step later than the right model says it by itself. A row is over where all say it.
    Source  transformers' HiggsAudioV2DelayPatternLogitsProcessor, so that greedy codes are those of `generate`.
    """

    def __init__(
        self, model: Higgs, rows: int, steps: int, sampling: SamplingConfig, device: torch.device
    ) -> None:
        self.books, self.start, self.end = model.books, model.start, model.end
        self.place = model.placeholders[0]
        self.steps, self.sampling = steps, sampling
        self.legal: Sequence[Ranges | None] = [(range(self.place, self.place + 1),), *[None] * model.books]
        self.generator = torch.Generator(device).manual_seed(sampling.seed)
        self.closed_B = torch.full((rows,), steps, device=device)  # the step in which a book first said `end`
        self.is_over_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self.said: list[Tensor] = []  # (B, K) of each step

    def name(self, step: int) -> str:
        """See Layout."""
        return f"codes in step {step}"

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """(B, 1 + K, 1): of rows that are over, `end` in all books."""
        chosen = []
        for book, scores_BV in enumerate(scores[1:]):
            code_B = pick(scores_BV, self.sampling, generator=self.generator)
            if step <= book:
                code_B = torch.full_like(code_B, self.start)
            is_closed_B = self.is_over_B | (step > self.closed_B + book)
            chosen.append(torch.where(is_closed_B, self.end, code_B))
        said_BK = torch.stack(chosen, 1)
        ends_BK = said_BK == self.end
        self.closed_B = torch.where(ends_BK.any(1) & (self.closed_B > step), step, self.closed_B)
        self.is_over_B |= ends_BK.all(1)
        self.said.append(said_BK)
        return torch.cat([torch.full_like(said_BK[:, :1], self.place), said_BK], 1)[..., None]

    @property
    def is_over(self) -> bool:
        """See Layout."""
        return bool(self.is_over_B.all())

    def grid(self) -> Tensor:
        """All that was said, (B, K, S)."""
        return torch.stack(self.said, 2)

    def frames(self, row: int) -> int:
        """Frames of a row that are whole so far: up to the first end of its first book."""
        first_S = torch.stack([said_BK[row, 0] for said_BK in self.said])
        ends = (first_S == self.end).nonzero()
        whole = len(self.said) - self.books  # the last book says frame f in step f + K
        return max(0, min(whole, int(ends[0]) - 1 if len(ends) else whole))

    def frame(self, row: int, frame: int) -> Tensor:
        """The codes (K,) of a frame that is whole."""
        return torch.stack([self.said[frame + 1 + book][row, book] for book in range(self.books)])


@dataclass(frozen=True)
class Said:
    """What a voice said: codes (K, F) int64, and whether it ended by itself."""

    codes_KF: Tensor
    is_ended: bool


@dataclass(frozen=True)
class Cloner:
    """All that speaks in a voice: the model with what it has learned, its words, and the codec of its
    codes."""

    model: Higgs
    tokenizer: Tokenizer
    tokens: VoiceTokens
    codec: Codec

    @property
    def rate_hz(self) -> int:
        """Of its waves."""
        rate_hz = self.codec.sample_rate_hz
        assert rate_hz is not None
        return rate_hz

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def codes_of(self, part: AudioPart) -> Tensor:
        """The codes (K, F) of a sound, as the stage encodes it.

        Raises  DataError, as the readers of media do.
        """
        with torch.inference_mode():
            (codes_KF,) = self.codec.encode_many([read(part, self.codec).values.to(self.device)])
        return codes_KF.cpu()

    def row(self, sample: Sample, said: str = "") -> VoiceRow:
        """The prompt of a conversation that is to be answered by speech."""
        return prompt(sample, self.tokenizer, self.tokens, self.codes_of, said)

    def stream(
        self, row: VoiceRow, sampling: SamplingConfig = GREEDY, max_frames: int | None = None
    ) -> Iterator[Tensor | Said]:
        """The frames (K,) that follow a prompt, each as soon as it is whole, then all of them as `Said`.

        Takes   max_frames: a guard, None: what is left of the model's context, at most LONGEST_S.
        Raises  ContextError where the prompt leaves no room.
        """
        lags = self.tokens.books + 1  # steps that are no frames
        assert self.codec.frame_rate_hz is not None
        room = self.model.ctx_len - len(row.ids) - lags
        if room < 1:
            raise ContextError(
                f"{len(row.ids)} positions leave no room to speak in a context of {self.model.ctx_len}",
                hint="a shorter reference, or fewer of them",
            )
        most = min(room, round(LONGEST_S * self.codec.frame_rate_hz) if max_frames is None else max_frames)
        ids_T = torch.tensor(row.ids, device=self.device)
        columns_BST = torch.cat([ids_T[None], row.codes_KT.to(self.device)])[None]
        books = DelayedBooks(self.model, 1, most + lags, sampling, self.device)
        with torch.inference_mode():
            x_BTD = self.model.embed(columns_BST)
        given = 0
        for _ in decode(self.model, x_BTD, books, cache=self.model.beside(columns_BST, books.steps)):
            while given < min(most, books.frames(0)):
                yield self._code(books.frame(0, given))
                given += 1
        said = [self._code(books.frame(0, frame)) for frame in range(given)]
        codes_KF = torch.stack(said, 1) if said else torch.zeros(self.tokens.books, 0, dtype=torch.int64)
        yield Said(codes_KF.cpu(), bool(books.is_over))

    def _code(self, said_K: Tensor) -> Tensor:
        """Codes that the codec knows, as transformers' processor cuts them: a start or end out of place becomes
        the last code."""
        return said_K.clamp(max=self.codec.codebook_size - 1)

    def say(self, row: VoiceRow, sampling: SamplingConfig = GREEDY, max_frames: int | None = None) -> Said:
        """The speech that follows a prompt, whole; raises as `stream`."""
        *_, said = self.stream(row, sampling, max_frames)
        assert isinstance(said, Said)
        return said

    def wave(self, codes_KF: Tensor) -> NDArray[np.float32]:
        """The sound of codes, (S,) at `rate_hz`; silence of no samples where there are none."""
        if not codes_KF.shape[1]:
            return np.zeros(0, np.float32)
        with torch.inference_mode():
            wave_BS = self.codec.decode(codes_KF[None].to(self.device))
        sound: NDArray[np.float32] = wave_BS[0].float().cpu().numpy()
        return sound


@dataclass(frozen=True)
class Reference:
    """A sound of a voice: what it says, None: nobody wrote it down; and whose it is, None: the one of the text."""

    sound: str
    transcript: str | None = None
    speaker: str | None = None


def conversation(text: str, reference: str | Path | None = None, transcript: str | None = None) -> Sample:
    """The conversation that asks for a text, with a reference voice as an earlier turn of the assistant's.

    Takes   transcript: what the reference says; None: it stands in the user's own turn, before the text.
    """
    return dialogue(text, [] if reference is None else [Reference(str(reference), transcript)])


def dialogue(text: str, references: Sequence[Reference]) -> Sample:
    """The conversation that asks for a text of one speaker or of several, whose names stand in it in brackets.

    References of which it is known what they say are earlier turns; else they stand in the user's own turn, before
    the text. The speakers are numbered in the order of their references.

    Raises  ConfigError where some transcripts are missing, or names of several speakers.
    """
    names = [each.speaker for each in references if each.speaker is not None]
    if len(references) > 1 and (len(names) < len(references) or len(set(names)) < len(names)):
        raise ConfigError(
            f"expected a name of its own for each of {len(references)} references, got {', '.join(names) or 'none'}"
        )
    told = [each.transcript for each in references if each.transcript is not None]
    if told and len(told) < len(references):
        raise ConfigError(f"expected a transcript for each of {len(references)} references, got {len(told)}")
    messages: list[dict[str, Any]] = []
    before: list[dict[str, Any]] = []
    for each in references:
        sound = {"type": "audio", "path": each.sound} | ({"speaker": each.speaker} if each.speaker else {})
        if told:
            turn = {"role": "user", "content": each.transcript}
            messages += [turn, {"role": "assistant", "content": [sound]}]
        else:
            line = [{"type": "text", "text": "\n"}] if len(references) > 1 else []
            before += [sound, *line]
    messages.append(
        {"role": "user", "content": [*before, {"type": "text", "text": text}] if before else text}
    )
    speakers = {SPEAKERS: names} if names else {}
    return parse({"id": "speak", "messages": messages, "start_index": len(messages), **speakers})


def find(folder: Path | str) -> Path | None:
    """The `final/` of stage voice, or else voice_base, in a run's folder, a stage's, or the folder itself; None where
    there is none."""
    folder = Path(folder)
    places = (
        folder,
        folder / integrity.FINAL,
        *(folder / stage / integrity.FINAL for stage in SPEAKING),
    )
    return next((place for place in places if (place / NOTE).is_file()), None)


def open_cloner(folder: Path | str, device: torch.device | str = "cpu") -> Cloner:
    """What speaks by the `final/` of stage voice or voice_base, by the stage's folder or its run's.

    Raises  CheckpointError where it is none, torn, or stands on weights that are others now.
    """
    final = find(folder)
    if final is None:
        raise CheckpointError(f"{folder}: expected a folder of stage voice, found no {NOTE}")
    integrity.verify(final)
    note = files.read_json(final / NOTE)
    network, base = _stands_on(note, final)
    dtype = (
        reference.as_stored(torch.device(device))
        if network is None
        else network.dtype_on(torch.device(device))
    )
    model = Higgs.open(base, device=device, dtype=dtype)
    if network is not None:
        lora.load(model, final).eval()  # PEFT puts the adapter where the base lies
    _, codec_folder = reference.find(note["codec"], final)
    codec = open_codec(codec_folder, model.books, device)
    tokenizer = Tokenizer.load(base)
    return Cloner(model, tokenizer, tokens_of(model, tokenizer, codec), codec)


def _stands_on(note: Mapping[str, Any], final: Path) -> tuple[reference.NetworkReference | None, Path]:
    """The base of an adapter and its folder; of weights that are whole none, and their own.

    Raises  CheckpointError where the base lies nowhere, or is another.
    """
    return reference.find(note["base"], final) if "base" in note else (None, final)


Layout = Literal["hf", "boson"]


def export_merged(final: Path, out: Path, certificate: Mapping[str, Any], layout: Layout = "hf") -> None:
    """The base with its adapter merged, or the weights of stage voice_base, as a folder that `Higgs.open` opens, whole
    or not at all; `origin.json` says where it comes from.

    hf     as transformers writes it
    boson  as the makers of Higgs Audio v2 do (model_type `higgs_audio`); beside it `lora/`, the adapter in PEFT's
           files under their names

    Takes   final: of stage voice or voice_base; out: a new or an empty folder; certificate: of the stage.
    Raises  CheckpointError as `open_cloner`; ConfigError for books that the layout can't say.
    """
    cloner = open_cloner(final)
    note = files.read_json(final / NOTE)
    network, base = _stands_on(note, final)
    is_original = store.read_config(base)["model_type"] == higgs_layout.MODEL_TYPE
    with torch.no_grad():
        tensors = lora.merged_tensors(cloner.model)
    if (
        network is None or network.dtype == "auto"
    ):  # in the format of the base's files, whatever this machine computes in
        stored = store.stored_format(base)
        tensors = {name: tensor.to(stored) for name, tensor in tensors.items()}
    dtype = tensors["text_lm_head.weight"].dtype
    with files.fresh_folder(out) as part:
        for name in TOKENIZER:
            if (base / name).is_file():
                shutil.copyfile(base / name, part / name)
        if is_original == (layout == "boson"):
            shutil.copyfile(base / store.CONFIG, part / store.CONFIG)
        elif is_original:
            config = cloner.model.config
            files.write_json(
                part / store.CONFIG, {**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
            )
        else:
            content = higgs_layout.original_config(cloner.model.config, cloner.tokenizer, dtype)
            files.write_json(part / store.CONFIG, content)
        if layout == "boson":
            tensors = higgs_layout.to_original(tensors)
            if network is not None:
                lora.renamed(final, part / "lora", higgs_layout.original_name)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, part / store.WEIGHTS, metadata={"format": "pt"})
        origin = {key: certificate[key] for key in ("stage", "verdict", "weights")}
        stood_on = {name: note[name] for name in ("base",) if name in note}
        files.write_json(part / ORIGIN, {**origin, "bases": stood_on})


def tokens_of(model: Higgs, tokenizer: Tokenizer, codec: Codec) -> VoiceTokens:
    """The marks of a tokenizer, where it, model and codec belong together.

    Raises  CheckpointError where model and tokenizer name other ids; ConfigError for a codec of other books.
    """
    tokens = VoiceTokens.of(tokenizer, model.start, model.end, model.books)
    config = model.config
    named = {
        "<|AUDIO_OUT|>": (tokens.code, config.audio_token_id),
        "<|reserved_special_token_6|>": (tokens.last, config.audio_delay_token_id),
        "<|audio_out_bos|>": (tokens.said, config.audio_bos_token_id),
    }
    for name, (own, theirs) in named.items():
        if own != theirs:
            raise CheckpointError(
                f"{name} is {own} in the tokenizer and {theirs} in config.json",
                hint="put the tokenizer of these weights beside them",
            )
    if (codec.modality, codec.codebooks, codec.codebook_size) != ("audio", model.books, model.codebook_size):
        raise ConfigError(
            f"codec: {codec.kind} of {codec.modality} has {codec.codebooks} books of {codec.codebook_size} codes, "
            f"the model speaks {model.books} of {model.codebook_size}",
            hint="name the codec of these weights",
        )
    return tokens
