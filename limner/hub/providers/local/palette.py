"""Colours for a prompt: the words that name colours, moods, seasons and times of day, else a scheme from the seed.

A palette is a ramp of six sRGB colours from darkest to lightest plus one accent. Colours are mixed in OKLab
(Björn Ottosson, 2020), where equal steps look equal and blends do not turn grey or muddy on the way.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # float32; Any, since OpenCV's stubs widen every dtype they return

RAMP = 6
# Written dark to light; the last entry is the accent (sun, lamp, highlight).
MOODS: dict[str, str] = {
    "sunset": "2b1538 6b2353 b8405e ee6c4d f9a65a fde2a7 fff1c9",
    "dawn": "27304f 545b8c 9a7fa8 dba1a8 f4c7ab fdeed6 ffd98a",
    "ocean": "06202e 0b4159 12708a 35a3b0 8ed5cf e4f5ec ffd58a",
    "forest": "0d1f17 1d3b2a 37623f 6d9157 b3bf7d eef0cf f2c14e",
    "night": "080a1c 141a3c 26306b 48549c 8089c4 cfd3ee fdf3c4",
    "desert": "3a1f1d 7a3b2e b96540 dd9858 efc98b faecd0 fff3b8",
    "winter": "1c2b3f 3c5673 6f90ab a3bfd0 d3e3ea f7fafb ffe3b3",
    "autumn": "2a1612 5e2418 9c3d1b cf6a24 e7a33e f7e0aa ffd35c",
    "spring": "24402f 4c7f57 8bb86a f0a3b5 f9cdd0 fdf6e8 ffd76e",
    "fire": "1a0808 4f0d10 9c1c14 df4b16 f99325 fee08a fff6c2",
    "neon": "0b0620 2a0d5c 6a11a8 d6189b 19c7e6 d7faff f9f871",
    "storm": "11161d 27313c 46545f 6f7f89 a4b0b5 dde3e4 f3e7b1",
    "pastel": "5b5278 8d82ad c3a9cf f2b9c6 f9d9c8 fdf5e9 ffe89e",
    "vintage": "2e241c 5c4632 8a6d4b b89a6c d9c49a f3e9d2 c8553d",
    "space": "05040f 160f33 3a1d66 79308f c86bb0 f6c9dc 9be7ff",
    "tropical": "06302e 0a6153 12a07a 6fd08c f6d55c fff4cf ff6f59",
    "lavender": "221a3d 46356f 7459a6 a98bd0 d4c1ea f6f0fb ffd9a0",
    "mono": "0e0f11 2c2e31 56595d 8b8e92 c4c6c8 f4f4f2 ffffff",
}
MOOD_WORDS: dict[str, str] = {
    "sunset": "sunset dusk evening twilight golden warm romantic",
    "dawn": "dawn sunrise morning daybreak misty mist fog foggy dreamy",
    "ocean": "ocean sea beach coast lake river water wave waves underwater island marine rain",
    "forest": "forest wood woods jungle tree trees moss meadow nature garden park leaf leaves",
    "night": "night midnight moon moonlight stars starry nocturnal dark",
    "desert": "desert dune dunes sand canyon sahara savanna mars clay earth",
    "winter": "winter snow snowy ice icy frost arctic glacier cold christmas alpine",
    "autumn": "autumn fall harvest october pumpkin rust maple",
    "spring": "spring blossom bloom flower flowers cherry fresh april may",
    "fire": "fire flame lava volcano ember hot inferno dragon",
    "neon": "neon cyberpunk synthwave retrowave futuristic city disco electric vaporwave",
    "storm": "storm stormy thunder rainy gloomy melancholy grey gray cloudy industrial",
    "pastel": "pastel soft candy baby gentle calm cute sweet",
    "vintage": "vintage retro old sepia antique nostalgic coffee paper",
    "space": "space galaxy nebula cosmos cosmic universe planet astronaut stars aurora",
    "tropical": "tropical summer holiday palm paradise parrot fruit",
    "lavender": "lavender provence lilac magic mystical fairy wizard",
    "mono": "monochrome black white minimal minimalist noir",
}
# Named colours as OKLCh hue in degrees and chroma; darkness and light come from the ramp.
HUES: dict[str, tuple[float, float]] = {
    "red": (27, 0.19), "crimson": (18, 0.19), "scarlet": (32, 0.2), "orange": (58, 0.16), "coral": (38, 0.14),
    "amber": (75, 0.15), "yellow": (98, 0.15), "gold": (88, 0.13), "lime": (125, 0.18), "green": (148, 0.14),
    "emerald": (160, 0.13), "mint": (168, 0.08), "teal": (190, 0.1), "turquoise": (190, 0.11),
    "cyan": (205, 0.12), "blue": (257, 0.16), "azure": (245, 0.14), "navy": (264, 0.13), "indigo": (275, 0.17),
    "violet": (295, 0.17), "purple": (305, 0.18), "magenta": (330, 0.2), "pink": (352, 0.13),
    "rose": (8, 0.14), "brown": (55, 0.07), "beige": (80, 0.04), "silver": (250, 0.015),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Palette:
    """`ramp` is (6, 3) and `accent` (3,), sRGB 0-1 float32; `dark` tells whether the scene is a night one."""

    ramp: Floats
    accent: Floats
    dark: bool


def choose(prompt: str, rng: np.random.Generator) -> Palette:
    """The palette of a prompt: its first mood word, its colour words, or both; else one drawn from `rng`."""
    words = re.findall(r"[a-z]+", prompt.lower())
    mood = next((mood for word in words for mood, known in MOOD_WORDS.items() if word in known.split()), None)
    hues = [HUES[word] for word in dict.fromkeys(words) if word in HUES][:3]
    night = mood in {"night", "space", "neon"}
    if mood is None and not hues and rng.random() < 0.5:
        mood = str(rng.choice([name for name in MOODS if name != "mono"]))
        night = mood in {"night", "space", "neon"}
    if mood is not None:
        colours = np.stack([_hex(code) for code in MOODS[mood].split()])
        ramp = _drift(colours[:RAMP], hues, rng)
        return Palette(ramp, _tint(colours[RAMP], hues), night)
    if not hues:
        base = float(rng.uniform(0, 360))
        step = float(rng.choice([32.0, 48.0, 120.0, 165.0]))
        hues = [(base, 0.13), ((base + step) % 360, 0.12)]
    return _from_hues(hues, rng)


def gradient(stops: Floats, size: int) -> Floats:
    """A smooth ramp of `size` sRGB colours through evenly spaced stops: (size, 3) float32."""
    lab = to_oklab(stops)
    at = np.linspace(0, len(stops) - 1, size, dtype=np.float32)
    low = np.clip(at.astype(np.int32), 0, len(stops) - 2)
    t = (at - low)[:, None]
    t = t * t * (3 - 2 * t) * 0.5 + t * 0.5  # half eased: no visible bands at the stops
    return from_oklab(lab[low] * (1 - t) + lab[low + 1] * t)


def mix(first: Floats, second: Floats, share: float) -> Floats:
    """`share` (0-1) of the second colour in the first, mixed in OKLab."""
    lab = to_oklab(np.stack([first, second]))
    return from_oklab(lab[0] * (1 - share) + lab[1] * share)


def to_oklab(srgb: Floats) -> Floats:
    """sRGB 0-1 (..., 3) to OKLab."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lms = np.cbrt(linear @ _LMS.T)
    return np.asarray(lms @ _LAB.T, np.float32)


