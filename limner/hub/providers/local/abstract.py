"""The four scenes without a horizon: silk gradients, flow lines, geometric tiles and a mosaic of cells."""

import cv2
import numpy as np

from limner.hub.providers.local.brushes import (
    Rng,
    distance,
    fbm,
    finish,
    lit,
    paint,
    screen,
    smooth,
    warp,
)
from limner.hub.providers.local.palette import Floats, Palette, mix
from limner.hub.providers.local.pixels import Bytes

WHITE = np.ones(3, np.float32)
BLACK = np.zeros(3, np.float32)


def silk(h: int, w: int, palette: Palette, rng: Rng) -> Bytes:
    """Warped noise coloured by the ramp and lit as folded cloth: (h, w, 3) uint8."""
    unit = min(h, w)
    bend = unit * float(rng.uniform(0.5, 0.85))
    dx, dy = fbm(rng, h, w, unit * 0.6, 2) - 0.5, fbm(rng, h, w, unit * 0.6, 2) - 0.5
    plane = warp(fbm(rng, h, w, unit * 0.75, 3, stretch=float(rng.uniform(1, 2))), dx * bend, dy * bend)
    angle = float(rng.uniform(0, 2 * np.pi))
    folds = 0.5 + 0.5 * np.sin(plane * np.float32(2 * np.pi * rng.uniform(1.3, 2.4)) + dx * 3)
    slope = distance(h, w, w * (0.5 + 0.7 * np.cos(angle)), h * (0.5 + 0.7 * np.sin(angle))) / np.hypot(h, w)
    tone = 0.42 * plane + 0.33 * folds + 0.3 * slope.astype(np.float32)
    low, high = np.percentile(tone[::4, ::4], (1, 99))
    picture = paint((tone - np.float32(low)) / np.float32(high - low), palette.ramp[(0 if palette.dark else 1) :])
    relief = cv2.GaussianBlur(folds.astype(np.float32), (0, 0), unit / 160)
    light = lit(relief, angle, unit / 28)
    screen(picture, mix(palette.accent, WHITE, 0.4), np.clip(light, 0, 1) * 0.38)
    picture *= 1 - np.clip(-light, 0, 1)[..., None] * np.float32(0.34)
    return finish(picture, rng, grain=0.03, vignette=0.1)


def flow(h: int, w: int, palette: Palette, rng: Rng) -> Bytes:
    """Thousands of thin strokes that follow one smooth field: (h, w, 3) uint8."""
    unit = min(h, w)
    field = fbm(rng, h, w, unit * float(rng.uniform(0.55, 0.9)), 2)
    turn = float(rng.uniform(0, 2 * np.pi))
    angles = field * np.float32(2 * np.pi * rng.uniform(0.9, 1.5)) + np.float32(turn)
    light = not palette.dark and rng.random() < 0.45
    ground = mix(palette.ramp[5], WHITE, 0.35) if light else mix(palette.ramp[0], BLACK, 0.35)
    tone = (fbm(rng, h, w, unit * 0.7, 2) - 0.5)[..., None]
    picture = np.ascontiguousarray(ground * (1 + tone * np.float32(0.06 if light else 0.5)), np.float32)
    tints = np.concatenate([palette.ramp[0:4] if light else palette.ramp[2:6], palette.accent[None]])
    zones = fbm(rng, h, w, unit * 0.45, 2)
    count, steps, stride = 1500, 46, unit / 165
    x, y = rng.uniform(-0.05, 1.05, count) * w, rng.uniform(-0.05, 1.05, count) * h
    paths = np.empty((count, steps, 2), np.float32)
    start_x, start_y = np.clip(x, 0, w - 1).astype(int), np.clip(y, 0, h - 1).astype(int)
    for step in range(steps):
        paths[:, step, 0], paths[:, step, 1] = x, y
        angle = angles[np.clip(y, 0, h - 1).astype(int), np.clip(x, 0, w - 1).astype(int)]
        x, y = x + np.cos(angle) * stride, y + np.sin(angle) * stride
    choice = zones[start_y, start_x] * (len(tints) - 1) + rng.normal(0, 0.55, count)
    shade = rng.uniform(0.82, 1.12, count)
    lengths = rng.integers(12, steps + 1, count)
    widths = 1 + (rng.pareto(2.0, count) * unit / 700).clip(0, unit / 130).astype(int)
    fixed = (paths * 16).astype(np.int32)
    canvas = np.clip(picture * 255, 0, 255).astype(np.uint8)
    for at in np.argsort(-widths, kind="stable"):
        colour = np.clip(tints[int(np.clip(round(choice[at]), 0, len(tints) - 1))] * shade[at] * 255, 0, 255)
        stroke = fixed[at, : lengths[at]].reshape(-1, 1, 2)
        cv2.polylines(canvas, [stroke], False, colour.tolist(), int(widths[at]), cv2.LINE_AA, 4)
    drawn: Floats = canvas.astype(np.float32) / 255
    relief = cv2.GaussianBlur(drawn @ np.array([0.3, 0.6, 0.1], np.float32), (0, 0), 0.8)
    drawn *= 1 + 0.16 * lit(relief, 0.8, 3.0)[..., None]
    return finish(drawn, rng, grain=0.018, vignette=0.12)


