"""local/describe: an alternative text made of measurements only. It names colours and tones, never things.

Runs in a CPU child. Measured on a copy of at most 512 pixels a side, except size and transparency.
"""

from typing import Any, cast

import cv2
import numpy as np

from limner.hub.providers.local.palette import Floats, to_oklab
from limner.hub.providers.local.pixels import Bytes, grey, read, split

SIDE = 512
MIN_SHARE = 0.03  # colours below 3 % are left out
MAX_COLOURS = 6
# Reference points for names, chosen to be told apart at a glance; the nearest in OKLab wins.
COLOURS: dict[str, str] = {
    "black": "080808", "dark grey": "3f3f41", "grey": "808080", "light grey": "c2c2c2", "white": "fafafa",
    "dark red": "7a1218", "red": "dc1e22", "coral": "f4795b", "pink": "f3a6bd", "magenta": "d71d94",
    "dark brown": "40281a", "brown": "80522d", "tan": "c9a277", "beige": "ecdfc6", "peach": "f8c9a5",
    "orange": "f2741c", "amber": "f5a81c", "yellow": "f6e02c", "cream": "fbf4d4", "olive": "77772a",
    "lime green": "8fd026", "green": "2a9a3c", "dark green": "163f20", "sage green": "9db48f",
    "mint": "a9e8cc", "teal": "13807f", "turquoise": "35c8c0", "sky blue": "83c3ef", "blue": "1f62dc",
    "navy": "13204d", "slate blue": "67789f", "lavender": "bfb2e6", "purple": "72299c", "plum": "5a2447",
}  # fmt: skip


def describe(image: bytes) -> tuple[str, dict[str, Any]]:
    """The text, and its facts: width and height in pixels, orientation, palette [{name, hex, share}], brightness,
    contrast and sharpness {value, word}, transparent_share 0-1, tags.

    Colours count by opacity; a wholly transparent picture has none. Raises ImageRejected as media.images does.
    """
    picture = read(image)
    height, width = picture.shape[:2]
    colour, alpha = split(_reduced(picture))
    weight = np.ones(colour.shape[:2], np.float32) if alpha is None else alpha.astype(np.float32) / 255
    full_alpha = picture[..., 3] if picture.shape[2] == 4 else None
    clear = 0.0 if full_alpha is None else float(np.mean(full_alpha == 0))
    facts: dict[str, Any] = {
        "width": width,
        "height": height,
        "orientation": _orientation(width, height),
        "palette": _palette(colour, weight),
        **_tones(colour, weight),
        "transparent_share": round(clear, 4),
    }
    facts["tags"] = _tags(colour, weight, facts)
    return _words(facts), facts


