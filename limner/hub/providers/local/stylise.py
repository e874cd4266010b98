"""local/stylise: six looks made of classical filters. CPU children only; a filter sees at most 2,048 pixels a side.

Each look takes (h, w, 3) uint8 sRGB and returns the same shape. Chance (paper, pigment) comes from a fixed seed:
the same picture gives the same bytes.
"""

from typing import Any

import cv2
import numpy as np

from limner.hub.providers.local.brushes import fbm, lit, paint, smooth, warp
from limner.hub.providers.local.palette import Floats, from_oklab, to_oklab
from limner.hub.providers.local.pixels import Bytes, encode_png, grey, join, read, split

MAX_WORKING_SIDE = 2048


def stylise(image: bytes, style: str, strength: int) -> tuple[bytes, dict[str, Any]]:
    """The picture in a look, blended with the original by `strength` (0-100), as PNG bytes, and its facts.

    Facts: width and height in pixels, style, `reduced` and, where true, `original_width` and `original_height`.
    Transparency is kept. Raises ImageRejected as media.images does.
    """
    picture = read(image)
    facts: dict[str, Any] = {"style": style, "reduced": False}
    height, width = picture.shape[:2]
    if max(height, width) > MAX_WORKING_SIDE:
        factor = MAX_WORKING_SIDE / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        facts.update(reduced=True, original_width=width, original_height=height)
    colour, alpha = split(picture)
    look = LOOKS[style](colour)
    blended = cv2.addWeighted(look, strength / 100, colour, 1 - strength / 100, 0)
    facts.update(width=int(colour.shape[1]), height=int(colour.shape[0]))
    return encode_png(join(np.asarray(blended, np.uint8), alpha)), facts


def sketch(colour: Bytes) -> Bytes:
    """Graphite: the dodge of a picture over its blurred negative, hatching in the shadows, toothed paper."""
    h, w = colour.shape[:2]
    unit = min(h, w)
    luma = grey(cv2.bilateralFilter(colour, 7, 40, 5)).astype(np.float32) / 255
    veil = cv2.GaussianBlur(1 - luma, (0, 0), max(unit / 90, 1.2))
    lines = np.clip(luma / np.maximum(1 - veil, 0.04), 0, 1) ** 1.6
    fine = cv2.GaussianBlur(luma, (0, 0), 0.8) - cv2.GaussianBlur(luma, (0, 0), 1.6)
    lines *= 1 - np.clip(-fine * 14, 0, 0.75)
    rng = np.random.default_rng(1)
    shade = np.clip(1 - luma * 1.25, 0, 1) ** 1.1
    hatch = np.zeros((h, w), np.float32)
    for angle, start in ((40, 0.12), (-48, 0.5)):
        hatch += _strokes(rng, h, w, angle, max(unit / 24, 9)) * smooth(shade, start, start + 0.5)
    tooth = fbm(rng, h, w, 3.5, 2)
    tone = lines * (1 - 0.62 * np.clip(hatch, 0, 1)) * (1 - 0.3 * shade)
    tone = 1 - (1 - tone) * (0.74 + 0.42 * tooth)
    paper = np.array([0.975, 0.965, 0.94], np.float32)
    ink = np.array([0.15, 0.15, 0.17], np.float32)
    return _bytes(ink + (paper - ink) * np.clip(tone, 0, 1)[..., None])


def watercolour(colour: Bytes) -> Bytes:
    """Flat washes with bleeding borders, pigment gathered at their edges and in the paper's grain."""
    h, w = colour.shape[:2]
    unit = min(h, w)
    rng = np.random.default_rng(2)
    wash = _washes(colour, unit)
    reach = unit / 250
    dx, dy = ((fbm(rng, h, w, unit / 26, 3) - 0.5) * np.float32(2 * reach) for _ in range(2))
    wash = warp(wash, dx, dy)
    luma = cv2.GaussianBlur(wash @ np.array([0.299, 0.587, 0.114], np.float32), (0, 0), max(unit / 420, 0.8))
    slope = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
    rim = np.clip(slope * 1.2, 0, 0.34)
    paper = fbm(rng, h, w, max(unit / 130, 4), 3)
    pools = fbm(rng, h, w, unit / 4, 3)
    density = 0.88 + 0.3 * (pools - 0.5) + 0.22 * (paper - 0.5) + rim
    lab = to_oklab(np.clip(wash, 0, 1))
    lab[..., 0] = 0.14 + 0.87 * lab[..., 0]
    lab[..., 1:] *= 1.18
    tinted = np.clip(from_oklab(lab), 0.004, 1) ** density[..., None].astype(
        np.float32
    )  # Beer and Lambert: more pigment
    sheet = np.array([0.985, 0.978, 0.955], np.float32)
    border = _torn_edge(rng, h, w)
    result = sheet + (tinted - sheet) * (border * 0.97)[..., None]
    return _bytes(result * (1 + 0.035 * lit(paper, 0.8, 4.0))[..., None])


