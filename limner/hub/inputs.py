"""Input images: data URIs taken out of the request, measured, decoded once, and described in the job's record."""

import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from limner.hub.providers.base import Blob
from limner.kit.cpu import CpuError, CpuPool
from limner.media import sniffing
from limner.media.sniffing import ImageRejected
from limner.web.errors import ApiError, invalid

DATA_URI = re.compile(r"data:(image/[a-z+.-]{1,40});base64,", re.ASCII)
FIELDS = ("images", "mask")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bytes of one image, pixels and side after decoding."""

    max_bytes: int
    max_pixels: int
    max_side: int


async def take(
    parsed: dict[str, Any], limits: ImageLimits, pool: CpuPool
) -> tuple[dict[str, Any], list[tuple[str, Blob]]]:
    """The input with each image replaced by its description, and the images by name (image_0 …, mask).

    Raises ApiError 400: `url_inputs_not_available`, `unreadable_image`, `unsupported_media`, `image_too_large`.
    """
    recorded = dict(parsed)
    blobs: list[tuple[str, Blob]] = []
    if isinstance(images := parsed.get("images"), list):
        recorded["images"] = []
        for index, text in enumerate(images):
            blob = await _take_one(text, f"/input/images/{index}", limits, pool)
            blobs.append((f"image_{index}", blob))
            recorded["images"].append(_described(blob))
    if isinstance(mask := parsed.get("mask"), str):
        blob = await _take_one(mask, "/input/mask", limits, pool)
        if blob.media_type != "image/png":
            raise invalid(
                {"/input/mask": ["must be a PNG whose transparent parts are to be edited"]}, "unsupported_media"
            )
        blobs.append(("mask", blob))
        recorded["mask"] = _described(blob)
    return recorded, blobs


def _described(blob: Blob) -> dict[str, Any]:
    return {
        "type": blob.media_type,
        "width": blob.width,
        "height": blob.height,
        "bytes": len(blob.data),
        "sha256": hashlib.sha256(blob.data).hexdigest(),
    }


async def _take_one(text: str, at: str, limits: ImageLimits, pool: CpuPool) -> Blob:
    data = _decode(text, at, limits)
    if sniffing.sniff(data) is None:
        raise invalid({at: ["is not a PNG, JPEG, WebP, GIF or AVIF image"]}, "unsupported_media", "Unsupported image.")
    size = sniffing.header_size(data)
    if size is not None and (size[0] * size[1] > limits.max_pixels or max(size) > limits.max_side):
        raise _too_large(at, f"is {size[0]} × {size[1]} pixels", limits)
    try:
        facts = await pool.run("limner.media.images:inspect", data, limits.max_pixels, limits.max_side)
    except ImageRejected as error:
        raise invalid({at: [error.message]}, error.code, "The image cannot be used.") from None
    except CpuError as error:
        raise invalid({at: [f"could not be decoded within limits ({error})"]}, "unreadable_image") from None
    return Blob(facts.media_type, data, facts.width, facts.height)


def _decode(text: str, at: str, limits: ImageLimits) -> bytes:
    if not isinstance(text, str):
        raise invalid({at: ["must be a data URI: data:image/png;base64,…"]}, "unreadable_image")
    if text[:8].lower().startswith(("http://", "https://")):
        raise ApiError(
            400, "url_inputs_not_available", "Images by URL are not available yet: send them as data URIs.",
            details={at: ["send data:image/…;base64,…"]},
        )  # fmt: skip
    match = DATA_URI.match(text)
    if match is None:
        raise invalid({at: ["must be a data URI: data:image/png;base64,…"]}, "unreadable_image")
    if (len(text) - match.end()) * 3 // 4 > limits.max_bytes + 2:
        raise _too_large(at, "has too many bytes", limits)
    try:
        data = binascii.a2b_base64(memoryview(text.encode())[match.end() :], strict_mode=True)
    except (binascii.Error, ValueError):
        raise invalid({at: ["is not valid base64"]}, "unreadable_image") from None
    if len(data) > limits.max_bytes:
        raise _too_large(at, "has too many bytes", limits)
    return data


def _too_large(at: str, what: str, limits: ImageLimits) -> ApiError:
    allowed = f"at most {limits.max_bytes} bytes, {limits.max_pixels} pixels, {limits.max_side} a side"
    return invalid({at: [f"{what}; {allowed}"]}, "image_too_large", "The image is too large.")
