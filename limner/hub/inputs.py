"""Input images, and recordings (hub.audio_inputs), described in the job's record: data URIs are taken out of the request, measured and
decoded once; `upload:<id>` is what was uploaded before, as limner keeps it; an https URL is read strictly, and fetched when the job is
worked on (hub.imports).
"""

import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from limner.db.pools import Database
from limner.egress.answers import DestinationNotAllowed
from limner.egress.destinations import Destinations
from limner.hub import audio_inputs
from limner.hub.providers.base import Blob
from limner.kit import ids
from limner.kit.cpu import CpuError, CpuPool
from limner.media import sniffing, uploads
from limner.media.audio import Recordings
from limner.media.sniffing import ImageLimits, ImageRejected
from limner.media.store import ObjectMissing, ObjectStore, StoreUnavailable
from limner.media.uploads import Upload
from limner.web.caller import Caller
from limner.web.errors import ApiError, invalid

UPLOAD = "upload:"
DATA_URI = re.compile(r"data:(image/[a-z+.-]{1,40});base64,", re.ASCII)
FIELDS = ("images", "mask", audio_inputs.FIELD)


class ImageInputs:
    """Takes pictures and recordings out of requests."""

    def __init__(
        self, db: Database, store: ObjectStore, pool: CpuPool, destinations: Destinations, limits: ImageLimits,
        recordings: Recordings,
    ) -> None:  # fmt: skip
        self._db = db
        self._destinations = destinations
        self._store = store
        self._pool = pool
        self._limits = limits
        self.recordings = recordings

    async def take(
        self, caller: Caller, parsed: dict[str, Any], files: Mapping[str, bytes]
    ) -> tuple[dict[str, Any], list[tuple[str, Blob]]]:
        """The input with each image, and the recording, replaced by its description, or its URL, and those that came by name
        (image_0 …, mask, audio).

        `files`: what came beside it by the text that stands for each in the input.

        Raises ApiError 400: `destination_not_allowed`, `unreadable_image`, `unsupported_media`, `image_too_large`,
        `mask_size_mismatch`, `audio_too_large`, `audio_too_long`, `upload_not_found`, `upload_not_ready`; 503 where the store
        does not answer.
        """
        recorded = dict(parsed)
        blobs: list[tuple[str, Blob]] = []
        if isinstance(text := parsed.get(audio_inputs.FIELD), str):
            if self._is_url(text, audio_inputs.AT):
                recorded[audio_inputs.FIELD] = {"url": text}
            else:
                recording = await self._take_recording(caller, text, files)
                blobs.append((audio_inputs.FIELD, recording))
                recorded[audio_inputs.FIELD] = audio_inputs.described(recording)
        if isinstance(images := parsed.get("images"), list):
            recorded["images"] = []
            for index, text in enumerate(images):
                if self._is_url(text, at := f"/input/images/{index}"):
                    recorded["images"].append({"url": text})
                    continue
                blob = await self._take_one(caller, text, at, files)
                blobs.append((f"image_{index}", blob))
                recorded["images"].append(_described(blob))
        if isinstance(mask := parsed.get("mask"), str):
            if self._is_url(mask, "/input/mask"):
                return recorded | {"mask": {"url": mask}}, blobs
            blob = await self._take_one(caller, mask, "/input/mask", files)
            if blob.media_type != "image/png":
                raise invalid(
                    {"/input/mask": ["must be a PNG whose transparent parts are to be edited"]}, "unsupported_media"
                )
            _fits(blob, dict(blobs).get("image_0"))
            blobs.append(("mask", blob))
            recorded["mask"] = _described(blob)
        return recorded, blobs

    def _is_url(self, text: Any, at: str) -> bool:
        """Raises ApiError 400 for one that nothing is ever fetched from."""
        if not isinstance(text, str) or not text[:8].lower().startswith(("http://", "https://")):
            return False
        try:
            self._destinations.check(text)
        except DestinationNotAllowed as error:
            raise invalid({at: [str(error)]}, error.code, "Nothing is fetched from this URL.") from None
        return True

    async def _take_one(self, caller: Caller, text: str, at: str, files: Mapping[str, bytes]) -> Blob:
        if isinstance(text, str) and text.startswith(UPLOAD):
            return await self._read(*await self._uploaded(caller, text, at, "image"), at)
        data = files.get(text) if isinstance(text, str) else None
        return await _measured(_decode(text, at, self._limits) if data is None else data, at, self._limits, self._pool)

    async def _take_recording(self, caller: Caller, text: str, files: Mapping[str, bytes]) -> Blob:
        if not text.startswith(UPLOAD):
            return await audio_inputs.take(text, files.get(text), self.recordings)
        upload, key = await self._uploaded(caller, text, audio_inputs.AT, "audio")
        assert upload.media_type is not None
        if (upload.duration_ms or 0) > self.recordings.limits.max_s * 1000:
            words = f"lasts longer than {self.recordings.limits.max_s} s"
            raise invalid({audio_inputs.AT: [words]}, "audio_too_long", "The recording cannot be used.")
        data = await self._bytes(key, audio_inputs.AT)
        return Blob(upload.media_type, data, 0, 0, upload.duration_ms or 0)

    async def _uploaded(self, caller: Caller, text: str, at: str, kind: str) -> tuple[Upload, str]:
        """Its own upload of the user's, or the app's: what is absent and what is somebody else's is the same 400."""
        upload_id = ids.parse(text.removeprefix(UPLOAD))
        missing = invalid({at: ["is no upload of yours"]}, "upload_not_found", "There is no such upload.")
        if upload_id is None:
            raise missing
        try:
            async with self._db.tenant_tx(caller.org_id) as tx:
                upload = await uploads.get_usable(tx, caller.app_id, upload_id, caller.external_id)
        except uploads.UploadNotFound:
            raise missing from None
        if upload.object_key is None or upload.state != "ready":
            raise invalid({at: [f"is {upload.state}"]}, "upload_not_ready", "The upload is not ready.")
        if upload.kind != kind:
            is_one = "a recording" if upload.kind == "audio" else "a picture"
            raise invalid({at: [f"is {is_one}"]}, "unsupported_media", "The upload is of another kind.")
        return upload, upload.object_key

    async def _read(self, upload: Upload, object_key: str, at: str) -> Blob:
        assert upload.width is not None
        assert upload.height is not None
        assert upload.media_type is not None
        limits = self._limits
        if upload.width * upload.height > limits.max_pixels or max(upload.width, upload.height) > limits.max_side:
            raise _too_large(at, f"is {upload.width} × {upload.height} pixels", limits)
        return Blob(upload.media_type, await self._bytes(object_key, at), upload.width, upload.height)

    async def _bytes(self, object_key: str, at: str) -> bytes:
        try:
            return await self._store.read(object_key)
        except ObjectMissing:  # deleted a moment ago
            raise invalid({at: ["is no upload of yours"]}, "upload_not_found", "There is no such upload.") from None
        except StoreUnavailable:
            raise ApiError(503, "unavailable", "The store does not answer.", headers={"retry-after": "2"}) from None


