"""local/upscale: Lanczos resampling in linear light, mild sharpening of edges, halos clamped. CPU children only.

Works in bands of rows: a 40-megapixel float picture would need more memory than a child has.
"""

from typing import Any, cast

import cv2
import numpy as np

from limner.hub.providers.local.models import MAX_OUTPUT_PIXELS
from limner.hub.providers.local.palette import Floats
from limner.hub.providers.local.pixels import Bytes, encode_png, join, read, split
from limner.media.sniffing import ImageRejected

BAND = 128  # source rows a band
OVERLAP = 8  # source rows on both sides: Lanczos reaches 4, blur and neighbourhood the rest
GAMMA = 1.8  # between linear light (rings around dark lines) and sRGB (rings around bright ones)
AMOUNT = 0.55
SLACK = 0.012  # how far sharpening may pass the brightest or darkest neighbour, of 1


def upscale(image: bytes, scale: int) -> tuple[bytes, dict[str, Any]]:
    """The picture `scale` (2 or 4) times as wide and high, as PNG bytes, and its facts.

    Raises ImageRejected(output_too_large) beyond 40 megapixels, and as media.images does.
    """
    colour, alpha = split(read(image))
    height, width = colour.shape[0] * scale, colour.shape[1] * scale
    if height * width > MAX_OUTPUT_PIXELS:
        limit = MAX_OUTPUT_PIXELS // 1_000_000
        raise ImageRejected("output_too_large", f"{width} x {height} pixels is more than {limit} megapixels.")
    result = np.empty((height, width, 3), np.uint8)
    rows = colour.shape[0]
    for start in range(0, rows, BAND):
        end = min(start + BAND, rows)
        low, high = max(start - OVERLAP, 0), min(end + OVERLAP, rows)
        band = _enlarge(colour[low:high], None if alpha is None else alpha[low:high], scale)
        result[start * scale : end * scale] = band[(start - low) * scale : (end - low) * scale]
    if alpha is not None:
        alpha = cast(Bytes, cv2.resize(alpha, (width, height), interpolation=cv2.INTER_CUBIC))
    facts = {"width": width, "height": height, "scale": scale}
    return encode_png(join(result, alpha)), facts


def _enlarge(colour: Bytes, alpha: Bytes | None, scale: int) -> Bytes:
    """One band, (h, w, 3) to (h * scale, w * scale, 3)."""
    light = (np.arange(256, dtype=np.float32) / 255) ** np.float32(GAMMA)
    source = light[colour]
    size = (colour.shape[1] * scale, colour.shape[0] * scale)
    if alpha is None:
        large = cv2.resize(source, size, interpolation=cv2.INTER_LANCZOS4)
    else:
        # Weighted by opacity: the unseen colour of clear pixels must not bleed into the seen ones.
        weight = alpha.astype(np.float32)[..., None] / 255 + np.float32(1e-4)
        sums = cv2.resize(source * weight, size, interpolation=cv2.INTER_LANCZOS4)
        weights = cv2.resize(weight, size, interpolation=cv2.INTER_LANCZOS4)[..., None]
        large = sums / np.maximum(weights, 1e-4)
    display = np.clip(large, 0, 1) ** np.float32(1 / GAMMA)
    return _sharpen(np.asarray(display, np.float32), colour, size, scale)


def _sharpen(display: Floats, colour: Bytes, size: tuple[int, int], scale: int) -> Bytes:
    """Unsharp masking where there are edges, held within what the neighbourhood of the source contains."""
    soft = cv2.GaussianBlur(display, (0, 0), 0.55 * scale)
    detail = display - soft
    luma = cv2.GaussianBlur(np.abs(detail @ np.array([0.299, 0.587, 0.114], np.float32)), (0, 0), 0.5 * scale)
    # Nothing below the grain's strength, all of it at real edges.
    edge = np.clip((luma - 0.004) / 0.02, 0, 1)
    display = display + detail * (np.float32(AMOUNT) * edge)[..., None]
    around = np.ones((3, 3), np.uint8)
    low = cv2.resize(cv2.erode(colour, around), size, interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    high = cv2.resize(cv2.dilate(colour, around), size, interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    display = np.clip(display, low - np.float32(SLACK), high + np.float32(SLACK))
    return np.asarray(np.clip(display * 255 + 0.5, 0, 255), np.uint8)
