"""What a picture is before anything decodes it: magic bytes, header sizes, and the shapes the CPU children
answer with.

Nothing heavy is imported here, so every process may use it; `media.images` decodes, in the children only. The
first bytes decide, never a file name or a client's Content-Type (WHATWG MIME Sniffing, section 6.1).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limner.settings import Settings

MAX_PIXELS = 40_000_000
MAX_AVIF_PIXELS = 16_000_000  # AV1 decoding costs several times as much memory a pixel as the others
MAX_SIDE = 16_384
MAX_FRAMES = 100
MAX_FRAME_PIXELS = 100_000_000  # of all frames together
MAX_BYTES = 20 * 1024 * 1024

JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # DHT, JPG and DAC lie in the range of the SOFs
JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and RSTn carry no length


# What else people send, by its first bytes, so that a refusal can say what it was. Not complete, and nothing depends on it.
FOREIGN = (
    (b"%PDF-", "a PDF document"), (b"PK\x03\x04", "a ZIP archive"), (b"PK\x05\x06", "a ZIP archive"), (b"\x1f\x8b", "a gzip file"),
    (b"II*\x00", "a TIFF picture"), (b"MM\x00*", "a TIFF picture"), (b"BM", "a BMP picture"), (b"8BPS", "a Photoshop document"),
    (b"Rar!", "a RAR archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"\x7fELF", "a program"), (b"MZ", "a program"),
    (b"%!PS", "a PostScript document"), (b"ID3", "an audio file"), (b"OggS", "an audio file"), (b"\x00\x00\x01\x00", "an icon"),
    (b"\x1a\x45\xdf\xa3", "a video"), (b"SIMPLE  =", "a FITS picture"),
)  # fmt: skip
SCANNED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Of one picture: bytes as it comes and as it is stored, pixels and pixels a side after decoding."""

    max_bytes: int
    max_pixels: int
    max_side: int

    @classmethod
    def of(cls, settings: "Settings") -> "ImageLimits":
        return cls(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side)


class MediaRejected(Exception):
    """A file that is not taken, for a reason its sender can act on. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that pickle can rebuild it in the parent
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class ImageRejected(MediaRejected):
    """A picture: unsupported_media, image_too_large or unreadable_image here; the local provider adds its own codes."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """A picture that decoded without error. Sizes in pixels as displayed, that is, after EXIF orientation."""

    media_type: str
    width: int
    height: int
    has_alpha: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """A fresh file: its bytes, size in pixels, and the lower-case hex SHA-256 of the bytes."""

    data: bytes
    media_type: str
    width: int
    height: int
    sha256: str


def sniff(data: bytes) -> str | None:
    """The media type of one of the five accepted formats by its magic bytes, or None for everything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp" and _has_avif_brand(data):
        return "image/avif"
    return None


def unsupported(data: bytes) -> ImageRejected:
    """The refusal of what is none of the five formats; it says what it seems to be instead."""
    accepted = "Only PNG, JPEG, WebP, GIF and AVIF pictures are accepted"
    seen = foreign(data)
    return ImageRejected("unsupported_media", f"{accepted}; this is {seen}." if seen else f"{accepted}.")


def foreign(data: bytes) -> str | None:
    """What a file that is no picture seems to be, in words, or None."""
    if data[4:8] == b"ftyp":
        return "a HEIC picture" if data[8:12] in {b"heic", b"heix", b"mif1", b"msf1"} else "a video"
    for magic, words in FOREIGN:
        if data.startswith(magic):
            return words
    start = data[:SCANNED_BYTES].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").lower()
    if b"<svg" in start or b":svg" in start:
        return "an SVG picture"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<!--")):
        return "an HTML page"
    return "an XML document" if start.startswith(b"<?xml") else None


def header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header states them (before orientation), or None when it cannot be
    read.

    Reads PNG, JPEG, WebP and GIF by hand; AVIF keeps its size in nested boxes and is left to the decoder.
    """
    media_type = sniff(data)
    if media_type == "image/png":
        return _big_pair(data, 16) if data[12:16] == b"IHDR" else None
    if media_type == "image/jpeg":
        return _jpeg_size(data)
    if media_type == "image/webp":
        return _webp_size(data)
    if media_type == "image/gif" and len(data) >= 10:
        return _known(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))
    return None


def check_bounds(media_type: str, width: int, height: int, max_pixels: int, max_side: int) -> None:
    """Raise ImageRejected(image_too_large) when a size in pixels passes the limits of its format."""
    allowed = min(max_pixels, MAX_AVIF_PIXELS) if media_type == "image/avif" else max_pixels
    if width > max_side or height > max_side:
        raise ImageRejected("image_too_large", f"{width} x {height}: no side may pass {max_side} pixels.")
    if width * height > allowed:
        raise ImageRejected("image_too_large", f"{width} x {height} is more than {allowed} pixels.")


def _has_avif_brand(data: bytes) -> bool:
    # ISO/IEC 14496-12: size, "ftyp", major brand, minor version, then compatible brands up to the box's end.
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    return bool(brands & {b"avif", b"avis"})


def _known(width: int, height: int) -> tuple[int, int] | None:
    return (width, height) if width > 0 and height > 0 else None


def _big_pair(data: bytes, at: int) -> tuple[int, int] | None:
    if len(data) < at + 8:
        return None
    return _known(int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big"))


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk the marker segments (ITU-T T.81, B.1) to the first frame header."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in JPEG_BARE:
            at += 2
            continue
        if marker in JPEG_SOF:
            return _known(int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big"))
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or marker in {0xD9, 0xDA}:  # end, or pixels before any frame header
            return None
        at += 2 + length
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The three kinds of first chunk (RFC 9649): lossy VP8, lossless VP8L, extended VP8X."""
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        return _known(width, int.from_bytes(data[28:30], "little") & 0x3FFF)
    return None