def _described(blob: Blob) -> dict[str, Any]:
    return {
        "type": blob.media_type,
        "width": blob.width,
        "height": blob.height,
        "bytes": len(blob.data),
        "sha256": hashlib.sha256(blob.data).hexdigest(),
    }


def _fits(mask: Blob, picture: Blob | None) -> None:
    """Raises ApiError 400 for a mask of another size than the picture that came with it."""
    if picture is not None and (mask.width, mask.height) != (picture.width, picture.height):
        words = f"is {mask.width} × {mask.height} pixels, the picture {picture.width} × {picture.height}"
        raise invalid({"/input/mask": [words]}, "mask_size_mismatch", "The mask must be of the picture's size.")


async def _measured(data: bytes, at: str, limits: ImageLimits, pool: CpuPool) -> Blob:
    if sniffing.sniff(data) is None:
        raise invalid({at: [sniffing.unsupported(data).message]}, "unsupported_media", "Unsupported image.")
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
        raise invalid(
            {at: ["must be a data URI (data:image/png;base64,…), upload:<id> or an https URL"]}, "unreadable_image"
        )
    match = DATA_URI.match(text)
    if match is None:
        raise invalid(
            {at: ["must be a data URI (data:image/png;base64,…), upload:<id> or an https URL"]}, "unreadable_image"
        )
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
