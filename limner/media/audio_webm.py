"""WebM (Matroska, RFC 9559, in EBML, RFC 8794) with sound alone, element after element to the end of the file.

Recorders in browsers write neither a duration nor the sizes of what holds other elements: those are stepped into, so that their sizes
are not needed, and the times of the blocks say how long it lasts.
"""

import math
import struct
from dataclasses import dataclass

from limner.media.audio_ogg import OPUS_RATE, opus_samples
from limner.media.audio_parts import COMPRESSED, MAX_PARTS, Sound, big, refused

EBML, DOC_TYPE = 0x1A45DFA3, 0x4282
SEGMENT, INFO, TRACKS, TRACK, CLUSTER, GROUP = 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0x1F43B675, 0xA0
SCALE, DURATION, TRACK_TYPE, CODEC, TIME, SIMPLE, BLOCK, LASTS = 0x2AD7B1, 0x4489, 0x83, 0x86, 0xE7, 0xA3, 0xA1, 0x9B
HOLDERS = frozenset({EBML, SEGMENT, INFO, TRACKS, TRACK, CLUSTER, GROUP})
AUDIO = 2
CODECS = frozenset({b"A_OPUS", b"A_VORBIS"})
BLOCK_MS = 60.0
"""How long a last block is taken to last where nothing says it."""


@dataclass(slots=True)
class _Found:
    doc_type: bytes = b""
    scale_ns: int = 1_000_000
    stated: float = 0.0
    tracks: int = 0
    codec: bytes = b""
    cluster: int = 0
    end_ms: float = 0.0
    bytes: int = 0


def read(data: bytes) -> Sound:
    """Raises AudioRejected."""
    found, at = _Found(), 0
    for _ in range(MAX_PARTS):
        if at == len(data):
            break
        name, at = _name(data, at)
        size, at = _size(data, at)
        if size is not None and at + size > len(data):
            raise refused("it is cut short")
        if name in HOLDERS:
            continue
        if size is None:
            raise refused("a part of it has no end")
        _note(found, name, data, at, size)
        at += size
    else:
        raise refused("it has too many parts")
    if found.doc_type != b"webm" or found.tracks != 1 or found.codec not in CODECS:
        raise refused("it is no WebM file with one track of Opus or Vorbis")
    stated_ms = found.stated * found.scale_ns / 1e6
    return Sound(math.ceil(max(found.end_ms, stated_ms)), found.bytes, COMPRESSED)


def _note(found: _Found, name: int, data: bytes, at: int, size: int) -> None:
    if name in {SIMPLE, BLOCK}:
        found.end_ms = max(found.end_ms, _end_ms(found, data, at, size))
        found.bytes += size
    elif name == TIME:
        found.cluster = _number(data, at, size)
    elif name == LASTS:
        found.end_ms += min(_number(data, at, size) * found.scale_ns / 1e6, BLOCK_MS)
    elif name == DOC_TYPE:
        found.doc_type = data[at : at + size].rstrip(b"\0")
    elif name == SCALE:
        found.scale_ns = _number(data, at, size)
        if not 1000 <= found.scale_ns <= 1_000_000_000:
            raise refused("its times are of no use")
    elif name == DURATION:
        found.stated = _float(data, at, size)
    elif name == TRACK_TYPE:
        found.tracks += 1
        if _number(data, at, size) != AUDIO:
            raise refused("it holds a video")
    elif name == CODEC:
        found.codec = data[at : at + size].rstrip(b"\0")


def _end_ms(found: _Found, data: bytes, at: int, size: int) -> float:
    """When a block ends: its track, a time against its cluster's, flags, and what is in it."""
    _, content = _size(data, at)
    offset = big(data, content, 2)
    offset -= 0x10000 if offset >= 0x8000 else 0
    if content + 4 > at + size or offset + found.cluster < 0:
        raise refused("a part of it is cut short")
    begins_ms = (found.cluster + offset) * found.scale_ns / 1e6
    if found.codec == b"A_OPUS" and content + 3 < at + size:
        return begins_ms + opus_samples(data, content + 3) / OPUS_RATE * 1000
    return begins_ms + BLOCK_MS


def _name(data: bytes, at: int) -> tuple[int, int]:
    """An element's name with its marker, of one to four bytes, and where it ends."""
    length = 9 - big(data, at, 1).bit_length()
    if length > 4:
        raise refused("it is no WebM file to its end")
    return big(data, at, length), at + length


def _size(data: bytes, at: int) -> tuple[int | None, int]:
    """A size of one to eight bytes without its marker, None for the unknown one, and where it ends."""
    length = 9 - big(data, at, 1).bit_length()
    if length > 8:
        raise refused("it is no WebM file to its end")
    most = (1 << 7 * length) - 1
    value = big(data, at, length) & most
    return (None if value == most else value), at + length


def _number(data: bytes, at: int, size: int) -> int:
    if size > 8:
        raise refused("a number of it is too long")
    return int.from_bytes(data[at : at + size], "big")


def _float(data: bytes, at: int, size: int) -> float:
    if size not in {4, 8}:
        raise refused("its duration is no number")
    (value,) = struct.unpack(">f" if size == 4 else ">d", data[at : at + size])
    if not math.isfinite(value) or value < 0:
        raise refused("its duration is no number")
    return float(value)
