"""The trained parts of a folder, each opened when first needed."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from muomni import files, runtime
from muomni.data.conversation import MediaSpec
from muomni.errors import CheckpointError, ConfigError
from muomni.infer import folders
from muomni.infer.ctc import CharLM
from muomni.infer.sampling import MediaSampling
from muomni.infer.speech import Think, Voice, listen_to
from muomni.infer.writer import MediaWriter
from muomni.media.frames import PAD_S
from muomni.media.mel import MelSpec
from muomni.models import finite, integrity, lora, pretrained, reference, rows, store
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.decoder import Decoder
from muomni.models.omni import Omni
from muomni.models.text_tower import TextTower
from muomni.models.vision_encoder import VisionEncoder
from muomni.models.vision_tower import VisionTower
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.unified import UnifiedTokenizer


class Parts:
    """Networks, tokenizers and settings of the stages in a folder; asking for what is not there is a
    CheckpointError that says so.

    All networks are in evaluation mode; nothing is unpickled.

    precision  None: networks as they are stored, for whoever trains or copies them. Else they answer, in the
               format that is asked for by name, or with `auto` in the one that training would take
               (runtime.choose_dtype). What writes step by step (Thinker, Talker) is then held in that format,
               the others compute in it; but `auto` leaves what writes in float32 on a CPU, where single rows
               are no faster in bf16 (docs/log.md)
    Raises  CheckpointError where there is no such folder, or nothing finished in it; ConfigError for a format
            that is unknown, or that the device does not have.
    """

    def __init__(self, folder: Path | str, device: torch.device, precision: str | None = None) -> None:
        if precision is not None and precision not in runtime.PRECISIONS:
            raise ConfigError(f"precision: expected {', '.join(runtime.PRECISIONS)}, got {precision!r}")
        runtime.choose_dtype(precision or "auto", 0, device)
        self.where, self.device, self.precision = Path(folder), device, precision
        self.stages = folders.find(folder)
        self._checked: set[str] = set()
        self._told: set[torch.dtype] = set()

    @classmethod
    def live(cls, device: torch.device, **parts: Any) -> Self:
        """Parts that are in memory, by their names here (thinker, tokenizer, omni, media): what a stage asks
        before it saves them."""
        parts_made = cls.__new__(cls)
        parts_made.where, parts_made.device, parts_made.precision = Path("memory"), device, None
        parts_made.stages, parts_made._checked, parts_made._told = {}, set(), set()
        vars(parts_made).update(parts)
        return parts_made

    def number_format(self, width: int, *, by_steps: bool = False) -> torch.dtype:
        """The format in which a network of this width computes; what is not plain, or was asked for, is told
        in a line.

        Takes   by_steps: it writes, one position after another.
        """
        if self.precision is None:
            return torch.float32
        is_mixed = self.precision == "auto" and self.device.type == "cpu"
        dtype = (
            torch.float32
            if by_steps and is_mixed
            else runtime.choose_dtype(self.precision, width, self.device)
        )
        if (self.precision != "auto" or dtype != torch.float32) and dtype not in self._told:
            self._told.add(dtype)
            where = f"{runtime.format_name(dtype)} on {self.device.type}"
            where_text = (
                f"eyes and ears compute in {where}, what writes in float32"
                if is_mixed
                else f"computes in {where}"
            )
            for line in (where_text, *runtime.emulated({dtype}, self.device)):
                print(f"note: {line}", file=sys.stderr, flush=True)
        return dtype

    @cached_property
    def bases(self) -> dict[str, dict[str, Any]]:
        """What the model that sees says of networks that it stands on and does not hold: by "thinker" and
        "vision"."""
        references: dict[str, dict[str, Any]] = (
            self._omni_json().get("bases", {}) if "omni" in self.stages else {}
        )
        return references

    @cached_property
    def _found(self) -> dict[str, tuple[reference.NetworkReference, Path]]:
        """These networks, found again."""
        return {
            name: reference.find(reference_json, self.final("omni"))
            for name, reference_json in self.bases.items()
        }

    @cached_property
    def text_folder(self) -> Path:
        """The folder of the Thinker that answers, with its tokenizer; without what stage instruct has taught
        it."""
        name, folder = self.stage("omni", "thinker", ability="read and write text")
        if name == "omni" and "thinker" in self.bases:
            return self._found["thinker"][1]
        return folder / "thinker" if name == "omni" else folder

    @cached_property
    def thinker(self) -> Decoder:
        """The language model: the tuned one of stage omni or instruct where there is one."""
        named = self._found["thinker"][0] if "thinker" in self.bases else None
        computes_in = named.dtype_on(self.device) if named else reference.as_stored(self.device)
        # What is merged is rounded as the base is stored, whatever this chip computes in: it then says what
        # its export says.
        opened_in = (
            None if self.device.type == "cpu" and (named is None or named.dtype == "auto") else computes_in
        )
        if (dtype := self._thinker_format(named)) is not None:
            opened_in, computes_in = None, dtype
        decoder = pretrained.open_decoder(self.text_folder, device=self.device, dtype=opened_in)
        adapter = self.final("omni") / "lora" if "omni" in self.stages else None
        if adapter is not None and adapter.is_dir():
            lora.load(decoder, adapter)
            decoder = lora.merged(decoder)
            finite.came_from(decoder, adapter)
        if named is not None:
            pretrained.tell_widened(self.text_folder, computes_in)
        return decoder if computes_in is None else decoder.to(computes_in)  # it lies on the device already

    def _thinker_format(self, named: reference.NetworkReference | None) -> torch.dtype | None:
        """The format that the Thinker is asked to answer in; None: that of its base, where the recipe named
        it or nothing is faster."""
        if self.precision is None or (
            self.precision == "auto" and named is not None and named.dtype != "auto"
        ):
            return None
        dtype = self.number_format(
            int(store.read_config(self.text_folder).get("hidden_size", 0)), by_steps=True
        )
        return None if self.precision == "auto" and dtype == torch.float32 else dtype

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the Thinker."""
        return pretrained.open_tokenizer(self.text_folder)

    @cached_property
    def omni(self) -> Omni | None:
        """The Thinker with eyes and ears, None where only stage thinker is there."""
        if "omni" not in self.stages:
            return None
        folder = self.final("omni")
        ears = store.load(folder / "hearing", self.device) if (folder / "hearing").is_dir() else None
        projectors = store.load(folder / "projectors", self.device)
        omni = Omni(self.thinker, self._eyes(folder), ears, projectors, self.tokenizer.special_tokens).eval()
        finite.came_from(omni, folder)
        return omni

    def _eyes(self, folder: Path) -> VisionTower | None:
        dtype = torch.float32 if self.precision == "fp32" else None
        if "vision" in self.bases:
            tower_reference, place = self._found["vision"]
            return pretrained.open_tower(
                place, device=self.device, dtype=dtype or tower_reference.dtype_on(self.device)
            )
        if not (folder / "vision").is_dir():
            return None
        return pretrained.open_tower(
            folder / "vision", device=self.device, dtype=dtype or reference.as_stored(self.device)
        )

    def _omni_json(self) -> dict[str, Any]:
        path = self.final("omni") / folders.OMNI
        try:
            content = files.read_json(path)
            if not isinstance(content, dict):
                raise ValueError(f"expected an object, got {type(content).__name__}")
            return content
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected how media become tokens, got {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def media(self) -> tuple[MediaSpec | None, dict[str, str]]:
        """How media become tokens, and what is asked of a medium that comes without words."""
        if "omni" not in self.stages:
            return None, {}
        content = self._omni_json()
        try:
            media = dict(content["media"])
            return MediaSpec(**{**media, "mel": MelSpec.model_validate(media["mel"])}), dict(
                content.get("prompts", {})
            )
        except (ValueError, KeyError, TypeError) as error:
            path = self.stages["omni"] / folders.OMNI
            raise CheckpointError(
                f"{path}: expected how media become tokens, got {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def reader(self) -> Decoder:
        """The Thinker as stage vision read captions through it, before omni tuned it."""
        return Decoder.open(self.stage("thinker", ability="embed texts")[1], self.device)

    @cached_property
    def hearing(self) -> AudioEncoder:
        """The ears with their CTC head."""
        model = store.load(self.hearing_folder, self.device)
        assert isinstance(model, AudioEncoder)
        return model

    @cached_property
    def hearing_folder(self) -> Path:
        """Stage hearing's, or the ears that stage omni listens through: they are the same."""
        if (
            "hearing" not in self.stages
            and "omni" in self.stages
            and (self.stages["omni"] / "hearing").is_dir()
        ):
            return self.final("omni") / "hearing"
        return self.stage("hearing", ability="transcribe")[1]

    @cached_property
    def hearing_pad_s(self) -> float:
        """Silence that the ears were trained to expect on both sides of a sound."""
        return float(store.extra_of(self.hearing_folder).get("pad_s", PAD_S))

    @cached_property
    def char_lm(self) -> CharLM | None:
        """The character model that a beam search listens to, where stage hearing left one."""
        path = self.hearing_folder / "char_lm.json"
        return CharLM.load(path) if path.is_file() else None

    @cached_property
    def vision(self) -> tuple[VisionEncoder, TextTower, Tokenizer]:
        """The eyes, the tower that embeds texts beside them, and its tokenizer."""
        folder = self.stage("vision", ability="embed pictures or texts")[1]
        return (
            store.load(folder, self.device),
            store.load(folder / "text_tower", self.device),
            Tokenizer.load(folder),
        )

    @cached_property
    def voice(self) -> Voice:
        """The Talker and its codec."""
        folder = self.stage("talker", ability="speak")[1]
        talker = store.load(folder, self.device)
        codec = folder / "codec" if (folder / "codec").is_dir() else self.stage("codec", ability="speak")[1]
        tokenizer = Tokenizer.load(folder) if talker.config.text_units == "bpe" else None
        talker.compute_in(self.number_format(talker.config.width, by_steps=True))
        think = self._think(folder) if talker.config.condition_width else None
        names = store.extra_of(folder).get("voices", [])
        return Voice(talker, store.load(codec, self.device), tokenizer, think=think, names=names)

    @cached_property
    def writer(self) -> MediaWriter:
        """The token model with its codecs: it draws, and speaks where it has audio tokens."""
        folder = self.stage("rows", ability="draw, or speak by tokens")[1]
        dtype = self._writing_format(folder)
        model, tokenizer, note = rows.open_folder(folder, device=self.device, dtype=dtype)
        codecs = rows.open_codecs(folder, device=self.device)
        writing = {kind: MediaSampling(**how) for kind, how in note.writing.items()}
        tokens = UnifiedTokenizer(tokenizer, model.space, codecs)
        return MediaWriter(model, tokens, note.longest, writing, note.drop_prompts, note.reads)

    def _writing_format(self, folder: Path) -> torch.dtype:
        """The format of a token model's base."""
        place = rows.base_of(folder)
        return self.number_format(int(store.read_config(place).get("hidden_size", 0)), by_steps=True)

    def _think(self, folder: Path) -> Think:
        """The states of the Thinker's layer that the Talker in `folder` was trained with."""
        return listen_to(Decoder.open(folder / "thinker", self.device), store.extra_of(folder).get("layer"))

    def stage(self, *names: str, ability: str) -> tuple[str, Path]:
        """The first of the wanted stages that is there, by name and folder."""
        name, _ = folders.require(self.stages, *names, ability=ability, where=self.where)
        return name, self.final(name)

    def final(self, name: str) -> Path:
        """The `final/` of a stage that is there, its files compared with its certificate when it is first
        opened.

        What has no certificate, or a red one, is opened all the same, and that is told in a line.
        Raises  CheckpointError where files are missing, extra or others.
        """
        folder = self.stages[name]
        if name not in self._checked:
            if caveat := integrity.unproven(folder):
                print(f"note: {folder}: {caveat}", file=sys.stderr, flush=True)
            self._checked.add(name)
        return folder
