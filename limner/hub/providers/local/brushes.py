"""Ways of filling pixels that every scene shares: noise, colour ramps, glow, light on a surface, paper grain.

Planes are float32 of shape (h, w), pictures (h, w, 3) float32 sRGB 0-1. Everything is drawn from the generator
it is given, in a fixed order, so a seed gives the same pixels each time.
"""

import cv2
import numpy as np

from limner.hub.providers.local.palette import Floats, gradient
from limner.hub.providers.local.pixels import Bytes

Rng = np.random.Generator


def fbm(rng: Rng, h: int, w: int, cell: float, octaves: int = 4, *, stretch: float = 1.0) -> Floats:
    """Fractal noise 0-1: `cell` pixels the largest blob's height, its width `stretch` times that."""
    total = np.zeros((h, w), np.float32)
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.5)
        rows, columns = int(h / size) + 4, int(w / (size * stretch)) + 4
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        # A random shift hides the grid: without it every octave has its ridges on the same lines.
        dx, dy = (-float(rng.uniform(1, 2)) * size for _ in range(2))
        place = np.array([[size * stretch, 0, dx * stretch], [0, size, dy]], np.float32)
        layer = cv2.warpAffine(grid, place, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        total += layer * (0.5**octave)
    low, high = np.percentile(total[::4, ::4], (0.5, 99.5))
    return np.asarray(np.clip((total - low) / max(float(high - low), 1e-6), 0, 1), np.float32)


def warp(plane: Floats, dx: Floats, dy: Floats) -> Floats:
    """The plane or picture looked up at (x + dx, y + dy), both in pixels, mirrored at the borders."""
    h, w = dx.shape
    dx, dy = np.asarray(dx, np.float32), np.asarray(dy, np.float32)
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    return np.asarray(cv2.remap(plane, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def paint(plane: Floats, stops: Floats) -> Floats:
    """Colour a 0-1 plane by a ramp of sRGB stops, (n, 3)."""
    lut = gradient(stops, 1024)
    return np.asarray(lut[(np.clip(plane, 0, 1) * 1023).astype(np.int32)], np.float32)


def lit(plane: Floats, angle: float, depth: float) -> Floats:
    """Light falling on the plane as on a relief, about -1 to 1, 0 where flat. `angle` in radians."""
    gx = cv2.Sobel(plane, cv2.CV_32F, 1, 0, ksize=3)
    gy = cv2.Sobel(plane, cv2.CV_32F, 0, 1, ksize=3)
    return np.tanh((gx * np.float32(np.cos(angle)) + gy * np.float32(np.sin(angle))) * np.float32(depth))


def distance(h: int, w: int, x: float, y: float) -> Floats:
    """Distance in pixels of every pixel from the point (x, y)."""
    dx = (np.arange(w, dtype=np.float32) - np.float32(x)) ** 2
    dy = (np.arange(h, dtype=np.float32) - np.float32(y)) ** 2
    return np.sqrt(dx[None, :] + dy[:, None])


def smooth(plane: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, eased between."""
    t = np.clip((plane - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def over(picture: Floats, colour: Floats, alpha: Floats) -> Floats:
    """Lay a colour, (3,) or a picture, on the picture where alpha (h, w) says, in place; returns the picture."""
    picture += (colour - picture) * alpha[..., None]
    return picture


def screen(picture: Floats, colour: Floats, alpha: Floats) -> Floats:
    """Add light of a colour (3,) without burning out (the screen blend), in place; returns the picture."""
    picture += (1 - picture) * (alpha[..., None] * colour)
    return picture


def finish(picture: Floats, rng: Rng, grain: float = 0.022, vignette: float = 0.14) -> Bytes:
    """Darken the corners a little, add film grain, and round to 8 bits. The grain also hides banding."""
    h, w = picture.shape[:2]
    far = distance(h, w, w / 2, h / 2) / np.float32(np.hypot(w, h) / 2)
    noise = cv2.GaussianBlur(rng.standard_normal((h, w), dtype=np.float32), (0, 0), 0.6) * 1.6
    luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    noise *= np.float32(grain) * (0.45 + 1.1 * luma * (1.3 - luma))
    picture = picture * (1 - np.float32(vignette) * far[..., None] ** 3) + noise[..., None]
    return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)
