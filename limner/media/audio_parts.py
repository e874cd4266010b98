"""What the readers of recordings share: what they find, and how they refuse."""

import math
from dataclasses import dataclass

from limner.media.sniffing import MediaRejected

COMPRESSED = 1_500_000
"""Bits a second that no lossy format passes."""
LOSSLESS = 40_000_000
"""Bits a second of eight channels at 192 kHz in 24 bits, and some."""


MAX_PARTS = 600_000
"""Frames, packets, blocks: three hours have 540,000 of 20 ms. Walking through as many takes a second or two; a file may hold millions."""


class AudioRejected(MediaRejected):
    """A recording: unsupported_media, audio_too_large, audio_too_long."""


@dataclass(frozen=True, slots=True)
class Sound:
    """How long it lasts by its own parts, how many bytes of it are sound, and how many bits a second can be that at most."""

    duration_ms: int
    bytes: int
    max_bit_rate: int

    @property
    def seconds(self) -> int:
        return math.ceil(self.duration_ms / 1000)


def refused(why: str) -> AudioRejected:
    """Not a whole recording of a format that is taken."""
    return AudioRejected("unsupported_media", f"The recording cannot be used: {why}.")


def milliseconds(samples: int, rate: int) -> int:
    """Rounded up."""
    return -(-samples * 1000 // rate)


def big(data: bytes, at: int, size: int) -> int:
    """A number of `size` bytes, the highest first. Raises AudioRejected where the file ends before it."""
    if at < 0 or at + size > len(data):
        raise refused("it is cut short")
    return int.from_bytes(data[at : at + size], "big")


def little(data: bytes, at: int, size: int) -> int:
    """A number of `size` bytes, the lowest first. Raises AudioRejected where the file ends before it."""
    if at < 0 or at + size > len(data):
        raise refused("it is cut short")
    return int.from_bytes(data[at : at + size], "little")