def geometric(h: int, w: int, palette: Palette, rng: Rng) -> Bytes:
    """A grid of tiles with arcs, discs, triangles and stripes, in the manner of printed posters: uint8."""
    scale = 2  # drawn twice as large and averaged down: shapes meet without jagged edges
    cells = int(rng.integers(4, 8))
    tile = -(-min(h, w) * scale // cells)
    rows, columns = -(-h * scale // tile), -(-w * scale // tile)
    board = np.zeros((rows * tile, columns * tile, 3), np.uint8)
    inks = [*palette.ramp, palette.accent]
    paper = 0 if palette.dark else 5
    for row in range(rows):
        for column in range(columns):
            pick = rng.permutation(len(inks))
            back = inks[paper] if rng.random() < 0.34 else inks[int(pick[0])]
            square = board[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            square[:] = np.clip(back * 255, 0, 255).astype(np.uint8)
            first, second = (_ink(inks[int(at)]) for at in pick[1:3])
            _tile(square, int(rng.integers(0, 9)), int(rng.integers(0, 4)), first, second)
    size = (w * scale, h * scale)
    top, left = (board.shape[0] - size[1]) // 2, (board.shape[1] - size[0]) // 2
    board = board[top : top + size[1], left : left + size[0]]
    picture = cv2.resize(board, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    paper_tone = fbm(rng, h, w, min(h, w) * 0.02, 4) - 0.5
    picture *= 1 + 0.05 * paper_tone[..., None]
    return finish(picture, rng, grain=0.035, vignette=0.06)


def _ink(colour: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in np.clip(colour * 255, 0, 255))


def _tile(square: Bytes, motif: int, turn: int, first: tuple[float, ...], second: tuple[float, ...]) -> None:
    """Draw one motif into the tile, turned by quarter circles."""
    n = square.shape[0]
    art = np.ascontiguousarray(np.rot90(square, turn))
    middle = (n // 2, n // 2)
    if motif <= 1:  # quarter disc with a smaller one inside
        cv2.circle(art, (0, 0), n, first, -1, cv2.LINE_AA)
        cv2.circle(art, (0, 0), n // 2, second, -1, cv2.LINE_AA)
    elif motif == 2:  # concentric arcs
        for ring in range(4):
            cv2.circle(art, (0, 0), n - ring * n // 4, first if ring % 2 == 0 else second, -1, cv2.LINE_AA)
    elif motif == 3:  # half disc and a stripe
        cv2.ellipse(art, (n // 2, n), (n // 2, n // 2), 0, 180, 360, first, -1, cv2.LINE_AA)
        art[: n // 6] = np.array(second, np.uint8)
    elif motif == 4:  # disc in disc
        cv2.circle(art, middle, int(n * 0.4), first, -1, cv2.LINE_AA)
        cv2.circle(art, middle, int(n * 0.16), second, -1, cv2.LINE_AA)
    elif motif == 5:  # two triangles
        cv2.fillPoly(art, [np.array([[0, 0], [n, 0], [0, n]], np.int32)], first, cv2.LINE_AA)
        cv2.fillPoly(art, [np.array([[0, 0], [n // 2, 0], [0, n // 2]], np.int32)], second, cv2.LINE_AA)
    elif motif == 6:  # stripes
        for stripe in range(0, 6, 2):
            art[stripe * n // 6 : (stripe + 1) * n // 6] = np.array(first, np.uint8)
    elif motif == 7:  # leaf: two quarter discs cut each other
        near = distance(n, n, 0, 0) < n
        art[near & (distance(n, n, n, n) < n)] = np.array(first, np.uint8)
    else:  # four petals' dots
        for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
            cv2.circle(art, (int(x * n), int(y * n)), n // 7, first, -1, cv2.LINE_AA)
    square[:] = np.rot90(art, -turn)


def mosaic(h: int, w: int, palette: Palette, rng: Rng) -> Bytes:
    """Glass cells around scattered points, each with its own tint, bevel and lead line: (h, w, 3) uint8."""
    scale = 2
    big_h, big_w = h * scale, w * scale
    unit = min(big_h, big_w)
    ray = (float(rng.uniform(0.2, 0.8)) * big_w, float(rng.uniform(0.15, 0.6)) * big_h)
    points = _scatter(big_h, big_w, unit / float(rng.uniform(17, 27)), rng)
    seeds = np.full((big_h, big_w), 255, np.uint8)
    seeds[points[:, 1], points[:, 0]] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    order = labels[points[:, 1], points[:, 0]]
    far = np.hypot(points[:, 0] - ray[0], points[:, 1] - ray[1]) / unit
    waves = fbm(rng, h, w, unit * 0.2, 3)[points[:, 1] // scale, points[:, 0] // scale]
    rings = 0.5 + 0.5 * np.cos(far * float(rng.uniform(5, 9)) + waves * 4)
    tone = 0.95 * rings - 0.85 * far + rng.normal(0, 0.11, len(points))
    tone = 0.06 + 0.94 * (np.argsort(np.argsort(tone)) / len(points)) ** 1.2  # ranks: the whole ramp is used
    tints = np.zeros((int(labels.max()) + 1, 3), np.float32)
    stops = np.concatenate([palette.ramp[0:5], palette.accent[None]])
    tints[order] = paint(tone.astype(np.float32)[None], stops)[0]
    edges = np.ones((big_h, big_w), np.uint8)
    edges[:, 1:][labels[:, 1:] != labels[:, :-1]] = 0
    edges[1:][labels[1:] != labels[:-1]] = 0
    inside = cv2.distanceTransform(edges, cv2.DIST_L2, 3)
    lead = unit / 330
    bevel = cv2.resize(np.minimum(inside, np.float32(lead * 4.5)), (w, h), interpolation=cv2.INTER_AREA)
    shine = lit(bevel, float(rng.uniform(0.6, 1.0)), 2.2 / lead)
    glass = cv2.resize(tints[labels], (w, h), interpolation=cv2.INTER_AREA)
    glass *= 1 + 0.16 * (fbm(rng, h, w, unit * 0.012, 3) - 0.5)[..., None]
    glass *= 1 + 0.13 * shine[..., None]
    screen(glass, palette.accent, 0.3 * np.exp(-distance(h, w, ray[0] / scale, ray[1] / scale) / (unit * 0.14)))
    line = cv2.resize(smooth(inside, lead * 0.3, lead * 1.1), (w, h), interpolation=cv2.INTER_AREA)
    dark = mix(palette.ramp[0], BLACK, 0.55)
    picture = dark + (glass - dark) * line[..., None]
    return finish(np.asarray(picture, np.float32), rng, grain=0.016, vignette=0.16)


def _scatter(h: int, w: int, apart: float, rng: Rng) -> Bytes:
    """Points about `apart` pixels from each other: a shifted grid, jittered, (n, 2) int x and y."""
    rows, columns = int(h / apart) + 2, int(w / apart) + 2
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    x = (x + 0.5 * (y % 2) - 0.5 + rng.uniform(-0.36, 0.36, x.shape)) * apart
    y = (y - 0.5 + rng.uniform(-0.36, 0.36, y.shape)) * apart
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    return np.unique(np.stack([x[inside], y[inside]], 1).astype(np.int64), axis=0)
