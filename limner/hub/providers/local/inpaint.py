"""local/inpaint: fill a hole from its surroundings (Telea 2004, or Bertalmio et al. 2001), then match the grain.

Runs in a CPU child.
"""

from typing import Any

import cv2
import numpy as np

from limner.hub.providers.local.palette import Floats
from limner.hub.providers.local.pixels import Bytes, encode_png, join, read, split
from limner.media.sniffing import ImageRejected

METHODS = {"telea": cv2.INPAINT_TELEA, "ns": cv2.INPAINT_NS}


def inpaint(image: bytes, mask: bytes, method: str, radius: int, feather: int) -> tuple[bytes, dict[str, Any]]:
    """The picture with the mask's fully transparent pixels replaced, as PNG bytes, and its facts.

    Pixels further than `feather` pixels from the hole keep their exact values. Raises ImageRejected with
    mask_without_alpha, mask_size_mismatch, mask_empty (nothing to fill) or mask_full (nothing to fill from),
    and as media.images does.
    """
    picture = read(image)
    hole = _hole(mask, picture.shape[0], picture.shape[1])
    top, bottom, left, right = _around(hole, margin=max(4 * radius, 48) + feather)
    part = picture[top:bottom, left:right]
    filled = _fill(part, hole[top:bottom, left:right], METHODS[method], radius, feather)
    picture = picture.copy()
    picture[top:bottom, left:right] = filled
    height, width = picture.shape[:2]
    share = round(float(np.count_nonzero(hole)) / hole.size, 4)
    return encode_png(picture), {"width": width, "height": height, "replaced_share": share}


def _hole(mask: bytes, height: int, width: int) -> Bytes:
    """255 where the mask is fully transparent, else 0."""
    plane = read(mask)
    if plane.shape[2] != 4:
        raise ImageRejected("mask_without_alpha", "The mask has no transparency: clear the pixels to replace.")
    if plane.shape[:2] != (height, width):
        found = f"{plane.shape[1]} x {plane.shape[0]}"
        raise ImageRejected("mask_size_mismatch", f"The mask is {found}, the picture {width} x {height} pixels.")
    hole = np.where(plane[..., 3] == 0, np.uint8(255), np.uint8(0))
    if not hole.any():
        raise ImageRejected("mask_empty", "No pixel of the mask is fully transparent: nothing to replace.")
    if hole.all():
        raise ImageRejected("mask_full", "Every pixel of the mask is transparent: nothing to fill from.")
    return hole


def _around(hole: Bytes, margin: int) -> tuple[int, int, int, int]:
    """The hole's bounding box and a margin to learn from: the rest of a large picture is not touched."""
    x, y, w, h = cv2.boundingRect(hole)
    height, width = hole.shape
    return max(y - margin, 0), min(y + h + margin, height), max(x - margin, 0), min(x + w + margin, width)


def _fill(part: Bytes, hole: Bytes, method: int, radius: int, feather: int) -> Bytes:
    colour, alpha = split(np.ascontiguousarray(part))
    # The seam is filled too, so that the soft edge blends two versions of the same place.
    outside = cv2.distanceTransform(255 - hole, cv2.DIST_L2, 5)
    wide = np.where(outside <= feather, np.uint8(255), np.uint8(0))
    if wide.all():
        wide = hole
    fresh = cv2.inpaint(colour, wide, radius, method).astype(np.float32)
    fresh = _soften(fresh, hole) + _grain(colour, wide)[..., None]
    weight = np.clip(1 - outside / (feather + 1), 0, 1).astype(np.float32)
    weight[outside > feather] = 0
    blended = colour + (np.clip(fresh, 0, 255) - colour) * weight[..., None]
    result = np.where(weight[..., None] > 0, np.round(blended), colour).astype(np.uint8)
    if alpha is not None:
        # Only the hole: a soft seam in transparency would show as a halo.
        alpha = np.where(hole > 0, cv2.inpaint(alpha, hole, radius, method), alpha).astype(np.uint8)
    return join(np.ascontiguousarray(result), alpha)


def _soften(fresh: Floats, hole: Bytes) -> Bytes:
    """Deep inside a large hole both methods leave streaks; blur grows with the distance from the rim."""
    depth = cv2.distanceTransform(hole, cv2.DIST_L2, 5)
    if float(depth.max()) < 10:
        return fresh
    blurred = cv2.GaussianBlur(fresh, (0, 0), min(float(depth.max()) / 8, 8.0))
    share = np.clip((depth - 6) / 24, 0, 0.6)[..., None]
    return np.asarray(fresh + (blurred - fresh) * share)


def _grain(colour: Bytes, wide: Bytes) -> Bytes:
    """Noise as strong as the surroundings' own, since a perfectly smooth patch is what gives a repair away."""
    luma = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rest = luma - cv2.medianBlur(luma, 3)
    known = np.abs(rest[wide == 0])
    strength = 1.2 * float(np.median(known)) if known.size else 0.0
    noise = np.random.default_rng(0).standard_normal(luma.shape, dtype=np.float32)
    return np.asarray(noise * min(strength, 8.0))
