"""Decoding and re-encoding pictures with libvips. Imported by child processes only (kit.cpu, media.sandboxed), never by the
parent.

Five formats can be read and no others: libvips runs with every loader blocked except theirs. A stored picture
is always a fresh file made here, so nothing a sender hid beside the pixels (EXIF, GPS, profiles, comments, a
second file after the end) survives.
"""

from functools import cache
from hashlib import sha256
from typing import Any

import pyvips

from limner.media.sniffing import (
    MAX_FRAME_PIXELS,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SIDE,
    Encoded,
    ImageFacts,
    ImageRejected,
    check_bounds,
    header_size,
    sniff,
    unsupported,
)

LOADERS = {
    "image/png": ("VipsForeignLoadPng", "pngload_buffer"),
    "image/jpeg": ("VipsForeignLoadJpeg", "jpegload_buffer"),
    "image/webp": ("VipsForeignLoadWebp", "webpload_buffer"),
    "image/gif": ("VipsForeignLoadNsgif", "gifload_buffer"),
    "image/avif": ("VipsForeignLoadHeif", "heifload_buffer"),
}
# What a format becomes when it is stored: GIF and AVIF lose nothing as PNG, and two formats fewer are served.
STORED_AS = {
    "image/png": "image/png",
    "image/jpeg": "image/jpeg",
    "image/webp": "image/webp",
    "image/gif": "image/png",
    "image/avif": "image/png",
}

WEBP_MAX_SIDE = 16_383  # RFC 9649, VP8 frame header: 14 bits
AVIF_EFFORT = 2  # of 9
LARGE_PIXELS = 16_000_000
MAX_COPY_PIXELS = {"image/webp": 12_000_000, "image/jpeg": 12_000_000, "image/avif": 3_000_000}


