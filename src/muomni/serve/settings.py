"""What a server is told: where it listens, who may ask, and how much one request may hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

CHARACTERS_SPOKEN = 4096  # the official API's limit of one speech
MOST_TEXTS = 2048  # the official API's limit of one request for embeddings
MOST_CHOICES = 16
MOST_IMAGES = 10


@dataclass(frozen=True)
class Limits:
    """How much one request may hold, and how long it may take to come and to be fetched.

    body_bytes     of a request, a recording or a picture in it included
    pixels         of one picture, by its header
    media          pictures and sounds of one request
    sound_s        seconds of one sound
    receive_s      until the whole request is there
    stall_s        that an answer may wait for its reader
    decoders       requests whose pictures and sounds are decoded at the same time
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 25_000_000
    media: int = 32
    sound_s: float = 300.0
    receive_s: float = 60.0
    stall_s: float = 60.0
    decoders: int = 2


@dataclass(frozen=True)
class ServeSettings:
    """One server. `api_key` None: everybody who reaches it may ask; `origins`: pages of these may ask too
    (CORS)."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    name: str | None = None
    drain_s: float = 30.0
    limits: Limits = field(default_factory=Limits)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
