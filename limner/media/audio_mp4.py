"""MP4 and M4A (ISO/IEC 14496-12) with sound alone: boxes to the end of the file, and how long the track's samples last together."""

from collections.abc import Iterator
from dataclasses import dataclass

from limner.media.audio_parts import COMPRESSED, LOSSLESS, MAX_PARTS, Sound, big, milliseconds, refused

HOLDERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf"})
LOSSY = frozenset({b"mp4a", b"Opus", b"ac-3", b"ec-3", b".mp3"})
MAX_DEPTH = 10


@dataclass(slots=True)
class _Found:
    handlers: list[bytes]
    codec: bytes = b""
    scale: int = 0
    stated: int = 0
    listed: int = 0
    each: int = 0
    """What a sample lasts where its fragment does not say: of the whole track, then of the fragment."""
    fragment_each: int = 0
    bytes: int = 0
    parts: int = 0


def read(data: bytes) -> Sound:
    """Raises AudioRejected."""
    found = _Found([])
    _walk(found, data, 0, len(data), 0)
    if b"vide" in found.handlers:
        raise refused("it holds a video")
    if found.handlers.count(b"soun") != 1 or not found.scale or not found.bytes:
        raise refused("it is no MP4 file with one track of sound")
    lasts = max(found.stated, found.listed)
    return Sound(milliseconds(lasts, found.scale), found.bytes, COMPRESSED if found.codec in LOSSY else LOSSLESS)


def _walk(found: _Found, data: bytes, at: int, end: int, depth: int) -> None:
    for name, start, stop in _boxes(data, at, end):
        found.parts += 1
        if found.parts > MAX_PARTS or depth > MAX_DEPTH:
            raise refused("it has too many parts")
        if name in HOLDERS:
            _walk(found, data, start, stop, depth + 1)
        elif name == b"mdat":
            found.bytes += stop - start
        else:
            _note(found, name, data, start, stop)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and end of each. Raises AudioRejected where one passes what holds it."""
    while at < end:
        size, name, head = big(data, at, 4), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = big(data, at + 8, 8), 16
        elif size == 0:
            size = end - at
        if size < head or at + size > end or not name.strip(b"\0"):
            raise refused("it is cut short, or no MP4 file to its end")
        yield name, at + head, at + size
        at += size


def _note(found: _Found, name: bytes, data: bytes, at: int, end: int) -> None:
    if name == b"hdlr":
        found.handlers.append(data[at + 8 : at + 12])
    elif name == b"mdhd":
        wide = big(data, at, 1) == 1
        found.scale = big(data, at + (20 if wide else 12), 4)
        stated = big(data, at + (24 if wide else 16), 8 if wide else 4)
        found.stated = max(found.stated, 0 if stated == (1 << (64 if wide else 32)) - 1 else stated)
    elif name == b"stsd":
        found.codec = data[at + 12 : at + 16]
    elif name == b"stts":
        _add_listed(found, data, at, end)
    elif name == b"trex":
        found.each = big(data, at + 12, 4)
    elif name == b"tfhd":
        _begin_fragment(found, data, at)
    elif name == b"trun":
        _add_run(found, data, at, end)


def _add_listed(found: _Found, data: bytes, at: int, end: int) -> None:
    count = big(data, at + 4, 4)
    found.parts += count
    if found.parts > MAX_PARTS or at + 8 + count * 8 > end:
        raise refused("a list of it is longer than it can be")
    for entry in range(at + 8, at + 8 + count * 8, 8):
        found.listed += big(data, entry, 4) * big(data, entry + 4, 4)


def _begin_fragment(found: _Found, data: bytes, at: int) -> None:
    flags = big(data, at + 1, 3)
    place = at + 8 + (8 if flags & 1 else 0) + (4 if flags & 2 else 0)
    found.fragment_each = big(data, place, 4) if flags & 8 else found.each


def _add_run(found: _Found, data: bytes, at: int, end: int) -> None:
    flags, count = big(data, at + 1, 3), big(data, at + 4, 4)
    if not flags & 0x100:
        found.listed += count * found.fragment_each
        return
    step = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
    place = at + 8 + (4 if flags & 1 else 0) + (4 if flags & 4 else 0)
    found.parts += count
    if found.parts > MAX_PARTS or place + count * step > end:
        raise refused("a list of it is longer than it can be")
    for entry in range(place, place + count * step, step):
        found.listed += big(data, entry, 4)
