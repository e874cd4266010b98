"""Ogg (RFC 3533) with one stream of Opus (RFC 7845) or Vorbis: page after page to the end of the file."""

from collections.abc import Iterator
from dataclasses import dataclass

from limner.media.audio_parts import COMPRESSED, MAX_PARTS, Sound, little, milliseconds, refused

OPUS_RATE = 48_000
FIRST, LAST, GOES_ON = 0x02, 0x04, 0x01
NO_POSITION = 2**64 - 1
_SILK, _HYBRID, _CELT = (480, 960, 1920, 2880), (480, 960), (120, 240, 480, 960)


@dataclass(frozen=True, slots=True)
class Page:
    """`position`: samples up to its end. `starts`: where packets begin in it."""

    flags: int
    position: int
    serial: int
    body: int
    starts: tuple[int, ...]


def read(data: bytes) -> Sound:
    """Raises AudioRejected."""
    pages = _pages(data)
    head = next(pages)
    if not head.flags & FIRST:
        raise refused("its beginning is missing")
    if data[head.body : head.body + 8] == b"OpusHead":
        rate, skipped, counts = OPUS_RATE, little(data, head.body + 10, 2), True
    elif data[head.body : head.body + 7] == b"\x01vorbis":
        rate, skipped, counts = little(data, head.body + 12, 4), 0, False
    else:
        raise refused("it holds neither Opus nor Vorbis")
    if not 1000 <= rate <= 768_000:
        raise refused("what it says of its samples cannot be true")
    samples = packets = position = 0
    last = head
    for page in pages:
        if page.serial != head.serial or page.flags & FIRST:
            raise refused("it holds more than one stream")
        for start in page.starts:
            packets += 1
            samples += opus_samples(data, start) if counts and packets > 1 else 0  # the first is the comment
        if packets > MAX_PARTS:
            raise refused("it has too many parts")
        position = page.position if page.position != NO_POSITION else position
        last = page
    if not last.flags & LAST:
        raise refused("its end is missing")
    played = max(samples - skipped, 0) if counts else position
    return Sound(milliseconds(played, rate), len(data), COMPRESSED)


def opus_samples(data: bytes, at: int) -> int:
    """How many samples of 1/48,000 s an Opus packet that begins here makes (RFC 6716, 3.1). Raises AudioRejected."""
    toc = little(data, at, 1)
    config, code = toc >> 3, toc & 3
    frame = _SILK[config & 3] if config < 12 else _HYBRID[config & 1] if config < 16 else _CELT[config & 3]
    count = (1, 2, 2)[code] if code < 3 else little(data, at + 1, 1) & 63
    if frame * count > 5760:
        raise refused("a packet of it is longer than packets are")
    return frame * count


def _pages(data: bytes) -> Iterator[Page]:
    at = 0
    for _ in range(MAX_PARTS):
        if data[at : at + 4] != b"OggS" or little(data, at + 4, 1) != 0:
            raise refused("it is no Ogg file to its end")
        flags, count = little(data, at + 5, 1), little(data, at + 26, 1)
        table = data[at + 27 : at + 27 + count]
        body = at + 27 + count
        if len(table) < count or body + sum(table) > len(data):
            raise refused("it is cut short")
        starts: list[int] = []
        where, begins = body, not flags & GOES_ON
        for size in table:
            if begins and size:
                starts.append(where)
            where += size
            begins = size < 255
        yield Page(flags, little(data, at + 6, 8), little(data, at + 14, 4), body, tuple(starts))
        at = where
        if at == len(data):
            return
    raise refused("it has too many pages")
