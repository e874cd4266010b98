"""What a provider returned, made into limner's own: decoded, re-encoded, stored under a key that carries the fence."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from limner.hub.providers.base import Output
from limner.hub.runs import Lease
from limner.kit.cpu import CpuError, CpuPool
from limner.media.sniffing import ImageRejected
from limner.media.store import ObjectStore

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
MAX_TEXT_CHARS = 1_000_000


def prefix(org_id: UUID, job_id: UUID) -> str:
    """Where all runs of a job keep their objects."""
    return f"outputs/{org_id}/{job_id}/"


async def keep(lease: Lease, outputs: Sequence[Output], store: ObjectStore, pool: CpuPool) -> list[dict[str, Any]]:
    """Store every valid output and describe it; what cannot be decoded is left out (and so not charged)."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output.type == "text":
            described = _text(output)
        else:
            described = await _image(lease, output, store, pool)
        if described is not None:
            kept.append(described | {"index": len(kept), "type": output.type})
    return kept


def _text(output: Output) -> dict[str, Any] | None:
    text = (output.text or "").replace("\0", "")
    if not text.strip():
        return None
    described: dict[str, Any] = {"text": text[:MAX_TEXT_CHARS]}
    return described | ({"facts": dict(output.facts)} if output.facts else {})


async def _image(lease: Lease, output: Output, store: ObjectStore, pool: CpuPool) -> dict[str, Any] | None:
    try:
        encoded = await pool.run("limner.media.images:reencode", output.data or b"")
    except (ImageRejected, CpuError):
        return None
    name = f"{output.index}.{EXTENSIONS[encoded.media_type]}"
    key = f"{prefix(lease.org_id, lease.job_id)}{lease.fence}/{name}"
    await store.put(key, encoded.data, encoded.media_type)
    described: dict[str, Any] = {
        "key": key,
        "media_type": encoded.media_type,
        "width": encoded.width,
        "height": encoded.height,
        "bytes": len(encoded.data),
        "sha256": encoded.sha256,
    }
    return described | ({"facts": dict(output.facts)} if output.facts else {})