def _reduced(picture: Bytes) -> Bytes:
    height, width = picture.shape[:2]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cast(Bytes, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _orientation(width: int, height: int) -> str:
    if abs(width - height) <= 0.02 * max(width, height):
        return "square"
    return "landscape" if width > height else "portrait"


def _palette(colour: Bytes, weight: Floats) -> list[dict[str, Any]]:
    """Names with the mean colour and share of what is nearest to each, largest first; shares are of the opaque."""
    step = max(1, max(colour.shape[:2]) // 160)
    pixels = colour[::step, ::step].reshape(-1, 3).astype(np.float32) / 255
    weights = weight[::step, ::step].reshape(-1)
    total = float(weights.sum())
    if total < 1e-3:
        return []
    names = list(COLOURS)
    codes = [[int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)] for code in COLOURS.values()]
    points = to_oklab(np.array(codes, np.float32))
    # A little more for hue than for lightness: a shaded red is a red before it is a brown.
    stretch = np.array([1.0, 1.7, 1.7], np.float32)
    gaps = ((to_oklab(pixels) * stretch)[:, None, :] - (points * stretch)[None, :, :]) ** 2
    nearest = gaps.sum(axis=2).argmin(axis=1)
    shares = np.bincount(nearest, weights=weights, minlength=len(names)) / total
    palette: list[dict[str, Any]] = []
    for index in np.argsort(-shares, kind="stable")[:MAX_COLOURS]:
        if shares[index] < MIN_SHARE and palette:
            break
        mine = nearest == index
        mean = np.average(pixels[mine], axis=0, weights=np.maximum(weights[mine], 1e-6))
        red, green, blue = (round(float(value) * 255) for value in mean)
        share = round(float(shares[index]), 3)
        palette.append({"name": names[index], "hex": f"#{red:02x}{green:02x}{blue:02x}", "share": share})
    return palette


def _tones(colour: Bytes, weight: Floats) -> dict[str, Any]:
    """Brightness (mean luma 0-1), contrast (its standard deviation, 0-0.5), sharpness (variance of the Laplacian)."""
    luma = grey(colour).astype(np.float32) / 255
    total = max(float(weight.sum()), 1e-6)
    mean = float((luma * weight).sum()) / total
    spread = float(np.sqrt((((luma - mean) ** 2) * weight).sum() / total))
    # Measured a pixel inside what is opaque: the colour of clear pixels is noise nobody sees.
    inner = cv2.erode((weight > 0.5).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    edges = cv2.Laplacian(luma * 255, cv2.CV_32F)[inner]
    sharpness = float(edges.var()) if edges.size else 0.0
    return {
        "brightness": _graded(
            mean, ("very dark", 0.12), ("dark", 0.33), ("medium", 0.62), ("bright", 0.85), "very bright"
        ),
        "contrast": _graded(spread, ("none", 0.01), ("low", 0.11), ("medium", 0.22), ("high", 0.36), "very high"),
        "sharpness": _graded(
            sharpness, ("flat", 2.0), ("soft", 90.0), ("medium", 500.0), ("sharp", 5000.0), "very sharp"
        ),
    }


def _graded(value: float, *grades: Any) -> dict[str, Any]:
    word = next((name for name, limit in grades[:-1] if value < limit), grades[-1])
    return {"value": round(value, 4), "word": word}


def _tags(colour: Bytes, weight: Floats, facts: dict[str, Any]) -> list[str]:
    """What else can be measured, out of a fixed vocabulary."""
    tags = []
    if facts["transparent_share"] > 0.001 or float(weight.mean()) < 0.995:
        tags.append("transparency")
    if not facts["palette"]:
        return tags
    opaque = colour[weight > 0.5].reshape(-1, 3)
    if not len(opaque):
        return tags
    lab = to_oklab(opaque[:: max(1, len(opaque) // 20_000)].astype(np.float32) / 255)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    if float(np.mean(chroma < 0.025)) > 0.97:
        tags.append("monochrome")
    elif float(chroma.mean()) > 0.13:
        tags.append("vivid")
    if facts["contrast"]["word"] == "none":
        tags.append("single-colour")
        return tags
    if _bordered(colour, weight):
        tags.append("border")
    tags += _look(colour, opaque)
    return tags


def _bordered(colour: Bytes, weight: Floats) -> bool:
    """All four outermost strips (2 % of the side) are one flat colour, and the inside is not."""
    height, width = colour.shape[:2]
    strip = max(2, round(min(height, width) * 0.02))
    if min(height, width) < 16 or float(weight.min()) < 0.99:
        return False
    whole = colour.astype(np.float32)
    sides = [whole[:strip], whole[-strip:], whole[:, :strip], whole[:, -strip:]]
    rim = np.concatenate([side.reshape(-1, 3) for side in sides])
    return float(rim.std(axis=0).max()) < 4 and float(whole[strip:-strip, strip:-strip].std()) > 12


def _look(colour: Bytes, opaque: Bytes) -> list[str]:
    """Photograph-like: many colours and gentle texture everywhere. Graphic-like: few colours, flat areas."""
    codes = (opaque >> 3).astype(np.int32) @ np.array([1024, 32, 1], np.int32)
    distinct = len(np.unique(codes))
    luma = grey(colour).astype(np.float32)
    step = np.abs(np.diff(luma, axis=1))
    flat, gentle = float(np.mean(step < 0.5)), float(np.mean((step >= 0.5) & (step < 12)))
    if distinct <= 64 or flat > 0.8:
        return ["graphic-like"]
    if distinct > 300 and gentle > 0.45 and flat < 0.6:
        return ["photograph-like"]
    return []


def _words(facts: dict[str, Any]) -> str:
    tags = facts["tags"]
    start = {"square": "Square", "landscape": "Landscape-format", "portrait": "Portrait-format"}[facts["orientation"]]
    parts = [f"{start} image, {facts['width']} × {facts['height']} pixels."]
    if "photograph-like" in tags:
        parts.append("It looks like a photograph or a detailed rendering.")
    elif "graphic-like" in tags:
        parts.append("It looks like a flat graphic.")
    palette = facts["palette"]
    if not palette:
        return " ".join([*parts, "It is fully transparent."])
    if "single-colour" in tags:
        parts.append(f"It is a single colour: {palette[0]['name']} ({palette[0]['hex']}).")
    else:
        named = ", ".join(f"{entry['name']} ({entry['share']:.0%})" for entry in palette[:4])
        parts.append(f"Main colours: {named}.")
        contrast, detail = facts["contrast"]["word"], facts["sharpness"]["word"]
        parts.append(f"Brightness is {facts['brightness']['word']}, contrast {contrast}, detail {detail}.")
    if "monochrome" in tags and "single-colour" not in tags:
        parts.append("It is almost without colour.")
    if "border" in tags:
        parts.append("A plain border runs around it.")
    if "transparency" in tags:
        clear = facts["transparent_share"]
        parts.append(f"{clear:.0%} of it is fully transparent." if clear >= 0.005 else "It is partly see-through.")
    return " ".join(parts)
