"""Between files and arrays: decode through libvips (media.images), encode PNG through OpenCV. CPU children only.

Colour order is RGB or RGBA, uint8, sRGB, upright; OpenCV's own BGR order stays inside this file.
"""

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from limner.media.images import decode

Bytes = NDArray[Any]  # uint8; Any, since OpenCV's stubs widen every dtype they return

PNG_LEVEL = 3  # outputs are encoded again before they are stored: speed matters here, size does not


def read(data: bytes) -> Bytes:
    """The picture as (h, w, 3) or, with transparency, (h, w, 4). Raises ImageRejected as media.images does."""
    return np.ascontiguousarray(decode(data)[1].numpy())


def split(picture: Bytes) -> tuple[Bytes, Bytes | None]:
    """Colour (h, w, 3) and, where there is one, the alpha plane (h, w)."""
    if picture.shape[2] == 4:
        return np.ascontiguousarray(picture[..., :3]), np.ascontiguousarray(picture[..., 3])
    return picture, None


def join(colour: Bytes, alpha: Bytes | None) -> Bytes:
    """The inverse of `split`."""
    return colour if alpha is None else np.dstack([colour, alpha])


def encode_png(picture: Bytes) -> bytes:
    """A PNG of (h, w, 3) or (h, w, 4); the same pixels give the same bytes. Raises MemoryError."""
    order = cv2.COLOR_RGB2BGR if picture.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    done, buffer = cv2.imencode(".png", cv2.cvtColor(picture, order), [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
    if not done:
        raise MemoryError("OpenCV could not encode the picture")
    return buffer.tobytes()


def grey(colour: Bytes) -> Bytes:
    """Luma of (h, w, 3) as (h, w), BT.601 weights."""
    return cast(Bytes, cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))