def from_oklab(lab: Floats) -> Floats:
    """OKLab (..., 3) to sRGB, clipped to 0-1."""
    linear = np.clip((lab @ np.linalg.inv(_LAB).T) ** 3 @ np.linalg.inv(_LMS).T, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.clip(srgb, 0, 1), np.float32)


_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _hex(code: str) -> Floats:
    return np.array([int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)], np.float32)


def _lch(light: float, chroma: float, hue: float) -> Floats:
    angle = np.deg2rad(hue)
    return from_oklab(np.array([light, chroma * np.cos(angle), chroma * np.sin(angle)], np.float32))


def _from_hues(hues: list[tuple[float, float]], rng: np.random.Generator) -> Palette:
    """A ramp that walks through the hues from dark to light; chroma swells in the middle as pigments do."""
    lights = np.linspace(0.2, 0.95, RAMP)
    ramp = []
    for step, light in enumerate(lights):
        hue, chroma = hues[min(step * len(hues) // RAMP, len(hues) - 1)]
        swell = 0.35 + 0.65 * np.sin(np.pi * (0.12 + 0.76 * step / (RAMP - 1)))
        ramp.append(_lch(float(light), chroma * float(swell), hue + float(rng.uniform(-14, 14))))
    accent_hue = hues[0][0] + (180 if len(hues) == 1 else 25)
    return Palette(np.stack(ramp), _lch(0.9, 0.1, accent_hue), dark=False)


def _drift(ramp: Floats, hues: list[tuple[float, float]], rng: np.random.Generator) -> Floats:
    """Small hue changes from the seed, and the prompt's own colours pulled into the mood's middle tones."""
    lab = to_oklab(ramp)
    angle = np.deg2rad(rng.uniform(-9, 9))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    lab[:, 1:] = lab[:, 1:] @ turn.T
    for order, (hue, chroma) in enumerate(hues):
        target = to_oklab(_lch(0.6, chroma, hue))[1:]
        for step in range(1 + order, RAMP - 1, len(hues)):
            lab[step, 1:] = 0.3 * lab[step, 1:] + 0.7 * target
    return from_oklab(lab)


def _tint(accent: Floats, hues: list[tuple[float, float]]) -> Floats:
    return mix(accent, _lch(0.85, hues[0][1], hues[0][0]), 0.3) if hues else accent