def cartoon(colour: Bytes) -> Bytes:
    """Flat, brighter colours in soft steps under dark ink lines."""
    unit = min(colour.shape[:2])
    flat = colour
    for _ in range(3):
        flat = np.asarray(cv2.bilateralFilter(flat, 7, 34, max(unit / 110, 4)), np.uint8)
    lab = to_oklab(flat.astype(np.float32) / 255)
    steps = 8
    scaled = lab[..., 0] * steps
    whole = np.floor(scaled)
    lab[..., 0] = (whole + smooth(scaled - whole, 0.3, 0.7)) / steps  # eased steps: no crawling contours
    lab[..., 1:] *= 1.32
    inked = from_oklab(lab) * _ink_lines(grey(cv2.bilateralFilter(colour, 5, 30, 4)), unit)[..., None]
    return _bytes(inked)


def oil(colour: Bytes) -> Bytes:
    """Kuwahara patches drawn out along the forms, with the relief of brush strokes."""
    h, w = colour.shape[:2]
    unit = min(h, w)
    patches = _kuwahara(colour.astype(np.float32) / 255, max(2, round(unit / 240)))
    angles = _grain_direction(patches, unit)
    rng = np.random.default_rng(4)
    reach = max(unit / 130, 3)
    picture = _along(patches, angles, reach * 0.45, 6)
    noise = cv2.GaussianBlur(rng.standard_normal((h, w)).astype(np.float32), (0, 0), max(unit / 700, 0.7))
    bristles = _along(noise, angles, reach, 12)
    bristles /= np.float32(max(float(bristles.std()) * 3, 1e-6))
    relief = bristles * 0.42 + picture @ np.array([0.3, 0.59, 0.11], np.float32) * 1.2
    picture = picture * (1 + 0.17 * lit(relief, -2.2, 0.9))[..., None] + 0.022 * bristles[..., None]
    lab = to_oklab(np.clip(picture, 0, 1))
    lab[..., 1:] *= 1.2
    return _bytes(from_oklab(lab))


def duotone(colour: Bytes) -> Bytes:
    """Two inks: a deep one for the shadows and a warm, light one, after stretching the tones."""
    luma = cv2.createCLAHE(clipLimit=1.6, tileGridSize=(4, 4)).apply(grey(colour)).astype(np.float32)
    low, high = np.percentile(luma, (1, 99))
    tone = np.clip((luma - np.float32(low)) / np.float32(max(float(high - low), 1.0)), 0, 1)
    stops = np.array([[21, 16, 66], [88, 32, 122], [232, 74, 99], [255, 176, 112], [255, 241, 214]], np.float32) / 255
    return _bytes(paint(tone, stops))


def halftone(colour: Bytes) -> Bytes:
    """Four printing screens (cyan 15, magenta 75, yellow 0, black 45 degrees) of round dots on warm paper."""
    h, w = colour.shape[:2]
    cell = max(min(h, w) / 116, 4.0)
    picture = cv2.GaussianBlur(colour, (0, 0), cell * 0.28).astype(np.float32) / 255
    black = (1 - picture.max(axis=2)) ** 1.4
    rest = np.maximum(1 - black, 1e-3)
    planes = [(1 - picture[..., band] - black) / rest for band in range(3)]
    inks = np.array([[0, 158, 224], [226, 0, 122], [255, 228, 0], [26, 24, 28]], np.float32) / 255
    result = np.broadcast_to(np.array([0.985, 0.97, 0.93], np.float32), (h, w, 3)).copy()
    for plane, angle, ink in zip([*planes, black], (15, 75, 0, 45), inks, strict=True):
        cover = _dots(np.clip(plane, 0, 1), angle, cell)
        result *= 1 - cover[..., None] * (1 - ink)  # inks filter light: they multiply
    return _bytes(result)


LOOKS = {
    "sketch": sketch,
    "watercolour": watercolour,
    "cartoon": cartoon,
    "oil": oil,
    "duotone": duotone,
    "halftone": halftone,
}


def _bytes(picture: Floats) -> Bytes:
    return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)


def _strokes(rng: np.random.Generator, h: int, w: int, angle: float, length: float) -> Floats:
    """Pencil strokes all one way, 0-1: noise smeared along the direction."""
    noise = cv2.GaussianBlur(rng.standard_normal((h, w)).astype(np.float32), (0, 0), 0.7)
    size = int(length) | 1
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2] = 1 / size
    turn = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), angle, 1)
    smeared = cv2.filter2D(noise, -1, cv2.warpAffine(kernel, turn, (size, size)))
    return smooth(smeared / np.float32(max(float(smeared.std()), 1e-6)), -0.3, 1.3)


