"""Recordings: told by their first bytes, walked from end to end, and measured; never decoded, and never a name or a type believed.

A file is taken where its container is whole, holds sound alone, and nothing else besides: what would be a page, a program or an
archive to another reader is refused. How long it lasts is what its container says of its own parts, as long as so many bytes can be so
short. Imports nothing heavy; runs in child processes (`kit.cpu`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limner.kit.cpu import CpuError, CpuPool
from limner.media import audio_mp4, audio_mpeg, audio_ogg, audio_pcm, audio_webm, sniffing
from limner.media.audio_parts import AudioRejected, Sound, refused

if TYPE_CHECKING:
    from limner.settings import Settings

LOOKED_AT = 4096
TAIL = 65_557
"""In which the end of a ZIP archive lies: its own 22 bytes and a comment."""
PAGES = (b"<html", b"<script", b"<!doctype", b"<svg", b"<?php", b"%pdf-", b"<iframe", b"<body")
MAGIC = (
    (b"fLaC", "audio/flac"), (b"OggS", "audio/ogg"), (b"\x1a\x45\xdf\xa3", "audio/webm"), (b"ID3", "audio/mpeg"),
)  # fmt: skip
EXTENSIONS = {
    "audio/mpeg": "mp3", "audio/wav": "wav", "audio/flac": "flac", "audio/ogg": "ogg", "audio/webm": "webm", "audio/mp4": "m4a",
}  # fmt: skip
"""The formats that are taken, and what a file of each is called."""
READERS: dict[str, Callable[[bytes], Sound]] = {
    "audio/mpeg": audio_mpeg.read, "audio/wav": audio_pcm.read_wav, "audio/flac": audio_pcm.read_flac, "audio/ogg": audio_ogg.read,
    "audio/webm": audio_webm.read, "audio/mp4": audio_mp4.read,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Of one recording: bytes, and seconds."""

    max_bytes: int
    max_s: int

    @classmethod
    def of(cls, settings: "Settings") -> "AudioLimits":
        return cls(settings.max_audio_bytes, settings.max_audio_s)


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """A recording whose container is whole."""

    media_type: str
    duration_ms: int

    @property
    def seconds(self) -> int:
        """Seconds that have begun: what is sold by time is counted in them."""
        return math.ceil(self.duration_ms / 1000)


class Recordings:
    """Measures recordings in child processes."""

    def __init__(self, pool: CpuPool, limits: AudioLimits) -> None:
        self._pool = pool
        self.limits = limits

    async def measure(self, data: bytes) -> AudioFacts:
        """Raises AudioRejected: unsupported_media, audio_too_large, audio_too_long."""
        if len(data) > self.limits.max_bytes:
            raise too_large(self.limits)
        if sniff(data) is None:
            raise _unsupported(data)
        try:
            facts: AudioFacts = await self._pool.run("limner.media.audio:measure", data, self.limits.max_s)
        except CpuError as error:
            raise AudioRejected("unsupported_media", f"The recording cannot be read within limits ({error}).") from None
        return facts


def too_large(limits: AudioLimits) -> AudioRejected:
    """The refusal of more bytes than are taken."""
    return AudioRejected("audio_too_large", f"A recording has at most {limits.max_bytes} bytes.")


def sniff(data: bytes) -> str | None:
    """The media type of one of the six formats by its first bytes, or None for everything else."""
    if data[:4] == b"RIFF":
        return "audio/wav" if data[8:12] == b"WAVE" else None
    for magic, media_type in MAGIC:
        if data.startswith(magic):
            return media_type
    if data[4:8] == b"ftyp":
        return "audio/mp4" if sniffing.sniff(data) is None else None
    return None if audio_mpeg.frame_at(data, 0) is None else "audio/mpeg"


def measure(data: bytes, max_s: int) -> AudioFacts:
    """What the recording is, and how long it lasts. Raises AudioRejected."""
    media_type = sniff(data)
    if media_type is None:
        raise _unsupported(data)
    if _is_something_else_too(data):
        raise refused("the file is a page, a document or an archive as well")
    sound = READERS[media_type](data)
    if sound.duration_ms > max_s * 1000:
        raise AudioRejected("audio_too_long", f"A recording lasts at most {max_s} s; this one says {sound.seconds} s.")
    if sound.duration_ms <= 0:
        raise refused("there is no sound in it")
    if sound.bytes * 8 > sound.max_bit_rate * (sound.duration_ms / 1000 + 1):
        raise refused("so many bytes cannot be so short a recording as the file says")
    return AudioFacts(media_type, sound.duration_ms)


def _unsupported(data: bytes) -> AudioRejected:
    seen = "a picture" if sniffing.sniff(data) else sniffing.foreign(data)
    accepted = "Only MP3, WAV, FLAC, Ogg, WebM and MP4 (M4A) recordings are accepted"
    return AudioRejected("unsupported_media", f"{accepted}; this is {seen}." if seen else f"{accepted}.")


def _is_something_else_too(data: bytes) -> bool:
    head = data[:LOOKED_AT].replace(b"\0", b"").lower()
    if any(page in head for page in PAGES):
        return True
    tail = data[-TAIL:]
    at = tail.rfind(b"PK\x05\x06")
    return at >= 0 and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)
