"""Files that are not what they say, say more than they should, or are more than they seem. Made by hand, from a seed."""

import gzip
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pyvips

MARK = b"canary-9b1f-<script>alert(document.domain)</script>"
"""Stands in every one of them where nothing may survive."""
FORMATS = ("png", "jpeg", "webp", "gif", "avif")
SAVERS: dict[str, Callable[[Any], bytes]] = {
    "png": lambda image: bytes(image.pngsave_buffer()),
    "jpeg": lambda image: bytes(image.jpegsave_buffer(Q=92)),
    "webp": lambda image: bytes(image.webpsave_buffer(Q=80)),
    "gif": lambda image: bytes(image.gifsave_buffer()),
    "avif": lambda image: bytes(image.heifsave_buffer(Q=50, compression="av1", effort=0)),
}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">%s</svg>'


def image(rng: random.Random, width: int = 0, height: int = 0) -> Any:
    """A small noisy picture (a pyvips.Image)."""
    size = (height or rng.randint(8, 90), width or rng.randint(8, 90), 3)
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, size, np.uint8)
    return pyvips.Image.new_from_array(pixels, interpretation="srgb")


def picture(rng: random.Random, kind: str) -> bytes:
    return SAVERS[kind](image(rng))


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# kept, but not as they came


def trailing(rng: random.Random) -> bytes:
    """Another file after the picture's end."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("index.html", MARK)
    tail = rng.choice(
        [b"<!doctype html>" + MARK, archive.getvalue() + MARK, b"%PDF-1.4\n" + MARK, b"<?php echo '" + MARK + b"';"]
    )
    return picture(rng, rng.choice(FORMATS)) + tail


def told(rng: random.Random) -> bytes:
    """EXIF with a place and a name, XMP, a profile, a comment."""
    made = image(rng).copy()
    made.set_type(pyvips.GValue.gstr_type, "exif-ifd3-GPSLatitude", "52/1 31/1 0/1")
    made.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Artist", MARK.decode())
    made.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta>" + MARK + b"</x:xmpmeta>")
    made.set_type(pyvips.GValue.gint_type, "orientation", rng.randint(1, 8))
    if rng.random() < 0.5:
        return bytes(made.webpsave_buffer(Q=80, profile="srgb"))
    return bytes(made.jpegsave_buffer(Q=90, profile="srgb"))


def commented(rng: random.Random) -> bytes:
    """Active content where formats allow words: a PNG's text, a JPEG's comment, a GIF's comment, a WebP's unknown chunk."""
    kind = rng.choice(("png", "jpeg", "gif", "webp"))
    data = picture(rng, kind)
    if kind == "png":
        return data[:33] + chunk(b"tEXt", b"Comment\0" + MARK) + chunk(b"iTXt", b"x\0\0\0\0\0" + MARK) + data[33:]
    if kind == "jpeg":
        body = b"<!--" + MARK + b"-->"
        return data[:2] + b"\xff\xfe" + struct.pack(">H", len(body) + 2) + body + data[2:]
    if kind == "gif":
        end = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
        return data[:end] + b"\x21\xfe" + bytes([len(MARK)]) + MARK + b"\0" + data[end:]
    body = b"junk" + struct.pack("<I", len(MARK)) + MARK + b"\0" * (len(MARK) % 2)
    return b"RIFF" + struct.pack("<I", len(data) - 8 + len(body)) + data[8:] + body


def nested(rng: random.Random) -> bytes:
    """One picture behind another; the second says something else."""
    return picture(rng, "jpeg") + told(rng)


# refused


def posing(rng: random.Random) -> bytes:
    """Something else altogether, whatever its name says."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.png", MARK)
    return rng.choice(
        [
            b"<!doctype html><title>x</title>" + MARK, b"%PDF-1.7\n1 0 obj " + MARK, archive.getvalue(), gzip.compress(MARK),
            b"II*\0\x08\0\0\0" + MARK, b"BM" + MARK, b"\x7fELF\x02\x01" + MARK, b"#!/bin/sh\n" + MARK, b"<?php " + MARK,
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + MARK, b"\0\0\0\x18ftypmp42\0\0\0\0isom" + MARK, b"GIF" + MARK, b"RIFFxxxxWAVE" + MARK,
            b"%!PS-Adobe " + MARK, b"SIMPLE  =" + MARK, b"/* XPM */" + MARK, b"P6 2 2 255\n" + MARK, MARK, b"\0" * rng.randint(1, 99),
            b"8BPS\0\x01" + MARK, b"?" + rng.randbytes(rng.randint(1, 300)),
        ]
    )  # fmt: skip


def cut(rng: random.Random) -> bytes:
    """Most of a picture."""
    data = SAVERS[rng.choice(FORMATS)](image(rng, 64, 64))
    return data[: int(len(data) * rng.uniform(0.05, 0.9))]


def masked(rng: random.Random) -> bytes:
    """The right first bytes, and then something else."""
    magic = rng.choice(
        [
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff\xe0",
            b"GIF89a",
            b"RIFF\x40\0\0\0WEBPVP8 ",
            b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
        ]
    )
    return magic + SVG % MARK + rng.randbytes(rng.randint(0, 64))


def spoilt(rng: random.Random) -> bytes:
    """A picture whose checksums or streams were tampered with."""
    data = bytearray(picture(rng, "png"))
    at = data.index(b"IDAT") + 4
    for place in range(at, min(at + 24, len(data) - 16)):
        data[place] ^= 0x5A
    return bytes(data)


KEPT = (trailing, told, commented, nested)
REFUSED = (posing, cut, masked, spoilt)


def svg(rng: random.Random) -> bytes:
    """Vector pictures that would run, fetch or read something where they are shown."""
    active = rng.choice(
        [
            b"<script>alert(1)</script>", b"<foreignObject><body onload='alert(1)'/></foreignObject>",
            b"<use href='https://evil.test/#x'/>",
            b"<image href='file:///etc/passwd'/>", b"<style>@import url(https://evil.test/x.css)</style>",
            b"<a href='javascript:alert(1)'/>",
            b"<animate onbegin='alert(1)' attributeName='x'/>", b"<g onload='alert(1)'/>", b"&xxe;",
        ]
    )  # fmt: skip
    before = rng.choice(
        [
            b"", b"\xef\xbb\xbf", b" \n\t", b"<?xml version='1.0'?>", b"<!-- a picture -->",
            b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY xxe SYSTEM 'file:///etc/passwd'>]>",
        ]
    )  # fmt: skip
    text = before + SVG % active
    dressed = rng.choice(["plain", "utf-16", "prefixed", "upper"])
    if dressed == "utf-16":
        return text.decode("utf-8-sig").encode("utf-16")
    if dressed == "prefixed":
        return text.replace(b"<svg xmlns=", b"<s:svg xmlns:s=").replace(b"</svg>", b"</s:svg>")
    return text.replace(b"<svg", b"<SVG") if dressed == "upper" else text