def _washes(colour: Bytes, unit: int) -> Floats:
    """Areas of nearly one colour, as a wet brush leaves them. Mean shift on a reduced copy, its edges restored."""
    factor = min(1.0, 420 / unit)
    h, w = colour.shape[:2]
    small = cv2.resize(colour, (max(1, round(w * factor)), max(1, round(h * factor))), interpolation=cv2.INTER_AREA)
    for _ in range(3):
        small = cv2.bilateralFilter(cv2.medianBlur(small, 5), 9, 38, 7)
    wash = cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    near = cv2.bilateralFilter(colour, 7, 36, 5).astype(np.float32) / 255
    return np.asarray(wash * 0.38 + near * 0.62, np.float32)


def _torn_edge(rng: np.random.Generator, h: int, w: int) -> Floats:
    """1 inside, 0 at the sheet's border, along a ragged line."""
    unit = min(h, w)
    y = np.minimum(np.arange(h), np.arange(h)[::-1]).astype(np.float32)[:, None]
    x = np.minimum(np.arange(w), np.arange(w)[::-1]).astype(np.float32)[None, :]
    inset = np.minimum(y, x) / np.float32(unit) + (fbm(rng, h, w, unit / 9, 5) - 0.5) * np.float32(0.045)
    return smooth(inset, 0.012, 0.034)


def _ink_lines(luma: Bytes, unit: int) -> Floats:
    """Dark lines where a narrow blur falls below a wide one (XDoG, Winnemöller 2012): 0 ink, 1 none."""
    plane = luma.astype(np.float32) / 255
    sigma = max(unit / 620, 0.75)
    sharp = cv2.GaussianBlur(plane, (0, 0), sigma) - 0.98 * cv2.GaussianBlur(plane, (0, 0), sigma * 1.7)
    return np.asarray(np.where(sharp > 0.002, 1, np.clip(1 + np.tanh((sharp - 0.002) * 70), 0.06, 1)), np.float32)


def _kuwahara(picture: Floats, radius: int) -> Floats:
    """Each pixel takes the mean of the calmest of the four squares that touch it, softly chosen."""
    size = (radius + 1, radius + 1)
    luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    total, weights = np.zeros_like(picture), np.zeros(luma.shape, np.float32)
    for anchor in ((0, 0), (0, radius), (radius, 0), (radius, radius)):
        mean = cv2.blur(picture, size, anchor=anchor, borderType=cv2.BORDER_REFLECT)
        first = cv2.blur(luma, size, anchor=anchor, borderType=cv2.BORDER_REFLECT)
        spread = cv2.blur(luma * luma, size, anchor=anchor, borderType=cv2.BORDER_REFLECT) - first * first
        weight = 1 / (np.maximum(spread, 0) * 800 + 0.02) ** 4
        total += mean * weight[..., None]
        weights += weight
    return np.asarray(total / weights[..., None], np.float32)


def _grain_direction(picture: Floats, unit: int) -> Floats:
    """The angle along which a picture changes least, in radians, from its smoothed structure tensor."""
    luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    gx, gy = cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)
    sigma = max(unit / 90, 2)
    xx, yy, xy = (cv2.GaussianBlur(product, (0, 0), sigma) for product in (gx * gx, gy * gy, gx * gy))
    return np.asarray(0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2, np.float32)


def _along(plane: Floats, angles: Floats, reach: float, samples: int) -> Floats:
    """Mean of the plane along the angle, `reach` pixels both ways (line integral convolution, one straight step)."""
    total = plane.copy()
    dx, dy = np.cos(angles), np.sin(angles)
    for sample in range(1, samples // 2 + 1):
        step = np.float32(reach * sample / (samples // 2))
        total += warp(plane, dx * step, dy * step) + warp(plane, -dx * step, -dy * step)
    return np.asarray(total / (1 + 2 * (samples // 2)), np.float32)


def _dots(plane: Floats, angle: float, cell: float) -> Floats:
    """A rotated screen of round dots whose area is the plane's ink, 0-1, with soft edges a pixel wide."""
    h, w = plane.shape
    turn = np.deg2rad(angle)
    x = np.arange(w, dtype=np.float32)[None, :]
    y = np.arange(h, dtype=np.float32)[:, None]
    u = (x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))) / np.float32(cell)
    v = (y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn))) / np.float32(cell)
    du, dv = u - np.round(u), v - np.round(v)
    away = np.sqrt(du * du + dv * dv) * np.float32(cell)
    radius = np.sqrt(plane / np.pi) * np.float32(cell * 1.12)
    return np.asarray(np.clip(radius - away + 0.5, 0, 1) * smooth(plane, 0.01, 0.05), np.float32)
