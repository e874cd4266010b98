"""Small files that would like a large machine."""

import random
import struct
import zlib

import pyvips

from tests.media.hostile import SAVERS, chunk, image


def png(
    width: int, height: int, rows: bytes | None = None, extra: bytes = b"", bits: int = 8, colour: int = 2
) -> bytes:
    """A PNG that states this size; its rows are empty unless given."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows or b"", 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def flat_png(width: int, height: int) -> bytes:
    """A whole PNG of one colour: a thousandth of what it unfolds to."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + width * 3)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation(frames: int, side: int) -> bytes:
    """A GIF of so many frames of one pixel each, on a screen of side × side."""
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = (
        b"\x21\xf9\x04\x04\x05\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    )
    return head + frame * frames + b"\x3b"


def lying_gif(width: int, height: int) -> bytes:
    data = SAVERS["gif"](image(random.Random(1)))
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def lying_jpeg(width: int, height: int) -> bytes:
    data = SAVERS["jpeg"](image(random.Random(1)))
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def lying_webp(width: int, height: int) -> bytes:
    head = (
        b"VP8X"
        + struct.pack("<I", 10)
        + b"\0\0\0\0"
        + struct.pack("<I", width - 1)[:3]
        + struct.pack("<I", height - 1)[:3]
    )
    body = SAVERS["webp"](image(random.Random(1)))[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(body)) + b"WEBP" + head + body


def lying_avif(width: int, height: int) -> bytes:
    data = SAVERS["avif"](image(random.Random(1), 64, 64))
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def text_bomb(mebibytes: int) -> bytes:
    """Compressed words and a compressed profile that unfold to so much each."""
    packed = zlib.compress(b"\0" * (mebibytes << 20), 9)
    extra = chunk(b"iCCP", b"p\0\0" + packed) + chunk(b"zTXt", b"Comment\0\0" + packed)
    rows = (b"\0" + b"\x80" * 8 * 3) * 8
    return png(8, 8, rows, extra)


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is a walk over the whole picture."""
    data = bytes(pyvips.Image.black(width, height, bands=3).copy(interpretation="srgb").jpegsave_buffer(interlace=True))
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


def all_of_them(count: int) -> list[tuple[str, bytes]]:
    """The first ten are one of each kind; beyond that the same with other sizes."""
    found: list[tuple[str, bytes]] = []
    for turn in range(-(-count // 10)):
        more = turn * 777
        found += [
            (f"png header {turn}", png(50_000 + more, 50_000)),
            (f"flat png {turn}", flat_png(7_000 + turn, 7_000)),
            (f"gif header {turn}", lying_gif(65_535 - more, 65_535)),
            (f"gif frames {turn}", animation(101 + turn, 8)),
            (f"gif frames times pixels {turn}", animation(100, 1_001 + turn)),
            (f"jpeg header {turn}", lying_jpeg(65_500 - more, 65_500)),
            (f"webp header {turn}", lying_webp(16_384 - turn, 16_384)),
            (f"avif header {turn}", lying_avif(20_000 + more, 20_000)),
            (f"png text and profile {turn}", text_bomb(100 + turn)),
            (f"jpeg scans {turn}", scans(3_000, 3_000 + turn, 3_000)),
        ]
    return found[:count]
