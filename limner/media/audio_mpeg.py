"""MP3 and its kin (ISO/IEC 11172-3, 13818-3): frame after frame to the end of the file, tags at both ends passed over."""

from dataclasses import dataclass

from limner.media.audio_parts import COMPRESSED, MAX_PARTS, Sound, big, little, milliseconds, refused

RATES = ((11_025, 12_000, 8_000), (), (22_050, 24_000, 16_000), (44_100, 48_000, 32_000))
"""Samples a second, by the two bits of the version: 2.5, none, 2, 1."""
_V1L1 = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448)
_V1L2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_V1L3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_V2L1 = (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_V2L23 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MAX_TAGS = 2
MAX_PADDING = 64 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """Its bytes, header and all, its samples, and how many of them are a second."""

    size: int
    samples: int
    rate: int


def frame_at(data: bytes, at: int) -> Frame | None:
    """The frame that begins here, as its header of four bytes says, or None."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    bits, speed = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or layer == 4 or not 1 <= bits <= 14 or speed == 3:
        return None
    rate = RATES[version][speed]
    full = version == 3
    table = (_V1L1, _V1L2, _V1L3)[layer - 1] if full else (_V2L1 if layer == 1 else _V2L23)
    bit_rate, padding = table[bits - 1] * 1000, data[at + 2] >> 1 & 1
    if layer == 1:
        return Frame((12 * bit_rate // rate + padding) * 4, 384, rate)
    samples = 1152 if layer == 2 or full else 576
    return Frame(samples // 8 * bit_rate // rate + padding, samples, rate)


def read(data: bytes) -> Sound:
    """Raises AudioRejected."""
    start = at = _after_tags(data)
    first = frame_at(data, at)
    if first is None:
        raise refused("no sound follows its tag")
    samples = frames = 0
    while (frame := frame_at(data, at)) is not None and frame.rate == first.rate:
        samples += frame.samples
        at += frame.size
        frames += 1
        if frames > MAX_PARTS:
            raise refused("it has too many parts")
    if at > len(data):  # the last one was cut off, as recorders do
        samples, at = samples - first.samples, len(data)
    if not _is_end(data[at:]):
        raise refused("something else follows the sound")
    return Sound(milliseconds(samples, first.rate), at - start, COMPRESSED)


def _after_tags(data: bytes) -> int:
    """Where ID3v2 tags end, each as long as it says. Raises AudioRejected for one that passes the file's end."""
    at = 0
    for _ in range(MAX_TAGS):
        if data[at : at + 3] != b"ID3":
            return at
        packed = big(data, at + 6, 4)
        if packed & 0x80808080 or data[at + 3] not in {2, 3, 4}:
            raise refused("its tag is none")
        size = packed >> 24 << 21 | (packed >> 16 & 127) << 14 | (packed >> 8 & 127) << 7 | packed & 127
        at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
        if at >= len(data):
            raise refused("its tag is longer than the file")
    if data[at : at + 3] == b"ID3":
        raise refused("it has more tags than any player needs")
    padding = len(data) - at - len(data[at : at + MAX_PADDING].lstrip(b"\0")) if data[at : at + 1] == b"\0" else 0
    return at + min(padding, MAX_PADDING) if padding > 0 else at


def _is_end(rest: bytes) -> bool:
    """Nothing, padding, or one of the tags that players write to the end of a file."""
    if rest[-128:-125] == b"TAG":
        rest = rest[:-128]
    if rest[:8] == b"APETAGEX":
        size = little(rest, 12, 4) + (32 if little(rest, 20, 4) & 0x80000000 else 0)
        rest = rest[size:]
    return len(rest) <= MAX_PADDING and not rest.strip(b"\0")