def inspect(data: bytes, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> ImageFacts:
    """Prove that the bytes are a whole picture within bounds, by decoding all of it (the first frame of
    several).

    Bounds in pixels are checked from the header first. Raises ImageRejected: unsupported_media (not one of
    the five formats), image_too_large (pixels, side, or more than 100 frames), unreadable_image (damaged,
    truncated).
    """
    media_type, image = open_picture(data, max_pixels, max_side)
    try:
        image.avg()  # the cheapest way to make libvips read every pixel once
    except pyvips.Error as error:
        raise unreadable(error) from None
    width, height = image.width, image.height
    if orientation(image) >= 5:
        width, height = height, width
    return ImageFacts(media_type, width, height, bool(image.hasalpha()))


def reencode(data: bytes, media_type: str | None = None) -> Encoded:
    """A fresh file of the picture: upright, sRGB, 8 bits, without metadata; the same input gives the same
    bytes.

    PNG, JPEG (quality 90) and WebP (quality 90) keep their format, GIF and AVIF become PNG. `media_type` asks
    for one of the three instead; JPEG has no transparency, so the picture is then laid on white. Raises
    ImageRejected as `inspect` does, ValueError for another `media_type`.
    """
    found, image = decode(data)
    wanted = media_type or STORED_AS[found]
    if wanted == "image/jpeg" and image.hasalpha():
        image = image.flatten(background=[255, 255, 255])
    try:
        fresh = save(image, wanted)
    except pyvips.Error as error:
        raise unreadable(error) from None
    return Encoded(fresh, wanted, image.width, image.height, sha256(fresh).hexdigest())


def decode(data: bytes, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> tuple[str, Any]:
    """The media type found and the picture in memory: upright, sRGB, 8 bits, 3 or 4 bands (a pyvips.Image).

    Raises ImageRejected as `inspect` does.
    """
    media_type, image = open_picture(data, max_pixels, max_side)
    try:
        # Decoded whole before it is turned: the loaders stream, autorot may read backwards.
        image = image.copy_memory().autorot()
        return media_type, _to_srgb(image).copy_memory()
    except pyvips.Error as error:
        raise unreadable(error) from None


def shrink(data: bytes, width: int, media_type: str) -> bytes:
    """A copy of one of limner's own files, at most `width` pixels wide and never wider than it is: WebP, AVIF or JPEG.

    A very tall picture's is narrower, so that no copy has more pixels than MAX_COPY_PIXELS. Raises pyvips.Error, ValueError.
    """
    _lock_down()
    if media_type not in MAX_COPY_PIXELS:
        raise ValueError(f"{media_type} is no copy's format")
    height = min(WEBP_MAX_SIDE, MAX_COPY_PIXELS[media_type] // width)
    image = pyvips.Image.thumbnail_buffer(data, width, height=height, size="down")
    if media_type == "image/webp":
        return bytes(image.webpsave_buffer(Q=80, effort=4, keep="none"))
    if media_type == "image/avif":
        return bytes(image.heifsave_buffer(Q=60, compression="av1", effort=AVIF_EFFORT, keep="none"))
    opaque = image.flatten(background=[255, 255, 255]) if image.hasalpha() else image
    return bytes(opaque.jpegsave_buffer(Q=82, optimize_coding=True, keep="none"))


@cache
def _lock_down() -> None:
    """Leave libvips five loaders out of dozens; most of its past holes were in the others."""
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader, _ in LOADERS.values():
        pyvips.operation_block_set(loader, False)
    pyvips.cache_set_max(0)  # no picture of one tenant may outlive its call


def open_picture(data: bytes, max_pixels: int, max_side: int) -> tuple[str, Any]:
    """Sniff, check the stated size, open by the loader the magic bytes name, check the size libvips sees.

    The media type, and a pyvips.Image whose pixels can be read once, from the top down. Raises ImageRejected.
    """
    _lock_down()
    media_type = sniff(data)
    if media_type is None:
        raise unsupported(data)
    if (size := header_size(data)) is not None:
        check_bounds(media_type, *size, max_pixels, max_side)
    try:
        image = getattr(pyvips.Image, LOADERS[media_type][1])(data, fail_on="error", access="sequential")
    except pyvips.Error as error:
        raise unreadable(error) from None
    check_bounds(media_type, image.width, image.height, max_pixels, max_side)
    frames = image.get("n-pages") if image.get_typeof("n-pages") else 1
    if frames > MAX_FRAMES:
        raise ImageRejected("image_too_large", f"{frames} frames: at most {MAX_FRAMES} are accepted.")
    if frames * image.width * image.height > MAX_FRAME_PIXELS:
        raise ImageRejected("image_too_large", f"{frames} frames are more than {MAX_FRAME_PIXELS} pixels together.")
    return media_type, image


def orientation(image: Any) -> int:
    """As EXIF counts it: 1 is upright, 5 and more lie on their side."""
    return int(image.get("orientation")) if image.get_typeof("orientation") else 1


def _to_srgb(image: Any) -> Any:
    if image.get_typeof("icc-profile-data"):
        try:
            # Computed now, so that a damaged profile falls back here and not while saving.
            image = image.icc_transform("srgb", embedded=True, intent="relative").copy_memory()
        except pyvips.Error:
            image = image.copy()
    image = image.colourspace("srgb")
    if image.bands > 4:
        image = image[:4]
    return image.cast("uchar")


def save(image: Any, media_type: str, quality: int = 90) -> bytes:
    """A fresh file without metadata. Raises pyvips.Error; ValueError for a format that is not stored.

    A large JPEG is written as it comes: its best code tables, a few per cent, would take all of its coefficients in memory.
    """
    if media_type == "image/png":
        return bytes(image.pngsave_buffer(compression=6, keep="none"))
    if media_type == "image/jpeg":
        return bytes(
            image.jpegsave_buffer(Q=quality, optimize_coding=image.width * image.height <= LARGE_PIXELS, keep="none")
        )
    if media_type == "image/webp":
        return bytes(image.webpsave_buffer(Q=quality, alpha_q=100, effort=4, keep="none"))
    raise ValueError(f"{media_type} is not a format that is stored")


def unreadable(error: Any) -> Exception:
    """A damaged picture is its sender's matter; a lack of memory is ours and must keep its name (kit.cpu)."""
    if "out of memory" in str(error).lower():
        return MemoryError(str(error))
    return ImageRejected("unreadable_image", "The picture is damaged or cut short and cannot be read.")
