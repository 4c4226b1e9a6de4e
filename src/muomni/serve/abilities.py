"""What the stages of a run let its server do, and what a client is told of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from muomni.errors import MuomniError
from muomni.infer.engine import Engine
from muomni.serve.errors import ApiError, invalid


@dataclass(frozen=True)
class Ability:
    """Something that a run can do. `stage`: the one that teaches it; `what`: said after "to"."""

    name: str
    stage: str
    what: str


CHAT = Ability("chat", "thinker", "answer in text")
SEE = Ability("images", "omni", "take in pictures")
HEAR = Ability("audio", "omni", "take in sounds in a conversation")
TRANSCRIBE = Ability("transcriptions", "hearing", "write down speech")
EMBED = Ability("embeddings", "vision", "embed texts and pictures")
SPEAK = Ability("speech", "talker", "speak")
DRAW = Ability("drawing", "mmpt", "draw")
DEFAULT_VOICE = "default"  # nobody's: the mean of all that the Talker learned
EVERY = (CHAT, SEE, HEAR, TRANSCRIBE, EMBED, SPEAK, DRAW)


class Abilities:
    """What this run can do. Making it opens every network that it will need, so that a torn one is found before
    the first request and none is read from disk later.

    Raises  CheckpointError for what is there and can't be opened.
    """

    def __init__(self, engine: Engine) -> None:
        self._have = frozenset(each.name for each in EVERY if OPENERS[each.name](engine))
        self.rate_hz = _rate_hz(engine) if self.can(TRANSCRIBE) else None
        self.voices = _voices(engine) if self.can(SPEAK) else ()
        self.missing = {each.name: each.stage for each in EVERY if not self.can(each)}

    def can(self, ability: Ability) -> bool:
        """Whether a stage of the run taught it."""
        return ability.name in self._have

    @property
    def names(self) -> list[str]:
        """What it can, by name."""
        return [each.name for each in EVERY if self.can(each)]

    @property
    def voice_names(self) -> list[str]:
        """What /v1/audio/speech takes as a voice; none where nothing speaks."""
        return [DEFAULT_VOICE, *self.voices] if self.can(SPEAK) else []

    def need(self, ability: Ability, *, param: str | None = None) -> None:
        """Raises  ApiError naming the stage that is missing: 404 for a route, 400 for a parameter of one."""
        if self.can(ability):
            return
        message = (
            f"this model can't {ability.what}: stage {ability.stage} is missing in the run that is served"
        )
        if param is None:
            raise ApiError(404, message, code="missing_stage")
        raise invalid(f"{param}: {message}", param=param, code="missing_stage")


def _chats(engine: Engine) -> bool:
    parts = engine.parts
    if not {"thinker", "omni"} & parts.stages.keys():
        return False
    _ = parts.tokenizer, parts.omni, parts.media
    return parts.thinker is not None


def _omni(part: str) -> Callable[[Engine], bool]:
    def has(engine: Engine) -> bool:
        omni = engine.parts.omni
        return omni is not None and getattr(omni, part, None) is not None

    return has


def _transcribes(engine: Engine) -> bool:
    parts = engine.parts
    if "hearing" not in parts.stages and not (
        "omni" in parts.stages and (parts.stages["omni"] / "hearing").is_dir()
    ):
        return False
    _ = parts.char_lm, parts.hearing_pad_s
    return parts.hearing is not None


def _embeds(engine: Engine) -> bool:
    if "vision" not in engine.parts.stages:
        return False
    _, tower, _ = engine.parts.vision
    if tower.config.kind != "thinker":
        return True
    return "thinker" in engine.parts.stages and engine.parts.reader is not None


def _speaks(engine: Engine) -> bool:
    stages = engine.parts.stages
    if "talker" in stages:
        if not (stages["talker"] / "codec").is_dir() and "codec" not in stages:
            return False
        return engine.parts.voice is not None
    return _writes(engine, "audio")


def _draws(engine: Engine) -> bool:
    return _writes(engine, "image")


def _writes(engine: Engine, kind: str) -> bool:
    if "rows" not in engine.parts.stages:
        return False
    try:
        engine.parts.writer.model.space.codec(kind)
    except MuomniError:
        return False
    return True


OPENERS: dict[str, Callable[[Engine], bool]] = {
    CHAT.name: _chats,
    SEE.name: _omni("vision"),
    HEAR.name: _omni("audio"),
    TRANSCRIBE.name: _transcribes,
    EMBED.name: _embeds,
    SPEAK.name: _speaks,
    DRAW.name: _draws,
}
"""By ability, whether a run has it; what it needs is opened."""


def _rate_hz(engine: Engine) -> int:
    return int(engine.parts.hearing.config.mel.rate_hz)


def _voices(engine: Engine) -> tuple[str, ...]:
    return engine.parts.voice.names if "talker" in engine.parts.stages else ()
