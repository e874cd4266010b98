"""The landscape scene: sky, sun or moon, clouds, ridges fading into haze, trees, and still water when asked for."""

import re

import cv2
import numpy as np

from limner.hub.providers.local.brushes import (
    Rng,
    distance,
    fbm,
    finish,
    over,
    paint,
    screen,
    smooth,
    warp,
)
from limner.hub.providers.local.palette import Floats, Palette, mix
from limner.hub.providers.local.pixels import Bytes

WATER_WORDS = frozenset(
    [
        "ocean",
        "sea",
        "lake",
        "river",
        "water",
        "beach",
        "coast",
        "island",
        "reflection",
        "bay",
        "shore",
        "harbour",
        "fjord",
    ]
)
TREE_WORDS = frozenset(
    ["forest", "wood", "woods", "tree", "trees", "pine", "pines", "fir", "jungle", "wilderness", "taiga", "cabin"]
)
OPEN_WORDS = frozenset(["desert", "dune", "dunes", "sand", "plain", "plains", "prairie", "steppe", "savanna"])


def landscape(h: int, w: int, prompt: str, palette: Palette, rng: Rng) -> Bytes:
    """One landscape: (h, w, 3) uint8 sRGB. Words of the prompt ask for water, trees or open dunes."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    unit = float(min(h, w))
    horizon = float(rng.uniform(0.5, 0.62))
    sun = (float(rng.uniform(0.18, 0.82)) * w, (horizon - float(rng.uniform(0.08, 0.3))) * h)
    picture = _sky((h, w), horizon, sun, palette, rng)
    water = bool(words & WATER_WORDS) or (not words & (TREE_WORDS | OPEN_WORDS) and rng.random() < 0.3)
    trees = bool(words & TREE_WORDS) or (not words & OPEN_WORDS and rng.random() < 0.35)
    dunes = bool(words & OPEN_WORDS)
    far = 2 if water else int(rng.integers(4, 6))
    base = horizon if water else horizon + 0.02
    layers = far + (1 if water else 0)
    for layer in range(far):
        depth = layer / max(layers - 1, 1)
        top = base + (0.0 if water else (1.02 - base) * depth**1.35 * 0.92)
        relief = unit * (0.05 if dunes else 0.15) * (1.15 - 0.45 * depth)
        profile = top * h - relief * _ridge(w, unit, depth, dunes, rng)
        if trees and layer >= max(far - 2, 1) and not water:
            profile = _forest(profile, unit * (0.035 + 0.075 * depth), rng)
        _lay_ridge(picture, profile, depth * (0.55 if water else 1.0), sun, palette, rng=rng)
    if water:
        picture = _water(picture, int(horizon * h), sun, palette, rng)
        shore = (0.99 * h - unit * 0.16 * _ridge(w, unit, 0.4, dunes, rng) * _shore(w, rng)).astype(np.float32)
        if trees or rng.random() < 0.5:
            shore = _forest(shore, unit * 0.07, rng)
        _lay_ridge(picture, shore, 1.0, sun, palette, rng=rng)
    return finish(picture, rng)


def _sky(size: tuple[int, int], horizon: float, sun: tuple[float, float], palette: Palette, rng: Rng) -> Floats:
    """A vertical ramp, light around the sun, clouds lit from its side, stars at night."""
    h, w = size
    unit = min(h, w)
    ramp = palette.ramp
    stops = ramp[[0, 1, 2, 3]] if palette.dark else ramp[[2, 3, 4, 5]]
    rows = np.linspace(0, 1 / max(horizon, 0.1), h, dtype=np.float32)[:, None]
    height = np.clip(rows + (fbm(rng, h, w, unit * 0.8, 2, stretch=2.5) - 0.5) * 0.16, 0, 1)
    picture = paint(height**1.1, stops)
    far = distance(h, w, *sun)
    if palette.dark:
        _stars(picture, horizon, rng)
    radius = unit * float(rng.uniform(0.045, 0.085))
    screen(picture, palette.accent, 0.55 * np.exp(-far / np.float32(unit * 0.3)))
    screen(picture, palette.accent, 0.35 * np.exp(-far / np.float32(radius * 1.6)))
    over(picture, mix(palette.accent, np.ones(3, np.float32), 0.45), smooth(-far, -radius - 1, -radius + 1))
    cover = float(rng.uniform(0.42, 0.62))
    clouds = fbm(rng, h, w, unit * 0.16, 5, stretch=3.2)
    edge = np.roll(clouds, int(unit * 0.012), axis=0)
    alpha = smooth(clouds, cover, cover + 0.34) * np.clip(1.25 - rows * 1.05, 0.1, 1)
    body = mix(stops[1], stops[2], 0.5) if palette.dark else mix(stops[3], np.ones(3, np.float32), 0.35)
    shade = np.clip(0.5 + (edge - clouds) * 4, 0, 1)[..., None]
    tone = body * (1 - shade * 0.28) + stops[0] * (shade * 0.28)
    over(picture, tone, alpha * np.float32(0.55 if palette.dark else 0.7))
    return screen(picture, palette.accent, alpha * 0.4 * np.exp(-far / np.float32(unit * 0.35)))


def _stars(picture: Floats, horizon: float, rng: Rng) -> None:
    h, w = picture.shape[:2]
    count = h * w // 1600
    x, y = rng.uniform(0, w, count), rng.uniform(0, horizon * h, count)
    light = rng.pareto(2.2, count).clip(0.05, 2.2) * 0.42
    plane = np.zeros((h, w), np.float32)
    for at_x, at_y, value in zip(x, y, light, strict=True):
        centre = (int(at_x * 16), int(at_y * 16))
        cv2.circle(plane, centre, int(16 * (0.35 + 0.55 * value)), float(min(value + 0.25, 1)), -1, cv2.LINE_AA, 4)
    fade = np.clip(1.15 - np.arange(h, dtype=np.float32)[:, None] / (horizon * h), 0, 1)
    screen(picture, np.ones(3, np.float32), np.clip(plane + cv2.GaussianBlur(plane, (0, 0), 2.2), 0, 1) * fade)


def _ridge(w: int, unit: float, depth: float, dunes: bool, rng: Rng) -> Floats:
    """A line of hills, 0-1 over w columns: sharp far mountains, rounder near hills, long smooth dunes."""
    octaves = 2 if dunes else 7
    rough = 0.36 if dunes else 0.52 - 0.12 * depth
    line = np.zeros(w, np.float32)
    columns = np.arange(w, dtype=np.float32)
    cell = unit * (0.55 if dunes else 0.42)
    for octave in range(octaves):
        knots = rng.standard_normal(int(w / cell) + 6).astype(np.float32)
        at = columns / np.float32(cell) + np.float32(rng.uniform(1, 2))
        low = at.astype(np.int32)
        t = at - low
        # Straight flanks far away read as mountains, eased ones as hills.
        ease = t * t * (3 - 2 * t) if dunes or depth > 0.5 else t
        line += (knots[low] * (1 - ease) + knots[low + 1] * ease) * np.float32(rough**octave)
        cell = max(cell / 2.1, 2.0)
    line -= line.min()
    return np.asarray(line / max(float(line.max()), 1e-6), np.float32)


def _shore(w: int, rng: Rng) -> Floats:
    """Weight of the near bank: high at one side, nothing at the other, so that water stays open."""
    side = np.linspace(0, 1, w, dtype=np.float32)
    bank = (side if rng.random() < 0.5 else 1 - side) * 1.7 - 0.55
    return np.asarray(np.clip(bank, 0, 1) ** 0.7, np.float32)


def _forest(profile: Floats, tall: float, rng: Rng) -> Floats:
    """Raise conifers along a ridge: each a narrow, slightly ragged triangle; returns the new profile."""
    w = len(profile)
    columns = np.arange(w, dtype=np.float32)
    result = profile.copy()
    for x in np.arange(-tall, w + tall, tall * 0.2):
        centre = x + rng.uniform(-0.1, 0.1) * tall
        height = tall * rng.uniform(0.45, 1.15)
        half = height * rng.uniform(0.17, 0.24)
        low, high = max(int(centre - half), 0), min(int(centre + half) + 2, w)
        if low >= high:
            continue
        away = np.abs(columns[low:high] - centre) / half
        boughs = 0.10 * np.abs(((away * 3.2) % 1.0) - 0.5)
        top = height * np.clip(1 - away + boughs, 0, 1) * (away <= 1)
        foot = profile[min(max(int(centre), 0), w - 1)]
        result[low:high] = np.minimum(result[low:high], np.where(top > 0, foot - top, result[low:high]))
    return result


def _lay_ridge(
    picture: Floats, profile: Floats, depth: float, sun: tuple[float, float], palette: Palette, *, rng: Rng
) -> None:
    """Fill everything under a profile: haze in the distance, dark nearby, mist at the foot, light near the sun."""
    h, w = picture.shape[:2]
    unit = min(h, w)
    top = max(int(profile.min()) - 2, 0)
    if top >= h:
        return
    ramp = palette.ramp
    haze = ramp[3] if palette.dark else mix(ramp[4], palette.accent, 0.2)
    near = mix(ramp[0], np.zeros(3, np.float32), 0.25)
    middle = mix(ramp[1], ramp[2], 0.6)
    colour = mix(haze, middle, depth / 0.5) if depth < 0.5 else mix(middle, near, (depth - 0.5) / 0.5)
    rows = np.arange(top, h, dtype=np.float32)[:, None]
    below = rows - profile[None, :]
    alpha = np.clip(below + 0.5, 0, 1)
    mist = np.exp(-np.clip(unit * 0.26 - below, 0, None) / np.float32(unit * 0.11)) * np.float32(0.55 * (1 - depth))
    texture = (fbm(rng, h - top, w, unit * 0.07, 4, stretch=1.8) - 0.5) * np.float32(0.10 + 0.16 * depth)
    far = distance(h - top, w, sun[0], sun[1] - top)
    glow = np.exp(-far / np.float32(unit * 0.42)) * np.float32(0.5 * (1 - 0.75 * depth))
    fill = colour[None, None, :] * (1 + texture[..., None])
    fill += (haze - fill) * np.clip(mist, 0, 1)[..., None]
    fill += (palette.accent - fill) * glow[..., None]
    part = picture[top:]
    part += (fill - part) * alpha[..., None]


def _water(picture: Floats, line: int, sun: tuple[float, float], palette: Palette, rng: Rng) -> Floats:
    """Still water under row `line`: the mirrored scene, ripples that widen towards us, glitter under the sun."""
    h, w = picture.shape[:2]
    depth = h - line
    unit = min(h, w)
    mirror = np.ascontiguousarray(picture[line - 1 :: -1][:depth])
    if len(mirror) < depth:
        mirror = np.concatenate([mirror, np.repeat(mirror[-1:], depth - len(mirror), axis=0)])
    rows = np.linspace(0, 1, depth, dtype=np.float32)[:, None]
    ripple = fbm(rng, depth, w, max(unit * 0.03, 6), 4, stretch=7.0) - 0.5
    blurred = cv2.GaussianBlur(mirror, (0, 0), sigmaX=unit * 0.004 + 0.5, sigmaY=unit * 0.012 + 0.5)
    surface = warp(blurred, ripple * unit * 0.03 * (0.2 + rows), ripple * unit * 0.16 * (0.12 + rows))
    deep = mix(palette.ramp[1], palette.ramp[0], 0.4)
    surface += (deep - surface) * (0.12 + 0.42 * rows)[..., None]
    away = np.abs(np.arange(w, dtype=np.float32) - np.float32(sun[0]))[None, :]
    path = np.exp(-((away / (unit * (0.05 + 0.16 * rows))) ** 2))
    glitter = smooth(ripple + 0.5, 0.52, 0.8) * path * (1 - 0.45 * rows)
    screen(surface, palette.accent, np.clip(glitter, 0, 1) * 0.85)
    picture[line:] = surface
    # A thin bright line where water meets land: the eye reads it as the far shore.
    picture[line : line + max(1, unit // 400)] *= 0.9
    return picture
