"""What becomes of an uploaded picture: a fresh file of it, and what is shown until that file is there. In child processes only.

Read row by row where the format lets it be, so that forty megapixels need a tenth of the memory they would unfold to.
"""

from collections import Counter
from typing import Any

import pyvips

from limner.media import images, thumbhash
from limner.media.images import STORED_AS, WEBP_MAX_SIDE
from limner.media.sniffing import ImageRejected

SMALLER_QUALITY = 80
COLOUR_BITS = 4
"""Colours are counted in steps of a sixteenth of each channel."""


def prepare(data: bytes, max_bytes: int, max_pixels: int, max_side: int) -> tuple[dict[str, Any], bytes]:
    """Facts of the picture, and its fresh file: upright, sRGB, 8 bits, without metadata, of at most `max_bytes`.

    The facts: media_type, width and height in pixels, has_alpha, thumbhash (hex), colour ("#rrggbb", the one most of it has).
    PNG, JPEG and WebP keep their format, GIF and AVIF become PNG; what is too large so becomes WebP or JPEG of a lower quality.
    Raises ImageRejected.
    """
    try:
        media_type, fresh = _encoded(data, max_bytes, max_pixels, max_side, profiled=True)
    except pyvips.Error:  # perhaps only its colour profile is damaged
        try:
            media_type, fresh = _encoded(data, max_bytes, max_pixels, max_side, profiled=False)
        except pyvips.Error as error:
            raise images.unreadable(error) from None
    if len(fresh) > max_bytes:
        raise ImageRejected(
            "image_too_large", f"The picture takes more than {max_bytes} bytes once it is encoded afresh."
        )
    facts = _facts(fresh)
    return {"media_type": media_type, **facts}, fresh


def _encoded(data: bytes, max_bytes: int, max_pixels: int, max_side: int, *, profiled: bool) -> tuple[str, bytes]:
    found, image = _upright(data, max_pixels, max_side, profiled=profiled)
    media_type = STORED_AS[found]
    fresh = images.save(image, media_type)
    if len(fresh) <= max_bytes:
        return media_type, fresh
    del fresh
    _, image = _upright(data, max_pixels, max_side, profiled=profiled)
    if image.hasalpha() and max(image.width, image.height) <= WEBP_MAX_SIDE:
        return "image/webp", images.save(image, "image/webp", SMALLER_QUALITY)
    if image.hasalpha():
        image = image.flatten(background=[255, 255, 255])
    return "image/jpeg", images.save(image, "image/jpeg", SMALLER_QUALITY)


def _upright(data: bytes, max_pixels: int, max_side: int, *, profiled: bool) -> tuple[str, Any]:
    """The media type found, and the picture in sRGB of 8 bits, in memory only where it has to be turned."""
    found, image = images.open_picture(data, max_pixels, max_side)
    turned = images.orientation(image) > 1
    if profiled and image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True, intent="relative")
    image = image.colourspace("srgb")
    image = (image[:4] if image.bands > 4 else image).cast("uchar")
    return found, image.copy_memory().autorot() if turned else image


def _facts(fresh: bytes) -> dict[str, Any]:
    whole = pyvips.Image.new_from_buffer(fresh, "", access="sequential")
    side = thumbhash.MAX_SIDE
    small = pyvips.Image.thumbnail_buffer(fresh, side, height=side, size="down").colourspace("srgb")
    opaque = small if small.hasalpha() else small.bandjoin(255)
    rgba = bytes(opaque.cast("uchar").write_to_memory())
    return {
        "width": whole.width,
        "height": whole.height,
        "has_alpha": bool(whole.hasalpha()),
        "thumbhash": thumbhash.encode(opaque.width, opaque.height, rgba).hex(),
        "colour": _colour(rgba),
    }


def _colour(rgba: bytes) -> str:
    """The mean of the pixels in the fullest of 4,096 boxes of colour; pixels count by their opacity."""
    pixels = list(zip(*[iter(rgba)] * 4, strict=True))
    weights: Counter[tuple[int, int, int]] = Counter()
    for r, g, b, alpha in pixels:
        weights[r >> COLOUR_BITS, g >> COLOUR_BITS, b >> COLOUR_BITS] += alpha
    fullest, _ = weights.most_common(1)[0]
    chosen = [pixel for pixel in pixels if tuple(value >> COLOUR_BITS for value in pixel[:3]) == fullest]
    means = (round(sum(pixel[band] for pixel in chosen) / len(chosen)) for band in range(3))
    return "#" + "".join(f"{value:02x}" for value in means)
