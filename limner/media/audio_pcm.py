"""WAV (RIFF WAVE, as by Microsoft and IBM) and FLAC (RFC 9639): formats whose headers say how many samples there are."""

from limner.media.audio_parts import LOSSLESS, Sound, big, little, milliseconds, refused

PCM = frozenset({0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE})
"""Samples of one size: whole numbers, floats, A-law, µ-law, and those of them in the extensible form."""
MAX_CHANNELS = 8
MAX_RATE = 768_000
MAX_CHUNKS = 1000
MAX_BLOCKS = 128


def read_wav(data: bytes) -> Sound:
    """Raises AudioRejected."""
    end = 8 + little(data, 4, 4)
    if not len(data) - 1 <= end <= len(data):
        raise refused("its size is not the one that it states")
    at, rate = 12, 0
    for _ in range(MAX_CHUNKS):
        name, size = data[at : at + 4], little(data, at + 4, 4)
        at += 8
        if at + size > end:
            raise refused("it is cut short")
        if name == b"fmt ":
            rate = _bytes_a_second(data, at)
        elif name == b"data":
            if not rate:
                raise refused("its sound comes before what says how to read it")
            return Sound(milliseconds(size, rate), size, LOSSLESS)
        at += size + size % 2
    raise refused("it has no sound")


def _bytes_a_second(data: bytes, at: int) -> int:
    kind, channels, rate = little(data, at, 2), little(data, at + 2, 2), little(data, at + 4, 4)
    block, bits = little(data, at + 12, 2), little(data, at + 14, 2)
    if kind not in PCM:
        raise refused("its samples are of a kind that is not taken")
    sound = 1 <= channels <= MAX_CHANNELS and 1000 <= rate <= MAX_RATE and bits in {8, 16, 24, 32, 64}
    if not sound or block != channels * bits // 8 or little(data, at + 8, 4) != rate * block:
        raise refused("what it says of its samples cannot be true")
    return rate * block


def read_flac(data: bytes) -> Sound:
    """Raises AudioRejected."""
    if big(data, 4, 1) & 0x7F or big(data, 5, 3) != 34:
        raise refused("it does not begin with what a FLAC file begins with")
    packed = big(data, 18, 8)
    rate, channels, bits, samples = (
        packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & (2**36 - 1),
    )  # fmt: skip
    if not 1000 <= rate <= MAX_RATE or not samples:
        raise refused("it does not say how long it is")
    at = 4
    for _ in range(MAX_BLOCKS):
        last, size = big(data, at, 1) & 0x80, big(data, at + 1, 3)
        at += 4 + size
        if last:
            break
    else:
        raise refused("it has no sound")
    if big(data, at, 2) & 0xFFFE != 0xFFF8:
        raise refused("its sound does not begin where it should")
    shortest = samples // 65_535 * 10  # a frame has no more samples, and its frame of bytes no fewer bytes
    if len(data) - at < shortest:
        raise refused("it is cut short")
    return Sound(milliseconds(samples, rate), len(data) - at, rate * channels * (bits + 2))
