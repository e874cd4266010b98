"""What a provider returned, made into limner's own: decoded, re-encoded, stored under a key that carries the fence."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson

from limner.hub.providers.base import Output
from limner.hub.runs import Lease
from limner.kit.cpu import CpuCrashed, CpuError, CpuPool
from limner.media.sniffing import Encoded, ImageRejected
from limner.media.store import ObjectStore, StoreUnavailable
from limner.telemetry import logs

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
MAX_TEXT_CHARS = 1_000_000
MAX_DIMENSIONS = 16_384
MAX_FACTS_BYTES = 64 * 1024
PUT_PAUSES_S = (0.2, 1.0)  # a store that stumbles is asked again: the result cost money
log = logs.get("outputs")


def prefix(org_id: UUID, job_id: UUID) -> str:
    """Where all runs of a job keep their objects."""
    return f"outputs/{org_id}/{job_id}/"


async def keep(lease: Lease, outputs: Sequence[Output], store: ObjectStore, pool: CpuPool) -> list[dict[str, Any]]:
    """Store every valid output and describe it; what cannot be decoded is left out (and so not charged).

    Raises StoreUnavailable.
    """
    kept: list[dict[str, Any]] = []
    for place, output in enumerate(outputs):
        if output.type == "text":
            described = _text(output)
        elif output.type == "vector":
            described = _vector(output)
        else:
            described = await _image(f"{prefix(lease.org_id, lease.job_id)}{lease.fence}/{place}", output, store, pool)
        if described is None:
            log.warning("output.dropped", job=lease.job_id, place=place, type=output.type)
        else:
            kept.append(described | _facts(output) | {"index": len(kept), "type": output.type})
    return kept


def plain(text: str, limit: int) -> str:
    """Foreign text as a database takes it: without NUL and half characters, not longer than `limit`."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:limit]


def _text(output: Output) -> dict[str, Any] | None:
    text = plain(output.text or "", MAX_TEXT_CHARS)
    return {"text": text} if text.strip() else None


def _vector(output: Output) -> dict[str, Any] | None:
    """Numbers that JSON can hold, and not more than MAX_DIMENSIONS of them."""
    numbers = [float(number) for number in (output.vector or ())[: MAX_DIMENSIONS + 1]]
    sound = 0 < len(numbers) <= MAX_DIMENSIONS and all(math.isfinite(number) for number in numbers)
    return {"vector": numbers} if sound else None


def _facts(output: Output) -> dict[str, Any]:
    """What the provider says about the output, where JSON and PostgreSQL can hold it."""
    if not output.facts:
        return {}
    try:
        encoded = orjson.dumps(dict(output.facts))
    except TypeError:  # not JSON: dates pass, numbers of a library and half characters do not
        return {}
    if len(encoded) > MAX_FACTS_BYTES or b"\\u0000" in encoded:
        return {}
    return {"facts": orjson.loads(encoded)}


async def _image(path: str, output: Output, store: ObjectStore, pool: CpuPool) -> dict[str, Any] | None:
    try:
        encoded = await _reencode(output.data or b"", pool)
    except (ImageRejected, CpuError):
        return None
    key = f"{path}.{EXTENSIONS[encoded.media_type]}"
    await _put(store, key, encoded)
    return {
        "key": key,
        "media_type": encoded.media_type,
        "width": encoded.width,
        "height": encoded.height,
        "bytes": len(encoded.data),
        "sha256": encoded.sha256,
    }


async def _reencode(data: bytes, pool: CpuPool) -> Encoded:
    try:
        encoded: Encoded = await pool.run("limner.media.images:reencode", data)
    except CpuCrashed:  # somebody killed the child: not the picture's fault until it happens again
        encoded = await pool.run("limner.media.images:reencode", data)
    return encoded


async def _put(store: ObjectStore, key: str, encoded: Encoded) -> None:
    for pause_s in PUT_PAUSES_S:
        try:
            await store.put(key, encoded.data, encoded.media_type)
        except StoreUnavailable as error:
            log.warning("store.retried", key=key, error=str(error))
            await asyncio.sleep(pause_s)
        else:
            return
    await store.put(key, encoded.data, encoded.media_type)
