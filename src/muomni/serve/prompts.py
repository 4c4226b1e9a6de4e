"""Messages of a request -> turns with their media decoded -> a prompt of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from muomni.data import conversation
from muomni.data.sample import TextPart
from muomni.errors import MuomniError
from muomni.infer.prompt import Medium, Prompt, Request, Turn
from muomni.serve import errors, media
from muomni.serve.abilities import CHAT, HEAR, SEE
from muomni.serve.errors import invalid
from muomni.serve.schemas import chat
from muomni.serve.server import Server

Read = Callable[[], TextPart | Medium]
Role = Literal["system", "user", "assistant"]


class Turns:
    """A conversation as it is gathered: what must be decoded waits as a function, so that limits on how much there may
    be are looked at first."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._turns: list[tuple[Role, list[Read]]] = []
        self._media = 0

    def open(self, role: Role) -> None:
        """Begin a turn."""
        self._turns.append((role, []))

    def text(self, text: str) -> None:
        """Words of the turn."""
        self._add(lambda: TextPart(text=text))

    def picture(self, url: str, param: str) -> None:
        """A picture of the turn, as a `data:` URL.

        Raises  ApiError where the run has no eyes.
        """
        self.server.abilities.need(SEE, param=param)
        self._count(param)
        self._add(lambda: Medium("image", media.picture(url, self.server.limits, param)))

    def sound(self, data: str, param: str) -> None:
        """A sound of the turn, in base64.

        Raises  ApiError where the run has no ears.
        """
        self.server.abilities.need(HEAR, param=param)
        self._count(param)
        spec, _ = self.server.engine.parts.media
        assert spec is not None
        rate_hz = spec.mel.rate_hz
        self._add(lambda: Medium("audio", (media.sound(data, rate_hz, self.server.limits, param), rate_hz)))

    async def prompt(self, param: str = "messages") -> Prompt:
        """All of it, read and rendered.

        Raises  ApiError: media that can't be used, a conversation that does not end with the user's turn or does not fit.
        """
        self.server.abilities.need(CHAT)
        if not self._turns or self._turns[-1][0] != "user":
            raise invalid(f"{param}: the last one must be the user's: it is what is answered", param=param)
        return await self.server.decode(self._built, param)

    def _built(self, param: str) -> Prompt:
        turns = [Turn(role, [read() for read in parts]) for role, parts in self._turns]
        try:
            return self.server.engine.prepare(Request(turns), cut=False)
        except MuomniError as error:
            raise errors.of(error, param=param) from error

    def _add(self, read: Read) -> None:
        self._turns[-1][1].append(read)

    def _count(self, param: str) -> None:
        self._media += 1
        if self._media > (most := self.server.limits.media):
            raise invalid(f"{param}: at most {most} pictures and sounds a request", param=param)


def of_chat(server: Server, messages: Sequence[chat.Message]) -> Turns:
    """The turns of /v1/chat/completions."""
    turns = Turns(server)
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        turns.open("system" if message.role == "developer" else message.role)
        if isinstance(message, chat.AssistantMessage) and message.audio is not None:
            turns.text(_said(server, message.audio.id, f"{place}.audio.id"))
        elif isinstance(message.content, str):
            turns.text(message.content)
        elif message.content is None:
            raise invalid(f"{place}.content: expected words", param=f"{place}.content")
        else:
            for index, part in enumerate(message.content):
                at = f"{place}.content.{index}"
                if isinstance(part, chat.TextPart):
                    turns.text(part.text)
                elif isinstance(part, chat.ImagePart):
                    turns.picture(part.image_url.url, f"{at}.image_url.url")
                else:
                    turns.sound(part.input_audio.data, f"{at}.input_audio.data")
    return turns


def _said(server: Server, name: str, param: str) -> str:
    text = server.spoken.text(name)
    if text is None:
        message = f"{param}: no spoken answer {name!r} here: it is kept for an hour, until the server ends"
        raise invalid(message, param=param, code="audio_not_found")
    return text


def positions(server: Server, prompt: Prompt) -> dict[str, int]:
    """How many positions the media of a prompt fill, by modality."""
    spec, _ = server.engine.parts.media
    if spec is None or not prompt.media:
        return {}
    counts = conversation.positions(prompt.media, spec, "request")
    return {kind: sum(filled) for kind, filled in counts.items()}
