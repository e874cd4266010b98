"""local/canvas: procedural pictures from a prompt's words and a seed. Arithmetic and chance, not a neural model.

Runs in a CPU child. The same prompt, style, size, seed and index give the same bytes.
"""

import re
from hashlib import sha256
from typing import Any

import numpy as np

from limner.hub.providers.local.abstract import flow, geometric, mosaic, silk
from limner.hub.providers.local.landscape import OPEN_WORDS, TREE_WORDS, WATER_WORDS, landscape
from limner.hub.providers.local.palette import choose
from limner.hub.providers.local.pixels import encode_png

STYLES = ("gradient", "geometric", "flow", "mosaic", "landscape")
# The word that comes first in a prompt decides what "auto" means.
STYLE_WORDS: dict[str, frozenset[str]] = {
    "landscape": WATER_WORDS
    | TREE_WORDS
    | OPEN_WORDS
    | frozenset(
        [
            "landscape",
            "mountain",
            "mountains",
            "hill",
            "hills",
            "valley",
            "sunset",
            "sunrise",
            "dawn",
            "dusk",
            "sky",
            "horizon",
            "moon",
        ]
    ),
    "geometric": frozenset(
        ["geometric", "bauhaus", "pattern", "tiles", "shapes", "poster", "grid", "circles", "squares"]
    ),
    "mosaic": frozenset(
        ["mosaic", "glass", "stained", "cells", "crystal", "crystals", "voronoi", "window", "gem", "church"]
    ),
    "flow": frozenset(
        ["flow", "lines", "wind", "hair", "strokes", "fur", "field", "swirl", "swirling", "current", "dance", "music"]
    ),
    "gradient": frozenset(
        ["gradient", "abstract", "silk", "smooth", "background", "wallpaper", "soft", "blur", "cloth", "aurora"]
    ),
}


def canvas(prompt: str, width: int, height: int, style: str, seed: tuple[int, int]) -> tuple[bytes, dict[str, Any]]:
    """One picture as PNG bytes, and its facts: width and height in pixels, the style, the seed and the index.

    `seed` is the request's seed and the index of this output (0-3): each index is a picture of its own.
    """
    digest = sha256(prompt.encode()).digest()
    words = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 16, 4)]
    chosen = _style(prompt, style, digest)
    rng = np.random.default_rng([*seed, STYLES.index(chosen), *words])
    palette = choose(prompt, rng)
    if chosen == "landscape":
        picture = landscape(height, width, prompt, palette, rng)
    else:
        scene = {"gradient": silk, "geometric": geometric, "flow": flow, "mosaic": mosaic}[chosen]
        picture = scene(height, width, palette, rng)
    return encode_png(picture), {"width": width, "height": height, "style": chosen, "seed": seed[0], "index": seed[1]}


def _style(prompt: str, style: str, digest: bytes) -> str:
    if style != "auto":
        return style
    for word in re.findall(r"[a-z]+", prompt.lower()):
        for name, known in STYLE_WORDS.items():
            if word in known:
                return name
    return STYLES[digest[31] % len(STYLES)]
