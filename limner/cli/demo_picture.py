"""The demo's photograph, and a mask that fits it. Pixels stay in a CPU child; the mask is written by zlib alone.

The shipped picture is NASA's portrait of the astronaut Eileen Collins (public domain), as scikit-image
distributes it (`skimage.data.astronaut`).
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.kit.cpu import CpuError, CpuPool
from limner.media.sniffing import ImageFacts, ImageRejected, sniff
from limner.settings import Settings

SHIPPED = Path(__file__).parents[1] / "demo" / "astronaut.png"
SHIPPED_NOTE = "NASA's portrait of astronaut Eileen Collins, public domain"


@dataclass(frozen=True, slots=True)
class Ellipse:
    """Centre and radii as shares of the picture's width and height; a `power` above 2 fills its corners."""

    x: float
    y: float
    rx: float
    ry: float
    power: int = 2


SHIPPED_HOLES = (Ellipse(0.334, 0.753, 0.093, 0.093), Ellipse(0.594, 0.698, 0.056, 0.044, power=4))
"""The mission patch and the name tag on the suit."""

ANY_HOLES = (Ellipse(0.5, 0.72, 0.07, 0.07),)


class PictureRefused(Exception):
    """The picture cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A photograph that decodes, with its size as displayed."""

    path: Path
    data: bytes
    facts: ImageFacts
    holes: Sequence[Ellipse]
    note: str | None


async def read(path: Path | None, settings: Settings) -> Picture:
    """The picture at `path`, or the shipped one. Raises PictureRefused."""
    source = path or SHIPPED
    try:
        size = source.stat().st_size
        if source.is_dir():
            raise PictureRefused(f"{source} is a folder, not a picture")
        if size > settings.max_image_bytes:
            raise PictureRefused(
                f"{source} has {size:,} bytes; the API takes pictures of at most {settings.max_image_bytes:,}"
            )
        data = source.read_bytes()
    except OSError as error:
        raise PictureRefused(f"{source} cannot be read: {error.strerror or error}") from None
    if sniff(data) is None:
        raise PictureRefused(f"{source} is not a PNG, JPEG, WebP, GIF or AVIF picture")
    pool = CpuPool(1, settings.cpu_memory_bytes, settings.cpu_time_limit_s)
    try:
        facts = await pool.run("limner.media.images:inspect", data, settings.max_image_pixels, settings.max_image_side)
    except (ImageRejected, CpuError) as error:
        raise PictureRefused(f"{source}: {error}") from None
    finally:
        await pool.aclose()
    shipped = path is None
    return Picture(source, data, facts, SHIPPED_HOLES if shipped else ANY_HOLES, SHIPPED_NOTE if shipped else None)


def data_uri(media_type: str, data: bytes) -> str:
    """RFC 2397."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def mask(width: int, height: int, holes: Sequence[Ellipse]) -> bytes:
    """A PNG of `width` by `height` pixels, opaque but for the ellipses: what is transparent is to be replaced.

    Grey and alpha, 8 bits each (PNG 3rd edition, colour type 4), a row at a time, so that 40 megapixels need no memory.
    """
    packer = zlib.compressobj(1)
    opaque = b"\0" + b"\xff" * (2 * width)
    packed = bytearray()
    for y in range(height):
        row = bytearray(opaque)
        for hole in holes:
            distance = ((y + 0.5) / height - hole.y) / hole.ry
            if abs(distance) < 1:
                reach = hole.rx * (1 - abs(distance) ** hole.power) ** (1 / hole.power)
                left = max(round((hole.x - reach) * width), 0)
                right = min(round((hole.x + reach) * width), width)
                row[1 + 2 * left : 1 + 2 * right] = bytes(2 * max(right - left, 0))
        packed += packer.compress(row)
    packed += packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", bytes(packed)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
